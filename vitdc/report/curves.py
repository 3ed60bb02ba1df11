"""The figures of a comparison: runs overlaid in the colour of their group, paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from vitdc.comparison import Comparison, Difference, Group
from vitdc.report.figures import (
    AMBER,
    BLUE,
    FONT_SIZE,
    GREEN,
    INK,
    MUTED,
    PAPER,
    SKY,
    empty_figure,
    round_axis,
    shorten,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PURPLE = "#cc79a7"  # the sixth of Okabe and Ito's; vermilion stays for what is wrong
COLORS = (BLUE, AMBER, GREEN, PURPLE, SKY)
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1.5, 1.5), (6, 1.5, 1.5, 1.5))
Y_LABELS = {"nmi_test": "NMI", "nmi_train": "NMI", "loss": "joint loss l"}
SMALLEST_SPAN = 0.05  # of NMI: do not blow noise up to a mountain range
ROW_HEIGHT = 0.56  # inches
WIDEST_LABEL = 34


class Style(NamedTuple):
    """How the lines of a group are drawn; dashes as in SVG, none for a full line."""

    color: str
    dashes: tuple[float, ...]


def group_styles(groups: Sequence[Group]) -> dict[str, Style]:
    """Label -> style: grey for the baseline, then colours, then the same colours dashed."""
    styles = [Style(MUTED, ())]
    styles += [
        Style(COLORS[i % len(COLORS)], DASHES[i // len(COLORS) % len(DASHES)])
        for i in range(len(groups) - 1)
    ]
    return {group.label: style for group, style in zip(groups, styles, strict=True)}


def draw_curves(comparison: Comparison, name: str) -> Figure | None:
    """One value against the round: a thin line per run, a bold one for the mean of its group.

    Args:
        comparison: What is compared.
        name: nmi_test, nmi_train or loss.

    Returns:
        None if no run has the value.
    """
    curves = [run.curves.get(name, {}) for run in comparison.runs]
    numbers = [number for curve in curves for number in curve]
    if not numbers:
        return None
    figure, axes = empty_figure(3.7, 3.0)
    styles = group_styles(comparison.groups)
    alpha = 0.55 if len(curves) <= 12 else 0.35
    for group in reversed(comparison.groups):  # the baseline on top
        for run in group.runs if len(group.runs) > 1 else ():
            _line(axes, run.curves.get(name, {}), styles[group.label], width=1.0, alpha=alpha)
        _line(axes, group.mean_curve(name), styles[group.label], width=2.6, alpha=1.0)
        _mark_results(axes, group, name, styles[group.label])
    if name.startswith("nmi"):
        axes.set_ylim(*_nmi_limits(comparison))
    round_axis(axes, max(numbers), first=min(numbers))
    axes.set_ylabel(Y_LABELS[name])
    return figure


def draw_differences(comparison: Comparison, score: str) -> Figure | None:
    """A row per group: every pair as a small dot, their mean with its 95 % interval.

    Returns:
        None if there is not a single pair.
    """
    rows = [each for each in comparison.differences if each.score == score]
    if not any(each.num_pairs for each in rows):
        return None
    styles = group_styles(comparison.groups)
    figure, axes = empty_figure(4.3, 0.8 + ROW_HEIGHT * len(rows))
    axes.axvline(0, color=INK, linewidth=1.1)
    for position, each in enumerate(rows):
        _difference(axes, each, position, styles[each.group])
    axes.set_ylim(len(rows) - 0.5, -0.75)
    axes.margins(x=0.08)
    _widen(axes)
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(f"difference to {shorten(comparison.baseline.label, 40)}", parse_math=False)
    return figure


def _line(
    axes: Axes, curve: dict[int, float] | object, style: Style, *, width: float, alpha: float
) -> None:
    assert isinstance(curve, dict)
    if not curve:
        return
    numbers = sorted(curve)
    axes.plot(
        numbers,
        [curve[number] for number in numbers],
        color=style.color,
        linewidth=width,
        linestyle=(0, style.dashes) if style.dashes else "-",
        alpha=alpha,
        marker="o" if len(numbers) == 1 else None,
        solid_capstyle="round",
    )


def _mark_results(axes: Axes, group: Group, name: str, style: Style) -> None:
    """A dot where each run has its result: the best round."""
    for run in group.runs:
        if run.best_round is not None and run.best_round in run.curves.get(name, {}):
            value = run.curves[name][run.best_round]
            axes.plot(run.best_round, value, "o", color=style.color, markersize=4.5)


def _nmi_limits(comparison: Comparison) -> tuple[float, float]:
    """The same for training and test images, so that the panels compare."""
    values = [
        value
        for run in comparison.runs
        for name in ("nmi_test", "nmi_train")
        for value in run.curves.get(name, {}).values()
    ]
    low, high = min(values), max(values)
    reach = max(high - low, SMALLEST_SPAN) * 0.56
    middle = (low + high) / 2
    return max(-0.02, middle - reach), min(1.005, middle + reach)


def _difference(axes: Axes, each: Difference, position: int, style: Style) -> None:
    pairs = list(each.by_seed.values())
    axes.annotate(
        shorten(each.group, WIDEST_LABEL),
        (0, position - 0.34),
        xycoords=axes.get_yaxis_transform(),
        color=INK,
        fontsize=FONT_SIZE,
        fontweight="bold",
        va="center",
        annotation_clip=False,
        parse_math=False,
        bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1.5},  # over the line of zero
    )
    count = f"{len(pairs)} pair{'s' * (len(pairs) != 1)}"
    axes.annotate(
        f"{each.mean:+.3f}, {count}" if each.mean is not None else each.verdict,
        (1, position - 0.34),
        xycoords=axes.get_yaxis_transform(),
        color=MUTED,
        fontsize=FONT_SIZE,
        va="center",
        ha="right",
        annotation_clip=False,
    )
    axes.plot(pairs, [position + 0.17] * len(pairs), "|", color=style.color, markersize=8)
    if each.interval:
        axes.plot(each.interval, [position] * 2, color=style.color, linewidth=2.4)
    if each.mean is not None:
        alone = each.interval is None
        axes.plot(
            each.mean,
            position,
            "o",
            color=style.color,
            markersize=8,
            markerfacecolor="none" if alone else style.color,
            markeredgewidth=1.8,
        )


def _widen(axes: Axes, smallest: float = 0.01) -> None:
    """Show zero, and not less than `smallest` to both of its sides."""
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, -smallest), max(high, smallest))
