"""How many clusters there are: every number of a range, scored without labels.

Two scores tell different things. The silhouette falls where a number joins what lies apart or cuts
what lies together. The stability is the agreement (ARI) of the clusterings of two random samples on
the points in both (Ben-Hur, Elisseeff, Guyon, "A stability based method for discovering structure
in clustered data", 2002): it falls where the cuts depend on the sample.

All of it is k-means on at most `NUM_POINTS` points, also where a mixture then finds the clusters.
It is scikit-learn's: faiss begins with random points instead of k-means++ and often ends in a poor
optimum where points lie on islands. The search would look unstable then, not the clusters.
"""

from __future__ import annotations

from itertools import takewhile
from typing import NamedTuple

import numpy as np
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from vitdc import metrics
from vitdc.artifacts import Dataset
from vitdc.clustering import kmeans
from vitdc.config import ClusteringConfig
from vitdc.errors import InputError
from vitdc.progress import progress_bar
from vitdc.seeding import derive_seed

NUM_POINTS = 5000  # a random sample of more points is scored
NUM_DISTANCES = 2000  # points of it that the silhouette compares with each other
NUM_PAIRS = 3  # of random samples, for the stability
SHARE = 0.8  # of the points in each of them
NUM_RESTARTS = 5
STABLE = 0.9  # stability of a number that is plausible
NEAR = 0.03  # how far below the best silhouette a number is plausible


class Trial(NamedTuple):
    """A number of clusters.

    Attributes:
        num_clusters: k.
        silhouette: Mean silhouette coefficient in [-1, 1].
        stability: Mean ARI of the clusterings of two samples, at most 1.
    """

    num_clusters: int
    silhouette: float
    stability: float


class Suggestion(NamedTuple):
    """How many clusters there are.

    Attributes:
        trials: A trial per number, in their order.
        best: The stable number with the highest silhouette; of all numbers if none is stable.
        smallest: The plausible numbers begin here.
        largest: They end here.
        num_points: Points that were scored.
        finer: Ends of a second range, of more clusters, where the silhouette rises once more: what
            is alike from afar may consist of several kinds. None where it only falls.
    """

    trials: list[Trial]
    best: Trial
    smallest: int
    largest: int
    num_points: int
    finer: tuple[int, int] | None = None

    def __str__(self) -> str:
        number, silhouette, stability = self.best
        tried = f"{self.trials[0].num_clusters} to {self.trials[-1].num_clusters}"
        agreement = "agree" if stability >= STABLE else "do not even agree"
        is_end = self.best in (self.trials[0], self.trials[-1])
        hint = f"; {number} is an end of clustering.k_range, so try another range" if is_end else ""
        finer = " on a finer scale {} to {},".format(*self.finer) if self.finer else ""
        return (
            f"{self.smallest} to {self.largest} clusters are plausible,{finer} judging by"
            f" {self.num_points} images: of {tried}, {number} have the highest silhouette"
            f" ({silhouette:.3f}), and samples {agreement} on them (ARI {stability:.2f}){hint}"
        )


def suggest(
    points: np.ndarray,
    config: ClusteringConfig,
    *,
    seed: int,
    own: np.ndarray | None = None,
    num_classes: int = 0,
) -> Suggestion:
    """Score every number of clusters in `config.k_range`.

    Plausible are the best number, its two neighbours, since nothing here tells one kind of image
    from two alike, and the stable numbers next to these whose silhouette is near the best.

    Args:
        points: (N, d) float32 in the space in which the clusters are found.
        config: The `clustering` section.
        seed: Of the samples and the random starts.
        own: (N,) int64: the cluster that a point stays in, -1 for those that are free.
        num_classes: Classes that have a cluster of their own; fewer clusters are not tried.

    Raises:
        InputError: The points allow no two numbers of the range.
    """
    generator = np.random.default_rng(seed)
    rows = np.sort(generator.permutation(len(points))[:NUM_POINTS])
    points = np.ascontiguousarray(points[rows], np.float32)
    own = None if own is None else own[rows]
    size = int(SHARE * len(points))
    samples = [np.sort(generator.permutation(len(points))[:size]) for _ in range(2 * NUM_PAIRS)]
    numbers = _candidates(points, samples, config, num_classes)
    trials = [
        _try(points, samples, config.model_copy(update={"num_clusters": number}), seed, own)
        for number in progress_bar(iterable=numbers, desc="number of clusters")
    ]
    return judge(trials, num_points=len(points))


def suggest_for(
    points: np.ndarray, config: ClusteringConfig, images: Dataset, *, seed: int
) -> Suggestion:
    """`suggest` for the training images of a Dataset, whose partial labels count.

    Args:
        points: (N, d) float32 in the space in which the clusters are found.
        config: The `clustering` section.
        images: The data set.
        seed: Of the run.
    """
    return suggest(
        points,
        config,
        seed=derive_seed(seed, "cluster", "num_clusters"),
        own=images.training_labels if images.supervision == "partial" else None,
        num_classes=images.num_own_clusters,
    )


def judge(trials: list[Trial], *, num_points: int) -> Suggestion:
    """The best number of clusters, and the plausible ones around it."""
    stable = [trial for trial in trials if trial.stability >= STABLE]
    best = max(stable or trials, key=lambda trial: trial.silhouette)
    smallest, largest = _plausible(trials, best)
    rest = [trial for trial in trials if trial.num_clusters > largest]
    peaks = [
        each
        for before, each, after in zip(rest, rest[1:], rest[2:], strict=False)
        if each in stable and before.silhouette < each.silhouette >= after.silhouette
    ]
    finer = None
    if peaks:
        finer = _plausible(rest, max(peaks, key=lambda trial: trial.silhouette))
    return Suggestion(trials, best, smallest, largest, num_points, finer)


def _plausible(trials: list[Trial], best: Trial) -> tuple[int, int]:
    """The ends of the run of plausible numbers around the best."""

    def is_plausible(trial: Trial) -> bool:
        distance = abs(trial.num_clusters - best.num_clusters)
        is_near = trial.silhouette >= best.silhouette - NEAR and trial.stability >= STABLE
        return distance <= 1 or is_near

    here = trials.index(best)
    below = [*takewhile(is_plausible, trials[here::-1])]
    above = [*takewhile(is_plausible, trials[here:])]
    return below[-1].num_clusters, above[-1].num_clusters


def _candidates(
    points: np.ndarray, samples: list[np.ndarray], config: ClusteringConfig, num_classes: int
) -> range:
    """The numbers of the range that can be tried with these points, in every sample."""
    num_different = min(len(np.unique(points[rows], axis=0)) for rows in samples)
    smallest, largest = max(config.k_range[0], num_classes), min(config.k_range[1], num_different)
    if smallest >= largest:
        raise InputError(
            f"clustering.k_range: {list(config.k_range)} has no two numbers of clusters to compare"
            f" that {len(points)} images allow: {SHARE:.0%} of them have {num_different} different"
            f" embeddings, and {num_classes} classes have a cluster of their own; change it, or set"
            " clustering.num_clusters to a number"
        )
    return range(smallest, largest + 1)


def _try(
    points: np.ndarray,
    samples: list[np.ndarray],
    config: ClusteringConfig,
    seed: int,
    own: np.ndarray | None,
) -> Trial:
    """Cluster all points, and every sample."""
    silhouette = metrics.silhouette(
        points, _clusters(points, config, seed, own), num_samples=NUM_DISTANCES, seed=seed
    )
    found = [
        _clusters(points[rows], config, seed, None if own is None else own[rows])
        for rows in samples
    ]
    pairs = zip(samples[::2], found[::2], samples[1::2], found[1::2], strict=True)
    return Trial(
        config.resolved_num_clusters,
        -1.0 if silhouette is None else silhouette,  # a single cluster, or nothing but singletons
        float(np.mean([_agreement(*pair) for pair in pairs])),
    )


def _clusters(
    points: np.ndarray, config: ClusteringConfig, seed: int, own: np.ndarray | None
) -> np.ndarray:
    """(N,) the cluster of every point."""
    if own is not None:
        few = {"num_restarts": NUM_RESTARTS, "max_points_per_centroid": None}
        return kmeans(points, config.model_copy(update=few), seed=seed, own=own).assignment
    search = KMeans(config.resolved_num_clusters, n_init=NUM_RESTARTS, random_state=seed)
    found: np.ndarray = search.fit_predict(points.astype(np.float64))
    return found


def _agreement(
    rows: np.ndarray, clusters: np.ndarray, other_rows: np.ndarray, other_clusters: np.ndarray
) -> float:
    """ARI of the clusters of two samples, on the points in both."""
    _, here, there = np.intersect1d(rows, other_rows, assume_unique=True, return_indices=True)
    return float(adjusted_rand_score(clusters[here], other_clusters[there]))
