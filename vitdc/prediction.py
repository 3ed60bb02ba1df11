"""From new images to clusters: the model and the centroids of a finished run.

An image is `unsure` if it is less typical of its cluster (`vitdc.typicality`) than all but a few of
the images that the run held out. They are asked because the model was trained on all others, and so
knows them too well; where too few were held out (fewer than 100, or than the rate needs), the
training images are asked nevertheless, and more than `unsure_rate` of new images may be called
unsure.

A model directory holds `checkpoint` and `clustering`: `results/model`, a round of `refine`, what
`python -m pipelines import-model` fetches and what the MLflow registry stores. It is read by
`artifacts` alone: safetensors, npy and JSON; nothing is unpickled and no code of it is run.

torch and faiss are imported when a model is loaded, so that a wrong path is refused at once and
image files can be read in the meantime.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np

from vitdc import artifacts
from vitdc.artifacts import Checkpoint, Clustering, Evaluation
from vitdc.config import ComputeConfig
from vitdc.device import limited_threads, resolve_device
from vitdc.errors import InputError
from vitdc.typicality import atypicality, limit, most_typical

if TYPE_CHECKING:
    import torch

    from vitdc.model import DeepClusteringViT

UNSURE_RATE = 0.05
ROUNDING = 1e-5  # relative: the image that the limit comes from must not depend on its batch
MIN_HELD_OUT = 100  # images that the run held out, for them to decide what is unsure

logger = logging.getLogger(__name__)


class Prediction(NamedTuple):
    """Where images belong.

    Attributes:
        cluster: (N,) int64: the cluster with the nearest centroid or, where the clusters were found
            on a manifold, the one that the image is most typical of.
        distance: (N,) float32: Euclidean distance of z to the centroid of that cluster.
        second_distance: (N,) float32: to the nearest of the others; inf if there is none.
        unsure: (N,) bool: unlike the images of its cluster, see `Predictor.unsure_limit`.
    """

    cluster: np.ndarray
    distance: np.ndarray
    second_distance: np.ndarray
    unsure: np.ndarray

    @property
    def margin(self) -> np.ndarray:
        """(N,) float32 in [0, 1]: how much farther the nearest other centroid is, relative to it.

        0 is a tie, or another centroid is even nearer; 1 is an image that lies on its centroid.
        """
        with np.errstate(invalid="ignore", divide="ignore"):  # 0 / 0 is a tie
            ratio = np.nan_to_num(self.distance / self.second_distance, nan=1.0)
        margin: np.ndarray = 1 - np.minimum(ratio, 1)
        return margin


@dataclass(frozen=True)
class Predictor:
    """The model and the clusters of a run, ready for new images.

    Attributes:
        checkpoint: The description of the model.
        clustering: Centroids, and what is typical of the clusters.
        model: In evaluation mode, on `device`.
        device: Where the model is.
        compute: Threads and batch size.
        unsure_limit: The atypicality beyond which an image is unsure.
    """

    checkpoint: Checkpoint
    clustering: Clustering
    model: DeepClusteringViT
    device: torch.device
    compute: ComputeConfig
    unsure_limit: float

    @classmethod
    def load(
        cls, path: Path, compute: ComputeConfig | None = None, *, unsure_rate: float | None = None
    ) -> Self:
        """Load a model directory, or the one in a results directory.

        Args:
            path: The directory.
            compute: Device, threads and batch size; by default as in `ComputeConfig`.
            unsure_rate: Share of images like those of the run that may be called unsure; by default
                `UNSURE_RATE`.

        Raises:
            InputError: There is none at `path`, it is damaged or of another format version, its
                parts do not belong together, or its run had too few images for `unsure_rate`.
        """
        from vitdc.model import load_model

        compute = compute or ComputeConfig()
        directory = find_model_directory(path)
        checkpoint = Checkpoint.load(directory / "checkpoint")
        clustering = Clustering.load(directory / "clustering")
        if checkpoint.round != clustering.round:
            raise InputError(
                f"{directory}: the checkpoint is of round {checkpoint.round}, the clustering of"
                f" round {clustering.round}; mixed up directories?"
            )
        device = resolve_device(compute)
        return cls(
            checkpoint,
            clustering,
            load_model(checkpoint).to(device),
            device,
            compute,
            unsure_limit(clustering, rate=unsure_rate),
        )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the images it takes."""
        return self.checkpoint.image_shape

    @property
    def num_clusters(self) -> int:
        return len(self.clustering.centroids)

    def embed(self, images: np.ndarray) -> np.ndarray:
        """(N, H, W, C) uint8 -> (N, D) float32: z, batch by batch."""
        if images.shape[1:] != self.image_shape or images.dtype != np.uint8:
            raise InputError(
                f"images of shape {images.shape} and type {images.dtype}, but the model takes"
                f" (N, {', '.join(map(str, self.image_shape))}) uint8"
            )
        import torch

        from vitdc.model import images_to_tensor

        out = np.empty((len(images), self.clustering.centroids.shape[1]), np.float32)
        step = self.model.batch_size(self.compute.embedding_batch_size)
        with limited_threads(self.compute.num_threads), torch.inference_mode():
            for start in range(0, len(images), step):
                batch = images_to_tensor(images[start : start + step], self.device)
                out[start : start + step] = self.model(batch).embedding.cpu().numpy()
        return out

    def predict(self, images: np.ndarray) -> Prediction:
        """Assign images to clusters.

        Args:
            images: (N, H, W, C) uint8, N >= 0.

        Raises:
            InputError: The images have another shape or type than the model takes.
        """
        return self.assign(self.embed(images), images)

    def assign(self, embedding: np.ndarray, images: np.ndarray) -> Prediction:
        """Find the clusters of images that were embedded already.

        Args:
            embedding: (N, D) float32, from `embed`.
            images: (N, H, W, C) uint8, the same images.
        """
        import faiss

        centroids, typicality = self.clustering.centroids, self.clustering.typicality
        index = faiss.IndexFlatL2(centroids.shape[1])
        index.add(centroids)
        with limited_threads(self.compute.num_threads):
            nearest = index.search(embedding, min(2, len(centroids)))[1]  # (N, 1 or 2)
            cluster = nearest[:, 0]
            if self.clustering.is_of_manifold:
                cluster = most_typical(typicality, embedding, images)
            # computed directly: faiss's expanded form loses digits close to a centroid
            distance = np.linalg.norm(embedding - centroids[cluster], axis=1)
            distances = np.linalg.norm(embedding[:, None] - centroids[nearest], axis=2)
            distances[nearest == cluster[:, None]] = np.inf
            found = atypicality(typicality, embedding, images, cluster)
        return Prediction(cluster, distance, distances.min(axis=1), found > self.unsure_limit)


def unsure_limit(clustering: Clustering, *, rate: float | None = None) -> float:
    """The atypicality beyond which an image is unsure.

    Args:
        clustering: Of the run.
        rate: See `Predictor.load`.

    Returns:
        The limit; inf where there are too few images for the default rate, which is warned of.

    Raises:
        InputError: There are too few for another rate.
    """
    wanted = UNSURE_RATE if rate is None else rate
    asked = [clustering.train]
    if len(clustering.test) >= MIN_HELD_OUT:
        asked.insert(0, clustering.test)
    limits = (limit(np.asarray(own.atypicality), rate=wanted) for own in asked)
    found = next(filter(math.isfinite, limits), math.inf)
    if math.isinf(found):
        largest = max(map(len, asked))
        few = f"unsure: {largest} images of the run are too few for a rate of {wanted:g}"
        if rate is not None:
            possible = math.ceil(1e4 / (largest + 1)) / 1e4
            raise InputError(f"{few}; ask for {possible:g} or more")
        logger.warning("%s, so no image is called unsure", few)
    return found * (1 + ROUNDING)


def find_model_directory(path: Path) -> Path:
    """The directory with `checkpoint` and `clustering`, in a results directory or given itself.

    Raises:
        InputError: There is none.
    """
    path = Path(path)
    if is_results(path):
        artifacts.read_metadata(path, Evaluation.kind)
        return path / "model"
    if all((path / name).is_dir() for name in ("checkpoint", "clustering")):
        return path
    inside = path / "results"
    raise InputError(
        f"{path}: {'no model here' if path.exists() else 'no such directory'};"
        + (f" did you mean {inside}?" if is_results(inside) else "")
        + (" name a results directory of a finished run, or one that holds `checkpoint` and")
        + " `clustering`"
    )


def is_results(path: Path) -> bool:
    """Whether `path` looks like a results directory; a model directory has no artifact.json."""
    return (Path(path) / "artifact.json").is_file()
