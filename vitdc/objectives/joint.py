"""The clustering term of eq. 8, which joins whatever the objective is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from vitdc.losses import clustering_loss
from vitdc.model import Output
from vitdc.objectives.base import Objective, Views


class Anchors(NamedTuple):
    """What a retraining pulls the embeddings towards, frozen during the round."""

    centroids: np.ndarray  # (K, D) float32
    assignment: np.ndarray  # (N,) cluster of every training image
    gamma: float


@dataclass(frozen=True)
class Joint:
    """L = L_objective + gamma * L_clustering (eq. 8); without anchors L_objective alone.

    With anchors every image carries loss, without them those of the objective.
    """

    objective: Objective
    anchors: Anchors | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of what `loss` returns: the total first, then its parts."""
        return ("loss", *self.objective.parts, "clustering_loss")

    @property
    def module(self) -> nn.Module | None:
        return self.objective.module

    @property
    def min_batch(self) -> int:
        return self.objective.min_batch

    def usable(self) -> np.ndarray:
        if self.anchors is None:
            return self.objective.usable()
        return np.arange(len(self.anchors.assignment))

    def shown(self, rows: np.ndarray) -> np.ndarray:
        return self.objective.shown(rows)

    def views(self, images: Tensor, rows: np.ndarray) -> Views:
        return self.objective.views(images, rows)

    def loss(self, output: Output, views: Views) -> tuple[Tensor, ...]:
        parts = self.objective.loss(output, views)
        total = sum(parts[1:], parts[0])
        if self.anchors is None:
            return total, *parts, torch.zeros_like(total)
        own = self.anchors.centroids[self.anchors.assignment[views.rows]]
        centroids = torch.from_numpy(own).to(output.embedding.device)
        clustering = clustering_loss(output.embedding, centroids, views.mixing)
        return total + self.anchors.gamma * clustering, *parts, clustering
