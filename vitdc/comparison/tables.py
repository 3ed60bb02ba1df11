"""A comparison for the terminal, as Markdown, CSV and JSON."""

from __future__ import annotations

import io
import json
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from vitdc.artifacts import CsvWriter
from vitdc.comparison.groups import Comparison, Difference, Group, show_value
from vitdc.comparison.runs import LABEL_FREE, SCORES, RunResult
from vitdc.names import printable, printable_lines

WIDTH = 100
MAX_LABEL = 28
COLUMNS = {  # heading -> value and digits
    "NMI": ("nmi_test", 3),
    "ARI": ("ari_test", 3),
    "ACC": ("acc_test", 3),
    "NMI train": ("nmi_train", 3),
    "silhouette": ("silhouette", 3),
    "l": ("loss", 4),
    "rounds": ("rounds", 0),
}
NONE = "-"
HINT = (
    "Without two seeds in common nothing shows how much of a difference is noise. Run each setting"
    " with the same few seeds, e.g. `dvc exp run -S seed=1`, and compare all of them."
)

Table = list[list[str]]


def as_text(comparison: Comparison) -> str:
    """For a terminal of 100 columns."""
    parts = [_wrapped(f"Warning: {warning}") for warning in comparison.warnings]
    parts.append(_wrapped(f"Equal in all runs: {common_text(comparison)}"))
    parts.append("\n".join(_fitting(comparison)))
    if not comparison.loss_compares:
        parts[-1] += "\n(l contains gamma: it does not compare between different gammas)"
    what = "Silhouette" if comparison.measures == LABEL_FREE else "Test scores"
    title = f"{what} per group, mean +- standard deviation over seeds"
    parts.append("\n".join([title, *_aligned(group_table(comparison))]))
    if comparison.differences:
        parts.append("\n".join(_differences(comparison)))
    if comparison.differences and max(each.num_pairs for each in comparison.differences) < 2:
        parts.append(_wrapped(HINT))
    return printable_lines("\n\n".join(parts))


def as_markdown(comparison: Comparison) -> str:
    """For a pull request or a wiki."""
    parts = [f"> {warning}" for warning in comparison.warnings]
    parts.append(f"Equal in all runs: {common_text(comparison)}")
    parts.append(_markdown(run_table(comparison)))
    parts.append(_markdown(group_table(comparison)))
    if comparison.differences:
        parts.append(f"Difference to **{comparison.baseline.label}**, paired by seed:")
        parts.append(_markdown(difference_table(comparison)))
    return printable_lines("\n\n".join(parts))


def as_csv(comparison: Comparison) -> str:
    """A row per run with all digits and full names, for a spreadsheet."""
    text = io.StringIO()
    writer = CsvWriter(text)
    scores = [key for key, _ in COLUMNS.values()]
    about = ["run", "name", "source", "id", "group"]
    writer.row([*about, *comparison.varying, *scores, "stop_reason", "data"])
    for run in comparison.runs:
        settings = [show_value(run.params.get(name)) for name in comparison.varying]
        values = [run.values.get(name) for name in scores]
        label = group_label(comparison, run)
        row = [run.label, run.name, run.source, run.id, label, *settings, *values]
        writer.row([*row, run.state, run.data])
    return text.getvalue().rstrip("\n")


def as_json(comparison: Comparison) -> str:
    """Everything, for programs; parameters as JSON values where they are that."""
    value = {
        "warnings": list(comparison.warnings),
        "parameters": {k: _value(v) for k, v in comparison.common.items()},
        "runs": [_run_json(comparison, run) for run in comparison.runs],
        "groups": [_group_json(group) for group in comparison.groups],
        "baseline": comparison.baseline.label,
        "differences": [_difference_json(each) for each in comparison.differences],
    }
    return json.dumps(value, indent=2)


FORMATS: dict[str, Callable[[Comparison], str]] = {
    "text": as_text,
    "markdown": as_markdown,
    "csv": as_csv,
    "json": as_json,
}


def run_table(comparison: Comparison) -> Table:
    """A row per run, the headings first; the data only where they differ."""
    names = comparison.short_names
    several = comparison.data is None
    columns = shown_columns(comparison)
    heading = ["run", *names.values(), *columns, "stopped by", *(["data"] if several else [])]
    rows = [
        [
            shorten(run.label),
            *(shorten(show_value(run.params.get(name))) for name in names),
            *(number(run.values.get(key), digits) for key, digits in columns.values()),
            run.state,
            *([run.data[:8] or NONE] if several else []),
        ]
        for run in comparison.runs
    ]
    return [heading, *rows]


def shown_columns(comparison: Comparison) -> dict[str, tuple[str, int]]:
    """The `COLUMNS` that any run has a value for; all of them while no run has a result."""
    known = {name for run in comparison.runs for name in run.values}
    return {heading: column for heading, column in COLUMNS.items() if column[0] in known} or COLUMNS


def group_table(comparison: Comparison) -> Table:
    """A row per group: how many runs, and the mean of every score with its spread."""
    measures = comparison.measures
    rows = [
        [str(len(group.runs)), *(summary_text(group, key) for key in measures), group.label]
        for group in comparison.groups
    ]
    return [["runs", *measures.values(), "group"], *rows]


def difference_table(comparison: Comparison) -> Table:
    """A row per group and score."""
    heading = ["group", "score", "pairs", "mean", "std err", "95 % interval", "positive", "verdict"]
    return [heading, *map(_difference_row, comparison.differences)]


def group_label(comparison: Comparison, run: RunResult) -> str:
    """Of the group of a run; empty for a run that repeats another one."""
    group = comparison.group_of(run)
    return group.label if group else ""


def summary_text(group: Group, name: str) -> str:
    """Like `0.961 +- 0.013`."""
    found = group.summary(name)
    if found is None:
        return NONE
    return number(found.mean, 3) if found.std is None else f"{found.mean:.3f} +- {found.std:.3f}"


def common_text(comparison: Comparison) -> str:
    """What is equal in all runs: the data, and parameters that are not at their default."""
    from vitdc.comparison.runs import flat_params
    from vitdc.config import Params

    defaults = flat_params(Params().model_dump(mode="json"))
    special = [
        f"{name}={show_value(value)}"
        for name, value in comparison.common.items()
        if defaults.get(name) != value
    ]
    if comparison.data:
        special.insert(0, f"data {comparison.data[:8]}")
    return "; ".join([", ".join(special) or "nothing", "every other parameter is at its default"])


def signed(value: float | None, digits: int = 4) -> str:
    return NONE if value is None else f"{value:+.{digits}f}"


def number(value: float | None, digits: int) -> str:
    return NONE if value is None else f"{value:.{digits}f}"


def shorten(text: str, length: int = MAX_LABEL) -> str:
    """Cut the middle out: what differs stands at either end."""
    if len(text) <= length:
        return text
    head = (length - 2) // 2
    return f"{text[:head]}..{text[len(text) - (length - 2 - head) :]}"


def _fitting(comparison: Comparison) -> list[str]:
    """The table of runs, or one of their parameters and one of their scores if it is too wide."""
    table = run_table(comparison)
    lines = _aligned(table)
    if max(map(len, lines)) <= WIDTH:
        return lines
    split = 1 + len(comparison.varying)
    parameters = [row[:split] for row in table]
    scores = [[row[0], *row[split:]] for row in table]
    return [*_aligned(parameters), "", *_aligned(scores)]


def _differences(comparison: Comparison) -> list[str]:
    """The table of differences with the groups as headings, since their labels may be long."""
    table = difference_table(comparison)
    heading, *lines = _aligned([row[1:] for row in table])
    shown = [f"Difference to {comparison.baseline.label}, paired by seed", f"  {heading}"]
    before = ""
    for (group, *_), line in zip(table[1:], lines, strict=True):
        shown += [group] if group != before else []
        shown.append(f"  {line}")
        before = group
    return shown


def _difference_row(difference: Difference) -> list[str]:
    interval = NONE
    if difference.interval:
        interval = " to ".join(map(signed, difference.interval))
    pairs = difference.num_pairs
    return [
        difference.group,
        {**SCORES, **LABEL_FREE}[difference.score],
        str(pairs),
        signed(difference.mean),
        number(difference.standard_error, 4),
        interval,
        f"{difference.num_higher} of {pairs}" if pairs else NONE,
        difference.verdict,
    ]


def _aligned(table: Table) -> list[str]:
    """Columns two spaces apart: numbers to the right, words to the left."""
    table = [list(map(printable, row)) for row in table]
    columns = list(zip(*table, strict=True))
    widths = [max(map(len, column)) for column in columns]
    right = [all(_is_number(cell) for cell in column[1:]) for column in columns]
    lines = []
    for row in table:
        cells = zip(row, widths, right, strict=True)
        lines.append("  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in cells).rstrip())
    return lines


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return cell == NONE
    return True


def _markdown(table: Table) -> str:
    escaped = [
        [printable(cell).replace("|", "\\|").replace("+-", "\u00b1") for cell in row]
        for row in table
    ]
    heading, *rows = (f"| {' | '.join(row)} |" for row in escaped)
    return "\n".join([heading, "|" + "---|" * len(table[0]), *rows])


def _wrapped(text: str) -> str:
    return textwrap.fill(
        text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:  # a string of MLflow's, or one that was too long for it
        return text


def _run_json(comparison: Comparison, run: RunResult) -> dict[str, Any]:
    return {
        "run": run.label,
        "name": run.name,
        "source": run.source,
        "id": run.id,
        "group": group_label(comparison, run) or None,
        "parameters": {name: _value(run.params.get(name, "null")) for name in comparison.varying},
        "values": dict(run.values),
        "stop_reason": run.state,
        "best_round": run.best_round,
        "data": run.data or None,
        "curves": {name: dict(curve) for name, curve in run.curves.items()},
    }


def _group_json(group: Group) -> dict[str, Any]:
    summaries = {name: group.summary(name) for name in (*SCORES, *LABEL_FREE)}
    return {
        "label": group.label,
        "parameters": {k: None if v is None else _value(v) for k, v in group.settings.items()},
        "runs": [run.id for run in group.runs],
        **{name: found._asdict() for name, found in summaries.items() if found},
    }


def _difference_json(difference: Difference) -> dict[str, Any]:
    return {
        "group": difference.group,
        "score": difference.score,
        "pairs": difference.num_pairs,
        "by_seed": {str(seed): value for seed, value in difference.by_seed.items()},
        "mean": difference.mean,
        "standard_error": difference.standard_error,
        "interval": difference.interval,
        "higher": difference.num_higher,
        "verdict": difference.verdict,
    }


def lines_of(rows: Sequence[Sequence[str]]) -> str:
    """Rows below each other, for lists of other things than comparisons."""
    return "\n".join(_aligned([list(row) for row in rows]))
