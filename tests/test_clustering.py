"""k-means: right on easy data, honest on hard data, ids that keep their meaning."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans as SklearnKMeans
from sklearn.metrics import adjusted_rand_score

from vitdc import clustering
from vitdc.clustering import KMeans, assign, kmeans, match_ids, relabel
from vitdc.config import ClusteringConfig
from vitdc.errors import InputError


def config(num_clusters: int = 3, **values: Any) -> ClusteringConfig:
    values = {"num_restarts": 5, "num_iterations": 20, **values}
    return ClusteringConfig(num_clusters=num_clusters, **values)


def blobs(seed: int = 0, *, per_blob: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Three Gaussian blobs (N, 4) far apart, shuffled, and the blob of every point."""
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.repeat(np.arange(3), per_blob))
    points = 10 * np.eye(3, 4)[labels] + generator.normal(size=(len(labels), 4))
    return points.astype(np.float32), labels


def inertia(points: np.ndarray, centroids: np.ndarray) -> float:
    squared = ((points[:, None].astype(np.float64) - centroids[None]) ** 2).sum(axis=2)
    return float(squared.min(axis=1).sum())


def test_three_blobs_are_recovered() -> None:
    points, labels = blobs()
    found = kmeans(points, config(), seed=0)
    assert adjusted_rand_score(labels, found.assignment) == 1
    means = [points[found.assignment == cluster].mean(axis=0) for cluster in range(3)]
    np.testing.assert_allclose(found.centroids, means, atol=1e-4)


def test_it_is_as_good_as_scikit_learn_where_clusters_overlap() -> None:
    points = np.random.default_rng(1).normal(size=(200, 3)).astype(np.float32)
    ours = kmeans(points, config(4, num_restarts=10, num_iterations=50), seed=0)
    theirs = SklearnKMeans(4, n_init=10, random_state=0).fit(points)
    assert inertia(points, ours.centroids) == pytest.approx(theirs.inertia_, rel=0.02)


def test_the_same_seed_gives_the_same_bytes_and_seeds_may_be_large() -> None:
    points = np.random.default_rng(1).normal(size=(60, 3)).astype(np.float32)
    first, again = (kmeans(points, config(5), seed=2**32 - 1) for _ in range(2))
    assert first.centroids.tobytes() == again.centroids.tobytes()
    assert first.assignment.tobytes() == again.assignment.tobytes()


def test_a_warm_start_keeps_the_order_of_the_centroids_it_started_from() -> None:
    points, labels = blobs()
    for order in permutations(range(3)):
        initial = np.ascontiguousarray(10 * np.eye(3, 4, dtype=np.float32)[list(order)])
        found = kmeans(points, config(), seed=0, initial=initial)
        np.testing.assert_array_equal(np.array(order)[found.assignment], labels)


def test_a_warm_start_changes_nothing_where_it_has_converged() -> None:
    points, _ = blobs()
    first = kmeans(points, config(), seed=0)
    again = kmeans(points, config(), seed=1, initial=first.centroids)
    np.testing.assert_allclose(again.centroids, first.centroids, atol=1e-5)
    np.testing.assert_array_equal(again.assignment, first.assignment)


def adversarial(name: str) -> np.ndarray:
    """Data of which faiss alone would leave a cluster empty; at least 5 distinct points each."""
    generator = np.random.default_rng(0)
    points = {
        "duplicates": np.repeat(np.eye(5), 20, axis=0),
        "one heap and four others": np.vstack([np.zeros((95, 5)), np.eye(5)]),
        "far outliers": np.vstack([generator.normal(size=(90, 5)), 1e4 * np.eye(5)]),
        "on a line": np.outer(np.arange(100) ** 3, np.ones(5)),
        "as few as clusters": generator.normal(size=(5, 5)),
    }[name]
    return np.ascontiguousarray(points, np.float32)


ADVERSARIAL = (
    "duplicates",
    "one heap and four others",
    "far outliers",
    "on a line",
    "as few as clusters",
)


@pytest.mark.parametrize("start", ["fresh", "far away", "all the same"])
@pytest.mark.parametrize("name", ADVERSARIAL)
def test_no_cluster_is_empty_where_there_are_enough_distinct_points(name: str, start: str) -> None:
    points = adversarial(name)
    initial = {
        "fresh": None,
        "far away": np.full((5, 5), 1e6, np.float32) * np.arange(1, 6, dtype=np.float32)[:, None],
        "all the same": np.zeros((5, 5), np.float32),
    }[start]
    found = kmeans(points, config(5), seed=0, initial=initial)
    assert np.isfinite(found.centroids).all()
    assert np.bincount(found.assignment, minlength=5).min() > 0


def test_fewer_distinct_points_than_clusters_leave_clusters_empty_but_finite() -> None:
    points = np.repeat(np.eye(2, 3, dtype=np.float32), 10, axis=0)
    found = kmeans(points, config(4), seed=0)
    assert np.isfinite(found.centroids).all()
    assert inertia(points, found.centroids) == pytest.approx(0, abs=1e-3)  # faiss splits by 0.1%
    assert found.assignment.min() >= 0


def test_more_clusters_than_points_is_an_input_error() -> None:
    with pytest.raises(InputError, match=r"num_clusters: 5 .* 4 images; at most 4"):
        kmeans(np.eye(4, dtype=np.float32), config(5), seed=0)


def test_a_limit_trains_on_a_subset_but_assigns_every_point() -> None:
    points, labels = blobs(per_blob=100)
    found = kmeans(points, config(max_points_per_centroid=10), seed=0)
    assert adjusted_rand_score(labels, found.assignment) == 1
    everything = kmeans(points, config(), seed=0)
    assert not np.array_equal(found.centroids, everything.centroids)


# --- assignment --------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), size=st.integers(0, 40), num_clusters=st.integers(1, 6))
def test_assignment_is_the_nearest_centroid_in_float64(
    seed: int, size: int, num_clusters: int
) -> None:
    generator = np.random.default_rng(seed)
    points = generator.normal(size=(size, 3)).astype(np.float32)
    centroids = generator.normal(size=(num_clusters, 3)).astype(np.float32)
    distances = np.linalg.norm(points[:, None].astype(np.float64) - centroids[None], axis=2)
    assignment, distance = assign(points, centroids)
    np.testing.assert_array_equal(assignment, distances.argmin(axis=1))
    np.testing.assert_allclose(distance, distances.min(axis=1), rtol=1e-5)
    assert (assignment.dtype, distance.dtype) == (np.int64, np.float32)


def test_the_distance_keeps_its_digits_close_to_the_centroid() -> None:
    centroids = np.full((2, 64), 100, np.float32) * np.array([[1], [-1]], np.float32)
    points = np.repeat(centroids[:1], 30, axis=0)
    points[:, 0] += np.float32(0.01)
    expected = np.linalg.norm(points.astype(np.float64) - centroids[0], axis=1)
    np.testing.assert_allclose(assign(points, centroids)[1], expected, rtol=1e-5)


@pytest.mark.parametrize("rows", [1, 7, 30, 1000])
def test_the_result_does_not_depend_on_the_chunk_size(
    monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    points = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
    centroids = points[::20].copy()
    expected = assign(points, centroids)
    monkeypatch.setattr(clustering, "CHUNK_VALUES", rows * 4)
    for found, whole in zip(assign(points, centroids), expected, strict=True):
        np.testing.assert_array_equal(found, whole)


# --- stable ids --------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**16), num_clusters=st.integers(1, 5), size=st.integers(0, 30))
def test_matched_ids_overlap_as_much_as_any_permutation_can(
    seed: int, num_clusters: int, size: int
) -> None:
    generator = np.random.default_rng(seed)
    previous, current = generator.integers(0, num_clusters, (2, size))
    permutation = match_ids(previous, current, num_clusters=num_clusters)
    assert sorted(permutation) == list(range(num_clusters))
    best = max(
        (np.array(candidate)[current] == previous).sum()
        for candidate in permutations(range(num_clusters))
    )
    assert (permutation[current] == previous).sum() == best


def test_renamed_clusters_keep_their_points_and_centroids() -> None:
    points, _ = blobs()
    found = kmeans(points, config(), seed=0)
    renamed = relabel(found, np.array([2, 0, 1]))
    np.testing.assert_array_equal(
        renamed.centroids[renamed.assignment], found.centroids[found.assignment]
    )
    np.testing.assert_array_equal(renamed.assignment == 2, found.assignment == 0)


def test_matching_undoes_any_renaming() -> None:
    points, _ = blobs()
    found = kmeans(points, config(), seed=0)
    for order in permutations(range(3)):
        shuffled: KMeans = relabel(found, np.array(order))
        ids = match_ids(found.assignment, shuffled.assignment, num_clusters=3)
        restored = relabel(shuffled, ids)
        np.testing.assert_array_equal(restored.assignment, found.assignment)
        np.testing.assert_array_equal(restored.centroids, found.centroids)


# --- points with a cluster of their own --------------------------------------------------------


def reference_lloyd(
    points: np.ndarray, own: np.ndarray, centroids: np.ndarray, *, num_iterations: int
) -> tuple[np.ndarray, np.ndarray]:
    """Semi-supervised Lloyd iterations point by point, in float64."""
    points, centroids = points.astype(np.float64), centroids.astype(np.float64)

    def assigned() -> np.ndarray:
        nearest = [int(((point - centroids) ** 2).sum(axis=1).argmin()) for point in points]
        return np.array([n if o < 0 else o for n, o in zip(nearest, own, strict=True)])

    for _ in range(num_iterations):
        assignment = assigned()
        for cluster in set(assignment.tolist()):
            centroids[cluster] = points[assignment == cluster].mean(axis=0)
    return centroids, assigned()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), num_known=st.integers(1, 20), num_clusters=st.integers(3, 6))
def test_seeded_iterations_are_those_of_a_loop_over_the_points(
    seed: int, num_known: int, num_clusters: int
) -> None:
    generator = np.random.default_rng(seed)
    points = generator.normal(size=(40, 3)).astype(np.float32)
    own = np.full(40, -1)
    own[:num_known] = np.arange(num_known) % 3
    start = generator.normal(size=(num_clusters, 3)).astype(np.float32)
    found = clustering._seeded_lloyd(points, own, start, 8)
    centroids, assignment = reference_lloyd(points, own, start, num_iterations=8)
    np.testing.assert_allclose(found, centroids, atol=1e-4)
    np.testing.assert_array_equal(assign(points, found, own=own)[0], assignment)


@pytest.mark.parametrize("limit", [None, 8])
def test_known_points_name_their_clusters_and_a_new_one_is_found(limit: int | None) -> None:
    points, labels = blobs()
    own = np.full(len(labels), -1)
    for label in (0, 1):  # nothing is known of the third blob
        own[np.flatnonzero(labels == label)[:4]] = label
    found = kmeans(points, config(max_points_per_centroid=limit), seed=0, own=own)
    np.testing.assert_array_equal(found.assignment, labels)


def test_known_points_stay_wherever_they_lie() -> None:
    points, labels = blobs()
    own = np.where(np.arange(len(labels)) < 6, (labels + 1) % 3, -1)  # on purpose the wrong ones
    found = kmeans(points, config(4), seed=0, own=own)
    np.testing.assert_array_equal(found.assignment[:6], own[:6])
    nearest, distance = assign(points, found.centroids)
    np.testing.assert_array_equal(found.assignment[6:], nearest[6:])
    assert (assign(points, found.centroids, own=own)[1] >= distance).all()


def test_seeded_clusters_start_from_those_of_the_round_before() -> None:
    points, labels = blobs()
    own = np.where(np.arange(len(labels)) < 6, labels, -1)
    before = kmeans(points, config(5), seed=0, own=own)
    after = kmeans(points, config(5), seed=1, own=own, initial=before.centroids)
    np.testing.assert_array_equal(after.assignment, before.assignment)


def test_equal_points_are_seeded_too() -> None:
    own = np.array([0, 1, -1, -1, -1])
    found = kmeans(np.ones((5, 2), np.float32), config(4), seed=0, own=own)
    assert found.assignment[:2].tolist() == [0, 1]
    assert np.isfinite(found.centroids).all()
