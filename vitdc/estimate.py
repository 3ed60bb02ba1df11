"""What a run will take: seconds, memory and disk, before it is begun or soon after.

`Forecast` tells the duration from the first steps of a real training, `measure` runs the steps on a
few synthetic images and scales up, `check_room` refuses what certainly does not fit.
"""

from __future__ import annotations

import contextlib
import logging
import math
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vitdc.config import Params, TrainingConfig
from vitdc.errors import InputError
from vitdc.watching import Watcher

if TYPE_CHECKING:
    from vitdc.artifacts import ClusteringScores, Dataset, Supervision

FORECAST_STEPS = 10
WORTH_SAYING = 60  # seconds
COPIES_IN_MEMORY = 3  # of all embeddings, while they are clustered and judged
BATCHES = 12  # of synthetic images per epoch; the first of two epochs is no measure
DIGEST_BYTES = 8  # of an image that stays in its file
LABEL_BYTES = 60  # of an image: label and line of index.csv
ROUND_BYTES = 28  # of an image: cluster, class, distance, atypicality, cross-entropy
CHECKPOINTS = 5  # as large as one: round 0, its copy, the optimizer's two moments, the result
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")

logger = logging.getLogger(__name__)


class Forecast(Watcher):
    """Says once how long a training and the rounds will take, where that is more than a minute.

    Args:
        watcher: Hears of everything, too.
        params: Of the run.
        images: What is trained on.
    """

    def __init__(self, watcher: Watcher, params: Params, images: Dataset) -> None:
        self._watcher, self._params, self._images = watcher, params, images
        self._first: tuple[int, float] | None = None
        self._is_told = False

    def on_batch(
        self, round: int, step: int, values: Mapping[str, float], *, num_steps: int
    ) -> None:
        self._watcher.on_batch(round, step, values, num_steps=num_steps)
        now = time.perf_counter()
        if self._first is None:  # the first step takes longer than others
            self._first = step, now
        elif step - self._first[0] >= FORECAST_STEPS and not self._is_told:
            self._is_told = True
            per_step = (now - self._first[1]) / (step - self._first[0])
            self._tell(round, per_step, per_step * (num_steps - step))

    def _tell(self, round: int, per_step: float, left: float) -> None:
        joint, most = self._params.joint, self._params.convergence.max_rounds
        batch_size, views = joint.batch_size, 1
        if round == 0:
            config, views = initial_training(self._params, self._images.supervision)
            batch_size = config.batch_size
        per_image = per_step / batch_size / views
        rounds = per_image * len(self._images.train) * joint.epochs * (most - round)
        if left + rounds >= WORTH_SAYING:
            logger.info(
                "this training takes about %s more; with all rounds, at most %d, up to %s",
                *(duration(left), most, duration(left + rounds)),
            )

    def on_epoch(self, round: int, row: Mapping[str, float], *, num_epochs: int) -> None:
        self._watcher.on_epoch(round, row, num_epochs=num_epochs)

    def on_clustered(self, round: int, scores: ClusteringScores) -> None:
        self._watcher.on_clustered(round, scores)

    def on_step(self, name: str, round: int, seconds: float) -> None:
        self._watcher.on_step(name, round, seconds)


def initial_training(params: Params, supervision: Supervision) -> tuple[TrainingConfig, int]:
    """The section that round 0 is trained by, and how many views of an image a step sees."""
    from vitdc.objectives import choose_initial

    choice = choose_initial(
        params.pretraining.objective,
        supervision=supervision,
        is_pretrained=bool(params.model.pretrained),
        trainable=params.model.resolved_trainable,
    )
    if choice.objective in ("simclr", "vicreg"):
        return params.pretraining.self_supervised, 2
    return params.pretraining, 1


# --- before anything is done ---------------------------------------------------------------------


class Needs(NamedTuple):
    """What a run takes on this machine.

    Attributes:
        training: Seconds of the initial training and its embeddings.
        round: Seconds of the training and the embeddings of one round.
        memory: Bytes.
        prepared_disk: Bytes of the prepared images.
        round_disk: Bytes of one round.
        other_disk: Bytes of the initial training, the scratch and the model of the results.
    """

    training: float
    round: float
    memory: int
    prepared_disk: int
    round_disk: int
    other_disk: int

    def seconds(self, num_rounds: int) -> float:
        """Of a run with so many rounds after round 0."""
        return self.training + num_rounds * self.round

    def disk(self, num_rounds: int) -> int:
        """Bytes of a run with so many rounds after round 0."""
        return self.prepared_disk + self.other_disk + (1 + num_rounds) * self.round_disk


def disk_needs(
    image_shape: tuple[int, int, int],
    *,
    num_images: int,
    embedding_dim: int,
    model_bytes: int,
    frozen_bytes: int = 0,
    keep_decoded: bool = True,
) -> tuple[int, int, int]:
    """Bytes of the prepared images, of one round, and of all else.

    The arguments are those of `check_room`.
    """
    from vitdc.typicality import thumbnails

    small = thumbnails(np.empty((1, *image_shape), np.uint8))[0]
    kept = 0 if small.shape == image_shape else small.nbytes
    pixels = math.prod(image_shape) if keep_decoded else DIGEST_BYTES
    prepared = num_images * (pixels + kept + LABEL_BYTES)
    whitening = 4 * (embedding_dim + small.size) ** 2  # of the typicality
    per_round = model_bytes + num_images * (4 * embedding_dim + ROUND_BYTES) + whitening
    return prepared, per_round, CHECKPOINTS * model_bytes + frozen_bytes


def memory_needs(*, num_images: int, embedding_dim: int) -> int:
    """Bytes of memory for the embeddings alone; the images are not held in memory."""
    return COPIES_IN_MEMORY * 4 * num_images * embedding_dim


def check_room(
    output: Path,
    image_shape: tuple[int, int, int],
    *,
    num_images: int,
    embedding_dim: int = 0,
    model_bytes: int = 0,
    frozen_bytes: int = 0,
    keep_decoded: bool = True,
) -> None:
    """Refuse images that certainly do not fit on the disk or in the memory.

    Args:
        output: Directory for what is made; what lies there already may be replaced.
        image_shape: (H, W, C) of the prepared images.
        num_images: Training images.
        embedding_dim: 0 where the images are only prepared.
        model_bytes: Size of what every round has of the model, likewise.
        frozen_bytes: Size of a frozen backbone, which all rounds share.
        keep_decoded: As in the `data` section.

    Raises:
        InputError: The prepared images and one round need more than there is.
    """
    prepared, per_round, other = disk_needs(
        image_shape,
        num_images=num_images,
        embedding_dim=embedding_dim,
        model_bytes=model_bytes,
        frozen_bytes=frozen_bytes,
        keep_decoded=keep_decoded,
    )
    disk, free = prepared + (per_round + other if embedding_dim else 0), free_disk(output)
    if disk > free:
        raise InputError(
            f"{output}: {num_images:,} images of {_by(image_shape)} need at least {size(disk)} on"
            f" disk, and {size(free)} are free there; write to another disk, take a smaller"
            " data.image_size or data.max_train, or data.keep_decoded=false"
        )
    memory = memory_needs(num_images=num_images, embedding_dim=embedding_dim)
    if memory > (total := total_memory()):
        raise InputError(
            f"{num_images:,} embeddings of {embedding_dim} numbers need at least {size(memory)} of"
            f" memory to be clustered, and this machine has {size(total)}; take fewer images"
            " (data.max_train) or a smaller model"
        )


def free_disk(output: Path) -> int:
    """Bytes that may be written into a directory, counting those in it, which may be replaced."""
    place = next(each for each in (output, *output.absolute().parents) if each.is_dir())
    files = (each.lstat() for each in output.rglob("*")) if output.is_dir() else ()
    return shutil.disk_usage(place).free + sum(each.st_size for each in files)


def total_memory() -> int:
    """Bytes of memory that this machine or container has."""
    import psutil

    total: int = psutil.virtual_memory().total
    with contextlib.suppress(OSError, ValueError):  # no container, or without a limit ("max")
        total = min(total, int(CGROUP_LIMIT.read_text()))
    return total


class _Speed(Watcher):
    """Images per second of the last epoch; infinitely many where nothing is trained."""

    images_per_second = math.inf

    def on_epoch(self, round: int, row: Mapping[str, float], *, num_epochs: int) -> None:
        self.images_per_second = row["images_per_second"]


def measure(
    params: Params,
    *,
    image_shape: tuple[int, int, int],
    num_train: int,
    num_test: int,
    supervision: Supervision,
) -> Needs:
    """Run two epochs and an embedding pass on a few synthetic images, and scale up.

    Args:
        params: Of the run.
        image_shape: (H, W, C) of the prepared images.
        num_train: Training images of the run.
        num_test: Its test images.
        supervision: How many of them have a label to train on.

    Raises:
        InputError: The model cannot be.
    """
    from vitdc import steps
    from vitdc.artifacts import Embeddings

    config, views = initial_training(params, supervision)
    num_timed, num_images = BATCHES * config.batch_size, num_train + num_test
    short = {"epochs": 2}
    pretraining = params.pretraining.model_copy(
        update={
            **short,
            "self_supervised": params.pretraining.self_supervised.model_copy(update=short),
        }
    )
    with tempfile.TemporaryDirectory(prefix="vitdc-estimate-") as name:
        dataset, checkpoint, embeddings = (Path(name) / part for part in "dce")
        _write_synthetic(dataset, image_shape, num_timed, supervision)
        speed = _Speed()
        made = steps.pretrain(
            dataset=dataset,
            model=params.model,
            pretraining=pretraining,
            compute=params.compute,
            seed=params.seed,
            output=checkpoint,
            scratch=Path(name) / "scratch",
            watcher=speed,
        )
        for _ in range(2):  # the first pass loads what the second finds loaded
            started = time.perf_counter()
            steps.embed(
                dataset=dataset, checkpoint=checkpoint, compute=params.compute, output=embeddings
            )
            embedding = (time.perf_counter() - started) / num_timed * num_images
        frozen = sum(file.stat().st_size for file in checkpoint.glob("backbone.safetensors"))
        model_bytes = (checkpoint / "model.safetensors").stat().st_size
        embedding_dim = Embeddings.load(embeddings).train.embedding.shape[1]
    epoch = num_train / speed.images_per_second
    return Needs(
        config.epochs * epoch + embedding,
        params.joint.epochs * epoch / views + (0 if made.is_frozen else embedding),
        _peak_memory() + memory_needs(num_images=num_images, embedding_dim=embedding_dim),
        *disk_needs(
            image_shape,
            num_images=num_images,
            embedding_dim=embedding_dim,
            model_bytes=model_bytes,
            frozen_bytes=frozen,
            keep_decoded=params.data.keep_decoded,
        ),
    )


def _write_synthetic(
    path: Path, image_shape: tuple[int, int, int], number: int, supervision: Supervision
) -> None:
    from vitdc.artifacts import writing_dataset

    random = np.random.default_rng(0)
    labels = np.arange(number) % 2
    known = {"full": np.ones, "none": np.zeros}.get(supervision, lambda *_: labels == 0)
    with writing_dataset(path, {"step": "estimate"}, image_shape=image_shape) as dataset:
        images = random.integers(0, 256, (number, *image_shape), dtype=np.uint8)
        dataset.append("train", names=map(str, range(number)), labels=labels, images=images)
        dataset.describe(
            name="synthetic",
            class_names=("a", "b"),
            mean=[0.5] * image_shape[2],
            std=[0.3] * image_shape[2],
            content_hash="",
            num_unreadable=0,
            known=np.asarray(known(number, bool)),
        )


def _peak_memory() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)


# --- in words ------------------------------------------------------------------------------------


def duration(seconds: float) -> str:
    """E.g. "45 s", "12 min" or "3 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def size(number: int) -> str:
    """E.g. "1.2 GB"; decimal, as disks are sold."""
    for unit, factor in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6)):
        if number >= factor:
            return f"{number / factor:.1f} {unit}"
    return f"{number / 1000:.0f} kB"


def _by(image_shape: tuple[int, int, int]) -> str:
    return " x ".join(map(str, image_shape))
