"""What the report is made from, and the facts about it that figures and page share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from vitdc.artifacts import RoundRow
from vitdc.artifacts.dataset import Supervision
from vitdc.names import printable

MAX_PICTURED_CLUSTERS = 20


@dataclass(frozen=True)
class Decoded:
    """Pictures decoded from the embeddings of one round.

    Attributes:
        indices: (P,) ascending: which images; `pictured_images` says which are needed.
        images: (P, H, W, C) uint8.
        error: Mean squared error per pixel in [0, 1], over held-out images if there are any.
    """

    indices: np.ndarray
    images: np.ndarray
    error: float

    def image(self, index: int) -> np.ndarray | None:
        """(H, W, C) of one image, or None where it was not decoded."""
        position = int(np.searchsorted(self.indices, index))
        if position == len(self.indices) or self.indices[position] != index:
            return None
        picture: np.ndarray = self.images[position]
        return picture


@dataclass(frozen=True)
class Snapshot:
    """One round, as seen by the N images of the report.

    Attributes:
        round: 0 is the initial training.
        embedding: (N, D) float32.
        assignment: (N,) cluster of every image.
        distance: (N,) to its centroid.
        centroids: (K, D).
        decoded: None leaves decoded pictures out.
        coordinates: (M, 2) on the map, for `ReportData.map_indices`; None leaves the map out.
    """

    round: int
    embedding: np.ndarray
    assignment: np.ndarray
    distance: np.ndarray
    centroids: np.ndarray
    decoded: Decoded | None = None
    coordinates: np.ndarray | None = None

    @property
    def num_clusters(self) -> int:
        return len(self.centroids)

    @cached_property
    def margin(self) -> np.ndarray:
        """(N,) how much farther the second nearest centroid is than the own; 0 is undecided."""
        return cluster_margin(self.embedding, self.centroids, self.assignment)


@dataclass(frozen=True)
class ReportData:
    """Everything in the report.

    Attributes:
        title: Of the page.
        class_names: One per label value; may be empty.
        parameters: Section -> knob -> value.
        metrics: As in metrics.json; "pixel_kmeans" -> split -> scores may be added.
        rows: One per round, from 0.
        verdict: Why the rounds stopped.
        best_round: The round with the lowest l.
        epsilon: Threshold of the stopping rule.
        gamma: Weight of the clustering loss.
        num_train: Training images.
        num_test: Held-out images.
        num_unreadable: Images of the source that were skipped.
        images: (N, H, W, C) uint8 of the split that is pictured, may be memory-mapped.
        labels: (N,) of these images, -1 where unknown.
        before: The first round.
        after: The best round.
        map_indices: (M,) images on the map.
        gallery_size: Pictures per cluster.
        split: Which split is pictured.
        supervision: How many training images had a label that was trained on.
        num_known: Their number.
        sizes: (K,) training images per cluster of the best round.
        silhouette: Of the best round.
        concerns: What to know before believing the result, in sentences.
        unsure: Images (of those pictured) unlike all of their cluster, the least typical first.
    """

    title: str
    class_names: Sequence[str]
    parameters: Mapping[str, Any]
    metrics: Mapping[str, Any]
    rows: Sequence[RoundRow]
    verdict: str
    best_round: int
    epsilon: float
    gamma: float
    num_train: int
    num_test: int
    num_unreadable: int
    images: np.ndarray
    labels: np.ndarray
    before: Snapshot
    after: Snapshot
    map_indices: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    gallery_size: int = 12
    split: str = "test"
    supervision: Supervision = "full"
    num_known: int = 0
    sizes: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    silhouette: float | None = None
    concerns: Sequence[str] = ()
    unsure: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    @property
    def scored_split(self) -> str | None:
        """The split whose scores are the result, None where no label scores."""
        for split in ("test", "train"):
            if self.metrics[split]["nmi"] is not None:
                return split
        return None

    @property
    def has_labels(self) -> bool:
        return bool((self.labels >= 0).any())

    @property
    def num_clusters(self) -> int:
        return max(self.before.num_clusters, self.after.num_clusters)

    @property
    def num_classes(self) -> int:
        return max(len(self.class_names), int(self.labels.max(initial=-1)) + 1)

    def class_name(self, label: int) -> str:
        """Name of a class to show, its number where it has no name, "unknown" for -1."""
        if label < 0:
            return "unknown"
        known = label < len(self.class_names)
        return printable(self.class_names[label]) if known else str(label)


# --- Which images are right --------------------------------------------------------------------


def count_clusters(
    labels: np.ndarray, assignment: np.ndarray, *, num_clusters: int, num_classes: int
) -> np.ndarray:
    """(K, num_classes) images per cluster and class, over the images whose class is known."""
    counts = np.zeros((num_clusters, num_classes), dtype=np.int64)
    known = labels >= 0
    np.add.at(counts, (assignment[known], labels[known]), 1)
    return counts


def majority_classes(labels: np.ndarray, assignment: np.ndarray, num_clusters: int) -> np.ndarray:
    """(K,) most frequent known class of every cluster, the lowest of equals; -1 where none is."""
    num_classes = int(labels.max(initial=-1)) + 1
    if num_classes == 0:
        return np.full(num_clusters, -1, dtype=np.int64)
    counts = count_clusters(labels, assignment, num_clusters=num_clusters, num_classes=num_classes)
    return np.where(counts.any(axis=1), counts.argmax(axis=1), -1)


def is_wrong(labels: np.ndarray, assignment: np.ndarray, num_clusters: int) -> np.ndarray:
    """(N,) bool: the class is known and is not the majority class of the image's cluster."""
    majority = majority_classes(labels, assignment, num_clusters)
    wrong: np.ndarray = (labels >= 0) & (labels != majority[assignment])
    return wrong


def confusion(data: ReportData, snapshot: Snapshot) -> np.ndarray:
    """(K, num_classes) images of the report per cluster and class."""
    return count_clusters(
        data.labels,
        snapshot.assignment,
        num_clusters=data.num_clusters,
        num_classes=data.num_classes,
    )


def match_order(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Order clusters and classes so that matched pairs (Hungarian) lie on the diagonal.

    Args:
        counts: (K, num_classes) images.

    Returns:
        (K,) clusters and (num_classes,) classes; those without a partner come last.
    """
    from scipy.optimize import linear_sum_assignment

    clusters, classes = linear_sum_assignment(counts, maximize=True)
    by_class = np.argsort(classes)
    rows, columns = (
        np.concatenate([matched[by_class], np.setdiff1d(np.arange(size), matched)])
        for matched, size in zip((clusters, classes), counts.shape, strict=True)
    )
    return rows, columns


# --- Which images are pictured -----------------------------------------------------------------


def cluster_margin(
    embedding: np.ndarray, centroids: np.ndarray, assignment: np.ndarray
) -> np.ndarray:
    """(N,) distance to the nearest other centroid minus the distance to the own one."""
    margin = np.full(len(embedding), np.inf)
    if len(centroids) < 2:
        return margin
    for start in range(0, len(embedding), 4096):
        part = slice(start, start + 4096)
        z = np.asarray(embedding[part], dtype=np.float64)
        squared = (
            np.square(z).sum(axis=1, keepdims=True)
            - 2 * z @ centroids.T.astype(np.float64)
            + np.square(centroids.astype(np.float64)).sum(axis=1)
        )
        distance = np.sqrt(np.maximum(squared, 0))  # (B, K)
        rows = np.arange(len(z))
        own = distance[rows, assignment[part]]
        distance[rows, assignment[part]] = np.inf
        margin[part] = distance.min(axis=1) - own
    return margin


@dataclass(frozen=True)
class ClusterPictures:
    """The members of one cluster that stand for it.

    Attributes:
        cluster: Its id.
        typical: Members nearest the centroid, nearest first.
        doubtful: The members nearest the border to another cluster, most doubtful first.
        size: Number of members.
        majority: Its most frequent class, -1 if none is known.
        purity: Share of the majority class among the members of known class, None without any.
    """

    cluster: int
    typical: np.ndarray
    doubtful: np.ndarray
    size: int
    majority: int
    purity: float | None


def cluster_pictures(data: ReportData, snapshot: Snapshot) -> list[ClusterPictures]:
    """Choose the pictures of every cluster: half typical, half doubtful, none twice."""
    majority = majority_classes(data.labels, snapshot.assignment, data.num_clusters)
    return [
        _choose(data, snapshot, cluster, int(majority[cluster]))
        for cluster in range(data.num_clusters)
    ]


def _choose(data: ReportData, snapshot: Snapshot, cluster: int, majority: int) -> ClusterPictures:
    members = np.flatnonzero(snapshot.assignment == cluster)
    num_typical = -(-data.gallery_size // 2)
    by_distance = members[np.argsort(snapshot.distance[members], kind="stable")]
    typical, rest = by_distance[:num_typical], by_distance[num_typical:]
    by_margin = rest[np.argsort(snapshot.margin[rest], kind="stable")]
    labels = data.labels[members]
    num_known = int((labels >= 0).sum())
    return ClusterPictures(
        cluster=cluster,
        typical=typical,
        doubtful=by_margin[: data.gallery_size - num_typical],
        size=len(members),
        majority=majority,
        purity=float((labels == majority).sum() / num_known) if num_known else None,
    )


def pictured_clusters(data: ReportData) -> np.ndarray:
    """Ascending ids of the clusters in the gallery.

    All, if they are few; otherwise those with the most wrong images before and after together,
    or the largest ones where no class is known.
    """
    if data.num_clusters <= MAX_PICTURED_CLUSTERS:
        return np.arange(data.num_clusters)
    weight = np.zeros(data.num_clusters, dtype=np.int64)
    for snapshot in (data.before, data.after):
        counted = np.ones(len(data.labels), dtype=bool)
        if data.has_labels:
            counted = is_wrong(data.labels, snapshot.assignment, data.num_clusters)
        weight += np.bincount(snapshot.assignment[counted], minlength=data.num_clusters)
    chosen = np.argsort(-weight, kind="stable")[:MAX_PICTURED_CLUSTERS]
    return np.sort(chosen)


def pictured_images(data: ReportData) -> np.ndarray:
    """(P,) ascending indices of the images whose decodings the gallery shows."""
    clusters = pictured_clusters(data)
    chosen = [np.empty(0, dtype=np.int64)]
    for snapshot in (data.before, data.after):
        pictures = cluster_pictures(data, snapshot)
        for cluster in clusters:
            chosen += [pictures[cluster].typical, pictures[cluster].doubtful]
    return np.unique(np.concatenate(chosen))


@dataclass(frozen=True)
class Moves:
    """What the rounds did to the images, as indices; the clearest cases first.

    Attributes:
        fixed: Wrong before, right after.
        broken: Right before, wrong after.
        moved: In another cluster than before (ids are matched from round to round).
        stayed_wrong: Wrong before and after.
    """

    fixed: np.ndarray
    broken: np.ndarray
    moved: np.ndarray
    stayed_wrong: np.ndarray


def find_moves(data: ReportData) -> Moves:
    """Compare every image before and after."""
    wrong_before = is_wrong(data.labels, data.before.assignment, data.num_clusters)
    wrong_after = is_wrong(data.labels, data.after.assignment, data.num_clusters)

    def clearest(chosen: np.ndarray) -> np.ndarray:
        indices = np.flatnonzero(chosen)
        order: np.ndarray = indices[np.argsort(-data.after.margin[indices], kind="stable")]
        return order

    return Moves(
        fixed=clearest(wrong_before & ~wrong_after),
        broken=clearest(~wrong_before & wrong_after),
        moved=clearest(data.before.assignment != data.after.assignment),
        stayed_wrong=clearest(wrong_before & wrong_after),
    )


# --- The map -----------------------------------------------------------------------------------


def choose_map_indices(num_images: int, *, max_points: int, seed: int) -> np.ndarray:
    """(M,) ascending: a random subset for the map, empty if there are too few to draw one."""
    if min(num_images, max_points) < 4:
        return np.empty(0, dtype=np.int64)
    chosen = np.random.default_rng(seed).permutation(num_images)[:max_points]
    return np.sort(chosen)


def map_coordinates(
    before: np.ndarray, after: np.ndarray, *, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Two maps of the same images that can be compared: t-SNE, the second begun from the first.

    Args:
        before: (M, D) embeddings; M is at least 4.
        after: (M, D) embeddings of the same images.
        seed: Of the tiny noise that keeps equal embeddings apart.

    Returns:
        (M, 2) coordinates before and after.
    """
    from scipy.linalg import orthogonal_procrustes

    noise = 1e-6 * np.random.default_rng(seed).standard_normal((len(before), 2))
    first = _tsne(before, _principal_plane(before), noise)
    second = _tsne(after, first, noise)
    rotation, _ = orthogonal_procrustes(second - second.mean(axis=0), first - first.mean(axis=0))
    return first, second @ rotation


def _tsne(embedding: np.ndarray, start: np.ndarray, noise: np.ndarray) -> np.ndarray:
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits  # of scikit-learn

    start = start - start.mean(axis=0)
    start = 1e-4 * start / (start.std() or 1.0) + noise
    perplexity = min(30.0, (len(embedding) - 1) / 3)
    start = start.astype(np.float32)
    tsne = TSNE(init=start, perplexity=perplexity, max_iter=500, random_state=0)
    # One thread: so few points lose more than they gain by more, many times more on a busy machine.
    with threadpool_limits(limits=1):
        coordinates: np.ndarray = tsne.fit_transform(np.asarray(embedding, dtype=np.float32))
    return coordinates.astype(np.float64)


def _principal_plane(embedding: np.ndarray) -> np.ndarray:
    """(M, 2) first two principal components, 0 where there is no second."""
    centred = np.asarray(embedding, dtype=np.float64)
    centred = centred - centred.mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    # The sign of an axis is arbitrary: the largest entry becomes positive.
    axes = axes * np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])[:, None]
    plane = np.zeros((len(embedding), 2))
    num_axes = min(2, len(axes))
    plane[:, :num_axes] = centred @ axes[:num_axes].T
    return plane
