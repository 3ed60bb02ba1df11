"""Agreement of clusters with labels, over the images whose label is known."""

from __future__ import annotations

import numpy as np

from vitdc.artifacts import SplitScores


def score_split(labels: np.ndarray, assignment: np.ndarray) -> SplitScores:
    """NMI (arithmetic mean, in [0, 1]), ARI and clustering accuracy.

    Args:
        labels: (N,) classes, -1 where unknown.
        assignment: (N,) clusters.

    Returns:
        The scores over the known labels, and their number; all None where there is none.
    """
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    known = labels >= 0
    if not known.any():
        return SplitScores(None, None, None, images=0)
    labels, assignment = labels[known], assignment[known]
    return SplitScores(
        nmi=float(normalized_mutual_info_score(labels, assignment)),
        ari=float(adjusted_rand_score(labels, assignment)),
        acc=clustering_accuracy(labels, assignment),
        images=len(labels),
    )


def contingency(
    labels: np.ndarray, assignment: np.ndarray, *, shape: tuple[int, int]
) -> np.ndarray:
    """(num_classes, num_clusters) images per class and cluster; unknown labels left out."""
    known = labels >= 0
    cells = labels[known] * shape[1] + assignment[known]
    return np.bincount(cells, minlength=shape[0] * shape[1]).reshape(shape)


def majority_confusion(
    labels: np.ndarray, assignment: np.ndarray, *, num_classes: int, num_clusters: int
) -> np.ndarray:
    """(num_classes, num_classes) images per class and per majority class of their cluster.

    A cluster's majority class is the one that most of its known labels name, the lower of equals.
    """
    counts = contingency(labels, assignment, shape=(num_classes, num_clusters))
    confusion = np.zeros((num_classes, num_classes), counts.dtype)
    np.add.at(confusion.T, counts.argmax(axis=0), counts.T)
    return confusion


def clustering_accuracy(labels: np.ndarray, assignment: np.ndarray) -> float:
    """Share of images in the right cluster under the best one-to-one matching (Hungarian)."""
    from scipy.optimize import linear_sum_assignment

    counts = contingency(labels, assignment, shape=(labels.max() + 1, assignment.max() + 1))
    rows, columns = linear_sum_assignment(counts, maximize=True)
    return float(counts[rows, columns].sum() / len(labels))


def accuracy(labels: np.ndarray, predicted: np.ndarray) -> float | None:
    """Share of known labels that the head predicts; None where no label is known."""
    known = labels >= 0
    return float((labels[known] == predicted[known]).mean()) if known.any() else None


def silhouette(
    embedding: np.ndarray, assignment: np.ndarray, *, num_samples: int, seed: int
) -> float | None:
    """Mean silhouette coefficient in [-1, 1], estimated on a random sample.

    Args:
        embedding: (N, D).
        assignment: (N,).
        num_samples: Images in the sample; 0 gives None.
        seed: Of the sample.

    Returns:
        None where the sample has fewer than two clusters or nothing but singletons.
    """
    from sklearn.metrics import silhouette_score

    rows = np.random.default_rng(seed).permutation(len(embedding))[:num_samples]
    sample, clusters = embedding[np.sort(rows)], assignment[np.sort(rows)]
    if not 2 <= len(np.unique(clusters)) < len(sample):
        return None
    return float(silhouette_score(sample, clusters))
