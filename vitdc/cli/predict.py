"""`vitdc predict`: new images in, their clusters out."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NoReturn, TextIO

import click

from vitdc.cli.options import names_option


@click.command("predict")
@click.argument("model")
@click.argument("images", nargs=-1, required=True)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the table to FILE, whole or not at all, instead of standard output.",
)
@names_option
@click.option(
    "--convert/--no-convert",
    default=True,
    show_default=True,
    help="Fit images of another size or number of channels as `prepare` does (resize, crop to a"
    " square, greyscale or RGB), or refuse them.",
)
@click.option(
    "--unsure-rate",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    show_default="0.05",
    help="Share of ordinary images that may be called unsure.",
)
@click.option("--endpoint-url", metavar="URL", help="S3-compatible store; by default AWS.")
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda", "mps"]),
    default="auto",
    show_default=True,
    help="Where the model runs.",
)
@click.option(
    "--num-threads",
    type=click.IntRange(min=1),
    help="CPU threads of the model, beside the decoding on all cores; by default as many as there"
    " are cores, but one for a small model (less than a million parameters).",
)
def command(
    model: str,
    images: tuple[str, ...],
    output: Path | None,
    names: Path | None,
    convert: bool,
    unsure_rate: float | None,
    endpoint_url: str | None,
    device: str,
    num_threads: int | None,
) -> None:
    """Find the clusters of new images with the model of a run.

    MODEL is a results directory (its `model/` alone will do), or a model of the MLflow registry,
    such as models:/vitdc-digits@champion. IMAGES are files, folders (with everything below them),
    s3://bucket/prefix, or - to read a list of files from standard input: a path on every line or,
    as `find -print0` writes them, with a zero byte after each, which any name may be in.

    \b
    The table is CSV, a row per image, in the order of the names:
      image     as you named it
      cluster   the cluster with the nearest centroid or, where the clusters
                were found on a manifold, the one it is most typical of
      name      of the cluster, if it was given one; a merged cluster has the name of the
                one that it was merged into
      distance  to the centroid
      margin    how much farther the second-nearest centroid is: 0 is a tie, 1 the centroid
      unsure    true if the image is unlike those of its cluster

    What is unsure: an image's embedding and an 8 x 8 thumbnail are compared with those of the
    training images of its cluster, in units of how much these vary (Mahalanobis distance). An image
    is unsure if it lies farther off than 95% of the images that the run held out, so about one
    ordinary image in 20 is; --unsure-rate changes that. If the run held out fewer than 100 images,
    or fewer than the rate needs (99 for 0.01), its training images are asked, each compared with
    all the others. It tells images unlike anything in training; for one between two clusters look
    at the margin.

    Files that cannot be read are listed on standard error and left out; the exit code is 1 then.
    """
    import gc

    gc.set_threshold(50_000, 20, 20)  # importing torch makes objects, not garbage

    from tqdm import tqdm

    from vitdc.artifacts import Checkpoint
    from vitdc.concerns import image_concerns
    from vitdc.config import ComputeConfig
    from vitdc.data.decoding import num_cores
    from vitdc.data.files import LeftOutPages
    from vitdc.inference import (
        WriteError,
        default_threads,
        find_model,
        list_images,
        predict_files,
        wanted_pixels,
        write_rows,
    )
    from vitdc.names import printable
    from vitdc.prediction import Predictor

    found = find_model(model, names=names)
    pixels = wanted_pixels(Checkpoint.load(found.directory / "checkpoint"), convert=convert)
    listings = list_images(images, endpoint_url=endpoint_url)
    threads = num_threads or default_threads(found.directory)
    left_out = LeftOutPages()
    compute = ComputeConfig.parse({"device": device, "num_threads": threads}, where="predict")
    results = predict_files(
        listings,
        lambda: Predictor.load(found.directory, compute, unsure_rate=unsure_rate),
        pixels,
        batch_size=compute.embedding_batch_size,
        num_workers=num_cores(),
        left_out=left_out,
    )
    total = sum(len(listing.names) for listing in listings)
    with (
        tqdm(total=total, desc="predict", unit=" images", disable=None) as progress,
        _open(output) as file,
        closing(results),
    ):
        try:
            counts = write_rows(
                file,
                results,
                found.annotations,
                on_unreadable=lambda name, reason: progress.write(
                    printable(f"skipped {name}: {reason}"), file=sys.stderr
                ),
                on_progress=progress.update,
            )
        except WriteError as failure:
            _give_up(file, output, failure.error)
    for concern in image_concerns(counts.oddities.found(), counts.written):
        click.echo(f"vitdc: {concern}", err=True)
    if left_out.num_files:
        click.echo(f"vitdc: {left_out}", err=True)
    if counts.unreadable:
        click.echo(
            f"vitdc: {counts.unreadable} of {total} images cannot be read and were skipped; all"
            " others are in the table",
            err=True,
        )
        sys.exit(1)


@contextmanager
def _open(output: Path | None) -> Iterator[TextIO]:
    if output is None:
        yield sys.stdout
        return
    from vitdc.artifacts import replacing_file

    with replacing_file(output) as file:
        yield file


def _give_up(file: TextIO, output: Path | None, error: OSError) -> NoReturn:
    """End without a table, quietly if its reader has had enough (`| head`)."""
    from vitdc.errors import TrainingError

    os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())  # for what is still buffered
    if isinstance(error, BrokenPipeError):
        sys.exit(128 + signal.SIGPIPE)
    where = "standard output" if output is None else output
    raise TrainingError(f"{where}: cannot be written: {error.strerror}")
