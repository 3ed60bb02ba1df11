"""The seven steps on toys: what they write, and what they refuse."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toys
from safetensors.torch import save_file
from sklearn.metrics import normalized_mutual_info_score
from toys import COMPUTE, ToyRun, contents

from vitdc import artifacts, steps
from vitdc.artifacts import (
    SPLITS,
    Checkpoint,
    Clustering,
    Dataset,
    Embeddings,
    Evaluation,
    Round,
    SplitEmbeddings,
    writing,
)
from vitdc.config import DataConfig, ModelConfig, PretrainingConfig, SelfSupervisedConfig
from vitdc.errors import InputError, TrainingError
from vitdc.model import load_model
from vitdc.quick_timm import timm

Arguments = dict[str, Any]


def arguments(step: str, run: ToyRun) -> Arguments:
    """The arguments that belong to the second half of round 1 of a finished run."""
    shared: Arguments = {"dataset": run.dataset, "compute": COMPUTE, "seed": 0}
    before, here, after = (run.paths(number) for number in (0, 1, 2))
    return {
        "pretrain": {**shared, "model": toys.MODEL, "pretraining": toys.PRETRAINING},
        "embed": {
            "dataset": run.dataset,
            "compute": COMPUTE,
            "checkpoint": here.checkpoint,
        },
        "cluster": {
            **shared,
            "embeddings": here.embeddings,
            "previous": before.clustering,
            "clustering": toys.CLUSTERING,
        },
        "retrain": {
            **shared,
            "checkpoint": here.checkpoint,
            "clustering": here.clustering,
            "joint": toys.JOINT,
        },
        "check": {
            "embeddings": after.embeddings,
            "clustering": here.clustering,
            "previous": run.round(1),
            "joint": toys.JOINT,
            "convergence": toys.CONVERGENCE,
        },
        "evaluate": {
            **shared,
            "initial": before,
            "previous": here,
            "last": after,
            "round": run.round(2),
            "evaluation": toys.EVALUATION,
        },
    }[step]


def made_by_refine(run: ToyRun) -> dict[str, Path]:
    """What the loop wrote for the same arguments."""
    return {
        "pretrain": run.pretrained,
        "embed": run.paths(1).embeddings,
        "cluster": run.paths(1).clustering,
        "retrain": run.paths(2).checkpoint,
        "check": run.round(2),
        "evaluate": run.results,
    }


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Dataset of the same classes and shape, but of fewer images."""
    return toys.write_toy_dataset(tmp_path_factory.mktemp("other") / "d", num_train=30, num_test=9)


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("unlabelled") / "dataset"
    return toys.write_toy_dataset(path, unlabelled=42)


# --- what they write ---------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["pretrain", "embed", "cluster", "retrain", "check", "evaluate"])
def test_a_step_called_by_hand_writes_what_the_loop_wrote_and_changes_no_input(
    toy_run: ToyRun, tmp_path: Path, step: str
) -> None:
    before = contents(toy_run.dataset) | contents(toy_run.rounds)
    getattr(steps, step)(**arguments(step, toy_run), output=tmp_path / "out")
    assert contents(toy_run.dataset) | contents(toy_run.rounds) == before
    found, expected = contents(tmp_path / "out"), contents(made_by_refine(toy_run)[step])
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []


def test_prepare_writes_a_dataset_and_returns_it(tmp_path: Path) -> None:
    data = DataConfig(source="digits", max_train=30, max_test=10)
    found = steps.prepare(data=data, output=tmp_path / "digits")
    assert (len(found.train), len(found.test)) == (30, 10)
    assert Dataset.load(tmp_path / "digits").content_hash == found.content_hash


def test_embeddings_are_the_models_own(toy_run: ToyRun) -> None:
    embeddings = Embeddings.load(toy_run.paths(1).embeddings)
    dataset = Dataset.load(toy_run.dataset)
    model = load_model(Checkpoint.load(toy_run.paths(1).checkpoint))
    for name in SPLITS:
        images = torch.from_numpy(dataset.split(name).images / 255).permute(0, 3, 1, 2).float()
        with torch.no_grad():
            expected, logits = model(images)
        found = embeddings.split(name)
        np.testing.assert_allclose(found.embedding, expected, atol=1e-6)
        np.testing.assert_array_equal(found.predicted, logits.argmax(dim=1))


def test_clusters_are_the_nearest_centroids_in_both_splits(toy_run: ToyRun) -> None:
    embeddings = Embeddings.load(toy_run.paths(2).embeddings)
    clustering = Clustering.load(toy_run.paths(2).clustering)
    labels = Dataset.load(toy_run.dataset)
    for name in SPLITS:
        points = embeddings.split(name).embedding.astype(np.float64)
        distance = np.linalg.norm(points[:, None] - clustering.centroids[None], axis=2)
        found = clustering.split(name)
        np.testing.assert_array_equal(found.assignment, distance.argmin(axis=1))
        np.testing.assert_allclose(found.distance, distance.min(axis=1), rtol=1e-4, atol=1e-6)
        nmi = normalized_mutual_info_score(labels.split(name).labels, found.assignment)
        assert getattr(clustering.scores, name).nmi == pytest.approx(nmi)
    own = np.square(clustering.train.distance, dtype=np.float64).mean()
    assert clustering.scores.inertia == pytest.approx(own)
    assert clustering.scores.num_empty == 0


def test_changed_is_the_share_of_images_that_changed_cluster(toy_run: ToyRun) -> None:
    before, after = (Clustering.load(toy_run.paths(number).clustering) for number in (0, 1))
    moved = (before.train.assignment != after.train.assignment).mean()
    assert before.scores.changed is None
    assert after.scores.changed == pytest.approx(moved)


def cluster_after(run: ToyRun, path: Path, **changes: Any) -> tuple[Clustering, Clustering]:
    """One Lloyd iteration in round 1 after a changed Clustering of round 0."""
    before = replace(Clustering.load(run.paths(0).clustering), **changes)
    before.save(path / "before", {"step": "test"})
    once = toys.CLUSTERING.model_copy(update={"num_iterations": 1})
    given = {**arguments("cluster", run), "previous": path / "before", "clustering": once}
    return before, steps.cluster(**given, output=path / "after")


def test_k_means_starts_from_the_centroids_of_the_round_before(
    toy_run: ToyRun, tmp_path: Path
) -> None:
    points = Embeddings.load(toy_run.paths(1).embeddings).train.embedding
    start = np.ascontiguousarray(points[[0, 3, 7]])  # a poor start, which one iteration keeps
    distance = np.linalg.norm(points[:, None].astype(np.float64) - start[None], axis=2)
    nearest = distance.argmin(axis=1)
    expected = np.stack([points[nearest == cluster].mean(axis=0) for cluster in range(3)])
    _, after = cluster_after(toy_run, tmp_path, centroids=start)
    found = after.centroids[np.lexsort(after.centroids.T)]
    np.testing.assert_allclose(found, expected[np.lexsort(expected.T)], atol=1e-5)


def test_cluster_ids_follow_the_images_of_the_round_before(toy_run: ToyRun, tmp_path: Path) -> None:
    original = Clustering.load(toy_run.paths(0).clustering)
    renamed = np.array([1, 2, 0])[original.train.assignment]
    train = replace(original.train, assignment=renamed)  # the centroids keep their order
    before, after = cluster_after(toy_run, tmp_path, train=train)
    kept = (before.train.assignment == after.train.assignment).mean()
    assert kept > 0.5
    assert after.scores.changed == pytest.approx(1 - kept)


@pytest.mark.parametrize("number", [1, 2])
def test_l_equals_eq_8_recomputed_from_the_artifacts_in_float64(
    toy_run: ToyRun, number: int
) -> None:
    embeddings = Embeddings.load(toy_run.paths(number).embeddings).train
    frozen = Clustering.load(toy_run.paths(number - 1).clustering)
    own = frozen.centroids[frozen.train.assignment].astype(np.float64)
    clustering = ((embeddings.embedding.astype(np.float64) - own) ** 2).sum(axis=1).mean()
    cross_entropy = embeddings.cross_entropy.astype(np.float64).mean()
    row = Round.load(toy_run.round(number)).current
    assert row.clustering_loss == pytest.approx(clustering, rel=1e-9)
    assert row.cross_entropy == pytest.approx(cross_entropy, rel=1e-9)
    assert row.loss == pytest.approx(cross_entropy + toys.JOINT.gamma * clustering, rel=1e-9)


@pytest.mark.parametrize("number", [1, 2])
def test_l_equals_eq_8_of_a_forward_pass_with_the_checkpoint(toy_run: ToyRun, number: int) -> None:
    dataset = Dataset.load(toy_run.dataset).train
    frozen = Clustering.load(toy_run.paths(number - 1).clustering)
    model = load_model(Checkpoint.load(toy_run.paths(number).checkpoint))
    images = torch.from_numpy(dataset.images / 255).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        embedding, logits = (part.double().numpy() for part in model(images))
    chosen = logits[np.arange(len(logits)), dataset.labels]
    cross_entropy = (np.log(np.exp(logits).sum(axis=1)) - chosen).mean()
    own = frozen.centroids[frozen.train.assignment]
    clustering = ((embedding - own) ** 2).sum(axis=1).mean()
    row = Round.load(toy_run.round(number)).current
    assert row.loss == pytest.approx(cross_entropy + toys.JOINT.gamma * clustering, rel=1e-5)


def test_l_counts_known_labels_only(tmp_path: Path) -> None:
    dataset = toys.write_toy_dataset(tmp_path / "dataset", unlabelled=20)
    shared: Arguments = {"dataset": dataset, "compute": COMPUTE}
    steps.pretrain(
        **shared,
        model=toys.MODEL,
        pretraining=toys.PRETRAINING.model_copy(update={"objective": "supervised"}),
        seed=0,
        output=tmp_path / "checkpoint",
    )
    found = steps.embed(
        **shared, checkpoint=tmp_path / "checkpoint", output=tmp_path / "embeddings"
    )
    assert np.isnan(found.train.cross_entropy[:20]).all()
    assert np.isfinite(found.train.cross_entropy[20:]).all()


def test_pretraining_without_epochs_needs_no_labels(unlabelled: Path, tmp_path: Path) -> None:
    pretraining = PretrainingConfig(self_supervised=SelfSupervisedConfig(epochs=0))
    found = steps.pretrain(
        dataset=unlabelled,
        model=toys.MODEL,
        pretraining=pretraining,
        compute=COMPUTE,
        seed=0,
        output=tmp_path / "checkpoint",
    )
    assert found.history == []


def test_scores_are_none_where_no_label_is_known(
    toy_run: ToyRun, unlabelled: Path, tmp_path: Path
) -> None:
    given = {**arguments("cluster", toy_run), "dataset": unlabelled}
    found = steps.cluster(**given, output=tmp_path / "clustering")
    assert found.scores.train == (None, None, None, 0)
    assert found.scores.test.nmi is not None


def test_scratch_is_cleared_when_the_checkpoint_is_written(toy_run: ToyRun, tmp_path: Path) -> None:
    given = arguments("retrain", toy_run)
    steps.retrain(**given, output=tmp_path / "out", scratch=tmp_path / "scratch")
    assert list((tmp_path / "scratch").iterdir()) == []
    assert contents(tmp_path / "out") == contents(toy_run.paths(2).checkpoint)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"joint": toys.JOINT.model_copy(update={"gamma": 0.25})},
        {"compute": COMPUTE.model_copy(update={"num_threads": 2})},
    ],
    ids=lambda change: next(iter(change)),
)
def test_work_with_other_arguments_has_its_own_scratch(change: Arguments) -> None:
    values: Arguments = {"seed": 0, "joint": toys.JOINT, "compute": COMPUTE}
    keys = set()
    for given in (values, {**values, **change}):
        made_by = steps._made_by(
            "retrain", [], given["joint"], given["compute"], seed=given["seed"]
        )
        keys.add(steps.scratch_key(made_by))
    assert len(keys) == 2


# --- what they refuse --------------------------------------------------------------------------

Mistake = Callable[[ToyRun], Arguments]


@pytest.mark.parametrize(
    ("step", "mistake"),
    [
        ("embed", lambda run: {"checkpoint": run.dataset}),
        ("embed", lambda run: {"checkpoint": run.rounds / "07"}),
        ("cluster", lambda run: {"previous": run.paths(1).clustering}),
        ("cluster", lambda run: {"previous": run.paths(2).clustering}),
        ("cluster", lambda run: {"previous": None}),
        ("retrain", lambda run: {"clustering": run.paths(0).clustering}),
        ("retrain", lambda run: {"clustering": run.paths(2).clustering}),
        ("retrain", lambda run: {"checkpoint": run.paths(2).checkpoint}),
        ("check", lambda run: {"clustering": run.paths(0).clustering}),
        ("check", lambda run: {"clustering": run.paths(2).clustering}),
        ("check", lambda run: {"embeddings": run.paths(1).embeddings}),
        ("check", lambda run: {"previous": run.round(2)}),
        ("check", lambda run: {"previous": None}),
        ("evaluate", lambda run: {"last": run.paths(1)}),
        ("evaluate", lambda run: {"initial": run.paths(1)}),
        ("evaluate", lambda run: {"previous": run.paths(0)}),
        ("evaluate", lambda run: {"round": run.round(1)}),
    ],
)
def test_mixed_up_directories_are_refused(
    toy_run: ToyRun, tmp_path: Path, step: str, mistake: Mistake
) -> None:
    given = {**arguments(step, toy_run), **mistake(toy_run)}
    with pytest.raises(InputError):
        getattr(steps, step)(**given, output=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", ["cluster", "retrain", "evaluate"])
def test_artifacts_of_another_data_set_are_refused(
    toy_run: ToyRun, stranger: Path, tmp_path: Path, step: str
) -> None:
    given = {**arguments(step, toy_run), "dataset": stranger}
    with pytest.raises(InputError, match="30 training and 9 test images"):
        getattr(steps, step)(**given, output=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_images_of_another_shape_are_refused(toy_run: ToyRun, tmp_path: Path) -> None:
    wide = toys.write_toy_dataset(tmp_path / "wide", side=16)
    with pytest.raises(InputError, match="train again on this data set"):
        steps.embed(
            dataset=wide,
            checkpoint=toy_run.pretrained,
            compute=COMPUTE,
            output=tmp_path / "out",
        )


def test_another_number_of_clusters_than_the_round_before_is_refused(
    toy_run: ToyRun, tmp_path: Path
) -> None:
    four = toys.CLUSTERING.model_copy(update={"num_clusters": 4})
    with pytest.raises(InputError, match=r"clustering\.num_clusters"):
        steps.cluster(
            **{**arguments("cluster", toy_run), "clustering": four}, output=tmp_path / "out"
        )


def test_more_clusters_than_images_are_refused(toy_run: ToyRun, tmp_path: Path) -> None:
    many = toys.CLUSTERING.model_copy(update={"num_clusters": 43})
    given = {
        **arguments("cluster", toy_run),
        "embeddings": toy_run.paths(0).embeddings,
        "previous": None,
        "clustering": many,
    }
    with pytest.raises(InputError, match="at most 42 are possible"):
        steps.cluster(**given, output=tmp_path / "out")


def test_supervised_pretraining_asks_for_labels(
    toy_run: ToyRun, unlabelled: Path, tmp_path: Path
) -> None:
    supervised = toys.PRETRAINING.model_copy(update={"objective": "supervised"})
    given = {**arguments("pretrain", toy_run), "dataset": unlabelled, "pretraining": supervised}
    with pytest.raises(InputError, match="no label may be trained on"):
        steps.pretrain(**given, output=tmp_path / "out")


def broken_embeddings(run: ToyRun, path: Path) -> Path:
    """Embeddings of round 2 in which one number is not finite."""
    original = Embeddings.load(run.paths(2).embeddings)
    with writing(path, Embeddings.kind, {"step": "test"}) as writer:
        writer.metadata = {"round": 2}
        for name in SPLITS:
            source = original.split(name)
            count, dim = source.embedding.shape
            out = SplitEmbeddings.create(writer, name, count, dim)
            out.embedding[:], out.predicted[:] = source.embedding, source.predicted
            out.cross_entropy[:] = source.cross_entropy
            out.embedding[0, 0] = np.nan
    return path


@pytest.mark.parametrize("step", ["cluster", "check"])
def test_embeddings_that_are_not_finite_stop_the_run(
    toy_run: ToyRun, tmp_path: Path, step: str
) -> None:
    broken = broken_embeddings(toy_run, tmp_path / "broken")
    given = {**arguments(step, toy_run), "embeddings": broken}
    if step == "cluster":
        given["previous"] = toy_run.paths(1).clustering
    with pytest.raises(TrainingError, match="not finite"):
        getattr(steps, step)(**given, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- evaluation --------------------------------------------------------------------------------


def test_evaluation_reads_back_as_it_was_returned(toy_run: ToyRun) -> None:
    found = Evaluation.load(toy_run.results)
    assert found.path == toy_run.results
    assert [row.round for row in found.rows] == [0, 1, 2]


# --- imports -----------------------------------------------------------------------------------


def test_check_starts_without_torch(toy_run: ToyRun, tmp_path: Path) -> None:
    given = arguments("check", toy_run)
    options = [
        argument
        for name in ("embeddings", "clustering", "previous")
        for argument in (f"--{name}", str(given[name]))
    ]
    params = tmp_path / "params.yaml"
    params.write_text("joint: {gamma: 0.5}\nconvergence: {epsilon: 0, max_rounds: 2}")
    script = (
        "import sys\nfrom vitdc.cli import cli\n"
        "cli.main(sys.argv[1:], standalone_mode=False)\n"
        "print(sorted({'torch', 'timm', 'faiss', 'mlflow', 'sklearn'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", script, "check", *options]
    command += ["--params", str(params), "--output", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert Round.load(tmp_path / "out").rows == Round.load(toy_run.round(2)).rows


def test_other_weights_at_the_same_path_are_another_origin(
    toy_dataset: Path, tmp_path: Path
) -> None:
    weights, digests = tmp_path / "weights.safetensors", []
    for seed in (1, 2):
        torch.manual_seed(seed)
        save_file(timm.create_model("test_vit").state_dict(), weights)
        steps.pretrain(
            dataset=toy_dataset,
            model=ModelConfig(name="test_vit", image_size=32, pretrained=str(weights)),
            pretraining=toys.PRETRAINING.model_copy(update={"epochs": 0}),
            compute=toys.COMPUTE,
            seed=0,
            output=tmp_path / "pretrained",
        )
        digests.append(artifacts.made_by(tmp_path / "pretrained")["pretrained_sha256"])
    assert digests[0] != digests[1]


def test_evaluate_keeps_to_its_threads_in_a_process_of_its_own_and_needs_no_torch(
    toy_run: ToyRun, tmp_path: Path
) -> None:
    """Kubeflow and DVC evaluate in a process of its own, `vitdc run` in one that has trained."""
    program = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
import toys
from vitdc import evaluation, loop, steps

report_data = evaluation.report_data

def watched(*args, **kwargs):
    found = report_data(*args, **kwargs)
    from threadpoolctl import threadpool_info
    print("threads", sorted({{each["num_threads"] for each in threadpool_info()}}))
    return found

evaluation.report_data = watched
rounds = Path({str(toy_run.rounds)!r})
steps.evaluate(
    dataset=Path({str(toy_run.dataset)!r}),
    **loop.round_arguments(loop.round_directories(rounds)),
    evaluation=toys.EVALUATION,
    compute=toys.COMPUTE,
    seed=0,
    output=Path({str(tmp_path / "results")!r}),
)
assert "torch" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "threads [1]\n" in done.stdout
    assert contents(tmp_path / "results") == contents(toy_run.results)
