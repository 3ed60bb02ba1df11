"""What is computed over all images while they stream past: mean, deviation, content hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np

from vitdc.artifacts import SPLITS

GREY_LEVELS = 256


class PixelStatistics:
    """Per-channel mean and standard deviation, exact and in any order.

    Pixels have 256 values, so a histogram per channel says everything, whatever the number of
    images.
    """

    def __init__(self, num_channels: int) -> None:
        self.histogram = np.zeros((num_channels, GREY_LEVELS), np.int64)

    def update(self, images: np.ndarray) -> None:
        """Count the pixels of `images`, (n, H, W, C) uint8."""
        for channel, counts in enumerate(self.histogram):
            counts += np.bincount(images[..., channel].ravel(), minlength=GREY_LEVELS)

    def mean_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation in [0, 1].

        The deviation is at least one grey level: normalising a constant channel must not divide
        by zero.
        """
        values = np.arange(GREY_LEVELS) / (GREY_LEVELS - 1)
        weights = self.histogram / self.histogram.sum(axis=1, keepdims=True)
        mean = weights @ values
        variance = (weights * (values - mean[:, None]) ** 2).sum(axis=1)
        std = np.maximum(np.sqrt(variance), values[1])
        return tuple(mean.tolist()), tuple(std.tolist())


class ContentHash:
    """SHA-256 of what a Dataset contains: the same for equal images, labels and class names.

    It covers the JSON text, with sorted keys, of {"class_names": [...], and per split: {"shape":
    of the images, "images": SHA-256 of their bytes, "labels": SHA-256 of the little-endian int64
    labels}}.
    """

    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        self._image_shape = image_shape
        self._num_images = dict.fromkeys(SPLITS, 0)
        self._images = {split: hashlib.sha256() for split in SPLITS}
        self._labels = {split: hashlib.sha256() for split in SPLITS}

    def update(self, split: str, images: np.ndarray, labels: np.ndarray) -> None:
        """Add the next images of a split."""
        self._num_images[split] += len(images)
        self._images[split].update(np.ascontiguousarray(images).data)
        self._labels[split].update(np.ascontiguousarray(labels, dtype="<i8").data)

    def hexdigest(self, class_names: Sequence[str]) -> str:
        """The hash of everything added so far."""
        content: dict[str, object] = {"class_names": list(class_names)}
        for split in SPLITS:
            content[split] = {
                "shape": [self._num_images[split], *self._image_shape],
                "images": self._images[split].hexdigest(),
                "labels": self._labels[split].hexdigest(),
            }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
