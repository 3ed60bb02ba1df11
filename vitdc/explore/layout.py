"""The 2-D map of all images, made in the background.

t-SNE takes minutes for 60,000 points. So it lays out a sample, the landmarks; every other image
goes between the landmarks that are nearest to it in embedding space.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vitdc.explore.collection import Collection
from vitdc.explore.thumbnails import read_cached

logger = logging.getLogger(__name__)

NUM_LANDMARKS = 2000
NUM_NEIGHBOURS = 8
SEED = 0


class Progress(NamedTuple):
    """How far the map is.

    Attributes:
        stage: What is being done, for people.
        seconds: Since it began.
        failed: It will not come.
    """

    stage: str
    seconds: float
    failed: bool


class MapMaker:
    """Makes the map in a thread of its own and keeps it on disk."""

    def __init__(self, images: Collection, cache: Path) -> None:
        self._images = images
        self._file = cache / f"map-{images.run.embeddings_digest[:16]}-{NUM_LANDMARKS}.npy"
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._began = time.monotonic()
        self._stage, self._failed = "starting", False
        self._coordinates: np.ndarray | None = None

    def get(self) -> np.ndarray | Progress:
        """(N, 2) float32 if the map is there, else how far it is; the first call begins it."""
        with self._lock:
            if self._thread is None:
                self._began = time.monotonic()
                self._thread = threading.Thread(target=self._work, name="map", daemon=True)
                self._thread.start()
        if self._coordinates is not None:
            return self._coordinates
        return Progress(self._stage, time.monotonic() - self._began, self._failed)

    def _work(self) -> None:
        try:
            found = read_cached(self._file, (len(self._images), 2), np.float32)
            self._coordinates = self._make() if found is None else found
        except Exception:
            logger.exception("the map failed")  # the page tells, and everything else works on
            self._stage, self._failed = "the map failed; the terminal says why", True

    def _make(self) -> np.ndarray:
        def report(stage: str) -> None:
            self._stage = stage

        coordinates = lay_out(self._images, report=report)
        partial = self._file.with_suffix(f".{os.getpid()}.npy")
        try:
            np.save(partial, coordinates)
            partial.replace(self._file)
        except OSError as error:
            logger.warning("%s: the map is shown, but not kept: %s", self._file, error.strerror)
            partial.unlink(missing_ok=True)
        return coordinates


def lay_out(images: Collection, *, report: Callable[[str], None]) -> np.ndarray:
    """(N, 2) float32: coordinates in [-1, 1] that keep neighbours together.

    Args:
        images: Their embeddings are read block by block.
        report: Told what is being done.
    """
    random = np.random.default_rng(SEED)
    chosen = np.sort(random.permutation(len(images))[:NUM_LANDMARKS])
    landmarks = np.stack([images.embedding(number) for number in chosen])
    report(f"laying out {len(chosen):,} images by t-SNE")
    places = _tsne(landmarks)
    coordinates = np.empty((len(images), 2), np.float32)
    if len(chosen) < len(images):
        for first, block in images.embeddings():
            report(f"placing the others: {first:,} of {len(images):,}")
            coordinates[first : first + len(block)] = _between(block, landmarks, places, random)
    coordinates[chosen] = places
    return _fit_square(coordinates)


def _tsne(points: np.ndarray) -> np.ndarray:
    """(M, D) -> (M, 2) float32."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    if len(points) < 5:  # too few for any neighbourhood
        return np.resize(points[:, :2], (len(points), 2)).astype(np.float32)
    plane = PCA(2, random_state=SEED).fit_transform(points)
    noise = np.random.default_rng(SEED).standard_normal(plane.shape)
    start = 1e-4 * plane / (plane.std() or 1.0) + 1e-6 * noise
    perplexity = min(30.0, (len(points) - 1) / 3)
    tsne = TSNE(init=start.astype(np.float32), perplexity=perplexity, max_iter=500, random_state=0)
    with threadpool_limits(limits=1):  # so few points lose by more threads
        places: np.ndarray = tsne.fit_transform(points)
    return places


def _between(
    block: np.ndarray, landmarks: np.ndarray, places: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    """(n, 2): the weighted mean of the places of the nearest landmarks, the nearest counting most.

    Points are scattered by a part of the distance between these landmarks, or they would lie on
    lines and on top of each other.
    """
    import faiss

    squared, nearest = faiss.knn(block, landmarks, min(NUM_NEIGHBOURS, len(landmarks)))
    spread = squared[:, -1:] - squared[:, :1] + 1e-9
    weights = np.exp(-4 * (squared - squared[:, :1]) / spread)
    weights /= weights.sum(axis=1, keepdims=True)
    around = places[nearest]  # (n, neighbours, 2)
    mean = (weights[:, :, None] * around).sum(axis=1)
    spacing = np.median(np.linalg.norm(around - around[:, :1], axis=2), axis=1)
    limit = np.median(spacing)  # a point between two islands is not to be scattered over the sea
    scatter = 0.35 * np.minimum(spacing, 2 * limit)[:, None]
    coordinates: np.ndarray = mean + scatter * random.standard_normal((len(block), 2))
    return coordinates


def _fit_square(coordinates: np.ndarray) -> np.ndarray:
    low, high = coordinates.min(axis=0), coordinates.max(axis=0)
    extent = float((high - low).max()) or 1.0
    fitted: np.ndarray = ((coordinates - (low + high) / 2) * (2 / extent)).astype(np.float32)
    return fitted
