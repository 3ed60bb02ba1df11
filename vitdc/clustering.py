"""k-means with faiss: all points, several starts, warm start, stable ids, no empty cluster.

faiss's defaults would train on 256 points per centroid from a single random start, and its final
assignment can leave a cluster empty; each is set right here.

Seeded k-means, for points of which some have a cluster of their own, starts from the means of these
and never moves them: the semi-supervised k-means of generalized category discovery
(https://arxiv.org/abs/2201.02609).
"""

from __future__ import annotations

from typing import NamedTuple

import faiss
import numpy as np

from vitdc.config import ClusteringConfig
from vitdc.errors import InputError

CHUNK_VALUES = 2**24  # numbers widened to float32 at a time when points are assigned
REPAIRS = 10  # attempts to refill clusters that the final assignment left empty


class KMeans(NamedTuple):
    """Centroids (K, D) float32 and the cluster (N,) int64 of every training point."""

    centroids: np.ndarray
    assignment: np.ndarray


def kmeans(
    points: np.ndarray,
    config: ClusteringConfig,
    *,
    seed: int,
    initial: np.ndarray | None = None,
    own: np.ndarray | None = None,
) -> KMeans:
    """Cluster `points`.

    Args:
        points: (N, D) float32.
        config: The `clustering` section.
        seed: Of the random starts.
        initial: (K, D) centroids to start from instead (the round before); one start then.
        own: (N,) int64: the cluster that a point stays in, -1 for those that are free. Clusters
            keep these ids.

    Raises:
        InputError: There are more clusters than points.
    """
    check_enough(points, config)
    rows = _sample(len(points), config, seed, own)
    sample = np.ascontiguousarray(points[rows], dtype=np.float32)
    own_sample = None if own is None else own[rows]
    centroids = _search(sample, config, seed=seed, initial=initial, own=own_sample)
    for _ in range(REPAIRS):
        assignment, distance = assign(sample, centroids, own=own_sample)
        empty = np.flatnonzero(np.bincount(assignment, minlength=len(centroids)) == 0)
        if not len(empty):
            break
        if own_sample is not None:
            distance = np.where(own_sample < 0, distance, -1)  # the others cannot move
        centroids[empty] = sample[np.argsort(-distance, kind="stable")[: len(empty)]]
        centroids = _search(sample, config, seed=seed, initial=centroids, own=own_sample)
    return KMeans(centroids, assign(points, centroids, own=own)[0])


def check_enough(points: np.ndarray, config: ClusteringConfig) -> None:
    """Refuse to make more clusters than there are points.

    Raises:
        InputError: Says how many are possible.
    """
    if config.resolved_num_clusters > len(points):
        raise InputError(
            f"clustering.num_clusters: {config.resolved_num_clusters} clusters cannot be made of"
            f" {len(points)} images; at most {len(points)} are possible"
        )


def _sample(
    num_points: int, config: ClusteringConfig, seed: int, own: np.ndarray | None
) -> np.ndarray | slice:
    """The points k-means trains on: all, or a random subset where a limit is set.

    Points with a cluster of their own are always among them.
    """
    per_centroid = config.max_points_per_centroid
    if per_centroid is None or per_centroid * config.resolved_num_clusters >= num_points:
        return slice(None)
    generator = np.random.default_rng(seed)
    rows = generator.choice(num_points, per_centroid * config.resolved_num_clusters, replace=False)
    return np.sort(rows) if own is None else np.union1d(rows, np.flatnonzero(own >= 0))


def _search(
    points: np.ndarray,
    config: ClusteringConfig,
    *,
    seed: int,
    initial: np.ndarray | None,
    own: np.ndarray | None,
) -> np.ndarray:
    """The best centroids (K, D) of all starts."""
    if own is None:
        return _lloyd(points, config, seed=seed, initial=initial)
    generator = np.random.default_rng(seed)
    starts = (
        _seeded_start(points, own, config.resolved_num_clusters, generator)
        for _ in range(config.num_restarts)
    )
    found = [
        _seeded_lloyd(points, own, start, config.num_iterations)
        for start in (starts if initial is None else [initial])
    ]
    inertia = [np.square(assign(points, c, own=own)[1], dtype=np.float64).sum() for c in found]
    return found[int(np.argmin(inertia))]


def _seeded_start(
    points: np.ndarray, own: np.ndarray, num_clusters: int, generator: np.random.Generator
) -> np.ndarray:
    """The means of the points with a cluster of their own, and k-means++ from there on."""
    seeded = np.unique(own[own >= 0])
    centroids = np.empty((num_clusters, points.shape[1]), np.float32)
    for cluster in seeded:
        centroids[cluster] = points[own == cluster].mean(axis=0)
    there = centroids[seeded]
    for cluster in np.setdiff1d(np.arange(num_clusters), seeded):
        squared = np.square(assign(points, there)[1], dtype=np.float64)
        squared += np.finfo(np.float64).tiny  # points may all be the same
        centroids[cluster] = points[generator.choice(len(points), p=squared / squared.sum())]
        there = np.vstack([there, centroids[cluster]])
    return centroids


def _seeded_lloyd(
    points: np.ndarray, own: np.ndarray, centroids: np.ndarray, num_iterations: int
) -> np.ndarray:
    """Lloyd iterations in which points with a cluster of their own stay; (K, D) centroids."""
    for _ in range(num_iterations):
        before = centroids
        assignment = assign(points, before, own=own)[0]
        centroids = means(points, assignment, num_clusters=len(before), empty=before)
        if np.array_equal(centroids, before):
            break
    return centroids


def means(
    points: np.ndarray,
    assignment: np.ndarray,
    *,
    num_clusters: int,
    empty: np.ndarray | None = None,
) -> np.ndarray:
    """(K, D) float32: the mean of every cluster's points, summed in float64.

    Args:
        points: (N, D) float32.
        assignment: (N,) cluster of every point.
        num_clusters: K.
        empty: (K, D) or (D,) for clusters without points; None means the mean of all points.
    """
    from scipy.sparse import csr_array

    if empty is None:
        empty = points.mean(axis=0, dtype=np.float64)
    shape = (len(points), num_clusters)
    members = csr_array((np.ones(len(points)), assignment, np.arange(len(points) + 1)), shape)
    counts = np.bincount(assignment, minlength=num_clusters)[:, None]
    own = (members.T @ points) / np.maximum(counts, 1)
    return np.where(counts > 0, own, empty).astype(np.float32)


def _lloyd(
    points: np.ndarray, config: ClusteringConfig, *, seed: int, initial: np.ndarray | None
) -> np.ndarray:
    trainer = faiss.Kmeans(
        points.shape[1],
        config.resolved_num_clusters,
        niter=config.num_iterations,
        nredo=config.num_restarts if initial is None else 1,
        seed=seed % 2**31,
        min_points_per_centroid=1,
        max_points_per_centroid=len(points),
    )
    trainer.train(points, init_centroids=initial)
    return np.array(trainer.centroids)


def assign(
    points: np.ndarray, centroids: np.ndarray, *, own: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest centroid of every point, in chunks.

    Args:
        points: (N, D) float32, may be memory-mapped.
        centroids: (K, D) float32.
        own: (N,) int64: the cluster that a point is in wherever it lies, -1 for the nearest one.

    Returns:
        Cluster (N,) int64 and Euclidean distance (N,) float32. The distance is computed directly:
        faiss's expanded form loses digits when a point is close to its centroid.
    """
    index = faiss.IndexFlatL2(centroids.shape[1])
    index.add(centroids)
    assignment = np.empty(len(points), np.int64)
    distance = np.empty(len(points), np.float32)
    step = max(1, CHUNK_VALUES // points.shape[1])
    for start in range(0, len(points), step):
        rows = slice(start, start + step)
        chunk = np.ascontiguousarray(points[rows], dtype=np.float32)
        assignment[rows] = index.search(chunk, 1)[1][:, 0]
        if own is not None:
            assignment[rows] = np.where(own[rows] < 0, assignment[rows], own[rows])
        distance[rows] = np.linalg.norm(chunk - centroids[assignment[rows]], axis=1)
    return assignment, distance


def match_ids(previous: np.ndarray, current: np.ndarray, *, num_clusters: int) -> np.ndarray:
    """Which new id each current cluster gets, so that ids keep their meaning over the rounds.

    Args:
        previous: (N,) assignment of the round before.
        current: (N,) assignment now.
        num_clusters: K of both.

    Returns:
        (K,) permutation with the largest overlap (Hungarian): cluster c becomes permutation[c].
    """
    from scipy.optimize import linear_sum_assignment

    cells = current * num_clusters + previous
    overlap = np.bincount(cells, minlength=num_clusters**2).reshape(num_clusters, num_clusters)
    permutation: np.ndarray = linear_sum_assignment(overlap, maximize=True)[1]
    return permutation


def relabel(clusters: KMeans, permutation: np.ndarray) -> KMeans:
    """Rename cluster c to permutation[c], centroids included."""
    centroids = np.empty_like(clusters.centroids)
    centroids[permutation] = clusters.centroids
    return KMeans(centroids, permutation[clusters.assignment])
