"""Image files in, a table of their clusters out: listed, decoded, predicted and written at once.

Decoding runs in processes, a thread gathers what they give into batches, the model takes one batch
after the other, and rows are written as they come. Each waits for the next, so memory holds a few
batches, whatever the number of images; only their names are all there, to be sorted. Decoding
begins before the model is loaded, because importing torch takes longer than decoding thousands of
small images.
"""

from __future__ import annotations

import math
import os
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import ClassVar, NamedTuple, TextIO

import numpy as np

from vitdc import artifacts
from vitdc.artifacts import Annotations, Checkpoint, Dataset
from vitdc.config import DataConfig
from vitdc.data.decoding import File, Stop, Unreadable, decode_chunks, num_cores
from vitdc.data.files import LeftOutPages, Store, chunk_size, is_text, select_images
from vitdc.data.folder import Folder
from vitdc.data.pixels import Pixels
from vitdc.data.s3 import SCHEME, Bucket
from vitdc.data.statistics import Oddities, histograms
from vitdc.errors import InputError
from vitdc.prediction import Prediction, Predictor, find_model_directory, is_results
from vitdc.read_ahead import Ahead

MODEL_SCHEMES = ("models:/", "runs:/")  # of MLflow
HEADER = ("image", "cluster", "name", "distance", "margin", "unsure")
BATCH_VALUES = 2**24  # pixels times channels of a batch, at most
BATCHES_AHEAD = 2  # decoded and waiting for the model
NOT_UTF8 = Unreadable("its name is not UTF-8; rename it")  # the table could not hold it
SMALL_MODEL = 4 * 2**20  # bytes of weights, about a million parameters


# --- what is asked for ---------------------------------------------------------------------------


class FoundModel(NamedTuple):
    """Where a model lies and what people say about its clusters."""

    directory: Path
    annotations: Annotations | None


def find_model(model: str, *, names: Path | None = None) -> FoundModel:
    """Find a model and the names of its clusters.

    Args:
        model: A results directory, a model directory, or a model of MLflow: models:/NAME@ALIAS,
            models:/NAME/VERSION or runs:/RUN_ID.
        names: File with annotations; None takes the one beside a results directory, if any.

    Raises:
        InputError: There is no such model, or the names belong to other clusters.
    """
    if model.startswith(MODEL_SCHEMES):
        from vitdc.tracking import download_model

        directory = download_model(model)
    else:
        directory = find_model_directory(Path(model))
    if names is not None:
        return FoundModel(directory, _load_names(names, directory))
    if not model.startswith(MODEL_SCHEMES) and is_results(Path(model)):
        return FoundModel(directory, Annotations.of_results(Path(model)))
    return FoundModel(directory, None)


def _load_names(path: Path, directory: Path) -> Annotations:
    found = Annotations.load(path)
    if found.clustering != artifacts.digest(directory / "clustering"):
        raise InputError(f"{path}: names the clusters of another model than {directory}")
    return found


def default_threads(directory: Path) -> int:
    """CPU threads for a model: all cores, but one for a small model.

    A second thread brings a small model next to nothing, and takes a core from the decoding.
    """
    weights = (directory / "checkpoint").glob("*.safetensors")
    return 1 if sum(file.stat().st_size for file in weights) < SMALL_MODEL else num_cores()


class Listing(NamedTuple):
    """Images in one place.

    Attributes:
        store: The place.
        names: Of the images, within the store.
        prefix: What the table puts before a name.
    """

    store: Store
    names: Sequence[str]
    prefix: str


@dataclass(frozen=True)
class GivenFiles:
    """Files that were named one by one, as a `Store`."""

    chunk_size: ClassVar[int] = Folder.chunk_size
    origin: ClassVar[Mapping[str, str]] = {}
    location: ClassVar[str] = ""

    paths: list[str]

    def names(self) -> list[str]:
        return self.paths

    def files(self, names: Sequence[str]) -> Generator[File]:
        yield from names


def list_images(inputs: Iterable[str], *, endpoint_url: str | None = None) -> list[Listing]:
    """Find all images that are asked for, in the order of the inputs.

    Args:
        inputs: Files, folders, s3://bucket/prefix; "-" reads paths of files from standard input.
            Files in a row are one place. Folders and buckets are searched as `prepare` does,
            whatever folders are in them.
        endpoint_url: S3-compatible store; None means AWS.

    Raises:
        InputError: One is not there, may not be read or holds no images.
    """
    listings = list[Listing]()
    found = (_list(name, endpoint_url) for name in inputs)
    for given, group in groupby(found, key=lambda each: isinstance(each.store, GivenFiles)):
        if given:  # a thousand files are not a thousand tasks
            listings.append(_given([name for each in group for name in each.names]))
        else:
            listings.extend(group)
    return listings


def _list(name: str, endpoint_url: str | None) -> Listing:
    if name.startswith(SCHEME):
        bucket = Bucket.open(name, endpoint_url=endpoint_url)
        return Listing(bucket, select_images(bucket.names(), bucket.location), bucket.location)
    if name == "-":
        if paths := _read_paths(sys.stdin.buffer.read()):
            return _given(paths)
        raise InputError("standard input: names no images; write one path on every line")
    try:
        Path(name).stat()
    except OSError as error:
        raise InputError(
            f"{name}: {error.strerror}; name images, folders or {SCHEME}bucket/prefix"
        ) from None
    if not Path(name).is_dir():
        return _given([name])
    folder = Folder(name)
    return Listing(folder, select_images(folder.names(), name), os.path.join(name, ""))  # noqa: PTH118


def _read_paths(text: bytes) -> list[str]:
    """Paths that end with zero bytes, if there are any, else with the lines."""
    if b"\0" in text:
        return [os.fsdecode(path) for path in text.split(b"\0") if path]
    return [os.fsdecode(line.rstrip(b"\r")) for line in text.split(b"\n") if line.strip()]


def _given(paths: list[str]) -> Listing:
    return Listing(GivenFiles(paths), paths, "")


def wanted_pixels(made: Checkpoint | Dataset, *, convert: bool = True) -> Pixels:
    """The pixels that a model takes of every file, read as those that it was trained on.

    Args:
        made: The model, or what it was trained on.
        convert: As of `Pixels`.

    Raises:
        InputError: The model takes images that are not square, which no image file is fitted to.
    """
    height, width, channels = made.image_shape
    if height != width:
        raise InputError(
            f"the model takes images of {height} x {width} pixels, and image files are fitted to"
            " squares only; use `vitdc.prediction.Predictor` with arrays"
        )
    decoding = {**DataConfig().decoding, **made.decoding}
    return Pixels(height, channels, convert=convert, **decoding)


# --- files to batches ----------------------------------------------------------------------------


class Batch(NamedTuple):
    """Decoded images.

    Attributes:
        names: n names, as the table has them.
        images: (n, H, W, C) uint8.
        problems: Name of every file that could not be read, and why.
        num_files: How many files these are.
    """

    names: list[str]
    images: np.ndarray
    problems: list[tuple[str, str]]
    num_files: int


def read_batches(
    listings: Sequence[Listing],
    pixels: Pixels,
    *,
    batch_size: int,
    num_workers: int,
    stop: Stop | None = None,
    left_out: LeftOutPages | None = None,
) -> Generator[Batch]:
    """Decode all images, in order; the last batch may be smaller, others a little larger.

    A single chunk is decoded in this process: starting another one takes longer. Run it in a thread
    (`Ahead`), because it starts processes that way. What comes after `stop` is not whole. Pages
    that are left out are counted in `left_out`.
    """
    sizes = [chunk_size(each.store, pixels) for each in listings]
    num_chunks = sum(
        math.ceil(len(each.names) / size) for each, size in zip(listings, sizes, strict=True)
    )
    names, images, problems = list[str](), list[np.ndarray](), list[tuple[str, str]]()
    num_files, left_out = 0, left_out or LeftOutPages()
    workers = min(num_workers, num_chunks)
    decoding = decode_chunks(
        _files(listings, pixels), pixels, num_workers=workers, quick_start=True, stop=stop
    )
    with closing(decoding) as results:
        chunks = _names(listings, pixels)
        for chunk, decoded in zip(chunks, results, strict=False):  # fewer after `stop`
            problems += [(chunk[i], reason) for i, reason in decoded.problems.items()]
            names += [name for _, name in decoded.sources(chunk)]
            images.append(decoded.images)
            num_files += len(chunk)
            left_out.update(chunk, decoded)
            if len(names) + len(problems) >= batch_size:
                yield Batch(names, np.concatenate(images), problems, num_files)
                names, images, problems, num_files = [], [], [], 0
    if images:
        yield Batch(names, np.concatenate(images), problems, num_files)


def _names(listings: Iterable[Listing], pixels: Pixels) -> Iterator[list[str]]:
    for store, names, prefix in listings:
        size = chunk_size(store, pixels)
        for start in range(0, len(names), size):
            yield [prefix + name for name in names[start : start + size]]


def _files(listings: Iterable[Listing], pixels: Pixels) -> Iterator[list[File]]:
    """Chunk by chunk, as `_names`."""
    for listing in listings:
        with closing(listing.store.files(listing.names)) as files:
            for names in _names([listing], pixels):
                chunk = zip(names, islice(files, len(names)), strict=True)
                yield [file if is_text(name) else NOT_UTF8 for name, file in chunk]


# --- batches to rows -----------------------------------------------------------------------------


@dataclass
class Counts:
    """What became of the images.

    Attributes:
        written: Rows in the table.
        unreadable: Files that were left out.
        oddities: Of the images in the table.
    """

    written: int = 0
    unreadable: int = 0
    oddities: Oddities = field(default_factory=Oddities)


def predict_files(
    listings: Sequence[Listing],
    load: Callable[[], Predictor],
    pixels: Pixels,
    *,
    batch_size: int,
    num_workers: int,
    left_out: LeftOutPages | None = None,
) -> Generator[tuple[Batch, Prediction]]:
    """Predict the clusters of all images, batch by batch, in order.

    Args:
        listings: The images.
        load: Loads the model, while the first images are decoded.
        pixels: What the model takes.
        batch_size: Images per batch, fewer if they are large.
        num_workers: Processes that decode.
        left_out: Counts the pages that are left out.
    """
    values = pixels.image_size**2 * pixels.channels
    batch_size = max(1, min(batch_size, BATCH_VALUES // values))
    stop = Stop()
    batches = read_batches(
        listings,
        pixels,
        batch_size=batch_size,
        num_workers=num_workers,
        stop=stop,
        left_out=left_out,
    )
    with Ahead(batches, limit=BATCHES_AHEAD, on_stop=stop.set) as ready:
        predictor = load()
        for batch in ready:
            yield batch, predictor.predict(batch.images)


class WriteError(Exception):
    """The table cannot be written any further.

    Attributes:
        error: Why.
    """

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


def write_rows(
    file: TextIO,
    results: Iterable[tuple[Batch, Prediction]],
    annotations: Annotations | None,
    *,
    on_unreadable: Callable[[str, str], None],
    on_progress: Callable[[int], object],
) -> Counts:
    """Write the table as CSV, a batch at a time.

    Args:
        file: Where to.
        results: From `predict_files`.
        annotations: Names of the clusters.
        on_unreadable: Called with the name of every file that is left out, and why.
        on_progress: Called with the number of files that are done with.

    Raises:
        InputError: No image is readable.
        WriteError: `file` takes no more.
    """
    counts = Counts()
    unsaid = deque[tuple[str, str]]()  # if no image is readable, that is all there is to say
    for batch, prediction in results:
        if batch.names and not counts.written:
            _write(file, [HEADER])
        _write(file, _rows(batch.names, prediction, annotations))
        counts.written += len(batch.names)
        counts.unreadable += len(batch.problems)
        counts.oddities.update(batch.names, histograms(batch.images))
        unsaid += batch.problems
        while counts.written and unsaid:
            on_unreadable(*unsaid.popleft())
        on_progress(batch.num_files)
    if unsaid:
        name, reason = unsaid[0]
        more = f" (and {len(unsaid) - 1} more)" if len(unsaid) > 1 else ""
        raise InputError(f"{name}: {reason}{more}; no image is readable")
    return counts


def _write(file: TextIO, rows: Iterable[Sequence[object]]) -> None:
    try:
        artifacts.CsvWriter(file).rows(rows)
        file.flush()
    except OSError as error:
        raise WriteError(error) from error


def _rows(
    names: list[str], prediction: Prediction, annotations: Annotations | None
) -> Iterator[tuple[object, ...]]:
    name_of = annotations.name_of if annotations else lambda cluster: ""
    known = {cluster: name_of(cluster) for cluster in np.unique(prediction.cluster).tolist()}
    columns = (prediction.cluster, prediction.distance, prediction.margin, prediction.unsure)
    values = zip(names, *(column.tolist() for column in columns), strict=True)
    for image, cluster, distance, margin, unsure in values:
        yield (
            image,
            cluster,
            known[cluster],
            f"{distance:.6f}",
            f"{margin:.6f}",
            "true" if unsure else "false",
        )
