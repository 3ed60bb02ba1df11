"""Sources of image files, in a folder, in S3 or in DVC: labels from the layout, split, decoding.

Layout: class sub-folders give labels (files may be nested deeper inside them), a flat folder gives
none. Both at once is an error unless `data.labels` is `partial`, because the images at the top have
no class. `layout` tells what other folders mean. Hidden files (a name that starts with a dot) are
ignored; files whose extension is not an image's and images in folders that are never a class are
ignored and counted. Images are in the order of their names. Names are compared in one Unicode form,
so a copy made by another operating system is the same data set; files are opened by the names that
they have.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Generator, Hashable, Iterable, Mapping, Sequence
from contextlib import closing
from itertools import islice
from pathlib import PurePosixPath
from typing import NamedTuple, Protocol

import numpy as np

from vitdc.config import DataConfig
from vitdc.data.copies import Copies, Written, joined
from vitdc.data.decoding import Decoded, File, decode_chunks, num_cores
from vitdc.data.layout import Reading, Side, leftovers, read_folders
from vitdc.data.pixels import EXTENSIONS, WHOLE_RANGE, Pixels
from vitdc.data.sampling import split_train_test, subset
from vitdc.data.sources import Batch
from vitdc.data.table import Table, read_table
from vitdc.errors import InputError
from vitdc.names import find_twins, listed, normal_form
from vitdc.progress import progress_bar

DEFAULT_CHANNELS = 3
MAX_LISTED = 10  # names in a message
MANY_IGNORED = 10  # percent
MAX_COLLECTED = 100  # unreadable images beyond the allowed ones before the rest is not tried

logger = logging.getLogger(__name__)


class Store(Protocol):
    """Where image files lie."""

    @property
    def location(self) -> str:
        """For messages: the folder or URL that names are relative to."""

    @property
    def chunk_size(self) -> int:
        """Files per task of a decoding process; a few tasks per process are in memory."""

    def names(self) -> list[str]:
        """All files below `location`, as relative paths with slashes.

        Raises:
            InputError: The place is not there or may not be listed.
        """

    @property
    def origin(self) -> Mapping[str, str]:
        """As of `Source`; known when `names` have been listed."""

    def files(self, names: Sequence[str]) -> Generator[File]:
        """The files themselves, in the order of `names`: a path or the content of each.

        `Unreadable` stands for one that cannot be had while others can.

        Raises:
            InputError: The place cannot be reached, or knows nothing of whoever asks.
        """


class Layout(NamedTuple):
    """The images of a store.

    Attributes:
        names: N relative paths, sorted.
        labels: (N,) int64, -1 for an image without a class.
        class_names: Sorted names of the classes in their normal form, if any.
        sides: N sides of the split, where one is given.
        groups: N names of what stays on one side of a split that is drawn.
    """

    names: list[str]
    labels: np.ndarray
    class_names: tuple[str, ...]
    sides: list[Side] | None
    groups: Sequence[Hashable] | None


class FileSource:
    """Images decoded from the files of a store."""

    def __init__(self, store: Store, config: DataConfig) -> None:
        if config.image_size is None:
            raise InputError(
                f"data.image_size: needed with data.source={config.source}, whose images may have"
                " any size; e.g. 32"
            )
        self._store, self._config = store, config
        self._pixels = pixels_of(config)
        layout = read_layout(store, config)
        self._labels, self.class_names = layout.labels, layout.class_names
        self._names = np.array(layout.names, dtype=object)
        train, test = _split(layout, config)
        limits = {"train": (train, config.max_train), "test": (test, config.max_test)}
        self._chosen = {  # before anything is decoded, so that a small trial is quick
            split: indices[
                subset(self._names[indices], self._labels[indices], limit=limit, seed=config.seed)
            ]
            for split, (indices, limit) in limits.items()
        }
        self._unreadable: list[tuple[str, str]] = []
        self._left_out = LeftOutPages()
        self._brightest: list[int] = []
        self._layout, self._copies = layout, Copies()
        self._rows: dict[str, list[np.ndarray]] = {split: [] for split in self._chosen}
        self._written: list[str] = []  # names of images; those of training come first

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self._pixels.shape

    @property
    def origin(self) -> Mapping[str, str]:
        return self._store.origin

    @property
    def num_unreadable(self) -> int:
        return len(self._unreadable)

    @property
    def train_labels(self) -> np.ndarray:
        labels: np.ndarray = self._labels[self._chosen["train"]]
        return labels

    def batches(self) -> Generator[Batch]:
        """Decode all chosen images.

        Raises:
            InputError: More images are unreadable than allowed, or no training image is left.
        """
        size = chunk_size(self._store, self._pixels)
        chunks = [
            (split, indices[start : start + size])
            for split, indices in self._chosen.items()
            for start in range(0, len(indices), size)
        ]
        num_images = sum(len(indices) for indices in self._chosen.values())
        num_train = 0
        with (
            closing(self._decode([indices for _, indices in chunks])) as results,
            progress_bar(total=num_images, desc="prepare", unit=" images") as progress,
        ):
            for (split, indices), decoded in zip(chunks, results, strict=True):
                batch = self._batch(split, indices, decoded)
                num_train += len(batch.labels) if split == "train" else 0
                progress.update(len(indices))
                yield batch
        self._conclude(num_train)

    def find_copies(self, thumbnails: Sequence[np.ndarray]) -> Written:
        """Look for copies among the images that were streamed.

        Args:
            thumbnails: Of the training and of the test images.
        """
        rows = np.concatenate([*self._rows["train"], *self._rows["test"]])
        is_test = np.repeat([False, True], [len(part) for part in thumbnails])
        groups = self._copies.groups(*thumbnails)
        names = np.array(self._written, dtype=object)
        return Written(names, self._labels[rows], is_test, groups, rows, np.zeros(len(rows), bool))

    def redraw(self, written: Written) -> bool:
        """Draw another split that keeps copies together, where the first one does not.

        Returns:
            Whether it did; the new sides are in `written`.
        """
        config, layout = self._config, self._layout
        is_given = layout.sides is not None or config.copies == "anywhere"
        if is_given or not written.is_across().any():
            return False
        order = np.argsort(written.rows, kind="stable")  # by name
        groups = written.groups[order]
        if layout.groups is not None:
            groups = joined(groups, [layout.groups[row] for row in written.rows[order]])
        if config.pages == "all":
            groups = joined(groups, written.rows[order].tolist())  # pages of one file
        limited = config.max_train or config.max_test
        _, test = split_train_test(
            written.names[order].tolist(),
            written.labels[order],
            test_fraction=float(written.is_test.mean()) if limited else config.test_fraction,
            seed=config.seed,
            groups=groups.tolist(),
        )
        written.is_test[:] = False
        written.is_test[order[test]] = True
        limits = ((False, config.max_train), (True, config.max_test))
        for is_test, limit in limits if config.pages == "first" else ():  # they count files
            side = np.flatnonzero(written.is_test == is_test)
            names, labels = written.names[side].tolist(), written.labels[side]
            kept = subset(names, labels, limit=limit, seed=config.seed)
            written.is_left_out[np.delete(side, kept)] = True
        if not len(test):
            logger.warning(
                "%s: the images of a class are all copies of each other, so nothing is held out;"
                " data.copies=anywhere would do it",
                self._store.location,
            )
        return True

    def _decode(self, chunks: list[np.ndarray]) -> Generator[Decoded]:
        names = self._names[np.concatenate(chunks)].tolist()
        num_workers = min(self._config.num_workers or num_cores(), len(chunks))
        with closing(self._store.files(names)) as files:
            sized = (list(islice(files, len(chunk))) for chunk in chunks)
            with closing(decode_chunks(sized, self._pixels, num_workers=num_workers)) as results:
                yield from results

    def _batch(self, split: str, indices: np.ndarray, decoded: Decoded) -> Batch:
        names = self._names[indices].tolist()
        for position, reason in decoded.problems.items():
            self._unreadable.append((names[position], reason))
        self._left_out.update(names, decoded)
        self._brightest += decoded.brightest.values()
        if self.num_unreadable > self._config.max_unreadable + MAX_COLLECTED:
            self._refuse(complete=False)
        sources = decoded.sources(names)
        rows = indices[[position for position, _ in sources]]
        written = [name for _, name in sources]
        self._rows[split].append(rows)
        self._written += written
        self._copies.update(decoded.images)
        return Batch(split, written, self._labels[rows], decoded.images)

    def _conclude(self, num_train: int) -> None:
        if self.num_unreadable > self._config.max_unreadable:
            self._refuse(complete=True)
        if num_train == 0:
            raise InputError(
                f"{self._store.location}: none of the {self.num_unreadable} training images is"
                f" readable: {self._list_unreadable()}"
            )
        if self._unreadable:
            logger.warning(
                "%s: skipped %d unreadable images: %s",
                self._store.location,
                self.num_unreadable,
                self._list_unreadable(),
            )
        if self._left_out.num_files:
            logger.warning("%s: %s", self._store.location, self._left_out)
        dark = [value for value in self._brightest if value <= WHOLE_RANGE[1] // 2]
        if dark and 2 * len(dark) >= len(self._brightest):
            logger.warning(
                "%s: %d of %d images of 16 bits have no value above %d of %d; if their camera has"
                " fewer bits, set data.pixel_range, e.g. to [0, %d]",
                *(self._store.location, len(dark), len(self._brightest), max(dark)),
                *(WHOLE_RANGE[1], 2 ** max(dark).bit_length() - 1),
            )

    def _refuse(self, *, complete: bool) -> None:
        number = f"{'' if complete else 'at least '}{self.num_unreadable}"
        allowed = self._config.max_unreadable
        raise InputError(
            f"{self._store.location}: unreadable images: {number}, allowed: {allowed}:"
            f" {self._list_unreadable()}; repair or remove them, or allow them to be skipped with"
            f" data.max_unreadable{f'={number}' if complete else ''}"
        )

    def _list_unreadable(self) -> str:
        described = [f"{name} ({reason})" for name, reason in self._unreadable]
        return listed(described, MAX_LISTED, separator="; ")


def pixels_of(config: DataConfig) -> Pixels:
    """The pixels that are wanted of every image of a store."""
    assert config.image_size is not None, "files need a size"
    return Pixels(config.image_size, config.channels or DEFAULT_CHANNELS, **config.decoding)


class LeftOutPages:
    """Counts the pages of files that are no images of their own."""

    def __init__(self) -> None:
        self.num_files = self.num_pages = 0
        self._first = ""

    def update(self, names: Sequence[str], decoded: Decoded) -> None:
        """Add a chunk, by the names of its files."""
        for position, number in decoded.left_out.items():
            self._first = self._first or names[position]
            self.num_files += 1
            self.num_pages += number

    def __str__(self) -> str:
        return (
            f"{self.num_pages} further pages or frames of {self.num_files} files ({self._first}"
            f"{_and_more(self.num_files - 1)}) are left out; with data.pages=all each is an image"
        )


def chunk_size(store: Store, pixels: Pixels) -> int:
    """Files per task of a decoding process; one where it may hold many images."""
    return store.chunk_size if pixels.pages == "first" else 1


def stream_images(
    store: Store | None,
    config: DataConfig,
    shape: tuple[int, int, int],
    *,
    limit: int | None = None,
) -> Generator[np.ndarray]:
    """Decode all images of a store in the order of their names, whatever folders they are in.

    Args:
        store: Where they are.
        config: Its num_workers and `decoding` count.
        shape: (H, W, C) that is wanted; H = W.
        limit: Only so many images, the first.

    Yields:
        (n, H, W, C) uint8.

    Raises:
        InputError: There are none, or some are unreadable.
    """
    assert store is not None
    if shape[0] != shape[1]:
        raise InputError(
            f"{store.location}: image files are cropped to squares, but the model takes images of"
            f" {shape[0]}x{shape[1]}; give them as arrays"
        )
    names = select_images(store.names(), store.location)[:limit]
    pixels = Pixels(shape[0], shape[2], **config.decoding)
    size = chunk_size(store, pixels)
    chunks = [names[i : i + size] for i in range(0, len(names), size)]
    num_workers = min(config.num_workers or num_cores(), len(chunks))
    with (
        closing(store.files(names)) as files,
        progress_bar(total=len(names), desc="read", unit=" images", leave=False) as progress,
    ):
        sized = (list(islice(files, len(chunk))) for chunk in chunks)
        with closing(decode_chunks(sized, pixels, num_workers=num_workers)) as results:
            for chunk, decoded in zip(chunks, results, strict=True):
                if decoded.problems:
                    position, reason = next(iter(decoded.problems.items()))
                    raise InputError(
                        f"{store.location}: {chunk[position]} is unreadable ({reason}); repair or"
                        " remove it, or use `vitdc predict`, which skips such files"
                    )
                progress.update(len(chunk))
                yield decoded.images


def read_layout(store: Store, config: DataConfig) -> Layout:
    """List the images of `store` and derive their labels, and a split if there is one.

    Args:
        store: Where they are.
        config: Its `split` and `test_fraction` count, and with `labels` as `partial` images may lie
            beside the class folders; they have no label.

    Raises:
        InputError: There are no images, the layout is ambiguous, or a name cannot be written.
    """
    found = [name for name in store.names() if name != config.labels_file]
    names = select_images(found, store.location)
    check_encoding(names, store.location)
    keeps_all = config.split == "auto" and not config.test_fraction
    split = "random" if keeps_all else config.split
    read = read_folders(names, split=split, location=store.location)
    if config.labels_file is not None:
        read = _with_table(read, read_table(store, config.labels_file, names), split)
    for sentence in read.said:
        logger.info("%s: %s", store.location, sentence)
    folders = {name for name in read.classes if name is not None}
    if twins := find_twins(folders):
        raise InputError(
            f"{store.location}: {twins[0]!a} and {twins[1]!a} are the same name in two Unicode"
            " forms, and would be two classes; put their images into one"
        )
    class_names = sorted(map(normal_form, folders))
    if read.stray and config.labels != "partial":
        stray = [names[position] for position in read.stray]
        raise InputError(
            f"{store.location}: ambiguous layout: {len(stray)} images at the top{_examples(stray)}"
            f" beside class folders{_examples(class_names)}; move the images into class folders,"
            " or all images into one flat folder; with data.labels=partial the images at the top"
            " have no label"
        )
    label_of = {class_name: label for label, class_name in enumerate(class_names)}
    labels = [-1 if name is None else label_of[normal_form(name)] for name in read.classes]
    kept = sorted(set(range(len(names))).difference(read.left_out))
    return Layout(
        [names[i] for i in kept],
        np.array(labels, np.int64)[kept],
        tuple(class_names),
        read.sides and [read.sides[i] for i in kept],
        read.groups and [read.groups[i] for i in kept],
    )


def _with_table(read: Reading, table: Table, split: str) -> Reading:
    """What the folders say, with what a table says in place of it."""
    if "label" in table.columns:
        classes = table.values("label")
        num_known = sum(name is not None for name in classes)
        said = [f"{table.name} has a label for {num_known} of {len(classes)} images"]
        read = read._replace(classes=classes, stray=[], said=said)
    if "split" in table.columns and split == "auto":
        read = read._replace(sides=table.sides(), left_out=[])
    if "group" in table.columns:
        if read.sides:
            table.check_groups(read.sides)
        own = [group or index for index, group in enumerate(table.values("group"))]
        read = read._replace(groups=own)
    return read


def _split(layout: Layout, config: DataConfig) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training and of the test images: as given, else drawn."""
    if layout.sides is not None:
        is_test = np.array(layout.sides) == "test"
        return np.flatnonzero(~is_test), np.flatnonzero(is_test)
    return split_train_test(
        layout.names,
        layout.labels,
        test_fraction=config.test_fraction,
        seed=config.seed,
        groups=layout.groups,
    )


def select_images(names: Iterable[str], location: str) -> list[str]:
    """The images among `names`, sorted; what is ignored is mentioned.

    Raises:
        InputError: There are none.
    """
    names = list(names)
    skipped = leftovers(names)
    visible = [name for name in names if name not in skipped and not is_hidden(name)]
    images = sorted(
        (name for name in visible if name.lower().endswith(EXTENSIONS)),
        key=lambda name: (normal_form(name), name),
    )
    unwanted = Counter(
        folder
        for name, folder in skipped.items()
        if name.lower().endswith(EXTENSIONS) and not name.rpartition("/")[2].startswith(".")
    )
    ignored = sorted(set(visible).difference(images))
    if not images:
        raise InputError(
            f"{location}: no images here ({len(ignored)} other files{_examples(ignored)});"
            f" images are files ending in {' '.join(EXTENSIONS)}"
            f"{'; ' if unwanted else ''}{_skipped(unwanted)}"
        )
    if unwanted:
        logger.warning("%s: %s", location, _skipped(unwanted))
    if ignored:
        logger.warning("%s: %s", location, _describe_ignored(ignored, images))
    return images


def _describe_ignored(ignored: Sequence[str], images: Sequence[str]) -> str:
    """How many files are left out by their extension, and the folders that have no other."""
    endings = Counter(PurePosixPath(name).suffix.lower() or "without" for name in ignored)
    counts = ", ".join(f"{number} {ending}" for ending, number in endings.most_common(MAX_LISTED))
    folders = Counter(name.partition("/")[0] for name in ignored if "/" in name)
    kept = {name.partition("/")[0] for name in images}
    lost = [f"{folder} ({number})" for folder, number in folders.items() if folder not in kept]
    share = 100 * len(ignored) / (len(ignored) + len(images))
    text = f"ignored {len(ignored)} files that are no images by their extension{_examples(ignored)}"
    if share > MANY_IGNORED:
        text += f"; that is {share:.0f} % of all: {counts}"
    if lost:
        text += f"; no image at all is left of the folders{_examples(lost, MAX_LISTED)}"
    return text


def is_hidden(name: str) -> bool:
    """Whether a part of the relative path starts with a dot."""
    return name.startswith(".") or "/." in name


def _skipped(folders: Counter[str]) -> str:
    if not folders:
        return ""
    named = [f"{folder} ({number})" for folder, number in sorted(folders.items())]
    return (
        f"skipped {folders.total()} images in folders that are never a class:"
        f" {listed(named, MAX_LISTED)}"
    )


def check_encoding(names: Sequence[str], location: str) -> None:
    """Refuse names that no text file can hold.

    Raises:
        InputError: One is not UTF-8.
    """
    for name in names:
        if not is_text(name):
            raise InputError(f"{location}: the file name {name!a} is not valid UTF-8; rename it")


def is_text(name: str) -> bool:
    """Whether a name of a file is UTF-8, so that a text file can hold it."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _examples(names: Sequence[str], number: int = 3) -> str:
    if not names:
        return ""
    return f" ({listed(names, number)})"


def _and_more(number: int) -> str:
    return f" and {number} more" if number > 0 else ""
