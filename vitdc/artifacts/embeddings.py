"""What the model says about every image: the Embeddings artifact."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar, Self

import numpy as np

from vitdc.artifacts.storage import SPLITS, Writer, read_array, read_metadata


@dataclass(frozen=True)
class SplitEmbeddings:
    """What one pass of the model says about every image of a split.

    Attributes:
        embedding: (N, D) float32: z.
        cross_entropy: (N,) float32: of the head against what a training image was trained to give,
            or against the label of a test image; NaN where there is neither.
        predicted: (N,) int64: output of the head that it predicts, a class or a cluster; -1
            without a head.
        features: (N, F) float32: what a frozen backbone says, below adapter and head; None where it
            is not frozen, and where the embeddings were made from another artifact's features.
    """

    embedding: np.ndarray
    cross_entropy: np.ndarray
    predicted: np.ndarray
    features: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.predicted)

    @classmethod
    def create(
        cls, writer: Writer, split: str, num_images: int, dim: int, *, with_features: bool = False
    ) -> Self:
        """Memory maps to stream the pass into."""
        shape = (num_images, dim)
        return cls(
            embedding=writer.array(f"{split}_embedding", shape, np.float32),
            cross_entropy=writer.array(f"{split}_cross_entropy", (num_images,), np.float32),
            predicted=writer.array(f"{split}_predicted", (num_images,), np.int64),
            features=writer.array(f"{split}_features", shape, np.float32)
            if with_features
            else None,
        )


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of both splits.

    Payload: {train,test}_{embedding,cross_entropy,predicted}.npy, and {train,test}_features.npy.

    Attributes:
        round: Of the model.
        train: Of the training images.
        test: Of the test images.
        is_pretrained: Whether the initial training of the model started from pretrained weights.
        features_of: Names the images and the backbone of the features; empty without any.
    """

    kind: ClassVar[str] = "embeddings"

    round: int
    train: SplitEmbeddings
    test: SplitEmbeddings
    is_pretrained: bool
    features_of: str = ""

    @classmethod
    def load(cls, path: Path) -> Self:
        path = Path(path)
        metadata = read_metadata(path, cls.kind)
        features_of = metadata.get("features_of", "")
        names = [f.name for f in fields(SplitEmbeddings) if f.name != "features" or features_of]
        splits = {
            split: SplitEmbeddings(**{n: read_array(path / f"{split}_{n}.npy") for n in names})
            for split in SPLITS
        }
        return cls(
            round=metadata["round"],
            **splits,
            # older ones do not tell; it counts without labels only, which they could not do without
            is_pretrained=metadata.get("is_pretrained", False),
            features_of=features_of,
        )

    def split(self, name: str) -> SplitEmbeddings:
        return {"train": self.train, "test": self.test}[name]
