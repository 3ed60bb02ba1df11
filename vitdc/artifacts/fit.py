"""What a fitted DeepClustering knows beside its model: the Fit artifact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from vitdc.artifacts.rounds import RoundRow
from vitdc.artifacts.storage import read_csv, read_metadata, writing


@dataclass(frozen=True)
class Fit:
    """How a model was made from Python. Payload: labels.csv (image, cluster).

    Attributes:
        params: All parameters, in the form of params.yaml.
        classes: The labels that were given, one per output of the head.
        rows: A row per round.
        history: A row per epoch of every training.
        best_round: The round whose model it is.
        stop_reason: The last verdict.
        image_names: N ids or relative paths.
        labels: (N,) int64: their clusters.
    """

    kind: ClassVar[str] = "fit"

    params: Mapping[str, Any]
    classes: list[int] | list[str]
    rows: list[RoundRow]
    history: list[dict[str, float]]
    best_round: int
    stop_reason: str
    image_names: list[str]
    labels: np.ndarray

    @classmethod
    def load(cls, path: Path) -> Self:
        path = Path(path)
        metadata = read_metadata(path, cls.kind)
        table = list(read_csv(path / "labels.csv"))
        return cls(
            **{**metadata, "rows": [RoundRow(**row) for row in metadata["rows"]]},
            image_names=[row["image"] for row in table],
            labels=np.array([row["cluster"] for row in table], np.int64),
        )

    def save(self, path: Path, made_by: Mapping[str, Any]) -> None:
        with writing(path, self.kind, made_by) as writer:
            table = zip(self.image_names, self.labels.tolist(), strict=True)
            writer.rows("labels", ("image", "cluster"), table)
            metadata = {**vars(self), "rows": [asdict(row) for row in self.rows]}
            del metadata["image_names"], metadata["labels"]
            writer.metadata = metadata
