"""Scores against scikit-learn, and against every permutation where there are few clusters."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score, confusion_matrix, silhouette_score

from vitdc.metrics import accuracy, clustering_accuracy, contingency, score_split, silhouette

Pair = tuple[np.ndarray, np.ndarray]


@st.composite
def partitions(draw: st.DrawFn) -> Pair:
    """Labels with unknown ones, and clusters, of at most five kinds each."""
    size = draw(st.integers(1, 25))
    labels = draw(st.lists(st.integers(-1, 4), min_size=size, max_size=size))
    clusters = draw(st.lists(st.integers(0, 4), min_size=size, max_size=size))
    return np.array(labels), np.array(clusters)


def entropy(*columns: np.ndarray) -> float:
    """Of the joint distribution, in nats."""
    _, counts = np.unique(np.stack(columns), axis=1, return_counts=True)
    share = counts / counts.sum()
    return float(-(share * np.log(share)).sum())


@settings(deadline=None)
@given(partitions())
def test_scores_are_those_of_the_known_labels_by_their_definitions(pair: Pair) -> None:
    labels, clusters = pair
    scores = score_split(labels, clusters)
    known = labels >= 0
    assert scores.images == known.sum()
    if not known.any():
        assert scores[:3] == (None, None, None)
        return
    labels, clusters = labels[known], clusters[known]
    mean = (entropy(labels) + entropy(clusters)) / 2
    mutual = entropy(labels) + entropy(clusters) - entropy(labels, clusters)
    nmi = mutual / mean if mean > 0 else 1.0
    assert scores.nmi == pytest.approx(nmi, abs=1e-9)
    assert scores.ari == pytest.approx(adjusted_rand_score(labels, clusters))
    acc = max((np.array(p)[clusters] == labels).mean() for p in permutations(range(5)))
    assert scores.acc == pytest.approx(acc)


@settings(deadline=None)
@given(partitions())
def test_scores_do_not_depend_on_the_names_of_the_clusters(pair: Pair) -> None:
    labels, clusters = pair
    renamed = np.array([3, 0, 4, 2, 1])[clusters]
    for one, other in zip(score_split(labels, clusters), score_split(labels, renamed), strict=True):
        assert one == pytest.approx(other)


def test_more_clusters_than_classes_leave_the_spare_ones_unmatched() -> None:
    assert clustering_accuracy(np.array([0, 0, 0, 1]), np.array([0, 1, 2, 3])) == 0.5


def test_contingency_is_the_confusion_matrix_of_the_known_labels() -> None:
    labels, clusters = np.array([0, 2, 2, -1, 1, 2]), np.array([1, 0, 0, 3, 3, 1])
    known = labels >= 0
    expected = confusion_matrix(labels[known], clusters[known], labels=range(4))[:3]
    np.testing.assert_array_equal(contingency(labels, clusters, shape=(3, 4)), expected)


def test_accuracy_counts_known_labels_only() -> None:
    assert accuracy(np.array([0, 1, -1, 2]), np.array([0, 1, 0, 0])) == pytest.approx(2 / 3)
    assert accuracy(np.array([-1, -1]), np.array([0, 1])) is None
    assert accuracy(np.array([], np.int64), np.array([], np.int64)) is None


def test_silhouette_of_all_points_is_scikit_learns() -> None:
    generator = np.random.default_rng(0)
    points, clusters = generator.normal(size=(30, 3)), generator.integers(0, 3, 30)
    found = silhouette(points, clusters, num_samples=1000, seed=0)
    assert found == pytest.approx(silhouette_score(points, clusters))


def test_a_sampled_silhouette_is_repeatable_and_near_the_whole() -> None:
    clusters = np.arange(400) % 2
    points = np.random.default_rng(0).normal(size=(400, 2)) + 6 * clusters[:, None]
    whole = silhouette_score(points, clusters)
    first, again = (silhouette(points, clusters, num_samples=100, seed=1) for _ in range(2))
    assert first == again == pytest.approx(whole, abs=0.1)


@pytest.mark.parametrize(
    ("clusters", "num_samples"),
    [([0, 0, 0, 0], 10), ([0, 1, 2, 3], 10), ([0, 1, 0, 1], 0), ([0, 1, 0, 1], 1)],
    ids=["one cluster", "only singletons", "left out", "sample of one"],
)
def test_there_is_no_silhouette_where_it_is_not_defined(
    clusters: list[int], num_samples: int
) -> None:
    points = np.random.default_rng(0).normal(size=(4, 2))
    assert silhouette(points, np.array(clusters), num_samples=num_samples, seed=0) is None
