"""The losses of eq. 5 to 8, as means over images, so that gamma does not depend on the data size.

Targets are soft: a row per image that holds the class weights, all zero where the label is
unknown. That covers partly labelled data and mixed images (mixup, cutmix) in one formula.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class JointLoss(NamedTuple):
    """The joint loss and its parts, each a scalar: total = cross_entropy + gamma * clustering."""

    total: Tensor
    cross_entropy: Tensor
    clustering: Tensor


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


def joint_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    embedding: Tensor,
    centroids: Tensor | None = None,
    gamma: float = 0.0,
    label_smoothing: float = 0.0,
    mixing: Tensor | None = None,
) -> JointLoss:
    """L = L_ViT + gamma * L_clustering (eq. 8); without centroids it is L_ViT alone.

    Shapes as in `cross_entropy_loss` and `clustering_loss`; `mixing` is applied to the targets
    here, so they are those of the unmixed images.
    """
    if mixing is not None:
        targets = mixing @ targets
    cross_entropy = cross_entropy_loss(logits, targets, label_smoothing=label_smoothing)
    if centroids is None:
        return JointLoss(cross_entropy, cross_entropy, torch.zeros_like(cross_entropy))
    clustering = clustering_loss(embedding, centroids, mixing)
    return JointLoss(cross_entropy + gamma * clustering, cross_entropy, clustering)
