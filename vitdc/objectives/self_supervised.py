"""Self-supervision: two random views of an image are to agree, and those of others are not.

The losses are those of pytorch-metric-learning: SimCLR's NT-Xent (https://arxiv.org/abs/2002.05709)
and VICReg (https://arxiv.org/abs/2105.04906). They see the embedding through a projector, which is
trained beside the model and thrown away.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from vitdc.augmentation import augment
from vitdc.config import PretrainingConfig
from vitdc.errors import InputError
from vitdc.model import Output
from vitdc.objectives.base import Views

Name = Literal["simclr", "vicreg"]
TRANSFORMS = {"flip": False, "shift": 0.1, "rotate": 10.0, "zoom": 0.2, "jitter": 0.2}
"""What makes views differ where the configuration sets no transform at all."""


class SelfSupervised:
    """SimCLR or VICReg over all images, two augmented views of each."""

    min_batch: ClassVar[int] = 2  # an image is compared with others

    def __init__(
        self, name: Name, config: PretrainingConfig, *, num_images: int, embedding_dim: int
    ) -> None:
        """Draw the projector's weights from torch's global generator.

        Args:
            name: Which loss.
            config: Augmentation, and the knobs of the loss.
            num_images: N.
            embedding_dim: D.

        Raises:
            InputError: There is nothing to compare: one image, or batches of one.
        """
        _check(name, config, num_images)
        self.parts = (name,)
        self.module = projector(embedding_dim, config.projector_dim)
        self._views, self._num_images = _with_transforms(config), num_images
        self._loss = _loss(name, config)

    def usable(self) -> np.ndarray:
        return np.arange(self._num_images)

    def views(self, images: Tensor, rows: np.ndarray) -> Views:
        """Two augmented views of every image."""
        both = [augment(images, self._views) for _ in range(2)]
        return Views(torch.cat(both), rows)

    def loss(self, output: Output, views: Views) -> tuple[Tensor]:
        one, other = self.module(output.embedding).chunk(2)  # (B, projector_dim) each
        return (self._loss(one, other),)


def _with_transforms(config: PretrainingConfig) -> PretrainingConfig:
    is_set = any(getattr(config, name) for name in TRANSFORMS)
    return config if is_set else config.model_copy(update=TRANSFORMS)


def projector(embedding_dim: int, width: int) -> nn.Sequential:
    """The MLP between embedding and loss: D -> width -> width."""
    return nn.Sequential(
        nn.Linear(embedding_dim, width, bias=False),
        nn.BatchNorm1d(width),
        nn.ReLU(),
        nn.Linear(width, width),
    )


def _loss(name: Name, config: PretrainingConfig) -> Callable[[Tensor, Tensor], Tensor]:
    # imported here, because only this objective needs it
    from pytorch_metric_learning.losses import SelfSupervisedLoss, SupConLoss, VICRegLoss

    if name == "simclr":
        # With one positive per view SupConLoss is NT-Xent, in B^2 steps. The library's NTXentLoss
        # takes B^3: 0.6 s against 4 ms for 128 images.
        return SelfSupervisedLoss(SupConLoss(config.temperature))  # type: ignore[no-any-return]
    vicreg = VICRegLoss()
    return lambda one, other: vicreg(one, ref_emb=other)


def _check(name: Name, config: PretrainingConfig, num_images: int) -> None:
    if num_images < SelfSupervised.min_batch:
        raise InputError(
            f"pretraining.objective: {name} compares images with each other, and there is only"
            f" {num_images}"
        )
    if config.batch_size < SelfSupervised.min_batch:
        raise InputError(
            f"pretraining.batch_size: {config.batch_size}, but {name} compares the images of a"
            " batch with each other; take e.g. 256"
        )
