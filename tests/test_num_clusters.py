"""How many clusters: what two scores say of blobs, and what the step and the command make of it."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toys
from click.testing import CliRunner
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, silhouette_score
from toys import COMPUTE

from vitdc import artifacts, num_clusters, steps
from vitdc.artifacts import Clustering, Evaluation
from vitdc.cli import cli
from vitdc.config import ClusteringConfig, Params
from vitdc.errors import InputError
from vitdc.num_clusters import Trial, judge, suggest

AUTO = ClusteringConfig(num_clusters="auto", k_range=(2, 8), num_restarts=3)


def blobs(num_blobs: int, *, per_blob: int = 30, spread: float = 0.5) -> np.ndarray:
    """(N, 4) float32: round heaps whose centres have a distance of 10."""
    generator = np.random.default_rng(0)
    angle = 2 * np.pi * np.arange(num_blobs) / num_blobs
    radius = 5 / np.sin(np.pi / num_blobs)
    centres = np.stack([radius * np.cos(angle), radius * np.sin(angle), 0 * angle, 0 * angle], 1)
    points = np.repeat(centres, per_blob, axis=0) + generator.normal(
        scale=spread, size=(num_blobs * per_blob, 4)
    )
    return points.astype(np.float32)


# --- the scores --------------------------------------------------------------------------------


@pytest.mark.parametrize("num_blobs", [3, 4, 6])
def test_the_number_of_blobs_is_found(num_blobs: int) -> None:
    found = suggest(blobs(num_blobs), AUTO, seed=0)
    assert found.best.num_clusters == num_blobs
    assert found.smallest < num_blobs < found.largest
    assert str(num_blobs) in str(found)
    assert f"{found.smallest} to {found.largest} clusters are plausible, judging by" in str(found)


def test_the_scores_are_those_of_scikit_learn() -> None:
    points = blobs(3)
    found = suggest(points, AUTO, seed=0).trials[1]
    wide = points.astype(np.float64)
    clusters = KMeans(3, n_init=20, random_state=1).fit_predict(wide)
    assert found.silhouette == pytest.approx(silhouette_score(wide, clusters), abs=1e-5)
    generator = np.random.default_rng(7)
    rows = [np.sort(generator.permutation(90)[:72]) for _ in range(2)]
    both = np.intersect1d(*rows)
    halves = [KMeans(3, n_init=20, random_state=2).fit(wide[each]) for each in rows]
    expected = adjusted_rand_score(*(each.predict(wide[both]) for each in halves))
    assert found.stability == expected == 1
    torn = suggest(points, AUTO, seed=0).trials[-1]
    assert torn.num_clusters == 8
    assert torn.stability < 0.9
    assert torn.silhouette < found.silhouette


def test_the_same_seed_gives_the_same_suggestion() -> None:
    points = np.random.default_rng(0).normal(size=(80, 3)).astype(np.float32)
    assert suggest(points, AUTO, seed=3) == suggest(points, AUTO, seed=3)


def test_many_points_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(num_clusters, "NUM_POINTS", 60)
    found = suggest(blobs(4), AUTO, seed=0)
    assert (found.num_points, found.best.num_clusters) == (60, 4)


def test_known_points_stay_in_their_clusters_and_no_fewer_are_tried_than_classes() -> None:
    points = blobs(3)
    own = np.full(90, -1)
    own[[0, 30, 31, 60]] = 0, 1, 2, 3  # the second blob holds two classes
    found = suggest(points, AUTO, seed=0, own=own, num_classes=4)
    assert [trial.num_clusters for trial in found.trials] == [4, 5, 6, 7, 8]
    assert found.smallest >= 4


def trials(*scores: tuple[float, float]) -> list[Trial]:
    return [Trial(number, *score) for number, score in enumerate(scores, start=2)]


def test_plausible_numbers_are_stable_and_near_the_best_without_a_gap() -> None:
    found = judge(
        trials((0.60, 1), (0.40, 1), (0.59, 1), (0.60, 0.99), (0.61, 1), (0.61, 0.5), (0.6, 1)),
        num_points=9,
    )
    assert found.best.num_clusters == 6
    assert (found.smallest, found.largest) == (4, 8)


def test_a_finer_scale_is_named_where_the_silhouette_rises_once_more() -> None:
    """Silhouette and stability of 60,000 images of Fashion-MNIST, which has ten classes."""
    silhouettes = (0.52, 0.60, 0.58, 0.64, 0.58, 0.55, 0.57, 0.54, 0.55, 0.545, 0.55, 0.54)
    stabilities = (1, 1, 1, 1, 1, 0.93, 0.92, 0.96, 0.98, 0.98, 0.89, 0.81)
    found = judge(trials(*zip(silhouettes, stabilities, strict=True)), num_points=9)
    assert (found.best.num_clusters, found.smallest, found.largest) == (5, 4, 6)
    assert found.finer == (7, 11)
    assert "4 to 6 clusters are plausible, on a finer scale 7 to 11, judging by" in str(found)
    falling = judge(trials((0.5, 1), (0.6, 1), (0.5, 1), (0.4, 1), (0.3, 1)), num_points=9)
    assert falling.finer is None


def test_an_unstable_number_is_not_the_best_unless_all_are() -> None:
    found = judge(trials((0.3, 1), (0.5, 1), (0.9, 0.4)), num_points=9)
    assert found.best.num_clusters == 3
    found = judge(trials((0.3, 0.2), (0.5, 0.3), (0.4, 0.4)), num_points=9)
    assert found.best.num_clusters == 3
    assert "samples do not even agree" in str(found)


@pytest.mark.parametrize("best", [0, 1, 2])
def test_the_answer_is_never_only_a_point(best: int) -> None:
    scores = [(0.1, 1.0)] * 3
    scores[best] = (0.9, 1.0)
    found = judge(trials(*scores), num_points=9)
    assert found.best.num_clusters == best + 2
    assert found.smallest < found.largest
    assert ("is an end of clustering.k_range" in str(found)) == (best != 1)


# --- what cannot be ----------------------------------------------------------------------------


def test_a_range_wider_than_the_images_is_tried_as_far_as_they_go() -> None:
    found = suggest(blobs(3, per_blob=4), ClusteringConfig(k_range=(2, 500)), seed=0)
    assert [trial.num_clusters for trial in found.trials] == list(range(2, 10))
    assert found.best.num_clusters == 3
    assert "12 images: of 2 to 9, 3 have the highest silhouette" in str(found)


@pytest.mark.parametrize("points", [np.ones((40, 3)), np.eye(2), np.repeat(np.eye(2), 9, axis=0)])
def test_images_that_leave_nothing_to_compare_are_an_input_error(points: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"clustering.k_range: \[2, 8\] .* different embeddings"):
        suggest(points.astype(np.float32), AUTO, seed=0)


@pytest.mark.parametrize("value", [[20, 2], [5, 5], [1, 9], [2], [2, 3, 4], ["a", 3], [True, 4], 7])
def test_a_range_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(InputError, match=r"params.yaml: clustering.k_range"):
        Params.parse({"clustering": {"k_range": value}}, where="params.yaml")


@pytest.mark.parametrize("value", ["many", 0, 2.5, None, True])
def test_a_number_is_a_count_or_auto(value: Any) -> None:
    with pytest.raises(InputError, match=r"clustering.num_clusters: .*'auto'"):
        Params.parse({"clustering": {"num_clusters": value}}, where="params.yaml")


def test_kubeflow_sends_doubles() -> None:
    values = {"num_clusters": "auto", "k_range": [2.0, 12.0]}
    found = Params.parse({"clustering": values}, where="settings").clustering
    assert (found.num_clusters, found.k_range) == ("auto", (2, 12))


@pytest.mark.parametrize(
    ("num_images", "num_classes", "message"),
    [
        (1, 0, "1 training image: clustering compares images"),
        (2, 0, "auto cannot try 2 clusters of 2 training images"),
        (50, 8, r"k_range: \[2, 8\], but the labels, which are partial, name 8 classes"),
        (5, 5, "auto cannot try 5 clusters of 5 training images"),
    ],
)
def test_what_cannot_be_is_refused_before_the_training(
    num_images: int, num_classes: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        AUTO.check_fit(num_images=num_images, num_classes=num_classes)
    AUTO.check_fit(num_images=100, num_classes=3)


# --- the step ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def auto_run(tmp_path_factory: pytest.TempPathFactory) -> toys.ToyRun:
    """Two rounds of the toy run, with labels, that choose their number of clusters."""
    directory = tmp_path_factory.mktemp("auto")
    dataset = toys.write_toy_dataset(directory / "dataset")
    return toys.make_toy_run(dataset, directory, clustering=AUTO)


def test_round_0_chooses_the_number_and_later_rounds_keep_it(auto_run: toys.ToyRun) -> None:
    found = [Clustering.load(auto_run.paths(number).clustering) for number in range(3)]
    number = found[0].config["num_clusters"]
    assert number in range(2, 9)
    assert [each.config["num_clusters"] for each in found] == [number] * 3
    assert [len(each.centroids) for each in found] == [number] * 3
    made_by = artifacts.made_by(auto_run.paths(1).clustering)
    assert made_by["clustering"]["num_clusters"] == "auto"  # what was asked for
    assert Evaluation.load(auto_run.results).parameters["clustering"]["num_clusters"] == "auto"


def test_the_log_says_the_number_and_the_reason(
    auto_run: toys.ToyRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shared: dict[str, Any] = {"dataset": auto_run.dataset, "compute": COMPUTE, "seed": 0}
    first, second = auto_run.paths(0), auto_run.paths(1)
    with caplog.at_level(logging.INFO, logger="vitdc"):
        steps.cluster(**shared, embeddings=first.embeddings, clustering=AUTO, output=tmp_path / "0")
    number = Clustering.load(first.clustering).config["num_clusters"]
    assert f"cluster: num_clusters {number}, because " in caplog.text
    assert f" to 8, {number} have the highest silhouette" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="vitdc"):
        steps.cluster(
            **shared,
            embeddings=second.embeddings,
            previous=first.clustering,
            clustering=AUTO,
            output=tmp_path / "1",
        )
    assert "num_clusters" not in caplog.text
    for number, paths in enumerate((first, second)):
        assert toys.contents(tmp_path / str(number)) == toys.contents(paths.clustering)


def test_with_partial_labels_there_are_no_fewer_clusters_than_classes(tmp_path: Path) -> None:
    dataset = toys.write_toy_dataset(tmp_path / "dataset", num_known=9)
    shared: dict[str, Any] = {"dataset": dataset, "compute": COMPUTE, "seed": 0}
    untrained = toys.PRETRAINING.model_copy(update={"objective": "supervised", "epochs": 0})
    steps.pretrain(**shared, model=toys.MODEL, pretraining=untrained, output=tmp_path / "model")
    del shared["seed"]
    steps.embed(**shared, checkpoint=tmp_path / "model", output=tmp_path / "embeddings")
    found = steps.cluster(
        **shared,
        embeddings=tmp_path / "embeddings",
        clustering=AUTO,
        seed=0,
        output=tmp_path / "clusters",
    )
    assert 3 <= found.config["num_clusters"] <= 8
    assert len(found.centroids) == found.config["num_clusters"]


# --- the command -------------------------------------------------------------------------------


def suggest_k(*arguments: object) -> Any:
    return CliRunner().invoke(cli, ["suggest-k", *map(str, arguments)])


def test_the_command_shows_what_the_run_chose_from(auto_run: toys.ToyRun, tmp_path: Path) -> None:
    places = ("--dataset", auto_run.dataset, "--rounds", auto_run.rounds)
    chart = tmp_path / "new" / "k.png"
    result = suggest_k(auto_run.results, *places, "--output", chart)
    assert result.exception is None, result.output
    heading, *lines = result.output.splitlines()
    assert heading == "clusters  silhouette  stability"
    assert [int(line.split()[0]) for line in lines[:7]] == [2, 3, 4, 5, 6, 7, 8]
    number = Clustering.load(auto_run.paths(0).clustering).config["num_clusters"]
    assert [line.split()[0] for line in lines[:7] if line.endswith(" best")] == [str(number)]
    assert f"of 2 to 8, {number} have the highest silhouette" in result.output
    assert f"{auto_run.results} has {number}." in result.output
    assert chart.read_bytes().startswith(b"\x89PNG")


def test_the_command_takes_another_range_and_runs_with_a_number(toy_run: toys.ToyRun) -> None:
    places = ("--dataset", toy_run.dataset, "--rounds", toy_run.rounds)
    result = suggest_k(toy_run.results, *places, "--k-range", 3, 5)
    assert result.exception is None, result.output
    assert [line.split()[0] for line in result.output.splitlines()[1:4]] == ["3", "4", "5"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--k-range", 9, 3), r"--k-range: k_range: the smaller number comes first"),
        (("--output", "chart.html"), r"--output chart.html: the chart is a PNG"),
        (("--rounds", "nowhere"), r"nowhere: no finished rounds here"),
    ],
)
def test_a_wrong_argument_shows_the_way_out(
    toy_run: toys.ToyRun, arguments: tuple[object, ...], message: str
) -> None:
    places = ("--dataset", toy_run.dataset, "--rounds", toy_run.rounds)
    error = suggest_k(toy_run.results, *places, *arguments).exception
    assert isinstance(error, InputError)
    assert re.match(message, str(error))
