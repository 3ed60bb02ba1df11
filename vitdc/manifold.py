"""Clusters on a manifold of the embedding: UMAP, and a Gaussian mixture in its space.

What was trained on no label puts the images of a class along curved, branching shapes, which
k-means cuts apart. UMAP (https://arxiv.org/abs/1802.03426) lays them out by their neighbourhoods
alone, as in N2D (https://arxiv.org/abs/1908.05968). Only the clusters are found there: centroids,
losses and new images live in the embedding.

UMAP compiles itself with numba, which takes seconds, so it is imported when it is used. A limit on
threads holds only what is loaded, so `load_libraries` comes before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from vitdc.artifacts import Supervision
from vitdc.clustering import KMeans, check_enough, kmeans, means
from vitdc.config import ClusteringConfig

VARIANCE = 1e-4  # added to the variances of the mixture: UMAP can put images on top of each other


class Space(NamedTuple):
    """Where clusters are found, and the reason in words."""

    name: Literal["embedding", "manifold"]
    reason: str


def choose_space(
    asked: Literal["auto", "embedding", "manifold"],
    *,
    supervision: Supervision,
    is_pretrained: bool,
) -> Space:
    """Resolve `clustering.space`.

    Args:
        asked: Its value.
        supervision: How many training images have a label that may be trained on.
        is_pretrained: Whether the model started from pretrained weights.
    """
    if asked != "auto":
        return Space(asked, "clustering.space says so")
    if supervision != "none":
        return Space("embedding", "labels are trained on")
    if is_pretrained:
        return Space("embedding", "the weights are pretrained")
    return Space("manifold", "no label is trained on, and the weights are not pretrained")


def load_libraries(space: str) -> None:
    """Import what finds and scores clusters in a space, so that `limited_threads` holds it."""
    import sklearn.cluster

    if space == "manifold":
        import sklearn.mixture  # noqa: F401
        import umap  # noqa: F401


def find_on_manifold(
    points: np.ndarray,
    layout: np.ndarray,
    config: ClusteringConfig,
    *,
    seed: int,
    own: np.ndarray | None = None,
    previous: np.ndarray | None = None,
) -> KMeans:
    """Cluster `points` on a manifold of them.

    Args:
        points: (N, D) float32.
        layout: (N, d) float32, what `unfold` made of them.
        config: The `clustering` section.
        seed: Of the random starts.
        own: (N,) int64: the cluster that a point stays in, -1 for those that are free. A mixture
            could not keep to it, so seeded k-means finds the clusters then.
        previous: (N,) clusters of the round before, for k-means to start from.

    Returns:
        The clusters, whose centroids (K, D) are the means of their `points`.

    Raises:
        InputError: There are more clusters than points.
    """
    check_enough(points, config)
    if own is None:
        assignment = mixture(layout, config, seed=seed)
    else:
        initial = (
            None
            if previous is None
            else means(layout, previous, num_clusters=config.resolved_num_clusters)
        )
        assignment = kmeans(layout, config, seed=seed, initial=initial, own=own).assignment
    centroids = means(points, assignment, num_clusters=config.resolved_num_clusters)
    return KMeans(centroids, assignment)


def most_agreed(assignments: Sequence[np.ndarray]) -> tuple[int, float]:
    """Which clustering agrees best with the others, the first of equals.

    Now and then a layout puts two clusters side by side, and the mixture in it merges them. Without
    labels only other layouts tell: the silhouette is higher there.

    Args:
        assignments: (N,) each: the clusters in different layouts.

    Returns:
        Its position, and the mean adjusted Rand index of it with the others; 1 if it is alone.
    """
    if len(assignments) == 1:
        return 0, 1.0
    from sklearn.metrics import adjusted_rand_score

    agreement = np.array([[adjusted_rand_score(a, b) for b in assignments] for a in assignments])
    means = (agreement.sum(axis=1) - 1) / (len(assignments) - 1)
    best = int(means.argmax())
    return best, float(means[best])


def unfold(points: np.ndarray, config: ClusteringConfig, *, seed: int) -> np.ndarray:
    """Lay points out in few dimensions with UMAP, on one thread; equal seeds give equal bytes.

    Args:
        points: (N, D) float32.
        config: The `clustering` section.
        seed: Of UMAP.

    Returns:
        (N, d) float32 with d = `manifold_dims`; fewer where there are hardly more points. `points`
        themselves where fewer than four differ. Equal points lie at one place: UMAP would spread
        them out, and copies of an image would be torn apart.
    """
    first, place = _distinct(points)
    if len(first) < 4:  # UMAP needs more points than dimensions, and more than one dimension
        return points
    from umap import UMAP

    layout: np.ndarray = UMAP(
        n_components=min(config.manifold_dims, len(first) - 2),
        n_neighbors=min(config.manifold_neighbours, len(first) - 1),
        min_dist=0.0,
        random_state=seed,
        n_jobs=1,  # more would give other bytes in every run
    ).fit_transform(points[first])
    placed: np.ndarray = layout.astype(np.float32, copy=False)[place]
    return placed


def _distinct(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(M,) rows of the points that differ, in their order, and (N,) which of them a point is."""
    _, first, inverse = np.unique(points, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return first[order], rank[inverse.reshape(-1)]


def mixture(points: np.ndarray, config: ClusteringConfig, *, seed: int) -> np.ndarray:
    """The most probable component of every point, in the likeliest of several mixtures.

    Every round starts anew: UMAP lays each out differently, and a mixture that starts from the
    means of the clusters before, without their shapes, was seen to lose clusters.

    Args:
        points: (N, d) float32, N >= K.
        config: The `clustering` section.
        seed: Of the random starts.

    Returns:
        (N,) int64.
    """
    if config.resolved_num_clusters == 1:  # scikit-learn takes no single point
        return np.zeros(len(points), np.int64)
    from sklearn.mixture import GaussianMixture

    found = GaussianMixture(
        config.resolved_num_clusters,
        n_init=config.num_restarts,
        reg_covar=VARIANCE,
        random_state=seed,
    ).fit_predict(points.astype(np.float64))
    return found.astype(np.int64)  # type: ignore[no-any-return]
