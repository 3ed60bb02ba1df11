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
    """

    embedding: np.ndarray
    cross_entropy: np.ndarray
    predicted: np.ndarray

    def __len__(self) -> int:
        return len(self.predicted)

    @classmethod
    def create(cls, writer: Writer, split: str, num_images: int, dim: int) -> Self:
        """Memory maps to stream the pass into."""
        return cls(
            embedding=writer.array(f"{split}_embedding", (num_images, dim), np.float32),
            cross_entropy=writer.array(f"{split}_cross_entropy", (num_images,), np.float32),
            predicted=writer.array(f"{split}_predicted", (num_images,), np.int64),
        )


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of both splits. Payload: {train,test}_{embedding,cross_entropy,predicted}.npy.

    Attributes:
        round: Of the model.
        train: Of the training images.
        test: Of the test images.
        is_pretrained: Whether the initial training of the model started from pretrained weights.
    """

    kind: ClassVar[str] = "embeddings"

    round: int
    train: SplitEmbeddings
    test: SplitEmbeddings
    is_pretrained: bool

    @classmethod
    def load(cls, path: Path) -> Self:
        path = Path(path)
        metadata = read_metadata(path, cls.kind)
        names = [f.name for f in fields(SplitEmbeddings)]
        splits = {
            split: SplitEmbeddings(**{n: read_array(path / f"{split}_{n}.npy") for n in names})
            for split in SPLITS
        }
        # older embeddings do not tell; it counts without labels only, which they did not do without
        return cls(
            round=metadata["round"], **splits, is_pretrained=metadata.get("is_pretrained", False)
        )

    def split(self, name: str) -> SplitEmbeddings:
        return {"train": self.train, "test": self.test}[name]
