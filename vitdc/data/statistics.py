"""What is computed over all images while they stream past: mean, deviation, oddities, hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vitdc.artifacts import SPLITS

GREY_LEVELS = 256
FEW_LEVELS = 20
MANY_PIXELS = 32 * 32  # a smaller image may well have few levels
MAX_NAMED = 5


def histograms(images: np.ndarray) -> np.ndarray:
    """(n, H, W, C) uint8 -> (n, C, 256): how many pixels of every channel have which level."""
    found = np.empty((len(images), images.shape[3], GREY_LEVELS), np.int64)
    for image, channels in zip(images, found, strict=True):
        for channel, counts in enumerate(channels):
            counts[:] = np.bincount(image[..., channel].ravel(), minlength=GREY_LEVELS)
    return found


class Oddities:
    """Counts images that show almost nothing, by kind.

    constant: One level in every channel.
    faint: Others whose levels span fewer than `FEW_LEVELS` of the 256 in every channel.
    coarse: Others that have fewer levels than that in every channel, although they span more, and
        are of at least `MANY_PIXELS`.
    """

    def __init__(self) -> None:
        self.num_images = 0
        self._found: dict[str, dict[str, Any]] = {}

    def update(self, names: Sequence[str], levels: np.ndarray) -> None:
        """Add the next images: their names and `histograms`."""
        is_used = levels > 0
        num_levels = is_used.sum(axis=2).max(axis=1)  # (n,)
        spans = GREY_LEVELS - is_used.argmax(axis=2) - is_used[:, :, ::-1].argmax(axis=2)
        kinds = np.where(spans.max(axis=1) < FEW_LEVELS, "faint", "").astype("<U8")
        is_large = levels[:, 0].sum(axis=1) >= MANY_PIXELS
        kinds[(kinds == "") & (num_levels < FEW_LEVELS) & is_large] = "coarse"
        kinds[num_levels == 1] = "constant"
        self.num_images += len(names)
        for at in np.flatnonzero(kinds != "").tolist():
            known = self._found.setdefault(str(kinds[at]), {"images": 0, "names": []})
            known["images"] += 1
            if len(known["names"]) < MAX_NAMED:
                known["names"].append(names[at])

    def found(self) -> Mapping[str, Mapping[str, Any]]:
        """By kind, the number of `images` and the `names` of the first."""
        return self._found


class PixelStatistics:
    """Per-channel mean and standard deviation, exact and in any order.

    Pixels have 256 values, so a histogram per channel says everything, whatever the number of
    images.
    """

    def __init__(self, num_channels: int) -> None:
        self.histogram = np.zeros((num_channels, GREY_LEVELS), np.int64)

    def update(self, levels: np.ndarray) -> None:
        """Count the pixels of images, given by their `histograms`."""
        self.histogram += levels.sum(axis=0)

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
