"""The results of a run as people read them: the Evaluation artifact."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

from vitdc.artifacts.rounds import RoundPaths, RoundRow, write_rounds_csv
from vitdc.artifacts.storage import copy, read_csv, read_metadata, write_json, writing

_DESCRIBED = ("test_data", "parameters", "dataset_name", "content_hash")  # in artifact.json


class ClusterRow(NamedTuple):
    """One row of clusters.csv: an image, its split, its class, its cluster and the distance."""

    image: str
    split: str
    label: str
    cluster: int
    distance: str


@dataclass(frozen=True)
class Evaluation:
    """The results of a run, as people read them.

    Payload: metrics.json, rounds.csv, clusters.csv, report.html, figures/*.png and
    model/{checkpoint,clustering} of the best round.

    Attributes:
        metrics: The content of metrics.json.
        rows: The content of rounds.csv.
        path: Where the files lie.
        test_data: `Dataset.split_hash` of the test split that was scored; empty if it is not known.
        parameters: Section -> knob -> value, as the artifacts were really made with; empty in
            results of a vitdc that did not record them.
        dataset_name: `Dataset.name`.
        content_hash: `Dataset.content_hash`: scores on other images do not compare.
    """

    kind: ClassVar[str] = "evaluation"

    metrics: dict[str, Any]
    rows: list[RoundRow]
    path: Path
    test_data: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    dataset_name: str = ""
    content_hash: str = ""

    @classmethod
    def load(cls, path: Path) -> Self:
        path = Path(path)
        metadata = read_metadata(path, cls.kind)
        metrics = json.loads((path / "metrics.json").read_text(encoding="utf-8"))
        return cls.from_metadata(metadata, metrics, path)

    @classmethod
    def from_metadata(
        cls, metadata: Mapping[str, Any], metrics: dict[str, Any], path: Path
    ) -> Self:
        """Put together what artifact.json says and the content of metrics.json."""
        described = {name: metadata[name] for name in _DESCRIBED if name in metadata}
        return cls(metrics, [RoundRow(**row) for row in metadata["rows"]], path, **described)

    def clusters(self) -> Iterator[ClusterRow]:
        """Stream the rows of clusters.csv."""
        for row in read_csv(self.path / "clusters.csv"):
            texts = {key: row[key] for key in ("image", "split", "label", "distance")}
            yield ClusterRow(cluster=int(row["cluster"]), **texts)

    def save(
        self,
        *,
        clusters: Iterable[ClusterRow],
        report: str,
        figures: Mapping[str, bytes],
        model: RoundPaths,
        made_by: Mapping[str, Any],
    ) -> None:
        """Write everything to `self.path`.

        Args:
            clusters: Streamed into clusters.csv.
            report: HTML page.
            figures: PNG file per name.
            model: The best round, whose checkpoint and clustering are copied.
            made_by: As in `writing`.
        """
        with writing(self.path, self.kind, made_by) as writer:
            described = {name: getattr(self, name) for name in _DESCRIBED}
            writer.metadata = {"rows": [asdict(row) for row in self.rows], **described}
            write_json(writer.directory / "metrics.json", self.metrics)
            write_rounds_csv(writer.directory / "rounds.csv", self.rows)
            writer.rows("clusters", ClusterRow._fields, clusters)
            (writer.directory / "report.html").write_text(report, encoding="utf-8")
            (writer.directory / "figures").mkdir()
            for name, png in figures.items():
                (writer.directory / "figures" / f"{name}.png").write_bytes(png)
            copy(model.checkpoint, writer.directory / "model" / "checkpoint", linked=True)
            copy(model.clustering, writer.directory / "model" / "clustering", linked=True)
