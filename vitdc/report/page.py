"""The HTML page of the report: one file, nothing loaded from elsewhere."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdc.artifacts import (
    COLLAPSED,
    CONVERGED,
    LOSS_ROSE,
    MAX_ROUNDS,
    OUT_OF_ROOM,
    SETTLED,
    RoundRow,
)
from vitdc.report.data import (
    ClusterPictures,
    ReportData,
    Snapshot,
    cluster_pictures,
    confusion,
    find_moves,
    is_wrong,
    majority_classes,
    match_order,
    pictured_clusters,
)
from vitdc.report.figures import MAX_ANNOTATED, cluster_title, figure_svg, rgb, shorten, side_title

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_MOVES = 36  # pictures per kind of move
MAX_UNSURE = 24
SPLIT_NAMES = {"test": "held-out", "train": "training"}
LARGEST_TILE = 96  # pixels
LOSSLESS_VALUES = 32 * 32 * 3
NONE = "\u2013"


def render_page(data: ReportData, figures: Mapping[str, Figure]) -> str:
    """Render the report.

    Args:
        data: Everything in it.
        figures: From `build_figures`.

    Returns:
        A complete HTML document that needs no network.
    """
    panels = {name: figure for name, figure in figures.items() if name != "gallery"}
    return fill_template(
        "page.html.j2",
        figures=panels,
        styles=["page.css"],
        data=data,
        **_summary(data),
        story=rounds_story(data),
        rows=[_table_row(row, data) for row in data.rows],
        moves=_moves(data),
        unsure=_unsure(data),
        sides=[side_title(data.before), side_title(data.after)],
        errors=[side.decoded.error if side.decoded else None for side in (data.before, data.after)],
        clusters=_clusters(data),
        diagonal=[diagonal_count(data, side) for side in (data.before, data.after)],
        num_ringed=[_num_ringed(data, side) for side in (data.before, data.after)],
        num_known=int((data.labels >= 0).sum()),
        max_named=MAX_ANNOTATED,
        tile=64 if max(map(len, data.class_names), default=0) <= 4 else 84,
        columns=-(-data.gallery_size // 2),
        rendering="pixelated" if max(data.images.shape[1:3]) <= 32 else "auto",
        num_unknown=int((data.labels < 0).sum()) if data.has_labels else 0,
        parameters=_parameters(data.parameters),
    )


def fill_template(
    name: str, *, figures: Mapping[str, Figure], styles: Sequence[str], **values: Any
) -> str:
    """Fill a template of this package with its figures (as `panels`), style sheets and values."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("vitdc", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    here = files("vitdc.report")
    style = "".join((here / sheet).read_text(encoding="utf-8") for sheet in styles)
    panels = {key: Markup(figure_svg(figure, name=key)) for key, figure in figures.items()}
    return environment.get_template(name).render(panels=panels, style=Markup(style), **values)


# --- The numbers -------------------------------------------------------------------------------


def _score(data: ReportData, *keys: str) -> float | None:
    """Look a number up in the metrics; None where any part of the way is missing."""
    value: Any = data.metrics
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return None if value is None else float(value)


def _number(value: float | None, digits: int = 3) -> str:
    return NONE if value is None else f"{value:.{digits}f}"


def _percent(value: float | None, digits: int = 1) -> str:
    return NONE if value is None else f"{100 * value:.{digits}f}%"


def _summary(data: ReportData) -> dict[str, Any]:
    """The headline, the bars below it and the small numbers beside it."""
    split = data.scored_split
    if split is None:
        return {"nmi": None, "stats": _label_free_stats(data)}
    nmi = data.metrics[split]["nmi"]
    bars = [
        ("k-means on the raw pixels", _score(data, "pixel_kmeans", split, "nmi"), "floor"),
        (
            f"trained, before the rounds (round {data.before.round})",
            _row_nmi(data, data.before.round, split),
            "before",
        ),
        (f"after the rounds (round {data.after.round})", nmi, "after"),
    ]
    return {
        "nmi": _number(nmi),
        "nmi_of": f"{_images(data, split)}{SPLIT_NAMES[split]} images",
        "nmi_means": nmi_in_words(nmi),
        "bars": [(n, _number(v), 100 * max(0.0, v), kind) for n, v, kind in bars if v is not None],
        "stats": _score_stats(data, split),
    }


def _images(data: ReportData, split: str) -> str:
    """How many images a split's scores were computed on; older runs do not say."""
    images = data.metrics[split].get("images")
    return f"{images:,} " if images else ""


def _score_stats(data: ReportData, split: str) -> list[tuple[str, str, str]]:
    """Small numbers as (label, value, what it means)."""
    stats = [
        (
            "ACC",
            _percent(_score(data, split, "acc")),
            "of the images lie in the cluster that is matched with their class",
        ),
        (
            "ARI",
            _number(_score(data, split, "ari")),
            "agreement on pairs of images, corrected for chance",
        ),
    ]
    if (head := _score(data, "head_accuracy", split)) is not None:
        trained_on = {
            "full": "the supervised head: what the labels alone can do",
            "partial": "the head, which is trained on labels and pseudo-labels",
            "none": "the head",
        }[data.supervision]
        stats.append(("Head accuracy", _percent(head), f"are classified rightly by {trained_on}"))
    if split == "test" and (train := _score(data, "train", "nmi")) is not None:
        means = {
            "full": "on what the model was trained with",
            "partial": f"on the {_images(data, 'train')}whose label was not trained on",
            "none": "on what the model was trained with, without labels",
        }[data.supervision]
        stats.append(("NMI, training images", _number(train), means))
    return stats


def _label_free_stats(data: ReportData) -> list[tuple[str, str, str]]:
    total = max(1, int(data.sizes.sum()))
    last = next((row.changed for row in data.rows if row.round == data.best_round), None)
    return [
        (
            "Silhouette",
            _number(data.silhouette),
            "1: every image is far nearer to its own cluster than to the next; 0: they touch",
        ),
        (
            "Moved",
            _percent(last),
            f"of the training images changed cluster in round {data.best_round}",
        ),
        (
            "Largest cluster",
            _percent(data.sizes.max(initial=0) / total),
            f"of the training images are in cluster {data.sizes.argmax()}",
        ),
        (
            "Smallest cluster",
            _percent(data.sizes.min(initial=total) / total),
            f"of the training images are in cluster {data.sizes.argmin()}",
        ),
    ]


def _row_nmi(data: ReportData, number: int, split: str) -> float | None:
    for row in data.rows:
        if row.round == number:
            return row.nmi_test if split == "test" else row.nmi_train
    return None


def nmi_in_words(nmi: float) -> str:
    """Say what a score means."""
    if nmi >= 0.95:
        return "Clusters and classes are nearly the same division of the images."
    if nmi >= 0.8:
        return "Clusters and classes agree strongly: to know the one is nearly to know the other."
    if nmi >= 0.6:
        return "Clusters and classes agree in the main, with some of them mixed up."
    if nmi >= 0.3:
        return "Clusters and classes agree in part: a cluster narrows the class down."
    return "Clusters say little about the classes."


def rounds_story(data: ReportData) -> str:
    """How the rounds went, in plain sentences."""
    last = data.rows[-1]
    if last.round == 0:
        return "The model was not retrained."
    count = "One round" if last.round == 1 else f"{last.round} rounds"
    losses = [row.loss for row in data.rows if row.loss is not None]
    fall = losses[-2] - losses[-1] if len(losses) > 1 else None
    threshold = f"\u03b5\u00a0=\u00a0{data.epsilon:g}"
    if data.verdict == CONVERGED and fall is not None:
        why = f"stopped by convergence: l fell by only {fall:.2g}, less than {threshold}."
    elif data.verdict == LOSS_ROSE and fall is not None:
        why = (
            f"stopped because l rose by {-fall:.2g} in round {last.round};"
            " the round before is the result."
        )
    elif data.verdict == MAX_ROUNDS and fall is not None:
        why = f"stopped by the cap on rounds: l last fell by {fall:.2g}, with {threshold}."
    elif data.verdict == MAX_ROUNDS:
        why = "stopped by the cap on rounds, before l could be compared with an earlier round."
    elif data.verdict == SETTLED:
        why = f"stopped because only {_percent(data.rows[-2].changed)} had changed cluster."
    elif data.verdict == COLLAPSED:
        why = (
            f"stopped because the embeddings of round {last.round} collapsed: they tell at most"
            f" half of the clusters apart (effective rank {last.effective_rank:.2g})."
        )
        return f"{count} of retraining, {why} The result is round {data.best_round}."
    elif data.verdict == OUT_OF_ROOM:
        why = "stopped because the pipeline had no room for another; a further run can continue it."
    else:
        why = f"verdict: {data.verdict}."
    best = f"Lowest l, and so the result: round {data.best_round}."
    return f"{count} of retraining, {why} {best}"


def diagonal_count(data: ReportData, snapshot: Snapshot) -> int:
    """Images in the cluster that is matched one to one (Hungarian) with their class."""
    counts = confusion(data, snapshot)
    return int(counts[np.ix_(*match_order(counts))].diagonal().sum())


def _num_ringed(data: ReportData, snapshot: Snapshot) -> int:
    wrong = is_wrong(data.labels, snapshot.assignment, data.num_clusters)
    return int(wrong[data.map_indices].sum())


def _table_row(row: RoundRow, data: ReportData) -> dict[str, Any]:
    scores = [_number(v) for v in (row.nmi_train, row.nmi_test, row.ari_test, row.acc_test)]
    if data.scored_split is None:
        scores = [_number(row.silhouette), _number(row.effective_rank, 1)]
    return {
        "best": row.round == data.best_round,
        "cells": [
            str(row.round),
            _number(row.loss, 4),
            _number(row.cross_entropy, 4),
            _number(row.clustering_loss, 4),
            *scores,
            _percent(row.changed),
            row.verdict or "",
        ],
    }


def _parameters(parameters: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Sections with their knobs; knobs outside any section come first, under no name."""
    loose = [(k, json.dumps(v)) for k, v in parameters.items() if not isinstance(v, Mapping)]
    sections = [
        (section, [(knob, json.dumps(value)) for knob, value in knobs.items()])
        for section, knobs in parameters.items()
        if isinstance(knobs, Mapping)
    ]
    return [("", loose), *sections] if loose else sections


# --- The pictures ------------------------------------------------------------------------------


def _clusters(data: ReportData) -> list[dict[str, Any]]:
    """Every pictured cluster with its strips before and after."""
    sides = (data.before, data.after)
    pictures = [cluster_pictures(data, side) for side in sides]
    wrong = [is_wrong(data.labels, side.assignment, data.num_clusters) for side in sides]
    return [
        {
            "id": int(cluster),
            "sides": [
                _strip(data, sides[i], pictures[i][cluster], wrong[i]) for i in range(len(sides))
            ],
        }
        for cluster in pictured_clusters(data)
    ]


def _strip(
    data: ReportData, snapshot: Snapshot, pictures: ClusterPictures, wrong: np.ndarray
) -> dict[str, Any]:
    groups = [
        (name, [_tile(data, snapshot, int(i), wrong=bool(wrong[i])) for i in indices])
        for name, indices in (
            ("nearest the centroid", pictures.typical),
            ("nearest a border", pictures.doubtful),
        )
    ]
    errors = [tile["error"] for _, tiles in groups for tile in tiles if tile["error"] is not None]
    return {
        "title": cluster_title(data, pictures),
        "groups": [group for group in groups if group[1]],
        "error": float(np.mean(errors)) if errors else None,
    }


def _tile(data: ReportData, snapshot: Snapshot, index: int, *, wrong: bool) -> dict[str, Any]:
    """One picture with its decoding and what a pointer resting on it says."""
    original = data.images[index]
    decoded = None if snapshot.decoded is None else snapshot.decoded.image(index)
    what = _what(data, index)
    about = f"{what}, distance {snapshot.distance[index]:.3f}"
    error = None
    if decoded is not None:
        difference = original.astype(np.float64) - decoded
        error = float(np.square(difference / 255).mean())
        about += f", decoding error {error:.4f}"
    return {
        "original": picture_uri(original),
        "decoded": None if decoded is None else picture_uri(decoded),
        "wrong": wrong,
        "alt": what + (", wrong" if wrong else ""),
        "about": about,
        "error": error,
    }


def _what(data: ReportData, index: int) -> str:
    """An image in words, with its class if that is known."""
    label = int(data.labels[index])
    return f"{data.split} image {index}" + (
        f", class {data.class_name(label)}" if label >= 0 else ""
    )


def _moves(data: ReportData) -> list[dict[str, Any]]:
    """Kinds of move with their pictures; without labels only what moved."""
    moves = find_moves(data)
    if not data.has_labels:
        title = "changed cluster"
        return [_move(data, title, moves.moved, "cluster before \u2192 after", kind="moved")]
    return [
        _move(data, "put right", moves.fixed, "cluster before \u2192 after", kind="fixed"),
        _move(data, "went wrong", moves.broken, "cluster before \u2192 after", kind="broken"),
        _move(data, "still wrong", moves.stayed_wrong, "class, cluster now", kind="stayed"),
    ]


def _move(
    data: ReportData, title: str, indices: np.ndarray, legend: str, *, kind: str
) -> dict[str, Any]:
    names = [_cluster_names(data, side) for side in (data.before, data.after)]
    tiles = []
    for index in indices[:MAX_MOVES]:
        before, after = (
            names[i][int(side.assignment[index])]
            for i, side in enumerate((data.before, data.after))
        )
        own = shorten(data.class_name(int(data.labels[index])), 16)
        text = f"{own} in {after}" if kind == "stayed" else f"{before} \u2192 {after}"
        about = f"{_what(data, index)}: cluster of {before}, then of {after}"
        tiles.append({"original": picture_uri(data.images[index]), "text": text, "about": about})
    return {
        "title": title,
        "kind": kind,
        "count": len(indices),
        "legend": legend,
        "tiles": tiles,
        "more": len(indices) - len(tiles),
    }


def _unsure(data: ReportData) -> list[dict[str, str]]:
    """The least typical images with the cluster that they were put into."""
    names = _cluster_names(data, data.after)
    return [
        {
            "original": picture_uri(data.images[index]),
            "text": names[int(data.after.assignment[index])],
            "about": _what(data, int(index)),
        }
        for index in data.unsure[:MAX_UNSURE]
    ]


def _cluster_names(data: ReportData, snapshot: Snapshot) -> Sequence[str]:
    """Name clusters by their majority class, or by their id where none is known."""
    majority = majority_classes(data.labels, snapshot.assignment, data.num_clusters)
    return [
        shorten(data.class_name(int(label)), 16) if label >= 0 else f"#{cluster}"
        for cluster, label in enumerate(majority)
    ]


def picture_uri(image: np.ndarray) -> str:
    """Encode an (H, W, C) uint8 image as a data URI: exactly if small, else as a thumbnail."""
    from PIL import Image

    picture = Image.fromarray(rgb(image) if image.shape[2] == 3 else np.asarray(image)[..., 0])
    buffer = io.BytesIO()
    if image.size <= LOSSLESS_VALUES:
        picture.save(buffer, format="PNG", optimize=True)
        kind = "png"
    else:
        picture.thumbnail((LARGEST_TILE, LARGEST_TILE))
        picture.save(buffer, format="WEBP", quality=80, method=4)
        kind = "webp"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
