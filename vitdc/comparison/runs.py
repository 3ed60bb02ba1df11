"""One run as a comparison sees it, wherever its record lies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from vitdc.artifacts import Evaluation, RoundRow
from vitdc.errors import InputError
from vitdc.tracking.naming import CURVES, as_text, flatten

SCORES = {"nmi_test": "NMI", "ari_test": "ARI", "acc_test": "ACC"}  # of held-out images
LABEL_FREE = {"silhouette": "silhouette"}


@dataclass(frozen=True)
class RunResult:
    """The result of one run.

    Attributes:
        id: Unique: an MLflow run id, a Git commit or an absolute path.
        label: Short; what the person called the run.
        name: As a person reads it; may be the label again.
        source: "MLflow", "DVC" or "directory".
        params: Flat, {"joint.gamma": "0.1", ...}; strings as they are, all else as JSON.
        values: What is known of nmi_test, ari_test, acc_test, nmi_train, ..., loss, rounds.
        curves: nmi_test, nmi_train and loss: round -> value.
        state: Why the rounds stopped, or the state of a run that has no result (yet).
        best_round: The round that is the result, if there is one.
        data: Hash of the content of the data set, the first 16 digits; empty if unknown.
    """

    id: str
    label: str
    name: str
    source: str
    params: Mapping[str, str]
    values: Mapping[str, float]
    curves: Mapping[str, Mapping[int, float]]
    state: str
    best_round: int | None
    data: str

    @property
    def seed(self) -> str | None:
        return self.params.get("seed")


def from_evaluation(evaluation: Evaluation, *, id: str, label: str, source: str) -> RunResult:
    """The result that `evaluate` wrote.

    Raises:
        InputError: It was written before evaluations recorded their parameters.
    """
    if not evaluation.parameters:
        raise InputError(
            f"{label}: written by an older vitdc, which did not record the parameters in"
            " artifact.json; run `vitdc evaluate` (or `dvc repro -f evaluate`) again"
        )
    found = evaluation.metrics
    return RunResult(
        id=id,
        label=label,
        name=label,
        source=source,
        params=flat_params(evaluation.parameters),
        values=_values(found),
        curves={name: _curve(name, evaluation.rows) for name in CURVES},
        state=found["stop_reason"],
        best_round=found["best_round"],
        data=evaluation.content_hash[:16],
    )


def flat_params(parameters: Mapping[str, Any]) -> dict[str, str]:
    """Sections as {"joint.gamma": "0.1", ...}, the way they are recorded in MLflow."""
    return {".".join(path): as_text(value) for path, value in flatten(parameters)}


def _values(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of metrics.json, {"nmi_test": 0.8, ...}; what is null is left out."""
    scores = {
        f"{score}_{split}": metrics[split].get(score)
        for split in ("test", "train")
        for score in ("nmi", "ari", "acc")
    }
    silhouette = metrics.get("silhouette")  # only where no label scores
    values = {
        **scores,
        "silhouette": silhouette,
        "loss": metrics["loss"],
        "rounds": metrics["rounds"],
    }
    return {name: float(value) for name, value in values.items() if value is not None}


def _curve(name: str, rows: Iterable[RoundRow]) -> dict[int, float]:
    values = ((row.round, getattr(row, name)) for row in rows)
    return {number: float(value) for number, value in values if value is not None}
