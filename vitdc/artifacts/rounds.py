"""The history of the rounds: the Round artifact and rounds.csv."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

from vitdc.artifacts.clustering import ClusteringScores
from vitdc.artifacts.storage import read_metadata, write_csv, writing

Verdict = str
CONTINUE, CONVERGED, LOSS_ROSE, MAX_ROUNDS = "continue", "converged", "loss-rose", "max-rounds"
SETTLED, COLLAPSED = "settled", "collapsed"
OUT_OF_ROOM = "out-of-room"
"""Why a run stopped whose last verdict is to continue: its pipeline had room for no more rounds."""


@dataclass(frozen=True)
class RoundRow:
    """One row of rounds.csv; None (an empty cell) where a value does not exist or is not known yet.

    Attributes:
        round: 0 is the initial training.
        loss: l = cross_entropy + gamma * clustering_loss, over all training images; none in
            round 0, which has no clusters to be trained against.
        cross_entropy: Mean over the training images that had a target in the round, in nats.
        clustering_loss: Mean squared distance to the frozen centroids of the round before.
        nmi_train: NMI of the clustering that ends the round; likewise the next three.
        changed: Share of the training images that changed cluster in this round.
        silhouette: Of the clustering that ends the round, in the space in which it was found.
        effective_rank: How many dimensions the training embeddings really use, see
            `vitdc.convergence.effective_rank`.
        verdict: What the round decided.
    """

    round: int
    loss: float | None = None
    cross_entropy: float | None = None
    clustering_loss: float | None = None
    nmi_train: float | None = None
    nmi_test: float | None = None
    ari_test: float | None = None
    acc_test: float | None = None
    changed: float | None = None
    silhouette: float | None = None
    effective_rank: float | None = None
    verdict: Verdict | None = None

    @classmethod
    def header(cls) -> list[str]:
        return [f.name for f in fields(cls)]

    def with_scores(self, scores: ClusteringScores) -> Self:
        """The row completed with the clustering that ends the round."""
        return replace(
            self,
            nmi_train=scores.train.nmi,
            nmi_test=scores.test.nmi,
            ari_test=scores.test.ari,
            acc_test=scores.test.acc,
            changed=scores.changed,
            silhouette=scores.silhouette,
        )


@dataclass(frozen=True)
class Round:
    """The history of all rounds so far and the verdict of the last. Payload: rounds.csv.

    A row's scores are filled in by the round after it (or by the evaluation), because the
    clustering that ends a round is made beside the check that judges it.

    Attributes:
        rows: A row per round, from 0 to the current one.
        verdict: "continue", "converged", "settled", "loss-rose", "collapsed" or "max-rounds".
        best_round: The round with the lowest l so far; of those before if the last collapsed.
        gamma: Weight of the clustering loss in l.
        epsilon: The threshold of the stopping rule.
    """

    kind: ClassVar[str] = "round"

    rows: list[RoundRow] = field(default_factory=list)
    verdict: Verdict = CONTINUE
    best_round: int = 0
    gamma: float = 0.0
    epsilon: float = 0.0

    @property
    def current(self) -> RoundRow:
        return self.rows[-1]

    @property
    def stop_reason(self) -> Verdict:
        """Why the rounds stopped, if these are all: the verdict, or that there was no more room."""
        return OUT_OF_ROOM if self.verdict == CONTINUE else self.verdict

    @classmethod
    def load(cls, path: Path) -> Self:
        metadata = read_metadata(Path(path), cls.kind)
        rows = [RoundRow(**row) for row in metadata["rows"]]
        keys = ("verdict", "best_round", "gamma", "epsilon")
        return cls(rows=rows, **{key: metadata[key] for key in keys})

    def save(self, path: Path, made_by: Mapping[str, Any]) -> None:
        with writing(path, self.kind, made_by) as writer:
            writer.metadata = asdict(self)
            write_rounds_csv(writer.directory / "rounds.csv", self.rows)


def write_rounds_csv(path: Path, rows: Iterable[RoundRow]) -> None:
    """Write rounds.csv, the table people and tools read."""
    write_csv(path, RoundRow.header(), (asdict(row).values() for row in rows))


class RoundPaths(NamedTuple):
    """Where the three artifacts of one round lie."""

    checkpoint: Path
    embeddings: Path
    clustering: Path

    @classmethod
    def in_directory(cls, directory: Path) -> Self:
        """The paths inside a round's directory, as `refine` lays it out."""
        return cls(*(directory / name for name in cls._fields))
