"""What is exported: everything from the pixels to the cluster, in one module."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from vitdc.artifacts import Clustering
from vitdc.model import DeepClusteringViT
from vitdc.typicality import averaging


class ClusteringGraph(nn.Module):
    """Images (B, C, H, W) float in [0, 1] -> what is said about them, by name.

    embedding: (B, D): z.
    cluster: (B,) int64: the nearest centroid's, or what the image is most typical of (manifold).
    distances: (B, K): Euclidean, to every centroid.
    atypicality: (B,): see `vitdc.typicality`.
    """

    centroids: Tensor
    rows: Tensor
    columns: Tensor
    typical: Tensor
    whitening: Tensor

    def __init__(
        self,
        model: DeepClusteringViT,
        clustering: Clustering,
        image_shape: tuple[int, int, int],
    ) -> None:
        super().__init__()
        self.model = model
        self.is_of_manifold = clustering.is_of_manifold
        constants = {
            "centroids": clustering.centroids,  # (K, D)
            "rows": averaging(image_shape[0]),  # (h, H)
            "columns": averaging(image_shape[1]),  # (w, W)
            "typical": clustering.typicality.mean,  # (K, M)
            "whitening": clustering.typicality.whitening,  # (M, M)
        }
        for name, array in constants.items():
            self.register_buffer(name, torch.from_numpy(np.array(array)))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        embedding = self.model(images).embedding
        # directly, not by cdist: its expanded form loses digits close to a centroid
        distances = torch.linalg.vector_norm(embedding[:, None] - self.centroids, dim=2)
        thumbnails = self.rows @ images @ self.columns.T  # (B, C, h, w)
        pixels = thumbnails.permute(0, 2, 3, 1).flatten(1)
        description = torch.cat([embedding, pixels], dim=1)
        farness = distances
        if self.is_of_manifold:
            deviations = description[:, None] - self.typical  # (B, K, M)
            farness = torch.linalg.vector_norm(deviations @ self.whitening, dim=2)
        cluster = farness.argmin(dim=1)
        deviation = description - self.typical[cluster]
        atypicality = torch.linalg.vector_norm(deviation @ self.whitening, dim=1)
        return {
            "embedding": embedding,
            "cluster": cluster,
            "distances": distances,
            "atypicality": atypicality,
        }

    def constants(self) -> dict[str, Tensor]:
        """All tensors beside the model's weights, by name."""
        return dict(self.named_buffers(recurse=False))
