"""Clusters on a manifold: shapes that k-means cuts apart, in the same contract as k-means."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toys
from sklearn.metrics import adjusted_rand_score, silhouette_score
from toys import COMPUTE

from vitdc import steps
from vitdc.artifacts import Clustering, Dataset, Embeddings, Supervision
from vitdc.clustering import KMeans, kmeans, means
from vitdc.config import ClusteringConfig
from vitdc.errors import InputError
from vitdc.manifold import choose_space, find_on_manifold, mixture, most_agreed, unfold
from vitdc.seeding import derive_seed
from vitdc.typicality import most_typical


def config(num_clusters: int = 2, **values: Any) -> ClusteringConfig:
    values = {"num_restarts": 2, "manifold_dims": 2, "manifold_neighbours": 8, **values}
    return ClusteringConfig(num_clusters=num_clusters, **values)


def laid_out_and_found(
    points: np.ndarray, config: ClusteringConfig, *, seed: int = 0, **known: Any
) -> tuple[np.ndarray, KMeans]:
    """The layout of points and the clusters in it."""
    layout = unfold(points, config, seed=seed)
    return layout, find_on_manifold(points, layout, config, seed=seed, **known)


def moons(per_moon: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Two interleaved half circles (N, 2), and the half circle of every point."""
    angle = np.linspace(0, np.pi, per_moon)
    upper = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    lower = np.stack([1 - np.cos(angle), 0.4 - np.sin(angle)], axis=1)
    return np.concatenate([upper, lower]).astype(np.float32), np.repeat([0, 1], per_moon)


def test_shapes_are_found_that_k_means_cuts_apart() -> None:
    points, labels = moons()
    layout, found = laid_out_and_found(points, config())
    assert layout.shape == (60, 2)
    assert adjusted_rand_score(labels, found.assignment) == 1
    assert adjusted_rand_score(labels, kmeans(points, config(), seed=0).assignment) < 0.5
    expected = [points[found.assignment == cluster].mean(axis=0) for cluster in range(2)]
    np.testing.assert_allclose(found.centroids, expected, atol=1e-6)


def test_the_same_seed_gives_the_same_bytes() -> None:
    points, _ = moons()
    (layout, found), (other_layout, other) = (
        laid_out_and_found(points, config(), seed=2**32 - 1) for _ in range(2)
    )
    assert layout.tobytes() == other_layout.tobytes()
    assert found.centroids.tobytes() == other.centroids.tobytes()
    assert found.assignment.tobytes() == other.assignment.tobytes()


def test_the_layout_that_agrees_best_with_the_others_counts() -> None:
    labels = np.repeat(np.arange(4), 5)
    renamed, merged = (labels + 1) % 4, np.where(labels == 3, 2, labels)
    merged[0] = 3
    slightly_off = labels.copy()
    slightly_off[-1] = 0
    assert most_agreed([labels]) == (0, 1)
    best, found = most_agreed([merged, labels, renamed])
    assert best == 1
    assert found == pytest.approx((1 + adjusted_rand_score(labels, merged)) / 2)
    assert most_agreed([merged, slightly_off, labels])[0] == 2


def test_known_points_stay_in_their_clusters() -> None:
    points, labels = moons()
    own = np.where(np.arange(60) % 15 == 0, 1 - labels, -1)
    for before in (None, 1 - labels):
        _, found = laid_out_and_found(points, config(), own=own, previous=before)
        np.testing.assert_array_equal(found.assignment, 1 - labels)


@pytest.mark.parametrize("num_points", range(1, 7))
def test_few_points_are_clustered_too(num_points: int) -> None:
    points = np.random.default_rng(0).normal(size=(num_points, 5)).astype(np.float32)
    for num_clusters in {1, num_points}:
        layout, found = laid_out_and_found(points, config(num_clusters))
        assert len(layout) == num_points
        assert found.centroids.shape == (num_clusters, 5)
        assert np.isfinite(found.centroids).all()
        assert set(found.assignment) <= set(range(num_clusters))


def test_equal_points_are_clustered_too() -> None:
    _, found = laid_out_and_found(np.ones((20, 3), np.float32), config(3))
    np.testing.assert_allclose(found.centroids, 1)


def test_more_clusters_than_points_is_an_input_error() -> None:
    with pytest.raises(InputError, match=r"num_clusters: 5 .* 4 images; at most 4"):
        laid_out_and_found(np.eye(4, dtype=np.float32), config(5))


def test_the_mixture_is_that_of_the_blobs() -> None:
    generator = np.random.default_rng(0)
    labels = generator.permutation(np.repeat(np.arange(3), 20))
    spread = np.array([[0.2, 3.0], [3.0, 0.2], [1.0, 1.0]])[labels]
    points = np.array([[0, 0], [9, 9], [0, 20]])[labels] + spread * generator.normal(size=(60, 2))
    found = mixture(points.astype(np.float32), config(3), seed=0)
    assert found.dtype == np.int64
    assert adjusted_rand_score(labels, found) == 1


def test_an_empty_cluster_lies_in_the_middle() -> None:
    points = np.array([[0, 0], [2, 0], [7, 3]], np.float32)
    found = means(points, np.array([2, 2, 0]), num_clusters=3)
    np.testing.assert_allclose(found, [[7, 3], [3, 1], [1, 0]])


@pytest.mark.parametrize(
    ("asked", "supervision", "is_pretrained", "expected"),
    [
        ("auto", "none", False, "manifold"),
        ("auto", "none", True, "embedding"),
        ("auto", "partial", False, "embedding"),
        ("auto", "full", False, "embedding"),
        ("manifold", "full", True, "manifold"),
        ("embedding", "none", False, "embedding"),
    ],
)
def test_the_space_follows_labels_and_weights(
    asked: Any, supervision: Supervision, is_pretrained: bool, expected: str
) -> None:
    space = choose_space(asked, supervision=supervision, is_pretrained=is_pretrained)
    assert space.name == expected
    assert space.reason


# --- the step ----------------------------------------------------------------------------------


def embedded(directory: Path, *, num_known: int | None) -> dict[str, Any]:
    """Arguments of `cluster`: toy images and their embeddings by a model that learnt nothing."""
    shared: dict[str, Any] = {
        "dataset": toys.write_toy_dataset(directory / "dataset", num_known=num_known),
        "compute": COMPUTE,
    }
    untrained = toys.PRETRAINING.model_copy(update={"objective": "supervised", "epochs": 0})
    if num_known == 0:
        none = untrained.self_supervised.model_copy(update={"epochs": 0})
        untrained = untrained.model_copy(update={"objective": "auto", "self_supervised": none})
    steps.pretrain(
        **shared, model=toys.MODEL, pretraining=untrained, seed=0, output=directory / "model"
    )
    steps.embed(**shared, checkpoint=directory / "model", output=directory / "embeddings")
    return {**shared, "embeddings": directory / "embeddings", "seed": 0}


def test_without_labels_the_step_clusters_on_the_manifold(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    arguments = embedded(tmp_path, num_known=0)
    with caplog.at_level(logging.INFO, logger="vitdc"):
        found = steps.cluster(**arguments, clustering=config(3), output=tmp_path / "clusters")
    assert "cluster: space manifold, because no label is trained on" in caplog.text
    assert found.config["space"] == "manifold"
    z = np.asarray(Embeddings.load(arguments["embeddings"]).train.embedding)
    for cluster in range(3):
        own = found.train.assignment == cluster
        np.testing.assert_allclose(found.centroids[cluster], z[own].mean(axis=0), atol=1e-6)
    distance = np.linalg.norm(z - found.centroids[found.train.assignment], axis=1)
    np.testing.assert_allclose(found.train.distance, distance, rtol=1e-4)
    test = Embeddings.load(arguments["embeddings"]).test.embedding
    images = Dataset.load(arguments["dataset"]).test.images
    expected = most_typical(found.typicality, np.asarray(test), images)
    np.testing.assert_array_equal(found.test.assignment, expected)
    stream = derive_seed(0, "cluster", 0)
    seeds = [stream, *(derive_seed(stream, "layout", i) for i in (1, 2))]
    layouts = [unfold(z, config(3), seed=seed) for seed in seeds]
    candidates = [mixture(layout, config(3), seed=stream) for layout in layouts]
    chosen, agreement = most_agreed(candidates)
    np.testing.assert_array_equal(found.train.assignment, candidates[chosen])
    expected = silhouette_score(layouts[chosen], found.train.assignment)
    assert found.scores.silhouette == pytest.approx(expected, abs=1e-5)
    assert (
        f"3 layouts of the manifold agree on the clusters with ARI {agreement:.2f}" in caplog.text
    )
    again = steps.cluster(**arguments, clustering=config(3), output=tmp_path / "again")
    assert toys.contents(tmp_path / "again") == toys.contents(tmp_path / "clusters")
    assert again.config == Clustering.load(tmp_path / "clusters").config


WATCHED = """
import sys
from pathlib import Path
from threadpoolctl import threadpool_info
from vitdc import manifold, steps
from vitdc.config import ClusteringConfig, ComputeConfig

def watched(*arguments, mixture=manifold.mixture, **options):
    found = mixture(*arguments, **options)
    # of packages; the system's is numba's, which UMAP holds to one thread by itself
    own = [library for library in threadpool_info() if ".libs" in library["filepath"]]
    print({library["user_api"] for library in own} == {"blas", "openmp"}, end=" ")
    print({library["num_threads"] for library in own})
    return found

manifold.mixture = watched
dataset, embeddings, output = map(Path, sys.argv[1:])
steps.cluster(
    dataset=dataset,
    embeddings=embeddings,
    clustering=ClusteringConfig(num_clusters=3, manifold_layouts=1, manifold_neighbours=8),
    compute=ComputeConfig(num_threads=1),
    seed=0,
    output=output,
)
"""


def test_a_process_of_its_own_keeps_to_the_threads_that_were_asked_for(tmp_path: Path) -> None:
    arguments = embedded(tmp_path, num_known=0)
    paths = (arguments["dataset"], arguments["embeddings"], tmp_path / "clusters")
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WATCHED, *map(str, paths)],
        env={**os.environ, "PYTHONPATH": str(Path(steps.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == "True {1}"


@pytest.mark.parametrize("num_known", [12, None])
def test_with_labels_umap_is_not_even_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_known: int | None
) -> None:
    arguments = embedded(tmp_path, num_known=num_known)
    monkeypatch.setitem(sys.modules, "umap", None)  # an import of it fails
    found = steps.cluster(**arguments, clustering=config(3), output=tmp_path / "clusters")
    assert found.config["space"] == "embedding"


def test_equal_points_lie_at_one_place_and_others_are_laid_out_as_without_copies() -> None:
    points = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    rows = np.array([*range(30), 3, 3, 7])
    config = ClusteringConfig(num_clusters=2, manifold_dims=2, manifold_neighbours=5)
    layout = unfold(points[rows], config, seed=0)
    np.testing.assert_array_equal(layout, unfold(points, config, seed=0)[rows])
