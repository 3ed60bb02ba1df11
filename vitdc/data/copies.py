"""Copies: images that show the same picture, byte for byte or nearly, once they are prepared.

Nearly means that their thumbnails differ by no more than `MAX_DISTANCE`, as vectors without their
mean and of length 1: the same picture after other compression, in another size or brighter. Of
photos saved anew (JPEG at quality 75, or at half the size) 98 to 100 % are found, of crops by 2 %
none. Among scikit-learn's digits are no such pairs; among the 60,000 training images of
Fashion-MNIST are 44, each of one class and alike to the eye.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from vitdc.artifacts.dataset import image_digests
from vitdc.data.sources import Batch
from vitdc.typicality import thumbnails

MAX_DISTANCE = 0.03
NUM_COMPONENTS = 12  # that candidates are looked up in
NUM_NEIGHBOURS = 5  # of an image that can be its copies; chains make a group of more
SAMPLE = 4096  # images that the components are found from
NO_CONTRAST = 1e-4  # length of a vector that is taken for 0
CHUNK_SIZE = 4096
BATCH_SIZE = 64


class Copies:
    """Collects what tells copies, of one image after the other."""

    def __init__(self) -> None:
        self._digests: list[int] = []

    def update(self, images: np.ndarray) -> None:
        """Add the next (n, H, W, C) uint8."""
        self._digests += image_digests(images).tolist()

    def groups(self, *pictures: np.ndarray) -> np.ndarray:
        """(N,) number of the group of every image; copies share one.

        Args:
            pictures: The thumbnails of all images that were added, in order, in one or more
                arrays (n, h, w, C); may be memory-mapped.
        """
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components
        from threadpoolctl import threadpool_limits

        numbers: dict[int, int] = {}
        exact = np.array([numbers.setdefault(each, len(numbers)) for each in self._digests], int)
        rows = np.unique(exact, return_index=True)[1]  # the first image of every group
        with threadpool_limits(limits=1):  # the products are small
            pairs = _near_pairs(_Rows(pictures), rows)
        links = coo_array((np.ones(len(pairs)), pairs.T), shape=(len(rows), len(rows)))
        near = connected_components(links, directed=False)[1]
        groups: np.ndarray = near[exact].astype(np.int64)
        return groups


@dataclass(frozen=True)
class Written:
    """Images as they were written, those of the training split first.

    Attributes:
        names: (N,)
        labels: (N,)
        is_test: (N,) bool: on which side each is to be.
        groups: (N,) number of its group of copies.
        rows: (N,) its place among all images of the source, which are in the order of their names.
        is_left_out: (N,) bool: whether a limit of its side leaves it out.
    """

    names: np.ndarray
    labels: np.ndarray
    is_test: np.ndarray
    groups: np.ndarray
    rows: np.ndarray
    is_left_out: np.ndarray

    def is_across(self) -> np.ndarray:
        """(N,) whether an image is tested and has a copy among the training images."""
        trained = ~self.is_test & ~self.is_left_out
        tested = self.is_test & ~self.is_left_out
        across: np.ndarray = tested & np.isin(self.groups, self.groups[trained])
        return across

    def counts(self) -> dict[str, int]:
        """As `Dataset.copies`; empty if there are none."""
        groups, labels = self.groups[~self.is_left_out], self.labels[~self.is_left_out]
        num_groups = len(np.unique(groups))
        if num_groups == len(groups):
            return {}
        classes = np.unique(np.stack([groups, labels])[:, labels >= 0], axis=1)
        return {
            "images": len(groups) - num_groups,
            "tested": int(self.is_across().sum()),
            "ambiguous": int((np.unique(classes[0], return_counts=True)[1] > 1).sum()),
        }

    def batches(self, images: Sequence[np.ndarray]) -> Generator[Batch]:
        """Stream them, each on its side, in the order of their names.

        Args:
            images: As they were written: training images, test images.
        """
        order, num_train = np.argsort(self.rows, kind="stable"), len(images[0])
        for split, is_test in (("train", False), ("test", True)):
            chosen = order[(self.is_test[order] == is_test) & ~self.is_left_out[order]]
            for start in range(0, len(chosen), BATCH_SIZE):
                part = chosen[start : start + BATCH_SIZE]
                pixels = [images[0][i] if i < num_train else images[1][i - num_train] for i in part]
                yield Batch(split, self.names[part].tolist(), self.labels[part], np.stack(pixels))


def joined(groups: np.ndarray, others: Sequence[Hashable]) -> np.ndarray:
    """(N,) groups of images that share one of `groups` or of `others`, directly or through more."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    numbers = {name: number for number, name in enumerate(dict.fromkeys(others), groups.max() + 1)}
    links = (np.ones(len(groups)), (groups, [numbers[name] for name in others]))
    size = int(groups.max()) + 1 + len(numbers)
    found = connected_components(coo_array(links, shape=(size, size)), directed=False)[1]
    together: np.ndarray = found[groups]
    return together


class _Rows:
    """Thumbnails in several arrays, by their row in all of them."""

    def __init__(self, pictures: tuple[np.ndarray, ...]) -> None:
        self._pictures = pictures
        self._starts = np.cumsum([0, *map(len, pictures)])

    def directions(self, rows: np.ndarray) -> np.ndarray:
        """(n, D) of length 1; 0 of a picture without any contrast."""
        size = math.prod(self._pictures[0].shape[1:])
        values = np.empty((len(rows), size), np.float32)
        for start, part in zip(self._starts, self._pictures, strict=False):
            own = (rows >= start) & (rows < start + len(part))
            values[own] = thumbnails(part[rows[own] - start]).reshape(-1, size)
        values -= values.mean(axis=1, keepdims=True)
        length = np.linalg.norm(values, axis=1, keepdims=True)
        values[length[:, 0] < NO_CONTRAST] = 0
        unit: np.ndarray = values / np.maximum(length, NO_CONTRAST)
        return unit


def _near_pairs(pictures: _Rows, rows: np.ndarray) -> np.ndarray:
    """(P, 2) positions in `rows` of images that are nearly the same."""
    from scipy.spatial import KDTree

    if len(rows) < 2:
        return np.empty((0, 2), np.int64)
    sample = pictures.directions(rows[:: len(rows) // SAMPLE + 1])
    components = np.linalg.eigh(sample.T @ sample)[1][:, -NUM_COMPONENTS:]
    # A projection shortens distances, so no pair is missed.
    points = np.concatenate([pictures.directions(part) @ components for part in _parts(rows)])
    visible = np.flatnonzero(np.linalg.norm(points, axis=1) > 0)
    if not len(visible):
        return np.empty((0, 2), np.int64)
    distance, near = KDTree(points[visible]).query(
        points[visible], k=1 + NUM_NEIGHBOURS, distance_upper_bound=MAX_DISTANCE
    )
    one, rank = np.nonzero(np.isfinite(distance))
    pairs = visible[np.stack([one, near[one, rank]], axis=1)]
    pairs = pairs[pairs[:, 0] < pairs[:, 1]]
    kept = [part[_distance(pictures, rows[part]) <= MAX_DISTANCE] for part in _parts(pairs)]
    return np.concatenate([*kept, np.empty((0, 2), np.int64)])


def _distance(pictures: _Rows, pairs: np.ndarray) -> np.ndarray:
    one, other = (pictures.directions(pairs[:, side]) for side in (0, 1))
    distance: np.ndarray = np.linalg.norm(one - other, axis=1)
    return distance


def _parts(values: np.ndarray) -> Iterator[np.ndarray]:
    return (values[start : start + CHUNK_SIZE] for start in range(0, len(values), CHUNK_SIZE))
