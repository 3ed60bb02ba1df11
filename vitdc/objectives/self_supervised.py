"""Self-supervision: two views of what is alike are to agree, and those of other images are not.

Alike is an image with itself or, on small images that are unlike photos, with one of its nearest
neighbours by the pixels (as in NNCLR, https://arxiv.org/abs/2104.14548, whose neighbours are those
of the embedding): augmentation alone would tell apart two images of one class.

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
from vitdc.config import SelfSupervisedConfig
from vitdc.errors import InputError
from vitdc.model import Output
from vitdc.objectives.base import Views

Name = Literal["simclr", "vicreg"]


class SelfSupervised:
    """SimCLR or VICReg over all images, with an augmented view of each and one of its partner."""

    min_batch: ClassVar[int] = 2  # an image is compared with others

    def __init__(
        self,
        name: Name,
        config: SelfSupervisedConfig,
        *,
        neighbours: np.ndarray,
        embedding_dim: int,
    ) -> None:
        """Draw the projector's weights from torch's global generator.

        Args:
            name: Which loss.
            config: Augmentation, and the knobs of the loss.
            neighbours: (N, K) images that an image's second view may be of; with K = 0 it is one of
                the image itself.
            embedding_dim: D.

        Raises:
            InputError: There is nothing to compare: one image, or batches of one.
        """
        _check(name, config, len(neighbours))
        self.parts = (name,)
        self.module = projector(embedding_dim, config.projector_dim)
        self._config, self._neighbours = config, neighbours
        self._loss = _loss(name, config)

    def usable(self) -> np.ndarray:
        return np.arange(len(self._neighbours))

    def shown(self, rows: np.ndarray) -> np.ndarray:
        """(2B,) the batch, then a partner of each, drawn from torch's global generator."""
        number = self._neighbours.shape[1]
        if not number:
            return np.concatenate([rows, rows])
        which = torch.randint(number, (len(rows),)).numpy()
        return np.concatenate([rows, self._neighbours[rows, which]])

    def views(self, images: Tensor, rows: np.ndarray) -> Views:
        """An augmented view of every image that is shown."""
        return Views(augment(images, self._config), rows)

    def loss(self, output: Output, views: Views) -> tuple[Tensor]:
        one, other = self.module(output.embedding).chunk(2)  # (B, projector_dim) each
        return (self._loss(one, other),)


def projector(embedding_dim: int, width: int) -> nn.Sequential:
    """The MLP between embedding and loss: D -> width -> width."""
    return nn.Sequential(
        nn.Linear(embedding_dim, width, bias=False),
        nn.BatchNorm1d(width),
        nn.ReLU(),
        nn.Linear(width, width),
    )


def _loss(name: Name, config: SelfSupervisedConfig) -> Callable[[Tensor, Tensor], Tensor]:
    # imported here, because only this objective needs it
    from pytorch_metric_learning.losses import SelfSupervisedLoss, SupConLoss, VICRegLoss

    if name == "simclr":
        # With one positive per view SupConLoss is NT-Xent, in B^2 steps. The library's NTXentLoss
        # takes B^3: 0.6 s against 4 ms for 128 images.
        return SelfSupervisedLoss(SupConLoss(config.temperature))  # type: ignore[no-any-return]
    vicreg = VICRegLoss()
    return lambda one, other: vicreg(one, ref_emb=other)


def _check(name: Name, config: SelfSupervisedConfig, num_images: int) -> None:
    if num_images < SelfSupervised.min_batch:
        raise InputError(
            f"pretraining.objective: {name} compares images with each other, and there is only"
            f" {num_images}"
        )
    if config.batch_size < SelfSupervised.min_batch:
        raise InputError(
            f"pretraining.self_supervised.batch_size: {config.batch_size}, but {name} compares the"
            " images of a batch with each other; take e.g. 256"
        )
