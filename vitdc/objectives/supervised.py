"""Cross-entropy of the head with a target per image: a label or a pseudo-label (eq. 5)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from timm.data.mixup import Mixup
from torch import Tensor
from torch.nn import functional

from vitdc.augmentation import augment
from vitdc.config import TargetTrainingConfig
from vitdc.losses import cross_entropy_loss, one_hot_targets
from vitdc.model import Output
from vitdc.objectives.base import Views


@dataclass(frozen=True)
class Supervised:
    """Cross-entropy over the images that have a target.

    Attributes:
        targets: (N,) int64: the output of the head that is right, -1 where there is none.
        config: Augmentation, mixing and label smoothing.
    """

    parts: ClassVar[tuple[str, ...]] = ("cross_entropy",)
    module: ClassVar[None] = None
    min_batch: ClassVar[int] = 1

    targets: np.ndarray
    config: TargetTrainingConfig

    @cached_property
    def _balance(self) -> np.ndarray:
        return balancing_weights(self.targets)

    def usable(self) -> np.ndarray:
        return np.flatnonzero(self.targets >= 0)

    def shown(self, rows: np.ndarray) -> np.ndarray:
        return rows

    def views(self, images: Tensor, rows: np.ndarray) -> Views:
        """One augmented view, mixed where the configuration says so."""
        images = augment(images, self.config)
        mixing = None
        # timm mixes pairs, so an odd last batch is not mixed
        if (self.config.mixup or self.config.cutmix) and len(rows) % 2 == 0:
            images, mixing = _mix(images, self.config)
        return Views(images, rows, mixing)

    def loss(self, output: Output, views: Views) -> tuple[Tensor]:
        own = torch.from_numpy(self.targets[views.rows]).to(output.logits.device)
        targets = one_hot_targets(own, output.logits.shape[1])  # (B, num_outputs)
        if self.config.class_weights == "balanced":
            weights = torch.from_numpy(self._balance[views.rows]).to(targets.device)
            targets = targets * weights[:, None]
        if views.mixing is not None:
            targets = views.mixing @ targets
        smoothing = self.config.label_smoothing
        return (cross_entropy_loss(output.logits, targets, label_smoothing=smoothing),)


def balancing_weights(targets: np.ndarray) -> np.ndarray:
    """(N,) float32 weights of mean 1 that give every class the same sum; 0 without a target."""
    _, own, counts = np.unique(targets, return_inverse=True, return_counts=True)
    known = targets >= 0
    num_classes = len(np.unique(targets[known]))
    weights = known.sum() / (max(1, num_classes) * counts[own])
    return np.where(known, weights, 0).astype(np.float32)


def cross_entropy_per_image(logits: Tensor, targets: Tensor) -> Tensor:
    """What the exact l is the mean of: (B,) cross-entropy, NaN where there is no target.

    Args:
        logits: (B, num_outputs); a model without a head has no outputs.
        targets: (B,) int64, -1 for none.
    """
    if not logits.shape[1]:
        return logits.new_full((len(logits),), torch.nan)
    values = functional.cross_entropy(logits, targets, reduction="none", ignore_index=-1)
    return values.where(targets >= 0, torch.nan)


def _mix(images: Tensor, config: TargetTrainingConfig) -> tuple[Tensor, Tensor]:
    """Mix a batch; row i of the (B, B) mixing holds the share of every image in image i.

    Each image is given its own "class", so that timm's soft labels are the shares themselves and
    serve the targets and the centroids alike.
    """
    mixup = Mixup(  # type: ignore[no-untyped-call]
        mixup_alpha=config.mixup,
        cutmix_alpha=config.cutmix,
        label_smoothing=0.0,
        num_classes=len(images),
    )
    mixed, shares = mixup(images, torch.arange(len(images), device=images.device))
    return mixed, shares.to(images.device)
