"""The page of a comparison: one file, nothing loaded from elsewhere, in the look of the report."""

from __future__ import annotations

from collections import Counter
from typing import Any

from vitdc.comparison import SCORES, Comparison, Difference
from vitdc.comparison.groups import EQUAL, HIGHER, LOWER, UNCLEAR, show_value
from vitdc.comparison.tables import (
    difference_table,
    group_label,
    number,
    run_table,
    shown_columns,
    signed,
    summary_text,
)
from vitdc.report.curves import Style, draw_curves, draw_differences, group_styles
from vitdc.report.figures import THEME
from vitdc.report.page import fill_template
from vitdc.tracking.naming import CURVES

HEADLINE_SCORES = tuple(SCORES)  # the first one that there is, is the headline


def render_comparison(comparison: Comparison) -> str:
    """A complete HTML document that needs no network."""
    score = next((s for s in HEADLINE_SCORES if any(s in r.values for r in comparison.runs)), None)
    drawn = {name: draw_curves(comparison, name) for name in CURVES}
    drawn["differences"] = draw_differences(comparison, score) if score else None
    figures = {name: figure for name, figure in drawn.items() if figure is not None}
    return fill_template(
        "comparison.html.j2",
        figures=figures,
        styles=["page.css", "comparison.css"],
        comparison=comparison,
        sources=Counter(run.source for run in comparison.runs),
        data=sorted({run.data[:8] or "unknown" for run in comparison.runs}),
        score=SCORES[score] if score else "",
        headline=_headline(comparison, score),
        legend=_legend(comparison, score),
        columns=run_table(comparison)[0][1:],
        rows=[_row(comparison, index) for index in range(len(comparison.runs))],
        differences=difference_table(comparison),
        parameters=sorted((k, show_value(v)) for k, v in comparison.common.items()),
    )


def _headline(comparison: Comparison, score: str | None) -> dict[str, str]:
    """The outcome in one number and one or two sentences."""
    found = [each for each in comparison.differences if each.score == score]
    base = comparison.baseline.label
    if not score:
        text = "No held-out image has a label: compare the pictures in the reports."
        return {"label": "No scores", "big": f"{len(comparison.runs)} runs", "text": text}
    name = SCORES[score]
    if not found:
        label, text = f"Test {name}, mean over seeds", "All runs differ in nothing but the seed."
        return {
            "label": label,
            "big": summary_text(comparison.baseline, score).replace("+-", "\u00b1"),
            "text": text,
        }
    if len(found) == 1:
        (only,) = found
        label = f"Test {name}: {only.group} minus {base}"
        big = signed(only.mean, 3).replace("-", "\u2212") if only.mean is not None else "no pairs"
        return {"label": label, "big": big, "text": difference_in_words(only)}
    return _headline_of_many(found, base, name)


def _headline_of_many(found: list[Difference], base: str, name: str) -> dict[str, str]:
    tested = [each for each in found if each.interval]
    clear = [each for each in tested if each.verdict in (HIGHER, LOWER)]
    label = f"Test {name} against {base}"
    if not tested:
        text = "No setting has two seeds in common with the baseline: the noise is unknown."
        return {"label": label, "big": f"{len(found)} settings", "text": text}
    up = sum(each.verdict == HIGHER for each in clear)
    untested = len(found) - len(tested)
    text = "settings differ from the baseline by more than the noise of the seeds"
    text += f": {up} higher, {len(clear) - up} lower. " if clear else ". "
    if untested:
        text += f"{untested} more cannot be judged, for want of two common seeds. "
    text += "Of twenty such intervals one misses by chance: confirm a winner with new seeds."
    return {"label": label, "big": f"{len(clear)} of {len(tested)}", "text": text}


def difference_in_words(difference: Difference) -> str:
    """What one paired difference allows to say."""
    pairs = difference.num_pairs
    if difference.interval is None:
        if not pairs:
            return f"Nothing can be said: {difference.verdict}."
        return "One pair of runs: how much of this is noise cannot be said. Run more seeds."
    low, high = (signed(value, 3).replace("-", "\u2212") for value in difference.interval)
    where = f"95\u00a0% interval {low} to {high}, {pairs} seeds, {difference.num_higher} higher"
    says = {
        EQUAL: "No difference in any seed.",
        HIGHER: "Higher, by more than the noise of the seeds.",
        LOWER: "Lower, by more than the noise of the seeds.",
        UNCLEAR: "Within the noise of the seeds: no difference is shown.",
    }
    return f"{says[difference.verdict]} {where}."


def _legend(comparison: Comparison, score: str | None) -> list[dict[str, Any]]:
    styles = group_styles(comparison.groups)
    return [
        {
            "label": group.label,
            "style": _css(styles[group.label]),
            "runs": len(group.runs),
            "summary": summary_text(group, score).replace("+-", "\u00b1") if score else "",
        }
        for group in comparison.groups
    ]


def _css(style: Style) -> str:
    """A style for the stroke of an SVG line, in the colours of the page's theme."""
    color = f"var({THEME[style.color]})" if style.color in THEME else style.color
    return f"stroke:{color};stroke-dasharray:{' '.join(str(2 * each) for each in style.dashes)}"


def _row(comparison: Comparison, index: int) -> dict[str, Any]:
    run = comparison.runs[index]
    styles = group_styles(comparison.groups)
    group = group_label(comparison, run)
    values = [
        number(run.values.get(key), digits) for key, digits in shown_columns(comparison).values()
    ]
    return {
        "label": run.label,
        "about": f"{run.source}: {run.name} ({run.id})",
        "name": run.name if run.name != run.label else "",
        "style": _css(styles[group]) if group else "",
        "cells": [
            *(show_value(run.params.get(name)) for name in comparison.varying),
            *values,
            run.state,
            *([] if comparison.data else [run.data[:8] or "-"]),
        ],
    }
