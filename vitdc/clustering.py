"""k-means with faiss: all points, several starts, warm start, stable ids, no empty cluster.

faiss's defaults would train on 256 points per centroid from a single random start, and its final
assignment can leave a cluster empty; each is set right here.
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
) -> KMeans:
    """Cluster `points`.

    Args:
        points: (N, D) float32.
        config: The `clustering` section.
        seed: Of the random starts.
        initial: (K, D) centroids to start from instead (the round before); one start then.

    Raises:
        InputError: There are more clusters than points.
    """
    if config.num_clusters > len(points):
        raise InputError(
            f"clustering.num_clusters: {config.num_clusters} clusters cannot be made of"
            f" {len(points)} images; at most {len(points)} are possible"
        )
    sample = _sample(points, config, seed)
    centroids = _lloyd(sample, config, seed=seed, initial=initial)
    for _ in range(REPAIRS):
        assignment, distance = assign(sample, centroids)
        empty = np.flatnonzero(np.bincount(assignment, minlength=len(centroids)) == 0)
        if not len(empty):
            break
        centroids[empty] = sample[np.argsort(-distance, kind="stable")[: len(empty)]]
        centroids = _lloyd(sample, config, seed=seed, initial=centroids)
    return KMeans(centroids, assign(points, centroids)[0])


def _sample(points: np.ndarray, config: ClusteringConfig, seed: int) -> np.ndarray:
    """The points k-means trains on, in memory: all, or a random subset where a limit is set."""
    per_centroid = config.max_points_per_centroid
    if per_centroid is None or per_centroid * config.num_clusters >= len(points):
        return np.ascontiguousarray(points, dtype=np.float32)
    generator = np.random.default_rng(seed)
    rows = generator.choice(len(points), per_centroid * config.num_clusters, replace=False)
    return np.ascontiguousarray(points[np.sort(rows)], dtype=np.float32)


def _lloyd(
    points: np.ndarray, config: ClusteringConfig, *, seed: int, initial: np.ndarray | None
) -> np.ndarray:
    trainer = faiss.Kmeans(
        points.shape[1],
        config.num_clusters,
        niter=config.num_iterations,
        nredo=config.num_restarts if initial is None else 1,
        seed=seed % 2**31,
        min_points_per_centroid=1,
        max_points_per_centroid=len(points),
    )
    trainer.train(points, init_centroids=initial)
    return np.array(trainer.centroids)


def assign(points: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest centroid of every point, in chunks.

    Args:
        points: (N, D) float32, may be memory-mapped.
        centroids: (K, D) float32.

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
