"""What every source of images looks like to `write_dataset`."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np


class Batch(NamedTuple):
    """Consecutive images of one split.

    Attributes:
        split: "train" or "test".
        names: n image ids, unique within the source and independent of where it lies.
        labels: (n,) int64, -1 where the class is unknown.
        images: (n, H, W, C) uint8.
    """

    split: str
    names: Sequence[str]
    labels: np.ndarray
    images: np.ndarray


class Source(Protocol):
    """Images that can be streamed once, already split, subset and of their final size."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """One per label value; final once `batches` is exhausted."""

    @property
    def origin(self) -> Mapping[str, str]:
        """What says exactly which version of its images was read; empty if nothing does."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of every image."""

    @property
    def num_unreadable(self) -> int:
        """Images skipped so far; final once `batches` is exhausted."""

    @property
    def train_labels(self) -> np.ndarray | None:
        """Labels of the training images, where they are known before any image is read."""

    def batches(self) -> Generator[Batch]:
        """Stream all training images, then all test images."""
