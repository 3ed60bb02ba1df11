"""From embeddings back to images, for the pictures only: kernel ridge regression.

It shows what an embedding still knows about its image (the paper's Fig. 5). On held-out images its
error is lower than that of a small convolutional network (docs/decisions.md has the numbers), it
takes seconds, and no luck with initial weights comes between two rounds that are compared.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from vitdc.typicality import thumbnails

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

MAX_IMAGES = 2000  # that it learns from, and that it is measured on; more take much memory
NUM_LANDMARKS = 500  # of Nystroem's approximation of the kernel
KERNEL_WIDTH = 0.1  # gamma of the RBF kernel, for embeddings of a total variance of 1
PENALTIES = np.logspace(-5, 1, 7)  # of which leave-one-out error takes the best
LARGEST_GRID = 32  # an embedding holds no finer detail; larger images are interpolated
CHUNK_VALUES = 2**24  # pixels times channels that are read at a time


class Decoder(NamedTuple):
    """A regression from embeddings to the pixels of a small grid.

    Attributes:
        regression: Maps (N, D) to (N, h * w * C), about [0, 1].
        grid_shape: (h, w, C).
        image_shape: (H, W, C).
    """

    regression: Pipeline
    grid_shape: tuple[int, ...]
    image_shape: tuple[int, ...]

    def pixels(self, embedding: np.ndarray) -> np.ndarray:
        """Turn (N, D) embeddings into (N, h, w, C) float64 images in [0, 1]."""
        if not len(embedding):
            return np.empty((0, *self.grid_shape))
        found: np.ndarray = self.regression.predict(embedding.astype(np.float64))
        return found.reshape(-1, *self.grid_shape).clip(0, 1)


def fit_decoder(embedding: np.ndarray, images: np.ndarray, *, seed: int) -> Decoder:
    """Fit a decoder to at most `MAX_IMAGES` embeddings and their images.

    Args:
        embedding: (N, D) float32, N >= 1.
        images: (N, H, W, C) uint8, may be memory-mapped.
        seed: Of the sample and of the landmarks.
    """
    from sklearn.kernel_approximation import Nystroem
    from sklearn.linear_model import Ridge, RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    assert len(embedding) == len(images) > 0, "every image needs its embedding"
    rows = _sample(len(images), seed)
    points = embedding[rows].astype(np.float64)
    target = _shrunk(images, rows)
    variance = points.var(axis=0).sum()
    kernel = Nystroem(
        gamma=KERNEL_WIDTH / (variance or 1.0),
        n_components=min(NUM_LANDMARKS, len(rows)),
        random_state=seed,
    )
    ridge = RidgeCV(PENALTIES) if len(rows) > 1 else Ridge()  # one cannot be left out of one
    # centred, so that the differences of embeddings far from zero keep their digits
    regression = make_pipeline(StandardScaler(with_std=False), kernel, ridge)
    regression.fit(points, target.reshape(len(rows), -1))
    return Decoder(regression, target.shape[1:], images.shape[1:])


def decode(decoder: Decoder, embedding: np.ndarray) -> np.ndarray:
    """Turn (N, D) embeddings into (N, H, W, C) uint8 images."""
    pixels = (decoder.pixels(embedding) * 255).round().astype(np.uint8)
    if decoder.grid_shape == decoder.image_shape:
        return pixels
    height, width, channels = decoder.image_shape
    found = np.empty((len(embedding), *decoder.image_shape), np.uint8)
    for i, image in enumerate(pixels):
        for c in range(channels):
            band = Image.fromarray(image[..., c])
            found[i, ..., c] = np.asarray(band.resize((width, height), Image.Resampling.BILINEAR))
    return found


def reconstruction_error(
    decoder: Decoder, embedding: np.ndarray, images: np.ndarray, *, seed: int
) -> float:
    """Mean squared error per pixel of the grid, on the [0, 1] scale, over images not fitted to.

    Args:
        decoder: From `fit_decoder`.
        embedding: (N, D) float32.
        images: (N, H, W, C) uint8, may be memory-mapped; at least one.
        seed: Of the sample of `MAX_IMAGES` that is measured.
    """
    assert len(embedding) == len(images) > 0, "an error needs images"
    rows = _sample(len(images), seed)
    difference = decoder.pixels(embedding[rows]) - _shrunk(images, rows)
    return float(np.square(difference).mean())


def _sample(num_images: int, seed: int) -> np.ndarray:
    """At most `MAX_IMAGES` rows, in order: kinder to a memory map."""
    return np.sort(np.random.default_rng(seed).permutation(num_images)[:MAX_IMAGES])


def _shrunk(images: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(len(rows), h, w, C) float32 in [0, 1]: the images with sides of at most `LARGEST_GRID`."""
    size = max(1, CHUNK_VALUES // math.prod(images.shape[1:]))
    starts = range(0, len(rows), size)
    chunks = [thumbnails(images[rows[s : s + size]], side=LARGEST_GRID) for s in starts]
    return np.concatenate(chunks)
