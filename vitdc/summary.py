"""What the terminal shows: one line per artifact, the table of rounds, the scores of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import singledispatch
from typing import Any

from vitdc.artifacts import (
    COLLAPSED,
    CONVERGED,
    LOSS_ROSE,
    MAX_ROUNDS,
    SETTLED,
    Checkpoint,
    Clustering,
    Dataset,
    Embeddings,
    Evaluation,
    Round,
    RoundRow,
)
from vitdc.concerns import image_concerns, result_concerns, size_concerns

COLUMNS = {  # heading -> field of RoundRow
    "round": "round",
    "loss": "loss",
    "cross-entropy": "cross_entropy",
    "clustering": "clustering_loss",
    "NMI train": "nmi_train",
    "NMI test": "nmi_test",
    "ACC test": "acc_test",
    "changed": "changed",
    "silhouette": "silhouette",
    "rank": "effective_rank",
    "verdict": "verdict",
}
SCORE_NAMES = ("nmi", "ari", "acc")
SCORES = ("nmi_train", "nmi_test", "acc_test")
"""Columns that are left out where no label scores."""
LABEL_FREE = ("silhouette", "effective_rank")
"""Columns that stand in for them."""


def columns(first: RoundRow) -> dict[str, str]:
    """The columns of a table of rounds, by its first row, which has all the scores there are."""
    known = [field for field in SCORES if getattr(first, field) is not None]
    left_out = {*SCORES, *(LABEL_FREE if known else ())} - {*known}
    return {heading: field for heading, field in COLUMNS.items() if field not in left_out}


def number(value: float | None, digits: int = 4) -> str:
    """A number with fixed digits, or a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


class RoundTable:
    """Prints the rounds as they come, the heading before the first."""

    def __init__(self, echo: Callable[[str], Any]) -> None:
        self._echo = echo
        self._columns: dict[str, str] = {}

    def add(self, row: RoundRow) -> None:
        """Print one row."""
        if not self._columns:
            self._columns = columns(row)
            self._echo("  ".join(f"{heading:>{_width(heading)}}" for heading in self._columns))
        cells = (f"{_cell(getattr(row, key)):>{_width(h)}}" for h, key in self._columns.items())
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
    labels = f"{len(dataset.class_names)} classes" if dataset.class_names else "no labels"
    if dataset.class_names and dataset.supervision == "partial":
        labels += f", {int(dataset.known.sum())} training images with a label to train on"
    elif dataset.class_names and dataset.supervision == "none":
        labels += " that only score"
    skipped = f", {dataset.num_unreadable} unreadable skipped" if dataset.num_unreadable else ""
    commit = dataset.origin.get("commit", "")[:7]
    name = f"{dataset.name} at {commit}" if commit else dataset.name
    line = (
        f"{name}: {len(dataset.train)} training and {len(dataset.test)} test images of"
        f" {height}x{width}x{channels}, {labels}{skipped}"
    )
    return "\n".join([line, *image_concerns(dataset.oddities, dataset.num_images)])


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
    known = {"train": scores.train.nmi, "test": scores.test.nmi}
    nmi = [f"{number(value)} {split}" for split, value in known.items() if value is not None]
    parts = [f"{len(clustering.centroids)} clusters", *([f"NMI {' '.join(nmi)}"] if nmi else [])]
    line = f"round {clustering.round}: {', '.join(parts)}, silhouette"
    return "\n".join([f"{line} {number(scores.silhouette, 3)}", *size_concerns(clustering.sizes)])


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
        SETTLED: f"a share of only {number(history.rows[-2].changed)} had changed cluster before",
        COLLAPSED: "the embedding tells at most half of the clusters apart, effective rank"
        f" {number(history.current.effective_rank)}",
        MAX_ROUNDS: f"round {history.current.round} is convergence.max_rounds",
    }
    reason = reasons.get(history.verdict)
    if reason is None:
        return "the rounds go on"
    return f"stopped: {history.verdict} ({reason}); best is round {history.best_round}"


@describe.register
def _(evaluation: Evaluation) -> str:
    found, clustering = evaluation.metrics, _clustering(evaluation)
    lines = []
    for name, scores in (("clusters", found), ("pixel k-means", found.get("pixel_kmeans", {}))):
        for split in _scored(found):
            if s := scores.get(split):
                text = ", ".join(f"{key.upper()} {number(s[key], 3)}" for key in SCORE_NAMES)
                lines.append((name, f"{split} {text}{_on_images(s)}"))
    if not lines:
        lines.append(("clusters", f"{_sizes(clustering)}, {_quality(clustering)}"))
    how = f"{found['rounds']}, stopped by {found['stop_reason']}, best is round"
    what = "report.html, clusters.csv, rounds.csv, metrics.json, figures/, model/"
    lines += [
        ("rounds", f"{how} {found['best_round']} with joint loss {number(found['loss'])}"),
        *(("note", concern) for concern in result_concerns(found, clustering.sizes)),
        ("results", f"{evaluation.path}/ with {what}"),
    ]
    return "\n".join(f"{name:>13}: {text}" for name, text in lines)


def _clustering(evaluation: Evaluation) -> Clustering:
    """Of the best round."""
    return Clustering.load(evaluation.path / "model" / "clustering")


def _scored(found: Mapping[str, Any]) -> list[str]:
    """The split whose scores are the result: the held-out images if labels score them."""
    return [split for split in ("test", "train") if found[split]["nmi"] is not None][:1]


def _on_images(scores: Mapping[str, Any]) -> str:
    return f" on {scores['images']} images" if scores.get("images") else ""


def _sizes(clustering: Clustering) -> str:
    sizes = clustering.sizes
    return f"{len(sizes)} of {sizes.min()} to {sizes.max()} training images"


def _quality(clustering: Clustering) -> str:
    """What is known of a clustering without any label."""
    moved = clustering.scores.changed
    text = f"silhouette {number(clustering.scores.silhouette, 3)}"
    return text if moved is None else f"{text}, {100 * moved:.1f} % moved in the round"


def summarize(evaluation: Evaluation) -> str:
    """The table of rounds and the scores of a finished run."""
    lines: list[str] = []
    table = RoundTable(lines.append)
    for row in evaluation.rows:
        table.add(row)
    return "\n".join([*lines, "", describe(evaluation)])


def markdown(evaluation: Evaluation) -> str:
    """The same as Markdown, for pages that show it."""
    found, clustering = evaluation.metrics, _clustering(evaluation)
    shown = columns(evaluation.rows[0])
    rows = [
        f"| {' | '.join(_cell(getattr(row, key)) for key in shown.values())} |"
        for row in evaluation.rows
    ]
    how = f"{found['rounds']} rounds, stopped by `{found['stop_reason']}`; the best is round"
    return "\n".join(
        [
            f"# {_headline(found, clustering)}",
            "",
            f"{how} {found['best_round']} with joint loss {number(found['loss'])}.",
            "",
            *(f"**Note:** {each}\n" for each in result_concerns(found, clustering.sizes)),
            *_score_table(found),
            f"| {' | '.join(shown)} |",
            "|" + "---|" * len(shown),
            *rows,
            "",
        ]
    )


def _headline(found: Mapping[str, Any], clustering: Clustering) -> str:
    for split in _scored(found):
        return f"{split.capitalize()} NMI {number(found[split]['nmi'], 3)}"
    return f"{len(clustering.centroids)} clusters, {_quality(clustering)}"


def _score_table(found: Mapping[str, Any]) -> list[str]:
    rows = [
        f"| {name} | {found[name].get('images') or '-'} |"
        f" {' | '.join(number(found[name][key], 3) for key in SCORE_NAMES)} |"
        for name in ("test", "train")
        if found[name]["nmi"] is not None
    ]
    heading = ["| split | images | NMI | ARI | ACC |", "|---|---|---|---|---|"]
    return [*heading, *rows, ""] if rows else []
