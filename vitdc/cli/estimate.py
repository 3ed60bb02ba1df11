"""`vitdc estimate`: what a run would take on this machine."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vitdc.cli.options import PARAMS_OPTIONS

if TYPE_CHECKING:
    from vitdc.artifacts import Supervision
    from vitdc.config import DataConfig
    from vitdc.data.sources import Source


@click.command("estimate", params=[*PARAMS_OPTIONS])
@click.option(
    "--images",
    "num_images",
    type=click.IntRange(min=2),
    metavar="N",
    help="Number of images, training and test; by default those of `data`.",
)
def command(num_images: int | None, params_file: Path, overrides: tuple[str, ...]) -> None:
    """Say how many seconds, and how much memory and disk, a run takes on this machine.

    The configured model is trained for a few steps on synthetic images, and the rest is
    calculated. Not counted are reading and decoding the images, finding the clusters (k-means or
    UMAP), and the evaluation. How many rounds a run takes, only the run tells: the numbers are for
    one round and for all that are allowed.
    """
    from vitdc import estimate
    from vitdc.config import Params
    from vitdc.data.opening import open_source

    params = Params.load(params_file, overrides)
    source = open_source(params.data)
    num_train, num_test = _count(source, params.data)
    if num_images is not None:
        num_test = round(num_images * num_test / (num_train + num_test))
        num_train = num_images - num_test
    with _quiet():
        needs = estimate.measure(
            params,
            image_shape=source.image_shape,
            num_train=num_train,
            num_test=num_test,
            supervision=_supervision(source, params.data),
        )
    most = params.convergence.max_rounds
    height, width, channels = source.image_shape
    click.echo(f"{num_train} training and {num_test} test images of {height}x{width}x{channels}")
    numbers = sorted({1, most})
    seconds = [f"{estimate.duration(needs.seconds(n))} with {n}" for n in numbers]
    disk = [f"{estimate.size(needs.disk(n))} with {n}" for n in numbers]
    plural = "rounds" if most > 1 else "round"
    free = estimate.size(shutil.disk_usage(".").free)
    click.echo(f"   time: about {' to '.join(seconds)} {plural}")
    click.echo(f"   disk: about {' to '.join(disk)} {plural}; {free} are free here")
    total = estimate.size(estimate.total_memory())
    click.echo(f" memory: about {estimate.size(needs.memory)}; this machine has {total}")
    click.echo("not counted: reading and decoding images, k-means or UMAP, the evaluation")


@contextmanager
def _quiet() -> Iterator[None]:
    """Say nothing of trainings that only measure."""
    ours = logging.getLogger("vitdc")
    level = ours.level
    ours.setLevel(logging.WARNING)
    try:
        yield
    finally:
        ours.setLevel(level)


def _count(source: Source, config: DataConfig) -> tuple[int, int]:
    """Training and test images; those of files without decoding any."""
    if source.train_labels is not None:
        num_train, share = len(source.train_labels), config.test_fraction
        num_test = round(num_train * share / (1 - share))
        return num_train, min(num_test, config.max_test or num_test)
    counts = Counter[str]()
    for batch in source.batches():
        counts[batch.split] += len(batch.labels)
    return counts["train"], counts["test"]


def _supervision(source: Source, config: DataConfig) -> Supervision:
    """As the prepared images will have it, near enough."""
    labels = source.train_labels
    has_labels = (labels is None and bool(source.class_names)) or (
        labels is not None and bool((labels >= 0).any())
    )
    if config.labels == "none" or not has_labels:
        return "none"
    return "partial" if config.labels == "partial" or config.label_fraction else "full"
