"""What a training needs to know of its objective."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from torch import Tensor, nn

from vitdc.model import Output


class Views(NamedTuple):
    """What the model sees of a batch.

    Attributes:
        images: (V, C, H, W) float in [0, 1].
        rows: (V,) which image of the data set each is a view of.
        mixing: (V, V) rows of convex weights where images are mixed: image i is made of image j
            with weight mixing[i, j]. None means the identity.
    """

    images: Tensor
    rows: np.ndarray
    mixing: Tensor | None = None


class Objective(Protocol):
    """A loss and all that it needs beside the model."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts of the loss, which is their sum."""

    @property
    def module(self) -> nn.Module | None:
        """What is trained beside the model; its state is a part of the training's."""

    @property
    def min_batch(self) -> int:
        """Images that a batch needs; fewer at the end of an epoch are left out."""

    def usable(self) -> np.ndarray:
        """(n,) ascending indices of the images that carry loss."""

    def shown(self, rows: np.ndarray) -> np.ndarray:
        """(V,) the images that are shown for a batch, perhaps several times or beside others.

        Args:
            rows: (B,) the batch: indices of images of the data set.
        """

    def views(self, images: Tensor, rows: np.ndarray) -> Views:
        """Draw a random view of every image.

        Args:
            images: (V, C, H, W) float in [0, 1], those that `shown` has named.
            rows: (V,) which images of the data set these are.
        """

    def loss(self, output: Output, views: Views) -> tuple[Tensor, ...]:
        """A scalar per part.

        Args:
            output: Of the model for `views.images`.
            views: What `views` has drawn.
        """
