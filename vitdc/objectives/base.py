"""What a training needs to know of its objective."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from torch import Tensor, nn

from vitdc.model import Output


class Views(NamedTuple):
    """What the model sees of a batch.

    Attributes:
        images: (V * B, C, H, W) float in [0, 1]: V random views of every image, view after view.
        rows: (B,) which images of the data set these are.
        mixing: (B, B) rows of convex weights where images are mixed: image i is made of image j
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

    def views(self, images: Tensor, rows: np.ndarray) -> Views:
        """Draw the views of a batch.

        Args:
            images: (B, C, H, W) float in [0, 1].
            rows: (B,) which images of the data set these are.
        """

    def loss(self, output: Output, views: Views) -> tuple[Tensor, ...]:
        """A scalar per part.

        Args:
            output: Of the model for `views.images`.
            views: What `views` has drawn.
        """
