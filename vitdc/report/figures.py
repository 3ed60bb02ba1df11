"""The figures of the report: arrays in, matplotlib figures out.

Every panel is a figure of its own, so that the page can set panels side by side on a laptop and
below each other on a phone. No pyplot: nothing global is touched. A figure is drawn on white; for
the page, `figure_svg` replaces ink, paper and lines by CSS variables, so that it follows the
page's light or dark theme.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from vitdc.report.data import (
    ClusterPictures,
    ReportData,
    Snapshot,
    cluster_pictures,
    confusion,
    is_wrong,
    majority_classes,
    match_order,
    pictured_clusters,
)
from vitdc.report.fonts import fonts_for

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from vitdc.num_clusters import Suggestion

# Distinct for everybody (Okabe and Ito); only what is wrong is ever vermilion.
BLUE, SKY, AMBER, GREEN, WRONG = "#0072b2", "#56b4e9", "#e69f00", "#009e73", "#d55e00"
INK, MUTED, LINE, PAPER = "#1b1f24", "#5b636e", "#d9dde3", "#ffffff"
ON_BLUE = "#fefefe"  # not paper: it stays light in the dark theme
THEME = {
    INK: "--ink", MUTED: "--muted", LINE: "--line", PAPER: "--card",
    BLUE: "--data-blue", GREEN: "--data-green", WRONG: "--wrong",
}  # fmt: skip
FONT_SIZE = 10
MAX_ANNOTATED = 20
PNG_DPI = 150
TILE = 0.5  # inches per picture of the gallery


def build_figures(data: ReportData) -> dict[str, Figure]:
    """Draw every panel for which there is something to draw.

    Returns:
        Some of: "nmi", "sizes", "loss", "gain", "changed", "confusion_before", "confusion_after",
        "map_before", "map_after", "gallery".
    """
    with fonts_for(data.class_names):
        return _build_figures(data)


def _build_figures(data: ReportData) -> dict[str, Figure]:
    figures: dict[str, Figure] = {}
    rows = data.rows
    if data.scored_split:
        figures["nmi"] = draw_nmi(data)
    else:
        figures["sizes"] = draw_sizes(data)
    if _known(row.loss for row in rows):
        figures["loss"] = draw_loss(data)
    if len(_known(row.loss for row in rows)) > 1:
        figures["gain"] = draw_gain(data)
    if _known(row.changed for row in rows):
        figures["changed"] = draw_changed(data)
    for name, snapshot in (("before", data.before), ("after", data.after)):
        if data.has_labels:
            figures[f"confusion_{name}"] = draw_confusion(data, snapshot)
        if snapshot.coordinates is not None and len(data.map_indices):
            figures[f"map_{name}"] = draw_map(data, snapshot)
    if len(data.labels):
        figures["gallery"] = draw_gallery(data)
    return figures


def figure_png(figure: Figure) -> bytes:
    """Encode a figure; equal figures give equal bytes."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # `fonts_for` has said it once
        figure.savefig(
            buffer,
            format="png",
            dpi=PNG_DPI,
            metadata={"Software": None},
            pil_kwargs={"compress_level": 4},  # twice as fast as 6, and 2 % larger
        )
    return buffer.getvalue()


def figure_svg(figure: Figure, *, name: str) -> str:
    """Turn a figure into an inline `<svg>` that takes its font and theme from the page.

    Args:
        figure: Drawn by this module.
        name: Prefix of the ids inside, which must not repeat on a page.
    """
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "vitdc"}):
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for attribute in ("width", "height"):  # the page's business
        svg = re.sub(rf'(<svg [^>]*?) {attribute}="[^"]*pt"', r"\1", svg)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r"font-family:[^;\"]*;?", "", svg)
    svg = re.sub(r"font: (\S+) '[^\"]*?(?=[;\"])", r"font-size: \1", svg)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{name}-", svg)
    for color, variable in THEME.items():
        svg = svg.replace(color, f"var({variable})")
    return svg.strip()


# --- Rounds (the paper's Fig. 4) ---------------------------------------------------------------


def draw_nmi(data: ReportData) -> Figure:
    """NMI of both splits against the round; the best round is marked."""
    figure, axes = empty_figure(4.8, 3.3)
    _mark_best(axes, data)
    ends = []
    for name, color, marker in (("train", SKY, "s"), ("test", BLUE, "o")):
        points = [(row.round, getattr(row, f"nmi_{name}")) for row in data.rows]
        points = [(x, y) for x, y in points if y is not None]
        if not points:
            continue
        x, y = zip(*points, strict=True)
        axes.plot(x, y, color=color, marker=marker, markersize=6, linewidth=2.2)
        ends.append((float(y[-1]), f"{name} {y[-1]:.3f}"))
    low, high = axes.get_ylim()
    if high - low < 0.06:  # do not blow noise up to a mountain range
        middle = (high + low) / 2
        low, high = middle - 0.03, middle + 0.03
    axes.set_ylim(max(-0.02, low), min(1.005, high + 0.06 * (high - low)))
    _label_ends(axes, ends, x=data.rows[-1].round)
    round_axis(axes, data.rows[-1].round, first=0)
    axes.set_ylabel("NMI")
    return figure


def draw_loss(data: ReportData) -> Figure:
    """l as the height of a bar, stacked from its two parts."""
    figure, axes = empty_figure(4.8, 3.3)
    rows = [row for row in data.rows if row.loss is not None]
    x = [row.round for row in rows]
    entropy = np.array([row.cross_entropy or 0.0 for row in rows])
    total = np.array([row.loss or 0.0 for row in rows])
    _mark_best(axes, data)
    axes.bar(x, entropy, width=0.62, color=BLUE, label="cross-entropy")
    weighted = "\u03b3 \u00d7 clustering loss"
    axes.bar(x, total - entropy, bottom=entropy, width=0.62, color=AMBER, label=weighted)
    if len(rows) <= 12:
        for position, value in zip(x, total, strict=True):
            _note(axes, position, value, f"{value:.3f}")
    axes.set_ylim(0, 1.12 * max(float(total.max()), 1e-9))
    _legend(axes)
    round_axis(axes, data.rows[-1].round, first=min(x))
    axes.set_ylabel("joint loss l")
    return figure


def draw_gain(data: ReportData) -> Figure:
    """How far l fell in every round, against epsilon: the stopping rule as a picture."""
    figure, axes = empty_figure(4.8, 3.3)
    losses = [(row.round, row.loss) for row in data.rows if row.loss is not None]
    x = [number for number, _ in losses[1:]]
    gain = [before - after for (_, before), (_, after) in pairwise(losses)]
    colors = [GREEN if value >= data.epsilon else MUTED for value in gain]
    axes.bar(x, gain, width=0.62, color=colors)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.axhline(data.epsilon, color=INK, linewidth=1.3, linestyle=(0, (5, 3)))
    if data.epsilon > 0 and max(map(abs, gain)) > 8 * data.epsilon:
        axes.set_yscale("symlog", linthresh=data.epsilon, linscale=0.8)
        low, high = min(0.0, *gain), max(data.epsilon, *gain)
        axes.set_ylim(4 * low if low < 0 else 0, 2.5 * high)
        _plain_log_ticks(axes, smallest=data.epsilon)
    else:
        low, high = min(0.0, *gain), max(data.epsilon, *gain)
        axes.set_ylim(low - 0.15 * (high - low) * (low < 0), high + 0.15 * (high - low))
    if len(gain) <= 12:
        for position, value in zip(x, gain, strict=True):
            _note(axes, position, value, _signed(value), below=value < 0)
    axes.annotate(
        f"\u03b5 = {data.epsilon:g}",
        (1.0, data.epsilon),
        xycoords=axes.get_yaxis_transform(),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        color=INK,
        fontsize=FONT_SIZE,
        annotation_clip=False,
    )
    round_axis(axes, data.rows[-1].round, first=min(x))
    axes.set_ylabel("l fell by")
    return figure


def draw_changed(data: ReportData) -> Figure:
    """Share of the training images that changed cluster."""
    figure, axes = empty_figure(4.8, 3.3)
    rows = [row for row in data.rows if row.changed is not None]
    x = [row.round for row in rows]
    percent = [100 * (row.changed or 0.0) for row in rows]
    _mark_best(axes, data)
    axes.bar(x, percent, width=0.62, color=SKY)
    if len(rows) <= 12:
        for position, value in zip(x, percent, strict=True):
            _note(axes, position, value, f"{value:.1f}%")
    axes.set_ylim(0, 1.15 * max(*percent, 0.5))
    round_axis(axes, data.rows[-1].round, first=min(x))
    axes.set_ylabel("images that moved, %")
    return figure


def draw_sizes(data: ReportData) -> Figure:
    """Training images per cluster, in the order of their ids and the colours of the map."""
    figure, axes = empty_figure(4.8, 3.0)
    sizes = data.sizes.tolist()
    axes.bar(range(len(sizes)), sizes, width=0.72, color=cluster_colors(len(sizes)))
    if len(sizes) <= MAX_ANNOTATED:
        for cluster, size in enumerate(sizes):
            _note(axes, cluster, size, f"{size:,}")
        axes.set_xticks(range(len(sizes)))
    axes.set_ylim(0, 1.12 * max(sizes))
    axes.set_xlabel("cluster")
    axes.set_ylabel("training images")
    return figure


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def round_axis(axes: Axes, last: int, *, first: int) -> None:
    """Integer ticks that cover all rounds, also a single one."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlim(first - 0.5, last + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True, min_n_ticks=1))
    axes.set_xlabel("round")


def _mark_best(axes: Axes, data: ReportData) -> None:
    _shade_span(axes, data.best_round, data.best_round, "best")


def _shade_span(axes: Axes, first: int, last: int, text: str) -> None:
    """Shade some positions and name them on top; drawn first, so that it lies behind."""
    axes.axvspan(first - 0.42, last + 0.42, color=GREEN, alpha=0.13, linewidth=0)
    axes.annotate(
        text,
        ((first + last) / 2, 1.0),
        xycoords=axes.get_xaxis_transform(),
        xytext=(0, 4),
        textcoords="offset points",
        ha="center",
        color=GREEN,
        fontsize=FONT_SIZE,
        fontweight="bold",
        annotation_clip=False,
    )


def _label_ends(axes: Axes, ends: Sequence[tuple[float, str]], *, x: float) -> None:
    """Name lines at their right end, pushed apart where they meet."""
    low, high = axes.get_ylim()
    gap = 0.075 * (high - low)
    previous = -np.inf
    for y, text in sorted(ends):
        position = max(y, previous + gap)
        previous = position
        axes.annotate(
            text,
            (x + 0.5, position),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            color=INK,
            fontsize=FONT_SIZE,
            fontweight="bold",
            annotation_clip=False,
        )


def _plain_log_ticks(axes: Axes, *, smallest: float) -> None:
    """Decades from `smallest` up, written as plain numbers."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    low, high = axes.get_ylim()
    decades = [10.0**power for power in range(-6, 7)]
    ticks = [0.0, *decades, *(-decade for decade in decades)]
    visible = [t for t in ticks if low <= t <= high and (t == 0 or abs(t) >= 0.99 * smallest)]
    axes.set_yticks(visible)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _signed(value: float) -> str:
    return f"{value:.3f}".replace("-", "\u2212")


def draw_num_clusters(suggestion: Suggestion) -> Figure:
    """Silhouette and stability against the number of clusters; the plausible ones are shaded."""
    figure, axes = empty_figure(4.8, 3.3)
    for first, last in filter(None, ((suggestion.smallest, suggestion.largest), suggestion.finer)):
        _shade_span(axes, first, last, f"{first} to {last}")
    numbers = [trial.num_clusters for trial in suggestion.trials]
    ends = []
    for name, color, marker in (("stability", SKY, "s"), ("silhouette", BLUE, "o")):
        y = [getattr(trial, name) for trial in suggestion.trials]
        axes.plot(numbers, y, color=color, marker=marker, markersize=4, linewidth=2.2)
        ends.append((y[-1], name))
    best = suggestion.best
    axes.plot(best.num_clusters, best.silhouette, marker="o", color=GREEN, markersize=9)
    _label_ends(axes, ends, x=numbers[-1])
    round_axis(axes, numbers[-1], first=numbers[0])
    axes.set_xlabel("number of clusters")
    return figure


# --- Confusion ---------------------------------------------------------------------------------


def draw_confusion(data: ReportData, snapshot: Snapshot) -> Figure:
    """Clusters against classes, the matched ones on the diagonal; colour is the share of a row."""
    counts = confusion(data, snapshot)
    clusters, classes = match_order(counts)
    counts = counts[np.ix_(clusters, classes)]
    num_rows, num_columns = counts.shape
    annotated = max(counts.shape) <= MAX_ANNOTATED
    side = float(np.clip(0.42 * max(counts.shape), 4.0, 7.0))
    figure, axes = empty_figure(
        side + 1.0, side * min(1.3, max(0.35, num_rows / num_columns)) + 0.9
    )
    share = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    _shade(axes, share, crisp=annotated)
    if annotated:
        small = 9 if max(counts.shape) <= 12 else 6.5
        for row, column in zip(*np.nonzero(counts), strict=True):
            color = ON_BLUE if share[row, column] > 0.62 else INK
            axes.text(
                column, row, str(counts[row, column]), ha="center", va="center",
                fontsize=small, color=color,
            )  # fmt: skip
    names = [shorten(data.class_name(int(label))) for label in classes]
    _name_ticks(axes, "x", names, rotated=max(map(len, names), default=0) > 3)
    _name_ticks(axes, "y", [str(cluster) for cluster in clusters], rotated=False)
    axes.set(xlim=(-0.5, num_columns - 0.5), ylim=(num_rows - 0.5, -0.5))
    axes.set_xlabel("class")
    axes.set_ylabel("cluster")
    _title(axes, side_title(snapshot))
    axes.grid(visible=False)
    axes.spines[:].set_visible(True)
    return figure


def _shade(axes: Axes, share: np.ndarray, *, crisp: bool) -> None:
    """Fill cells with blue of growing opacity, so that an empty cell is the page itself."""
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Rectangle

    colors = np.empty((*share.shape, 4))
    colors[..., :3] = to_rgb(BLUE)
    colors[..., 3] = np.where(share > 0, 0.10 + 0.90 * share, 0.0)
    if not crisp:
        axes.imshow(colors, aspect="auto", interpolation="nearest")
        return
    for row, column in zip(*np.nonzero(share), strict=True):
        corner = (column - 0.5, row - 0.5)
        axes.add_patch(Rectangle(corner, 1, 1, facecolor=colors[row, column], linewidth=0))


def _name_ticks(axes: Axes, which: str, names: Sequence[str], *, rotated: bool) -> None:
    axis = axes.xaxis if which == "x" else axes.yaxis
    step = max(1, -(-len(names) // 25))
    shown = list(range(0, len(names), step))
    size = FONT_SIZE - 1 if len(names) <= MAX_ANNOTATED else 7.5
    axis.set_ticks(shown, [names[i] for i in shown], fontsize=size, rotation=90 if rotated else 0)
    for label in axis.get_ticklabels():
        label.set_parse_math(False)  # a class may be called "$5"


def shorten(name: str, length: int = 14) -> str:
    """Keep long names from eating the figure."""
    return name if len(name) <= length else name[: length - 1] + "\u2026"


# --- Map ---------------------------------------------------------------------------------------


def draw_map(data: ReportData, snapshot: Snapshot) -> Figure:
    """The 2-D map: coloured and, if few, named by cluster; images in a wrong cluster ringed."""
    assert snapshot.coordinates is not None, "the map needs coordinates"
    figure, axes = empty_figure(5.2, 4.8)
    coordinates = snapshot.coordinates
    assignment = np.asarray(snapshot.assignment)[data.map_indices]
    wrong = is_wrong(data.labels, snapshot.assignment, data.num_clusters)[data.map_indices]
    colors = np.array(cluster_colors(data.num_clusters))
    size = 16 if len(coordinates) <= 2000 else 5
    x, y = coordinates.T
    fill = colors[assignment]
    axes.scatter(x[~wrong], y[~wrong], s=size, c=fill[~wrong], linewidths=0, alpha=0.85)
    axes.scatter(x[wrong], y[wrong], s=2.4 * size, c=fill[wrong], edgecolors=WRONG, linewidths=1.8)
    if data.num_clusters <= MAX_ANNOTATED:
        _name_clusters(axes, data, snapshot, coordinates, assignment)
    axes.set(xticks=[], yticks=[])
    axes.set_aspect("equal", adjustable="datalim")
    axes.grid(visible=False)
    axes.margins(0.04)
    _title(axes, side_title(snapshot))
    axes.spines[:].set_visible(False)
    return figure


def _name_clusters(
    axes: Axes,
    data: ReportData,
    snapshot: Snapshot,
    coordinates: np.ndarray,
    assignment: np.ndarray,
) -> None:
    """Write every cluster's majority class (or id) at the median of its points."""
    from matplotlib.patheffects import withStroke

    majority = majority_classes(data.labels, snapshot.assignment, data.num_clusters)
    for cluster in np.unique(assignment):
        label = majority[cluster]
        name = str(cluster) if label < 0 else shorten(data.class_name(int(label)), 12)
        x, y = np.median(coordinates[assignment == cluster], axis=0)
        axes.text(
            x, y, name, ha="center", va="center", color=INK,
            fontsize=12, fontweight="bold", parse_math=False,
            path_effects=[withStroke(linewidth=3, foreground=PAPER)],
        )  # fmt: skip


def cluster_colors(num_clusters: int) -> list[str]:
    """Colours for clusters: hues all around but vermilion, in three shades that alternate."""
    import colorsys

    shades = ((0.47, 0.58), (0.64, 0.52), (0.55, 0.40))
    colors = []
    for cluster in range(num_clusters):
        hue = (50 + 310 * cluster / max(1, num_clusters)) / 360
        lightness, saturation = shades[cluster % 3]
        red, green, blue = colorsys.hls_to_rgb(hue, lightness, saturation)
        colors.append(f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}")
    return colors


# --- Gallery (the paper's Fig. 5) --------------------------------------------------------------


def draw_gallery(data: ReportData) -> Figure:
    """Per cluster: typical and doubtful members, original above decoded, before and after."""
    clusters = pictured_clusters(data)
    sides = (data.before, data.after)
    num_rows = 2 if all(side.decoded is not None for side in sides) else 1
    row_height = num_rows * TILE + 0.36
    half = (data.gallery_size + 0.5) * TILE
    figure, axes = _canvas(2 * half + 1.1, len(clusters) * row_height + 0.95)
    for side, left in zip(sides, (0.3, half + 0.9), strict=True):
        pictures = cluster_pictures(data, side)
        wrong = is_wrong(data.labels, side.assignment, data.num_clusters)
        title = side_title(side)
        if side.decoded is not None:
            title += f", decoding error {side.decoded.error:.4f}"
        axes.text(left, 0.32, title, fontsize=13, fontweight="bold", color=INK, parse_math=False)
        for column, text in ((0, "nearest the centroid"), (_num_typical(data), "nearest a border")):
            offset = left + column * TILE + (0.2 if column else 0.0)
            axes.text(offset, 0.58, text, fontsize=9, color=MUTED)
        for position, cluster in enumerate(clusters):
            top = 0.85 + position * row_height
            title = cluster_title(data, pictures[cluster])
            axes.text(left, top, title, fontsize=9, color=INK, va="center", parse_math=False)
            _draw_strip(axes, data, side, pictures[cluster], wrong, left=left, top=top + 0.13)
    return figure


def side_title(snapshot: Snapshot) -> str:
    """Name a snapshot: before or after the rounds."""
    if snapshot.round == 0:
        return "Before (round 0)"
    return f"After (round {snapshot.round})"


def cluster_title(data: ReportData, pictures: ClusterPictures) -> str:
    """Say what a cluster holds, in one line."""
    if pictures.size == 0:
        return f"Cluster {pictures.cluster}: empty"
    size = f"{pictures.size} image" + ("s" if pictures.size != 1 else "")
    if pictures.purity is None:
        return f"Cluster {pictures.cluster}: {size}"
    name = shorten(data.class_name(pictures.majority), 24)
    share = f"{100 * pictures.purity:.3g}%"
    return f'Cluster {pictures.cluster}: {size}, {share} of class "{name}"'


def _num_typical(data: ReportData) -> int:
    return -(-data.gallery_size // 2)


def _draw_strip(
    axes: Axes,
    data: ReportData,
    snapshot: Snapshot,
    pictures: ClusterPictures,
    wrong: np.ndarray,
    *,
    left: float,
    top: float,
) -> None:
    """Draw one cluster's pictures: typical members, a gap, doubtful members."""
    doubtful_left = left + 0.2 + _num_typical(data) * TILE
    for x, indices in ((left, pictures.typical), (doubtful_left, pictures.doubtful)):
        if len(indices):
            _draw_tiles(axes, data, snapshot, indices, wrong, left=x, top=top)


def _draw_tiles(
    axes: Axes,
    data: ReportData,
    snapshot: Snapshot,
    indices: np.ndarray,
    wrong: np.ndarray,
    *,
    left: float,
    top: float,
) -> None:
    """Draw images side by side, each above its decoding, framed if it is wrong.

    All of them are one image of matplotlib, which draws hundreds of small ones slowly.
    """
    from matplotlib.patches import Rectangle

    rows = [[data.images[index] for index in indices]]
    if snapshot.decoded is not None:
        rows.append([snapshot.decoded.image(int(index)) for index in indices])
    most = round(0.92 * TILE * PNG_DPI)
    tiles = np.array([[shrunk(image, most) for image in row] for row in rows])
    num_rows, _, height, width, _ = tiles.shape  # (R, n, h, w, 3)
    gap = -(-width // 12)
    side = TILE * width / (width + gap)
    sheet = np.zeros((num_rows, height, len(indices), width + gap, 4), np.uint8)  # transparent
    sheet[..., :width, :3] = tiles.transpose(0, 2, 1, 3, 4)
    sheet[..., :width, 3] = 255
    extent = (left, left + len(indices) * TILE, top + num_rows * side, top)
    axes.imshow(
        sheet.reshape(num_rows * height, -1, 4),
        extent=extent,
        aspect="auto",
        interpolation="nearest",
    )
    for position in np.flatnonzero(wrong[indices]):
        corner = (left + position * TILE, top)
        axes.add_patch(
            Rectangle(corner, side, num_rows * side, fill=False, edgecolor=WRONG, lw=2.4)
        )


def rgb(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8; grey becomes RGB so that no colour map is applied."""
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else np.asarray(image)


def shrunk(image: np.ndarray, side: int) -> np.ndarray:
    """(h, w, 3) uint8 with h, w <= side of (H, W, C) uint8; small images keep their pixels."""
    from PIL import Image

    picture = Image.fromarray(rgb(image))
    picture.thumbnail((side, side))
    return np.asarray(picture)


# --- Shared ------------------------------------------------------------------------------------


def empty_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure in the house style, sized in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor=PAPER)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_axisbelow(True)
    axes.grid(visible=True, axis="y", color=LINE, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[:].set_color(LINE)
    axes.tick_params(colors=MUTED, labelsize=FONT_SIZE, length=0)
    axes.xaxis.label.set(color=MUTED, fontsize=FONT_SIZE)
    axes.yaxis.label.set(color=MUTED, fontsize=FONT_SIZE)
    return figure, axes


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure whose axes are the whole sheet, in inches from the upper left."""
    figure, axes = empty_figure(width, height)
    figure.set_layout_engine("none")
    axes.set_position((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set(xlim=(0, width), ylim=(height, 0), autoscale_on=False)
    return figure, axes


def _note(axes: Axes, x: float, y: float, text: str, *, below: bool = False) -> None:
    """Write a value above (or below) the end of a bar."""
    axes.annotate(
        text,
        (x, y),
        xytext=(0, -3 if below else 3),
        textcoords="offset points",
        ha="center",
        va="top" if below else "bottom",
        color=INK,
        fontsize=FONT_SIZE - 1,
    )


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=12, fontweight="bold", color=INK, pad=10)


def _legend(axes: Axes) -> None:
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2,
        frameon=False, fontsize=FONT_SIZE, labelcolor=INK,
    )  # fmt: skip
