"""The losses of eq. 5 and 7, as means over images, so that gamma does not depend on the data size.

Targets are soft: a row per image that holds the class weights, all zero where the label is
unknown. That covers partly labelled data and mixed images (mixup, cutmix) in one formula.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def one_hot_targets(labels: Tensor, num_classes: int) -> Tensor:
    """(B,) labels, -1 for unknown -> (B, num_classes) float targets with a zero row for unknown."""
    known = labels >= 0
    return functional.one_hot(labels.clamp(min=0), num_classes).float() * known[:, None]


def cross_entropy_loss(logits: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy over the known part of the targets (eq. 5); 0 where nothing is known.

    Args:
        logits: (B, C).
        targets: (B, C) class weights; a row sums to 1, or to the known share of it.
        label_smoothing: Share of a target that is spread evenly over all classes.
    """
    known = targets.sum(dim=1)  # (B,)
    smooth = known[:, None] / targets.shape[1]
    targets = (1 - label_smoothing) * targets + label_smoothing * smooth
    per_image = -(targets * logits.log_softmax(dim=1)).sum(dim=1)
    return per_image.sum() / known.sum().clamp(min=torch.finfo(known.dtype).tiny)


def clustering_loss(embedding: Tensor, centroids: Tensor, mixing: Tensor | None = None) -> Tensor:
    """Mean squared distance of every embedding to its centroid (eq. 7).

    Args:
        embedding: (B, D).
        centroids: (B, D): row i is the frozen centroid of image i.
        mixing: (B, B) rows of convex weights where images are mixed: image i counts towards the
            centroid of image j with weight mixing[i, j]. None means the identity.
    """
    if mixing is None:
        return (embedding - centroids).square().sum(dim=1).mean()
    squared = torch.cdist(embedding, centroids).square()  # (B, B)
    return (mixing * squared).sum(dim=1).mean()
