"""Both splits of a data set as one row of images, numbered from 0, training images first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property

import numpy as np

from vitdc.artifacts import SPLITS, Clustering
from vitdc.explore.finding import FinishedRun


class Collection:
    """The images of a run and what is known about each of them.

    Attributes:
        run: Where it all comes from.
        num_train: Images of the training split; the others are of the test split.
    """

    def __init__(self, run: FinishedRun) -> None:
        self.run = run
        self.num_train = len(run.dataset.train)
        self._numbers: dict[str, int | None] = {}  # of the names that were asked for
        self._names = _Names(name for name, _ in run.dataset.image_names())

    def __len__(self) -> int:
        return self.num_train + len(self.run.dataset.test)

    # --- columns: one number per image --------------------------------------------------------

    def assignment(self, round: int) -> np.ndarray:
        """(N,) int32: cluster after that round."""
        return _joined(self.run.clusterings[round], "assignment").astype(np.int32)

    @cached_property
    def cluster(self) -> np.ndarray:
        """(N,) int32: cluster after the best round."""
        return self.assignment(self.run.best_round)

    @cached_property
    def distance(self) -> np.ndarray:
        """(N,) float32: distance to the centroid."""
        return _joined(self.run.clustering, "distance").astype(np.float32)

    @cached_property
    def label(self) -> np.ndarray:
        """(N,) int32, -1 where it is unknown."""
        splits = [self.run.dataset.split(name).labels for name in SPLITS]
        return np.concatenate(splits).astype(np.int32)

    @cached_property
    def atypicality(self) -> np.ndarray:
        """(N,) float32: in deviations, see `vitdc.typicality`; it decides what is unsure."""
        return _joined(self.run.clustering, "atypicality").astype(np.float32)

    # --- single images ------------------------------------------------------------------------

    def name(self, image: int) -> str:
        """Its id, as in clusters.csv."""
        name = self._names[image]
        self._numbers[name] = image
        return name

    def names(self) -> Iterator[str]:
        return (self._names[image] for image in range(len(self)))

    def numbers(self, names: Iterable[str]) -> dict[str, int]:
        """The numbers of the images with these ids, as far as there are any."""
        wanted = set(names)
        unknown = wanted - self._numbers.keys()
        if unknown:
            found = {name: image for image, name in enumerate(self.names()) if name in unknown}
            self._numbers |= {name: found.get(name) for name in unknown}
        numbers = ((name, self._numbers[name]) for name in wanted)
        return {name: image for name, image in numbers if image is not None}

    def split(self, image: int) -> str:
        return SPLITS[0] if image < self.num_train else SPLITS[1]

    def pixels(self, image: int) -> np.ndarray:
        """(H, W, C) uint8, memory-mapped."""
        split, row = self._locate(image)
        pixels: np.ndarray = self.run.dataset.split(split).images[row]
        return pixels

    def history(self, image: int) -> list[int]:
        """Its cluster after every round."""
        split, row = self._locate(image)
        return [int(found.split(split).assignment[row]) for found in self.run.clusterings]

    def predicted(self, image: int) -> int:
        """The class that the model's head gives it; -1 where that is a cluster and no class."""
        dataset = self.run.dataset
        if dataset.supervision == "none":
            return -1
        split, row = self._locate(image)
        predicted = int(self.run.embeddings.split(split).predicted[row])
        return predicted if predicted < len(dataset.class_names) else -1

    def embedding(self, image: int) -> np.ndarray:
        """(D,) float32."""
        split, row = self._locate(image)
        embedding: np.ndarray = self.run.embeddings.split(split).embedding[row]
        return embedding

    def embeddings(self, *, block: int = 8192) -> Iterator[tuple[int, np.ndarray]]:
        """Stream (number of the first image, (n, D) float32), in order."""
        for name, first in zip(SPLITS, (0, self.num_train), strict=True):
            rows = self.run.embeddings.split(name).embedding
            for start in range(0, len(rows), block):
                yield first + start, np.ascontiguousarray(rows[start : start + block])

    def _locate(self, image: int) -> tuple[str, int]:
        offset = 0 if image < self.num_train else self.num_train
        return self.split(image), image - offset


class _Names:
    """Strings by number, without the 50 bytes that Python adds to each."""

    def __init__(self, names: Iterable[str]) -> None:
        text, ends = bytearray(), [0]
        for name in names:
            text += name.encode()
            ends.append(len(text))
        self._text, self._ends = bytes(text), np.array(ends, np.int64)

    def __getitem__(self, number: int) -> str:
        return self._text[self._ends[number] : self._ends[number + 1]].decode()


def _joined(clustering: Clustering, column: str) -> np.ndarray:
    return np.concatenate([getattr(clustering.split(name), column) for name in SPLITS])
