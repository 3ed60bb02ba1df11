"""Frozen backbones: what training may change, and that images are seen once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import toys
from PIL import Image
from safetensors.torch import load_file, save_file
from toys import COMPUTE, contents, from_call, interrupt

from vitdc import kubeflow, loop, steps, training
from vitdc.artifacts import Checkpoint, Dataset, Embeddings, Round, RoundPaths
from vitdc.config import ConvergenceConfig, DataConfig, JointConfig, ModelConfig, PretrainingConfig
from vitdc.errors import InputError
from vitdc.export import export_model
from vitdc.model import DeepClusteringViT, Top, build_model, load_model
from vitdc.prediction import Predictor
from vitdc.quick_timm import timm

JOINT = JointConfig(epochs=2, batch_size=16, learning_rate=1e-2, gamma=0.5, shift=0.1, mixup=0.2)
TRAINED = {  # the beginnings of the names of all that training may change
    "none": (),
    "head": ("adapter.", "vit.head."),
    "last_2": ("vit.blocks.4.", "vit.blocks.5.", "vit.norm.", "vit.head."),
    "all": ("vit.",),
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    save_file(timm.create_model("test_vit").state_dict(), path)
    return path


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.write_toy_dataset(tmp_path_factory.mktemp("unlabelled") / "d", unlabelled=42)


@pytest.fixture
def model(weights: Path) -> ModelConfig:
    """Six blocks of width 64 on four patches."""
    return ModelConfig(name="test_vit", image_size=32, pretrained=str(weights))


def pretrain(
    dataset: Path,
    model: ModelConfig,
    output: Path,
    *,
    scratch: Path | None = None,
    **pretraining: Any,
) -> Path:
    values = {"epochs": 1, "batch_size": 16, "learning_rate": 1e-2, **pretraining}
    steps.pretrain(
        dataset=dataset,
        model=model,
        pretraining=PretrainingConfig(**values),
        compute=COMPUTE,
        seed=0,
        output=output,
        scratch=scratch,
    )
    return output


def refine(dataset: Path, checkpoint: Path, output: Path, **values: Any) -> Round:
    settings: dict[str, Any] = {
        "clustering": toys.CLUSTERING,
        "joint": JOINT,
        "convergence": ConvergenceConfig(epsilon=0, max_rounds=2),
        "compute": COMPUTE,
        "seed": 0,
    }
    return loop.refine(
        dataset=dataset, checkpoint=checkpoint, output=output, **{**settings, **values}
    )


def changed(before: Path, after: Path) -> set[str]:
    old, new = (Checkpoint.load(path).weights() for path in (before, after))
    assert old.keys() == new.keys()
    return {name for name in old if not torch.equal(old[name], new[name])}


# --- what may change -----------------------------------------------------------------------------


@pytest.mark.parametrize("trainable", TRAINED)
def test_training_changes_exactly_what_it_may(
    toy_dataset: Path, model: ModelConfig, tmp_path: Path, trainable: str
) -> None:
    config = model.model_copy(update={"trainable": trainable})
    before = pretrain(toy_dataset, config, tmp_path / "before", epochs=0)
    after = pretrain(toy_dataset, config, tmp_path / "after")
    assert Checkpoint.load(after).trainable == trainable
    found = changed(before, after)
    assert all(name.startswith(TRAINED[trainable]) for name in found)
    for part in TRAINED[trainable]:
        assert any(name.startswith(part) for name in found), part


@pytest.mark.parametrize(("trainable", "is_default"), [("all", False), ("head", True)])
def test_pretrained_weights_are_frozen_unless_said_otherwise(
    weights: Path, trainable: str, is_default: bool
) -> None:
    fresh, pretrained = ModelConfig(), ModelConfig(pretrained=str(weights))
    found = pretrained if is_default else fresh
    assert found.resolved_trainable == trainable


def test_what_is_frozen_has_no_gradient_no_moments_and_no_place_in_the_state(
    toy_dataset: Path, model: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for trainable, number in (("head", 4), ("last_2", 28)):
        config = model.model_copy(update={"trainable": trainable})
        second = from_call(2, use=interrupt, before=training._permutation)
        with monkeypatch.context() as patch:
            patch.setattr(training, "_permutation", second)
            scratch = tmp_path / trainable
            with pytest.raises(KeyboardInterrupt):
                pretrain(toy_dataset, config, tmp_path / "out", scratch=scratch, epochs=2)
        [state] = (tmp_path / trainable).rglob("state.safetensors")
        names = {name.removeprefix("weights/model.") for name in load_file(state)}
        kept = {name for name in names if not name.startswith("moments/")}
        parts = ("adapter.", "head.", *TRAINED[trainable], "mean", "std")
        assert all(name.startswith(parts) for name in kept)
        moments = {name.split("/")[1] for name in names if name.startswith("moments/")}
        assert len(moments) == number


def test_frozen_parts_stay_in_evaluation_mode(weights: Path) -> None:
    config = ModelConfig(
        name="test_vit", pretrained=str(weights), image_size=32, drop_path=0.5, trainable="last_1"
    )
    model = build_model(config, image_shape=(8, 8, 1), num_outputs=3, mean=(0.5,), std=(0.5,))
    model.train()
    assert [block.training for block in model.vit.blocks] == [*[False] * 5, True]
    assert not model.vit.blocks[3].drop_path1.training
    loss = model(torch.rand(2, 1, 8, 8)).logits.sum()
    loss.backward()
    got = {name for name, each in model.named_parameters() if each.grad is not None}
    assert all(name.startswith(("vit.blocks.5.", "vit.norm.", "vit.head.")) for name in got)


def test_the_adapter_begins_as_the_identity(
    unlabelled: Path, model: ModelConfig, tmp_path: Path
) -> None:
    checkpoint = pretrain(unlabelled, model, tmp_path / "p")
    steps.embed(dataset=unlabelled, checkpoint=checkpoint, compute=COMPUTE, output=tmp_path / "e")
    found = Embeddings.load(tmp_path / "e").train
    assert found.features is not None
    lengths = np.linalg.norm(found.features, axis=1, keepdims=True)
    np.testing.assert_allclose(found.embedding, found.features / lengths, atol=1e-6)


def test_views_of_a_frozen_backbone_are_refused(
    unlabelled: Path, model: ModelConfig, tmp_path: Path
) -> None:
    for objective, trainable, message in (
        ("simclr", "head", "a frozen backbone sees every image once"),
        ("vicreg", "none", "vicreg, but model.trainable is none"),
    ):
        config = model.model_copy(update={"trainable": trainable})
        with pytest.raises(InputError, match=message):
            pretrain(unlabelled, config, tmp_path / "p", objective=objective)


# --- images are seen once ------------------------------------------------------------------------


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images the backbone has seen, batch by batch."""
    batches: list[int] = []
    represent = DeepClusteringViT.represent

    def watched(self: DeepClusteringViT, images: torch.Tensor) -> torch.Tensor:
        batches.append(len(images))
        return represent(self, images)

    monkeypatch.setattr(DeepClusteringViT, "represent", watched)
    return batches


@pytest.mark.parametrize("trainable", ["none", "head"])
def test_the_rounds_run_no_backbone(
    unlabelled: Path, model: ModelConfig, tmp_path: Path, seen: list[int], trainable: str
) -> None:
    config = model.model_copy(update={"trainable": trainable})
    checkpoint = pretrain(unlabelled, config, tmp_path / "p")
    assert seen == []
    history = refine(unlabelled, checkpoint, tmp_path / "rounds")
    assert sum(seen) == 42 + 12
    rounds = [RoundPaths.in_directory(tmp_path / "rounds" / f"0{n}") for n in range(3)]
    assert history.current.round == 2
    sizes = [Embeddings.load(each.embeddings).train.features is not None for each in rounds]
    assert sizes == [True, False, False]
    moved = changed(rounds[1].checkpoint, rounds[2].checkpoint)
    assert moved == (set() if trainable == "none" else {n for n in moved if n[:4] != "vit.b"})
    assert bool(moved) == (trainable == "head")


def test_features_are_only_a_shortcut(
    unlabelled: Path, model: ModelConfig, tmp_path: Path, seen: list[int]
) -> None:
    checkpoint = pretrain(unlabelled, model, tmp_path / "p")
    refine(unlabelled, checkpoint, tmp_path / "rounds")
    before, here = (RoundPaths.in_directory(tmp_path / "rounds" / f"0{n}") for n in (0, 1))
    seen.clear()
    steps.retrain(
        dataset=unlabelled,
        checkpoint=before.checkpoint,
        clustering=before.clustering,
        joint=JOINT,
        compute=COMPUTE,
        seed=0,
        output=tmp_path / "retrained",
    )
    steps.embed(
        dataset=unlabelled,
        checkpoint=here.checkpoint,
        compute=COMPUTE,
        output=tmp_path / "embedded",
    )
    assert sum(seen) == 42 + 54
    assert contents(tmp_path / "retrained") == contents(here.checkpoint)
    ours, loops = contents(tmp_path / "embedded"), contents(here.embeddings)
    for name in loops.keys() - {"artifact.json"}:
        assert ours[name] == loops[name], name


@pytest.mark.parametrize("trainable", ["none", "head"])
def test_the_rounds_hold_a_frozen_backbone_once(
    unlabelled: Path, model: ModelConfig, tmp_path: Path, trainable: str
) -> None:
    checkpoint = pretrain(
        unlabelled, model.model_copy(update={"trainable": trainable}), tmp_path / "p"
    )
    refine(unlabelled, checkpoint, tmp_path / "rounds")
    files = [
        path / "checkpoint" / "backbone.safetensors"
        for path in loop.round_directories(tmp_path / "rounds")
    ]
    assert len(files) > 1
    assert len({file.stat().st_ino for file in (checkpoint / files[0].name, *files)}) == 1
    rest = load_file(files[-1].with_name("model.safetensors"))
    assert not load_file(files[-1]).keys() & rest.keys()


def test_embeddings_that_are_there_are_taken_and_give_the_same_rounds(
    unlabelled: Path, model: ModelConfig, tmp_path: Path, seen: list[int]
) -> None:
    checkpoint = pretrain(unlabelled, model, tmp_path / "p")
    refine(unlabelled, checkpoint, tmp_path / "rounds")
    steps.embed(dataset=unlabelled, checkpoint=checkpoint, compute=COMPUTE, output=tmp_path / "e")
    seen.clear()
    refine(unlabelled, checkpoint, tmp_path / "again", embeddings=tmp_path / "e")
    assert seen == []
    assert contents(tmp_path / "again") == contents(tmp_path / "rounds")


def test_features_of_other_images_or_another_backbone_are_refused(
    unlabelled: Path, toy_dataset: Path, model: ModelConfig, tmp_path: Path, toy_run: toys.ToyRun
) -> None:
    checkpoint = pretrain(unlabelled, model, tmp_path / "p")
    larger = model.model_copy(update={"image_size": 48})
    strangers = {
        "another data set": (toy_dataset, pretrain(toy_dataset, model, tmp_path / "b", epochs=0)),
        "another size": (unlabelled, pretrain(unlabelled, larger, tmp_path / "c")),
    }
    for name, (dataset, other) in strangers.items():
        steps.embed(dataset=dataset, checkpoint=other, compute=COMPUTE, output=tmp_path / name)
        shared: Any = {"dataset": unlabelled, "checkpoint": checkpoint, "compute": COMPUTE}
        with pytest.raises(InputError, match="holds no features of the images in"):
            steps.embed(**shared, features=tmp_path / name, output=tmp_path / "out")
        with pytest.raises(InputError, match="was not made from"):
            refine(unlabelled, checkpoint, tmp_path / "out", embeddings=tmp_path / name)
    with pytest.raises(InputError, match="holds no features"):
        steps.embed(
            dataset=toy_run.dataset,
            checkpoint=toy_run.pretrained,
            features=toy_run.paths(0).embeddings,
            compute=COMPUTE,
            output=tmp_path / "out",
        )


def test_an_interrupted_round_resumes_to_the_same_bytes(
    unlabelled: Path, model: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = pretrain(unlabelled, model, tmp_path / "p")
    refine(unlabelled, checkpoint, tmp_path / "undisturbed")
    fifth = from_call(5, use=interrupt, before=training._step)
    with monkeypatch.context() as patch:
        patch.setattr(training, "_step", fifth)
        with pytest.raises(KeyboardInterrupt):
            refine(unlabelled, checkpoint, tmp_path / "out", scratch=tmp_path / "scratch")
    refine(unlabelled, checkpoint, tmp_path / "out", scratch=tmp_path / "scratch")
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


def test_augmentation_is_off_and_said_to_be(
    unlabelled: Path, model: ModelConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    checkpoint = pretrain(unlabelled, model, tmp_path / "p")
    refine(unlabelled, checkpoint, tmp_path / "rounds")
    assert "training sees its features, so shift, mixup are off" in caplog.text


def test_the_part_above_the_backbone_is_the_models_own(weights: Path) -> None:
    config = ModelConfig(name="test_vit", image_size=32, pretrained=str(weights))
    model = build_model(config, image_shape=(8, 8, 1), num_outputs=3, mean=(0.5,), std=(0.5,))
    top, images = Top(model.eval()), torch.rand(2, 1, 8, 8)
    assert set(top.state_dict()) == {"adapter.weight", "adapter.bias", "head.weight", "head.bias"}
    with torch.no_grad():
        top.adapter.weight.add_(0.1)
        found, expected = top(model.represent(images)), model(images)
    assert torch.equal(found.embedding, expected.embedding)
    assert torch.equal(found.logits, expected.logits)


# --- what comes after ----------------------------------------------------------------------------


def test_labels_train_the_head_and_the_adapter_on_features(
    toy_dataset: Path, model: ModelConfig, tmp_path: Path, seen: list[int]
) -> None:
    checkpoint = pretrain(toy_dataset, model, tmp_path / "p", epochs=20)
    assert sum(seen) == 42
    history = Checkpoint.load(checkpoint).history
    assert history[-1]["cross_entropy"] < 0.2 * history[0]["cross_entropy"]


@pytest.fixture
def results(unlabelled: Path, model: ModelConfig, tmp_path: Path) -> Path:
    """Of a whole run without labels."""
    checkpoint = pretrain(unlabelled, model, tmp_path / "p")
    refine(unlabelled, checkpoint, tmp_path / "rounds")
    steps.evaluate(
        dataset=unlabelled,
        **loop.round_arguments(loop.round_directories(tmp_path / "rounds")),
        evaluation=toys.EVALUATION,
        compute=COMPUTE,
        seed=0,
        output=tmp_path / "results",
    )
    return tmp_path / "results"


def test_images_that_stay_in_their_files_give_the_same_results(
    model: ModelConfig, tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    for index, pixels in enumerate(toys.toy_images(np.arange(30) % 3, side=12)):
        Image.fromarray(pixels[..., 0]).save(tmp_path / "photos" / f"{index:02d}.png")
    metrics, embeddings = [], []
    for keep_decoded in (True, False):
        output = tmp_path / str(keep_decoded)
        values = {"root": str(tmp_path / "photos"), "image_size": 12, "num_workers": 1}
        data = DataConfig(source="folder", keep_decoded=keep_decoded, **values)
        steps.prepare(data=data, output=output / "dataset")
        checkpoint = pretrain(output / "dataset", model, output / "p")
        refine(output / "dataset", checkpoint, output / "rounds")
        rounds = loop.round_directories(output / "rounds")
        found = steps.evaluate(
            dataset=output / "dataset",
            **loop.round_arguments(rounds),
            evaluation=toys.EVALUATION,
            compute=COMPUTE,
            seed=0,
            output=output / "results",
        )
        metrics.append(found.metrics)
        embeddings.append((rounds[-1] / "embeddings" / "train_embedding.npy").read_bytes())
    assert metrics[0] == metrics[1]
    assert embeddings[0] == embeddings[1]


def test_a_frozen_model_predicts_exports_and_is_a_backbone_itself(
    results: Path, unlabelled: Path, tmp_path: Path
) -> None:
    predictor = Predictor.load(results, COMPUTE, unsure_rate=0.1)
    assert predictor.checkpoint.mean == (0.5, 0.5, 0.5)  # the backbone's, not the data's
    images = np.array(Dataset.load(unlabelled).train.images)
    found = predictor.predict(images)
    np.testing.assert_array_equal(found.cluster, predictor.clustering.train.assignment)
    for name in ("safetensors", "pt2"):
        done = export_model(predictor, format=name, output=tmp_path / name, images=images)
        assert done.difference.largest < 1e-4
    export_model(predictor, format="safetensors", output=tmp_path / "random")

    again = build_model(
        ModelConfig(pretrained=str(results)),
        image_shape=(8, 8, 1),
        num_outputs=0,
        mean=(0.1,),
        std=(0.1,),
    ).eval()
    expected = load_model(predictor.checkpoint)
    pixels = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(again(pixels).embedding, expected(pixels).embedding)
    with pytest.raises(InputError, match="was trained with an adapter"):
        build_model(
            ModelConfig(pretrained=str(results), trainable="all"),
            image_shape=(8, 8, 1),
            num_outputs=0,
            mean=(0.1,),
            std=(0.1,),
        )


Vitdc = Callable[..., int]


def test_a_task_of_kubeflow_finds_the_features_in_the_state_of_round_0(
    toy_run: toys.ToyRun, unlabelled: Path, model: ModelConfig, tmp_path: Path
) -> None:
    refine(unlabelled, pretrain(unlabelled, model, tmp_path / "p"), tmp_path / "rounds")
    state = SimpleNamespace(path=str(tmp_path / "rounds" / "00"), metadata={})
    assert kubeflow.features(state) == tmp_path / "rounds" / "00" / "embeddings"
    everything_trained = SimpleNamespace(path=str(toy_run.rounds / "00"), metadata={})
    assert kubeflow.features(everything_trained) is None


def test_the_commands_hand_features_on(
    vitdc: Vitdc, unlabelled: Path, weights: Path, tmp_path: Path, seen: list[int]
) -> None:
    (tmp_path / "params.yaml").write_text(
        f"model: {{name: test_vit, image_size: 32, pretrained: {weights}}}\n"
        "clustering: {num_clusters: 3, num_restarts: 2}\njoint: {epochs: 1, batch_size: 16}\n"
        "convergence: {epsilon: 0, max_rounds: 1}\n"
        "compute: {device: cpu, num_threads: 1}\ntracking: {enabled: false}\n"
    )
    given = ("--dataset", unlabelled)
    assert vitdc("pretrain", *given, "--output", "p") == 0
    assert vitdc("embed", *given, "--checkpoint", "p", "--output", "e") == 0
    assert sum(seen) == 54
    for k in (3, 4):
        refined = ("--checkpoint", "p", "--embeddings", "e", "--output", f"rounds-{k}")
        assert vitdc("refine", *given, *refined, "-S", f"clustering.num_clusters={k}") == 0
    assert sum(seen) == 54
