"""Which labels may be trained on: what `data.labels` and `data.label_fraction` say."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from vitdc.config import DataConfig
from vitdc.data.sampling import fraction_per_class
from vitdc.errors import InputError


class KnownLabels:
    """Collects the labels of the training images, and chooses those that are trained on."""

    def __init__(self, config: DataConfig) -> None:
        self._config = config
        self._names: list[str] = []
        self._labels: list[np.ndarray] = []

    def update(self, names: Sequence[str], labels: np.ndarray) -> None:
        """Add the next training images: n names and their labels (n,), -1 where unknown."""
        self._labels.append(np.asarray(labels))
        if self._config.label_fraction is not None:  # of names, there may be too many to keep
            self._names.extend(names)

    def choose(self) -> np.ndarray | None:
        """(N,) bool: the images whose label may be trained on; None where these are all known ones.

        Raises:
            InputError: As `check`.
        """
        labels = np.concatenate(self._labels)
        self.check(labels)
        if self._config.labels == "none":
            return np.zeros(len(labels), bool) if (labels >= 0).any() else None
        if self._config.label_fraction is None:
            return None
        candidates = np.flatnonzero(labels >= 0)
        chosen = fraction_per_class(
            [self._names[row] for row in candidates],
            labels[candidates],
            fraction=self._config.label_fraction,
            seed=self._config.seed,
        )
        known = np.zeros(len(labels), bool)
        known[candidates[chosen]] = True
        return known

    def check(self, labels: np.ndarray) -> None:
        """Refuse labels that are not as the configuration says.

        Args:
            labels: (N,) of all training images, -1 where unknown.

        Raises:
            InputError: `full` and some are unknown, `partial` and none or all are known, or the
                fraction leaves a class without any.
        """
        num_known, num_images = int((labels >= 0).sum()), len(labels)
        asked, fraction = self._config.labels, self._config.label_fraction
        if asked == "full" and num_known < num_images:
            raise InputError(
                f"data.labels: full, but {num_images - num_known} of the {num_images} training"
                " images have no label; label them, in a folder by one sub-folder per class, or"
                " take auto, which trains on what there is"
            )
        if (asked == "partial" or fraction is not None) and not num_known:
            name = "data.labels: partial" if fraction is None else "data.label_fraction"
            raise InputError(
                f"{name}: none of the {num_images} training images has a label; label some, or take"
                " data.labels=none without a fraction"
            )
        if asked == "partial" and fraction is None and num_known == num_images:
            raise InputError(
                f"data.labels: partial, but all {num_images} training images have a label; set"
                " data.label_fraction to the share that is to be trained on, or take full"
            )
        if fraction is not None:
            _check_fraction(labels[labels >= 0], fraction)


def _check_fraction(labels: np.ndarray, fraction: float) -> None:
    smallest = int(np.unique(labels, return_counts=True)[1].min())
    if math.floor(fraction * smallest + 0.5) < 1:
        enough = math.ceil(0.5e6 / smallest) / 1e6
        raise InputError(
            f"data.label_fraction: {fraction:g} leaves no label of a class that has {smallest};"
            f" {enough:g} or more leaves one of every class"
        )
