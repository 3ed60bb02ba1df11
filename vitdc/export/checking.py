"""Whether an exported file says what the model says."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from vitdc.artifacts import Checkpoint, Dataset
from vitdc.config import DataConfig
from vitdc.data.decoding import decode_chunk
from vitdc.data.files import stream_images
from vitdc.data.opening import open_store
from vitdc.errors import InputError, TrainingError
from vitdc.export.graph import ClusteringGraph
from vitdc.inference import wanted_pixels
from vitdc.model import images_to_tensor

TOLERANCE = 1e-4  # of distances, relative to the longest embedding if it is longer than 1
NUM_RANDOM = 64
MAX_IMAGES = 256  # more say nothing new
BATCHES = (1, 2, 61)  # sizes that the checked images are handed over in, again and again

Run = Callable[[np.ndarray], "Outputs"]


class Outputs(NamedTuple):
    """What an exported model says about a batch; see `graph.ClusteringGraph`."""

    embedding: np.ndarray
    cluster: np.ndarray
    distances: np.ndarray
    atypicality: np.ndarray


class Difference(NamedTuple):
    """How far an exported model is from the original.

    Attributes:
        num_images: That were compared.
        largest: Of all differences, see `TOLERANCE`; of the atypicality relative to itself.
    """

    num_images: int
    largest: float


def compare(graph: ClusteringGraph, run: Run, images: np.ndarray) -> Difference:
    """Hand the same images to the original and to the export, in batches of several sizes.

    Args:
        graph: The original.
        run: (n, C, H, W) float32 in [0, 1] -> what the export says.
        images: (N, H, W, C) uint8.

    Raises:
        TrainingError: They differ by more than `TOLERANCE`.
    """
    largest, start, number = 0.0, 0, 0
    while start < len(images):
        size = BATCHES[number % len(BATCHES)]
        batch = images_to_tensor(images[start : start + size], torch.device("cpu"))
        with torch.inference_mode():
            expected = Outputs(**{name: each.numpy() for name, each in graph(batch).items()})
        found = run(batch.numpy())
        largest = max(largest, _difference(expected, found, is_of_manifold=graph.is_of_manifold))
        start, number = start + size, number + 1
    return Difference(len(images), largest)


def _difference(expected: Outputs, found: Outputs, *, is_of_manifold: bool) -> float:
    scale = max(1.0, float(np.abs(expected.embedding).max()))
    own = np.take_along_axis(expected.distances, found.cluster[:, None], axis=1)[:, 0]
    nearest = expected.distances.min(axis=1)
    atypicality = np.abs(found.atypicality / expected.atypicality - 1)
    differences = [
        np.abs(found.embedding - expected.embedding) / scale,
        np.abs(found.distances - expected.distances) / scale,
    ]
    if is_of_manifold:  # a tie may go either way, but nothing else may
        differences += [atypicality]
    else:
        differences += [(own - nearest) / scale, atypicality[found.cluster == expected.cluster]]
    largest = float(np.max([values.max(initial=0) for values in differences]))  # NaN stays NaN
    if not largest <= TOLERANCE:
        raise TrainingError(
            f"export: the exported model differs from the original by {largest:.2g}, more than"
            f" {TOLERANCE:g}; nothing was written"
        )
    return largest


def random_images(checkpoint: Checkpoint) -> np.ndarray:
    """(64, H, W, C) uint8 with the mean and deviation of the training images."""
    random = np.random.default_rng(0)
    mean, std = (
        np.array(each)[: checkpoint.image_shape[2]] for each in (checkpoint.mean, checkpoint.std)
    )
    values = random.normal(mean, std, (NUM_RANDOM, *checkpoint.image_shape))
    images: np.ndarray = np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
    return images


def read_images(path: Path, checkpoint: Checkpoint) -> np.ndarray:
    """The first `MAX_IMAGES` images of a folder, a prepared data set or a file.

    Args:
        path: The place.
        checkpoint: Of the model, which says how files are read and what shape a data set must have.

    Raises:
        InputError: There are none, or they are unreadable or of another shape.
    """
    path, shape = Path(path), checkpoint.image_shape
    if (path / "artifact.json").is_file():
        dataset = Dataset.load(path)
        if dataset.image_shape != shape:
            raise InputError(
                f"{path}: holds images of shape {dataset.image_shape}, the model takes {shape}"
            )
        return np.array(dataset.train.images[:MAX_IMAGES])
    if path.is_file():
        decoded = decode_chunk([str(path)], wanted_pixels(checkpoint))
        if decoded.problems:
            raise InputError(f"{path}: unreadable ({decoded.problems[0]})")
        return decoded.images
    config = DataConfig(**checkpoint.decoding, source="folder", root=str(path))
    with closing(stream_images(open_store(config), config, shape, limit=MAX_IMAGES)) as batches:
        return np.concatenate(list(batches))
