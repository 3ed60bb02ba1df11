"""Search by example: the images whose embeddings are nearest to a given one."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vitdc.data.decoding import decode_chunk
from vitdc.errors import InputError
from vitdc.explore.collection import Collection

if TYPE_CHECKING:
    from vitdc.prediction import Prediction, Predictor


class Neighbours(NamedTuple):
    """Images by distance.

    Attributes:
        images: (k,) int64.
        distance: (k,) float32: Euclidean, between embeddings.
    """

    images: np.ndarray
    distance: np.ndarray


def nearest(images: Collection, embedding: np.ndarray, *, count: int) -> Neighbours:
    """The `count` images nearest to an embedding, (D,) float32.

    The embeddings stream through faiss block by block: for one query an index would save nothing,
    and would hold all of them in memory.
    """
    import faiss

    query = np.ascontiguousarray(embedding, np.float32)[None]
    found, squared = np.empty(0, np.int64), np.empty(0, np.float32)
    for first, block in images.embeddings():
        distances, rows = faiss.knn(query, block, min(count, len(block)))
        found = np.concatenate([found, rows[0] + first])
        squared = np.concatenate([squared, distances[0]])
        order = np.argsort(squared, kind="stable")[:count]
        found, squared = found[order], squared[order]
    return Neighbours(found, np.sqrt(np.maximum(squared, 0)))


class Stranger(NamedTuple):
    """An image that is not in the set.

    Attributes:
        pixels: (H, W, C) uint8, as the model saw it.
        prediction: Of one image.
        neighbours: The images like it.
    """

    pixels: np.ndarray
    prediction: Prediction
    neighbours: Neighbours


class Strangers:
    """Looks up image files that are not in the set; loads the model for the first one."""

    def __init__(self, images: Collection) -> None:
        self._images = images
        self._lock = threading.Lock()

    @cached_property
    def _predictor(self) -> Predictor:
        from vitdc.prediction import Predictor

        self._images.run.check_unchanged()  # or it would be a model of other embeddings
        return Predictor.load(self._images.run.results)

    def look_up(self, file: bytes, *, count: int) -> Stranger:
        """Decode an image file as `vitdc predict` does; find its cluster and the images like it.

        Raises:
            InputError: It is no image that can be decoded.
        """
        from vitdc.inference import wanted_pixels

        wanted = replace(wanted_pixels(self._images.run.dataset), pages="first")
        decoded = decode_chunk([file], wanted)
        if decoded.problems:
            raise InputError(f"this file cannot be used: {decoded.problems[0]}")
        with self._lock:
            embedding = self._predictor.embed(decoded.images)
        prediction = self._predictor.assign(embedding, decoded.images)
        return Stranger(
            decoded.images[0], prediction, nearest(self._images, embedding[0], count=count)
        )
