"""What the terminal shows: one line per artifact, the table of rounds, the scores of a run."""

from __future__ import annotations

from collections.abc import Callable
from functools import singledispatch
from typing import Any

from vitdc.artifacts import (
    CONVERGED,
    LOSS_ROSE,
    MAX_ROUNDS,
    Checkpoint,
    Clustering,
    Dataset,
    Embeddings,
    Evaluation,
    Round,
    RoundRow,
)

COLUMNS = {  # heading -> field of RoundRow
    "round": "round",
    "loss": "loss",
    "cross-entropy": "cross_entropy",
    "clustering": "clustering_loss",
    "NMI train": "nmi_train",
    "NMI test": "nmi_test",
    "ACC test": "acc_test",
    "changed": "changed",
    "verdict": "verdict",
}


def number(value: float | None, digits: int = 4) -> str:
    """A number with fixed digits, or a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


class RoundTable:
    """Prints the rounds as they come, the heading before the first."""

    def __init__(self, echo: Callable[[str], Any]) -> None:
        self._echo = echo
        self._started = False

    def add(self, row: RoundRow) -> None:
        """Print one row."""
        if not self._started:
            self._echo("  ".join(f"{heading:>{_width(heading)}}" for heading in COLUMNS))
            self._started = True
        cells = (f"{_cell(getattr(row, key)):>{_width(h)}}" for h, key in COLUMNS.items())
        self._echo("  ".join(cells))


def _width(heading: str) -> int:
    return max(len(heading), 8)


def _cell(value: Any) -> str:
    return number(value) if value is None or isinstance(value, float) else str(value)


@singledispatch
def describe(artifact: object) -> str:
    """An artifact in one or a few lines."""
    raise TypeError(f"nothing to say about a {type(artifact).__name__}")


@describe.register
def _(dataset: Dataset) -> str:
    height, width, channels = dataset.image_shape
    known = sum(int((split.labels >= 0).sum()) for split in (dataset.train, dataset.test))
    labels = f"{len(dataset.class_names)} classes" if known else "no labels"
    skipped = f", {dataset.num_unreadable} unreadable skipped" if dataset.num_unreadable else ""
    commit = dataset.origin.get("commit", "")[:7]
    name = f"{dataset.name} at {commit}" if commit else dataset.name
    return (
        f"{name}: {len(dataset.train)} training and {len(dataset.test)} test images of"
        f" {height}x{width}x{channels}, {labels}{skipped}"
    )


@describe.register
def _(checkpoint: Checkpoint) -> str:
    epochs = len(checkpoint.history)
    ending = f", training loss {checkpoint.history[-1]['loss']:.4f}" if epochs else ""
    return f"model of round {checkpoint.round}: {epochs} epochs{ending}"


@describe.register
def _(embeddings: Embeddings) -> str:
    num_images, dim = embeddings.train.embedding.shape
    return (
        f"round {embeddings.round}: embedded {num_images} training and"
        f" {len(embeddings.test.embedding)} test images in {dim} dimensions"
    )


@describe.register
def _(clustering: Clustering) -> str:
    scores = clustering.scores
    empty = f", {scores.num_empty} empty" if scores.num_empty else ""
    return (
        f"round {clustering.round}: {len(clustering.centroids)} clusters{empty}, NMI"
        f" {number(scores.train.nmi)} train {number(scores.test.nmi)} test, silhouette"
        f" {number(scores.silhouette, 3)}"
    )


@describe.register
def _(history: Round) -> str:
    row = history.current
    return f"round {row.round}: joint loss {number(row.loss)}; {describe_verdict(history)}"


def describe_verdict(history: Round) -> str:
    """Why the rounds stopped, or that they go on, with the numbers that decided it."""
    losses = [row.loss for row in history.rows if row.loss is not None]
    fall = losses[-2] - losses[-1] if len(losses) > 1 else 0.0
    reasons = {
        CONVERGED: f"the joint loss fell by {fall:.4f}, less than epsilon = {history.epsilon:g}",
        LOSS_ROSE: f"the joint loss rose by {-fall:.4f}",
        MAX_ROUNDS: f"round {history.current.round} is convergence.max_rounds",
    }
    reason = reasons.get(history.verdict)
    if reason is None:
        return "the rounds go on"
    return f"stopped: {history.verdict} ({reason}); best is round {history.best_round}"


@describe.register
def _(evaluation: Evaluation) -> str:
    found = evaluation.metrics
    scores = {"clusters": found["test"], "pixel k-means": found.get("pixel_kmeans", {}).get("test")}
    lines = [
        f"{name:>13}: test NMI {number(s['nmi'], 3)}, ARI {number(s['ari'], 3)}, ACC"
        f" {number(s['acc'], 3)}"
        for name, s in scores.items()
        if s
    ]
    how = f"{found['rounds']}, stopped by {found['stop_reason']}, best is round"
    what = "report.html, clusters.csv, rounds.csv, metrics.json, figures/, model/"
    lines += [
        f"{'rounds':>13}: {how} {found['best_round']} with joint loss {number(found['loss'])}",
        f"{'results':>13}: {evaluation.path}/ with {what}",
    ]
    return "\n".join(lines)


def summarize(evaluation: Evaluation) -> str:
    """The table of rounds and the scores of a finished run."""
    lines: list[str] = []
    table = RoundTable(lines.append)
    for row in evaluation.rows:
        table.add(row)
    return "\n".join([*lines, "", describe(evaluation)])


def markdown(evaluation: Evaluation) -> str:
    """The same as Markdown, for pages that show it."""
    found = evaluation.metrics
    rows = [
        f"| {' | '.join(_cell(getattr(row, key)) for key in COLUMNS.values())} |"
        for row in evaluation.rows
    ]
    scores = [
        f"| {name} | {' | '.join(number(of[key], 3) for key in ('nmi', 'ari', 'acc'))} |"
        for name, of in (("test", found["test"]), ("train", found["train"]))
    ]
    how = f"{found['rounds']} rounds, stopped by `{found['stop_reason']}`; the best is round"
    return "\n".join(
        [
            f"# Test NMI {number(found['test']['nmi'], 3)}",
            "",
            f"{how} {found['best_round']} with joint loss {number(found['loss'])}.",
            "",
            "| split | NMI | ARI | ACC |",
            "|---|---|---|---|",
            *scores,
            "",
            f"| {' | '.join(COLUMNS)} |",
            "|" + "---|" * len(COLUMNS),
            *rows,
            "",
        ]
    )
