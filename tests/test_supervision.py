"""The method with all, some and no labels: what is trained, what l is, what may not be asked."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toys
import yaml
from safetensors.torch import save_file
from torch.nn import functional
from toys import COMPUTE, ToyRun, contents

from vitdc import loop, steps
from vitdc.artifacts import (
    SPLITS,
    Checkpoint,
    Clustering,
    Dataset,
    Embeddings,
    Evaluation,
    Round,
    Supervision,
)
from vitdc.config import ModelConfig
from vitdc.errors import InputError
from vitdc.model import load_model
from vitdc.quick_timm import timm
from vitdc.seeding import seeded

NUM_CLUSTERS = 4  # one more than there are classes


@pytest.fixture(scope="module", params=["partial", "none"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ToyRun:
    """Two rounds on toy images, whose labels all score; only to be read."""
    known = {"partial": 12, "none": 0}[request.param]
    return whole_run(tmp_path_factory.mktemp(request.param), num_known=known)


def whole_run(directory: Path, *, num_known: int, **changes: Any) -> ToyRun:
    dataset = toys.write_toy_dataset(directory / "dataset", num_known=num_known)
    return toys.make_toy_run(
        dataset,
        directory,
        pretraining=toys.PRETRAINING.model_copy(update=changes),
        clustering=toys.CLUSTERING.model_copy(update={"num_clusters": NUM_CLUSTERS}),
    )


def test_targets_are_known_labels_and_confident_clusters(run: ToyRun) -> None:
    dataset = Dataset.load(run.dataset)
    for number in (1, 2):
        checkpoint = Checkpoint.load(run.paths(number).checkpoint)
        before = Clustering.load(run.paths(number - 1).clustering).train
        assert checkpoint.targets is not None
        assert checkpoint.supervision == dataset.supervision
        known, targets = dataset.known, checkpoint.targets
        np.testing.assert_array_equal(targets[known], dataset.train.labels[known])
        chosen = ~known & (targets >= 0)
        np.testing.assert_array_equal(targets[chosen], before.assignment[chosen])
        share = chosen.sum() / (~known).sum()
        if dataset.supervision == "none":  # clusters of a manifold, which are trained on as a whole
            assert share == 1
        else:
            assert 0.5 <= share < 0.7


def test_l_is_the_loss_over_the_targets_of_the_round(run: ToyRun) -> None:
    for number in (1, 2):
        checkpoint = Checkpoint.load(run.paths(number).checkpoint)
        frozen = Clustering.load(run.paths(number - 1).clustering)
        images = torch.from_numpy(Dataset.load(run.dataset).train.images / 255)
        with torch.no_grad():
            embedding, logits = load_model(checkpoint)(images.permute(0, 3, 1, 2).float())
        assert logits.shape == (42, NUM_CLUSTERS)
        targets = torch.from_numpy(np.array(checkpoint.targets))
        cross_entropy = functional.cross_entropy(logits.double(), targets, ignore_index=-1).item()
        own = frozen.centroids[frozen.train.assignment]
        clustering = np.square(embedding.double().numpy() - own).sum(axis=1).mean()
        row = Round.load(run.round(number)).current
        assert row.cross_entropy == pytest.approx(cross_entropy, rel=1e-5)
        assert row.loss == pytest.approx(cross_entropy + toys.JOINT.gamma * clustering, rel=1e-5)


def test_test_images_have_a_cross_entropy_only_if_the_head_knows_classes(run: ToyRun) -> None:
    for number in (0, 2):
        found = Embeddings.load(run.paths(number).embeddings)
        supervision = Dataset.load(run.dataset).supervision
        has_head = number > 0  # self-supervision trains none
        knows_classes = has_head and supervision == "partial"
        assert np.isfinite(found.test.cross_entropy).all() == knows_classes
        assert (found.test.predicted >= 0).all() == has_head


def test_known_images_stay_in_the_cluster_of_their_class(run: ToyRun) -> None:
    dataset = Dataset.load(run.dataset)
    for number in range(3):
        found = Clustering.load(run.paths(number).clustering).train.assignment
        np.testing.assert_array_equal(found[dataset.known], dataset.train.labels[dataset.known])


def test_only_labels_that_were_not_given_score(run: ToyRun) -> None:
    dataset = Dataset.load(run.dataset)
    assert (dataset.scoring_labels("train") >= 0).sum() == 42 - dataset.known.sum()
    assert (dataset.scoring_labels("test") >= 0).all()
    metrics = Evaluation.load(run.results).metrics
    assert all(metrics[split]["nmi"] is not None for split in SPLITS)
    assert metrics["train"]["images"] == 42 - dataset.known.sum()
    assert (metrics["head_accuracy"]["test"] is None) == (dataset.supervision == "none")


def test_the_same_seed_gives_the_same_bytes(run: ToyRun, tmp_path: Path) -> None:
    known = int(Dataset.load(run.dataset).known.sum())
    again = whole_run(tmp_path, num_known=known)
    assert contents(again.rounds) == contents(run.rounds)


@pytest.mark.parametrize(
    ("num_known", "asked", "said"),
    [
        (0, "auto", "pretrain: simclr, because no label may be trained on"),
        (0, "vicreg", "pretrain: vicreg, because pretraining.objective says so"),
        (12, "auto", "pretrain: simclr, because only some labels are known"),
        (12, "supervised", "pretrain: supervised, because pretraining.objective says so"),
        (42, "auto", "pretrain: supervised, because all training images have a label"),
        (42, "simclr", "pretrain: simclr, because pretraining.objective says so"),
    ],
)
def test_the_way_that_is_taken_is_logged_with_its_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, num_known: int, asked: str, said: str
) -> None:
    with caplog.at_level(logging.INFO, logger="vitdc"):
        found = whole_run(tmp_path, num_known=num_known, objective=asked, epochs=1)
    assert said in caplog.text
    supervision: Supervision = Dataset.load(found.dataset).supervision
    assert Checkpoint.load(found.paths(1).checkpoint).supervision == supervision


def test_without_labels_pretrained_weights_are_kept_as_they_are(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = toys.write_toy_dataset(tmp_path / "dataset", num_known=0)
    with seeded(1):
        vit = timm.create_model("test_vit", num_classes=0)
    save_file(vit.state_dict(), tmp_path / "weights.safetensors")
    with caplog.at_level(logging.INFO, logger="vitdc"):
        found = steps.pretrain(
            dataset=dataset,
            model=ModelConfig(name="test_vit", pretrained=str(tmp_path / "weights.safetensors")),
            pretraining=toys.PRETRAINING,
            compute=COMPUTE,
            seed=0,
            output=tmp_path / "pretrained",
        )
    assert "pretrain: nothing to do, because no label may be trained on, and the" in caplog.text
    assert found.history == []
    weights = found.weights()
    for name, tensor in vit.state_dict().items():
        assert torch.equal(weights[f"vit.{name}"], tensor)


def test_partial_labels_need_a_cluster_for_every_class(tmp_path: Path) -> None:
    dataset = toys.write_toy_dataset(tmp_path / "dataset", num_known=12)
    shared: dict[str, Any] = {"dataset": dataset, "compute": COMPUTE, "seed": 0}
    pretrained = tmp_path / "pretrained"
    steps.pretrain(**shared, model=toys.MODEL, pretraining=toys.PRETRAINING, output=pretrained)
    with pytest.raises(InputError, match="2 clusters, but the labels, which are partial, name 3"):
        loop.refine(
            **shared,
            checkpoint=pretrained,
            clustering=toys.CLUSTERING.model_copy(update={"num_clusters": 2}),
            joint=toys.JOINT,
            convergence=toys.CONVERGENCE,
            output=tmp_path / "rounds",
        )


def test_a_model_with_targets_of_its_own_is_embedded_with_its_own_images(
    run: ToyRun, tmp_path: Path
) -> None:
    other = toys.write_toy_dataset(tmp_path / "other", num_train=30)
    with pytest.raises(InputError, match="was trained on 42 images with targets of their own"):
        steps.embed(
            dataset=other,
            checkpoint=run.paths(1).checkpoint,
            compute=COMPUTE,
            output=tmp_path / "out",
        )


@pytest.mark.parametrize("labels", [{"labels": "none"}, {"label_fraction": 0.2}])
def test_vitdc_run_goes_from_digits_without_all_labels_to_a_report(
    vitdc: Callable[..., int], capsys: pytest.CaptureFixture[str], labels: dict[str, Any]
) -> None:
    params = {
        **toys.SMALL_PARAMS,
        "data": {**toys.SMALL_PARAMS["data"], **labels},  # type: ignore[dict-item]
        "clustering": {**toys.SMALL_PARAMS["clustering"], "num_clusters": 10},  # type: ignore[dict-item]
        "tracking": {"enabled": False},
    }
    Path("params.yaml").write_text(yaml.safe_dump(params))
    assert vitdc("run", "--output", "run") == 0
    assert "NMI" in Path("run/results/report.html").read_text(encoding="utf-8")
    assert "stopped: max-rounds" in capsys.readouterr().out


def test_vitdc_run_goes_from_a_flat_folder_to_a_report(
    vitdc: Callable[..., int], write_images: toys.WriteImages, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_images(*(f"{index:02}.png" for index in range(30)))
    data = {"source": "folder", "root": str(folder), "image_size": 8}
    params = {**toys.SMALL_PARAMS, "data": data, "tracking": {"enabled": False}}
    params["clustering"] = {"num_clusters": 3}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    assert vitdc("run", "--output", "run") == 0
    metrics = Evaluation.load(Path("run/results")).metrics
    assert metrics["test"] == {"nmi": None, "ari": None, "acc": None, "images": 0}
    assert "silhouette" in metrics
    html = Path("run/results/report.html").read_text(encoding="utf-8")
    assert "3 <small>clusters</small>" in html
    said = capsys.readouterr().out
    assert "NMI" not in said
    assert "silhouette" in said


@pytest.mark.parametrize(
    ("num_images", "num_clusters", "message"),
    [
        (1, 3, "1 training image: clustering compares images"),
        (6, 5, "5 clusters cannot be made of 4 training images"),
    ],
)
def test_impossible_numbers_of_clusters_are_refused_before_anything_is_trained(
    vitdc: Callable[..., int],
    write_images: toys.WriteImages,
    capsys: pytest.CaptureFixture[str],
    num_images: int,
    num_clusters: int,
    message: str,
) -> None:
    folder = write_images(*(f"{index:02}.png" for index in range(num_images)))
    data = {"source": "folder", "root": str(folder), "image_size": 8, "test_fraction": 0.3}
    params = {**toys.SMALL_PARAMS, "data": data, "tracking": {"enabled": False}}
    params["clustering"] = {"num_clusters": num_clusters}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    assert vitdc("run", "--output", "run") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert message in last
    assert not Path("run/pretrained").exists()


@pytest.mark.parametrize(
    ("num_other", "num_clusters", "said"),
    [
        (0, 2, "note: "),
        (1, 2, "note: Cluster "),
        (0, 1, "note: There is one cluster, so it holds every image"),
    ],
    ids=["identical images", "99 to 1", "one cluster"],
)
def test_odd_images_end_in_a_result_that_names_what_is_odd(
    vitdc: Callable[..., int],
    write_images: toys.WriteImages,
    capsys: pytest.CaptureFixture[str],
    num_other: int,
    num_clusters: int,
    said: str,
) -> None:
    folder = write_images("000.png", *(f"other/{index}.png" for index in range(num_other)))
    for index in range(1, 100 if num_other else 20):
        shutil.copy(folder / "000.png", folder / f"{index:03}.png")
    for path in folder.glob("other/*"):
        path.rename(folder / f"999-{path.name}")
    data = {"source": "folder", "root": str(folder), "image_size": 8, "test_fraction": 0}
    params = {**toys.SMALL_PARAMS, "data": data, "tracking": {"enabled": False}}
    params["clustering"] = {"num_clusters": num_clusters}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    assert vitdc("run", "--output", "run") == 0
    assert said in capsys.readouterr().out
