"""How typical an image is of its cluster, which is what `unsure` is decided by.

The distance to the centroid alone does not tell: an embedding that is trained to separate classes
maps whatever it is shown near one of them. What gives a strange image away are directions in which
the cluster's own images hardly vary, and pixels that the embedding has learnt to ignore. So an
image is described by z and a thumbnail together, and its **atypicality** is the Mahalanobis
distance to the mean of its cluster, under the covariance that all clusters share.

Lee et al., "A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial
Attacks" (NeurIPS 2018) use this distance; the limit is that of split conformal prediction.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

THUMBNAIL_SIDE = 8  # pixels; images that are smaller are their own thumbnail
GREY_LEVEL = 1 / 255  # a pixel's deviation counts as no smaller, also where it never varied
EMBEDDING_RIDGE = 1e-3  # of the mean variance of z, added to each: few images do not span z
CHUNK_SIZE = 4096  # images described at a time, at most
CHUNK_VALUES = 2**22  # pixels times channels of them, at most; they become float32


class Typicality(NamedTuple):
    """What the images of every cluster look like.

    Attributes:
        mean: (K, M) float32: mean description of every cluster; that of all images where a
            cluster is empty.
        whitening: (M, M) float32: makes the covariance within clusters the identity.
    """

    mean: np.ndarray
    whitening: np.ndarray


def describe(embedding: np.ndarray, images: np.ndarray) -> np.ndarray:
    """z and the thumbnail of every image.

    Args:
        embedding: (N, D) float32.
        images: (N, H, W, C) uint8, or their thumbnails; here and in all functions below.

    Returns:
        (N, M) float32.
    """
    return np.concatenate([embedding, thumbnails(images).reshape(len(images), -1)], axis=1)


def thumbnails(images: np.ndarray, *, side: int = THUMBNAIL_SIDE) -> np.ndarray:
    """(N, H, W, C) uint8 -> (N, h, w, C) float32 in [0, 1], h, w <= side: means over areas.

    What is float32 already is returned as it is.
    """
    from threadpoolctl import threadpool_limits

    if images.dtype == np.float32:
        return images
    num_images, height, width, channels = images.shape
    rows, columns = averaging(height, side), averaging(width, side)
    small = np.empty((num_images, len(rows), len(columns), channels), np.float32)
    step = max(1, CHUNK_VALUES // (height * width * channels))
    # One thread: so small products lose by more, many times over on a busy machine.
    with threadpool_limits(limits=1):
        for start in range(0, num_images, step):
            chunk = images[start : start + step].reshape(-1, height, width * channels)
            # (n, h, W, C): rows first, which lie together in memory
            lines = (rows @ chunk.astype(np.float32)).reshape(-1, len(rows), width, channels)
            mean = np.einsum("niwc,jw->nijc", lines, columns, optimize=True)
            small[start : start + step] = mean * np.float32(GREY_LEVEL)
    return small


def averaging(length: int, side: int = THUMBNAIL_SIDE) -> np.ndarray:
    """(h, length) float32: weight of every pixel in every pixel of the thumbnail; rows sum to 1."""
    small = min(length, side)
    edges = np.arange(small + 1) * (length / small)
    pixels = np.arange(length)
    covered = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    weights: np.ndarray = np.maximum(covered, 0) * (small / length)
    return weights.astype(np.float32)


def fit(
    embedding: np.ndarray, images: np.ndarray, assignment: np.ndarray, *, num_clusters: int
) -> Typicality:
    """Learn what the images of every cluster look like, streaming.

    Args:
        embedding: (N, D) float32 of the training images, N >= 1; may be memory-mapped.
        images: (N, H, W, C) uint8, likewise.
        assignment: (N,) cluster of every image.
        num_clusters: K.
    """
    counts = np.bincount(assignment, minlength=num_clusters)
    dim = embedding.shape[1] + thumbnails(images[:1]).size
    sums, products = np.zeros((num_clusters, dim)), np.zeros((dim, dim))
    for rows, description in _described(embedding, images):
        wide = description.astype(np.float64)
        members = np.arange(num_clusters)[:, None] == assignment[rows]
        sums += members.astype(np.float64) @ wide
        products += wide.T @ wide
    mean = np.where(
        counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], sums.sum(axis=0) / counts.sum()
    )
    covariance = (products - (mean * counts[:, None]).T @ mean) / counts.sum()
    covariance[np.diag_indices(dim)] += _ridge(covariance, embedding.shape[1])
    whitening = np.linalg.inv(np.linalg.cholesky(covariance)).T
    return Typicality(mean.astype(np.float32), whitening.astype(np.float32))


def _ridge(covariance: np.ndarray, embedding_dim: int) -> np.ndarray:
    """(M,) what is added to the variances, so that none is zero."""
    variance = np.diag(covariance)[:embedding_dim].mean()
    ridge = np.full(len(covariance), GREY_LEVEL**2)
    ridge[:embedding_dim] = max(EMBEDDING_RIDGE * variance, np.finfo(np.float32).eps)
    return ridge


def atypicality(
    typicality: Typicality, embedding: np.ndarray, images: np.ndarray, assignment: np.ndarray
) -> np.ndarray:
    """(N,) float32: how far every image is from the typical one of its cluster, in deviations.

    Args:
        typicality: From `fit`.
        embedding: (N, D) float32; may be memory-mapped.
        images: (N, H, W, C) uint8, likewise.
        assignment: (N,) cluster of every image.
    """
    found = np.empty(len(images), np.float32)
    for rows, description in _described(embedding, images):
        deviation = description - typicality.mean[assignment[rows]]
        found[rows] = np.linalg.norm(deviation @ typicality.whitening, axis=1)
    return found


def most_typical(typicality: Typicality, embedding: np.ndarray, images: np.ndarray) -> np.ndarray:
    """(N,) int64: the cluster that every image is most typical of.

    Fisher's linear discriminant: clusters that are long and thin lie apart where their centroids
    are close. The arguments are those of `atypicality`.
    """
    from vitdc.clustering import assign

    found = np.empty(len(images), np.int64)
    for rows, description in _described(embedding, images):
        whitened = (description @ typicality.whitening, typicality.mean @ typicality.whitening)
        found[rows] = assign(*whitened)[0]
    return found


def leave_one_out(values: np.ndarray, assignment: np.ndarray) -> np.ndarray:
    """The atypicality of the images of `fit`, as if each had been left out when it was fitted.

    What is typical was fitted to these images; the fewer there are, the more it flatters them. The
    correction is exact (Sherman and Morrison's formula) except that the ridge stays the same.

    Args:
        values: (N,) atypicality of exactly the images of `fit`, in any order.
        assignment: (N,) their clusters.

    Returns:
        (N,) float32; inf for an image that is alone in its cluster.
    """
    counts = np.bincount(assignment)[assignment].astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        moved = counts / (counts - 1)  # the mean without the image lies so much farther from it
        squared = np.square(values, dtype=np.float64) / len(values)
        squared = moved**2 * squared / np.maximum(1 - moved * squared, 0) * (len(values) - 1)
    return np.sqrt(np.where(counts > 1, squared, np.inf)).astype(np.float32)


def _described(embedding: np.ndarray, images: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    values = math.prod(images.shape[1:])
    step = max(1, min(CHUNK_SIZE, CHUNK_VALUES // values))
    for start in range(0, len(images), step):
        rows = slice(start, start + step)
        yield rows, describe(np.asarray(embedding[rows]), images[rows])


def limit(values: np.ndarray, *, rate: float) -> float:
    """The atypicality that a further image like these exceeds with a probability of at most `rate`.

    Args:
        values: (N,) of images that had no part in the training, in any order.
        rate: In (0, 1).

    Returns:
        The split conformal quantile; inf where there are too few values for the rate.
    """
    position = math.ceil((1 - rate) * (len(values) + 1))
    return float(np.sort(values)[position - 1]) if position <= len(values) else math.inf
