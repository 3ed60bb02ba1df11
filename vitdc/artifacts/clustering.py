"""Clusters of one round and how good they are: the Clustering artifact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from vitdc.artifacts.storage import SPLITS, read_array, read_metadata, writing
from vitdc.typicality import Typicality


class SplitScores(NamedTuple):
    """Agreement of clusters with labels, each None where no label is known.

    Attributes:
        nmi: Normalised mutual information, in [0, 1].
        ari: Adjusted Rand index.
        acc: Clustering accuracy.
        images: How many images they were computed on; None in older artifacts.
    """

    nmi: float | None
    ari: float | None
    acc: float | None
    images: int | None = None

    def scores(self) -> dict[str, float | None]:
        """The scores alone, by their names."""
        return {"nmi": self.nmi, "ari": self.ari, "acc": self.acc}


@dataclass(frozen=True)
class ClusteringScores:
    """How good a clustering is.

    Attributes:
        train: Scores of the training split.
        test: Scores of the test split.
        silhouette: Of the training images in the space in which the clusters were found, in
            [-1, 1]; estimated on a sample.
        changed: Share of training images whose cluster differs from the round before; None in
            round 0.
        inertia: Mean squared distance of the training embeddings to their centroids.
        num_empty: Clusters without a training image.
    """

    train: SplitScores
    test: SplitScores
    silhouette: float | None
    changed: float | None
    inertia: float
    num_empty: int

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        splits = {split: SplitScores(**values[split]) for split in SPLITS}
        return cls(**{**values, **splits})

    def to_dict(self) -> dict[str, Any]:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: v._asdict() if isinstance(v, SplitScores) else v for k, v in values.items()}


@dataclass(frozen=True)
class SplitClustering:
    """Clusters of one split.

    Attributes:
        assignment: (N,) int64: cluster of every image, the one with the nearest centroid; of a
            training image the one that was found on the manifold, if it was, and where its class is
            a cluster (partial labels), that cluster.
        distance: (N,) float32: Euclidean distance of z to the centroid of its cluster.
        atypicality: (N,) float32: see `vitdc.typicality`; of training images with each left out.
    """

    assignment: np.ndarray
    distance: np.ndarray
    atypicality: np.ndarray

    def __len__(self) -> int:
        return len(self.assignment)


@dataclass(frozen=True)
class Clustering:
    """Clusters of one round.

    Payload: centroids.npy, {train,test}_{assignment,distance,atypicality}.npy,
    typical_{mean,whitening}.npy.

    Attributes:
        round: The round whose embeddings were clustered.
        centroids: (K, D) float32; in the embedding, wherever the clusters were found.
        train: Clusters of the training images.
        test: Of the test images: the nearest centroid or, where the clusters were found on a
            manifold, the cluster that they are most typical of.
        scores: How good the clustering is.
        config: The `clustering` section it was made with; its `space` is the one it was made in.
        typicality: What the training images of every cluster look like.
    """

    kind: ClassVar[str] = "clustering"

    round: int
    centroids: np.ndarray
    train: SplitClustering
    test: SplitClustering
    scores: ClusteringScores
    config: dict[str, Any]
    typicality: Typicality

    @classmethod
    def load(cls, path: Path) -> Self:
        path = Path(path)
        metadata = read_metadata(path, cls.kind)
        names = [f.name for f in fields(SplitClustering)]
        splits = {
            split: SplitClustering(**{n: read_array(path / f"{split}_{n}.npy") for n in names})
            for split in SPLITS
        }
        typical = (np.asarray(read_array(path / f"typical_{n}.npy")) for n in Typicality._fields)
        return cls(
            round=metadata["round"],
            centroids=np.asarray(read_array(path / "centroids.npy")),
            **splits,
            scores=ClusteringScores.from_dict(metadata["scores"]),
            config=metadata["config"],
            typicality=Typicality(*typical),
        )

    def save(self, path: Path, made_by: Mapping[str, Any]) -> None:
        with writing(path, self.kind, made_by) as writer:
            writer.save("centroids", self.centroids)
            for split in SPLITS:
                clusters = self.split(split)
                for field in fields(clusters):
                    writer.save(f"{split}_{field.name}", getattr(clusters, field.name))
            for name, array in self.typicality._asdict().items():
                writer.save(f"typical_{name}", array)
            writer.metadata = {
                "round": self.round,
                "scores": self.scores.to_dict(),
                "config": self.config,
            }

    @property
    def is_of_manifold(self) -> bool:
        """Whether new images go to the cluster that they are most typical of."""
        return bool(self.config.get("space") == "manifold")

    @property
    def sizes(self) -> np.ndarray:
        """(K,) training images per cluster."""
        return np.bincount(self.train.assignment, minlength=len(self.centroids))

    def split(self, name: str) -> SplitClustering:
        return {"train": self.train, "test": self.test}[name]
