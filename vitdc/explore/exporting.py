"""The tables that a person takes away: what the clusters are called, and which image is where."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator

import numpy as np

from vitdc.artifacts import CsvWriter
from vitdc.artifacts.annotations import Annotations
from vitdc.explore.collection import Collection

NAMES_HEADER = ("cluster", "name", "merged_into", "size", "purity", "majority_label", "num_wrong")
ASSIGNMENTS_HEADER = (
    "image", "split", "label", "cluster", "distance", "merged_cluster", "name", "wrong",
)  # fmt: skip


def names_csv(images: Collection, annotations: Annotations) -> Iterator[str]:
    """A row per cluster as it was found; a merged one says into which, and has that one's name."""
    class_names = images.run.dataset.class_names
    wrong = list(images.numbers(annotations.wrong).values())
    marked = np.bincount(images.cluster[wrong], minlength=len(images.run.clustering.centroids))

    def rows() -> Iterator[tuple[object, ...]]:
        for cluster in range(len(images.run.clustering.centroids)):
            labels = images.label[images.cluster == cluster]
            known = np.bincount(labels[labels >= 0], minlength=len(class_names) or 1)
            majority = int(known.argmax())
            total = int(known.sum())
            yield (
                cluster,
                annotations.name_of(cluster),
                annotations.target(cluster) if cluster in annotations.merged else "",
                len(labels),
                f"{known[majority] / total:.6f}" if total else "",
                class_names[majority] if total else "",
                int(marked[cluster]),
            )

    return _csv(NAMES_HEADER, rows())


def assignments_csv(images: Collection, annotations: Annotations) -> Iterator[str]:
    """A row per image: where it was put, what that is called, and whether a person disagreed."""
    class_names, wrong = images.run.dataset.class_names, set(annotations.wrong)

    def rows() -> Iterator[tuple[object, ...]]:
        for image, name in enumerate(images.names()):
            cluster, label = int(images.cluster[image]), int(images.label[image])
            yield (
                name,
                images.split(image),
                class_names[label] if label >= 0 else "",
                cluster,
                f"{images.distance[image]:.6f}",
                annotations.target(cluster),
                annotations.name_of(cluster),
                int(name in wrong),
            )

    return _csv(ASSIGNMENTS_HEADER, rows())


def _csv(
    header: Iterable[str], rows: Iterable[Iterable[object]], *, chunk: int = 1000
) -> Iterator[str]:
    """Stream CSV text, about `chunk` rows at a time."""
    buffer = io.StringIO()
    writer = CsvWriter(buffer)
    writer.row(header)
    for number, row in enumerate(rows, start=1):
        writer.row(row)
        if number % chunk == 0:
            yield buffer.getvalue()
            buffer.seek(0)
            buffer.truncate()
    yield buffer.getvalue()
