"""Which images are alike before anything is learnt: neighbours by their pixels.

faiss and scikit-learn are imported where they are used: a training on labels needs neither.
"""

from __future__ import annotations

import math

import numpy as np

NUM_COMPONENTS = 50
SAMPLE_IMAGES = 10_000  # that the components are computed from, at most
SAMPLE_VALUES = 2**26  # pixels times channels of them, at most; they become float32
CHUNK_VALUES = 2**24  # widened to float32 at a time when images are projected


def pixel_neighbours(images: np.ndarray, num_neighbours: int, *, seed: int) -> np.ndarray:
    """The nearest other images of every image, in the principal components of the pixels.

    The components of an image are scaled to length 1, so that contrast does not count. The search
    is exact, so its time grows with the square of N.

    Args:
        images: (N, H, W, C) uint8, N >= 1; may be memory-mapped.
        num_neighbours: K; N - 1 of fewer images.
        seed: Of the sample that the components are computed from, where N is large.

    Returns:
        (N, K) int64, the nearest first.
    """
    num_neighbours = min(num_neighbours, len(images) - 1)
    if not num_neighbours:
        return np.empty((len(images), 0), np.int64)
    import faiss

    points = _components(images, seed)
    index = faiss.IndexFlatL2(points.shape[1])
    index.add(points)
    found = index.search(points, num_neighbours + 1)[1]  # (N, K + 1), mostly itself first
    others = found != np.arange(len(images))[:, None]
    others[others.all(axis=1), -1] = False  # of many equal images, itself may not be among them
    nearest: np.ndarray = found[others].reshape(len(images), num_neighbours)
    return nearest


def _components(images: np.ndarray, seed: int) -> np.ndarray:
    """(N, <= NUM_COMPONENTS) float32 of length 1; of length 0 for the mean image itself."""
    from sklearn.decomposition import PCA

    num_values = math.prod(images.shape[1:])
    number = max(2, min(len(images), SAMPLE_IMAGES, SAMPLE_VALUES // num_values))
    rows = np.random.default_rng(seed).permutation(len(images))[:number]
    sample = _pixels(images[np.sort(rows)])
    with np.errstate(invalid="ignore"):  # equal images have no variance to explain
        pca = PCA(min(NUM_COMPONENTS, *sample.shape), random_state=seed).fit(sample)
    points = np.empty((len(images), pca.n_components_), np.float32)
    step = max(1, CHUNK_VALUES // num_values)
    for start in range(0, len(images), step):
        points[start : start + step] = pca.transform(_pixels(images[start : start + step]))
    length = np.linalg.norm(points, axis=1, keepdims=True)
    points /= np.maximum(length, np.finfo(np.float32).tiny)
    return points


def _pixels(images: np.ndarray) -> np.ndarray:
    """(N, H, W, C) uint8 -> (N, H * W * C) float32."""
    return images.reshape(len(images), -1).astype(np.float32)
