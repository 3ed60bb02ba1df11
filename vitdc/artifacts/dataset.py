"""Prepared images: the Dataset artifact."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, cast

import numpy as np

from vitdc.artifacts.storage import (
    SPLITS,
    CsvWriter,
    payload_hashes,
    read_array,
    read_csv,
    read_metadata,
    remove,
    writing,
)
from vitdc.typicality import thumbnails

if TYPE_CHECKING:
    from vitdc.data.streaming import FileImages

KNOWN = "train_known.npy"

Supervision = Literal["full", "partial", "none"]


@dataclass(frozen=True)
class Split:
    """One split of a data set.

    Attributes:
        images: (N, H, W, C) uint8, memory-mapped, or `vitdc.data.streaming.FileImages`.
        labels: (N,) int64, -1 where the class is unknown.
        thumbnails: (N, h, w, C) float32 from `vitdc.typicality.thumbnails`, memory-mapped; the
            images where these are no larger, and in older data sets.
    """

    images: np.ndarray
    labels: np.ndarray
    thumbnails: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def has_labels(self) -> bool:
        return bool((self.labels >= 0).any())


@dataclass(frozen=True)
class Dataset:
    """Prepared images. Payload: {train,test}_{images,labels}.npy, index.csv and perhaps
    {train,test}_thumbnails.npy, so that a round need not read all pixels, and train_known.npy.
    Where images stay in their files, {train,test}_digests.npy take the place of the images.

    Attributes:
        train: The split that is trained and clustered.
        test: The held-out split; may be empty.
        name: Of the source, e.g. "digits".
        class_names: One per label value.
        mean: (C,) of the training images, in [0, 1].
        std: (C,) likewise; never 0.
        content_hash: SHA-256 over images, labels and class names, independent of the source.
        num_unreadable: Images of the source that were skipped.
        path: Where it was loaded from.
        known: (N,) bool: the training images whose label may be trained on. Where the payload has
            none, all that have a label. Other labels are for the scores only.
        copies: Of image files: `images` that are copies of another one, `tested` ones of a training
            image, pictures in several classes (`ambiguous`). Empty if that was not looked for.
        origin: What says exactly which version of the source was read; with DVC the commit, the
            content hash, the path and the repository's URL. Empty for sources without versions.
        decoding: `DataConfig.decoding` it was made with; new images are read in the same way.
            Empty in older data sets, which were made with the defaults.
        oddities: By kind, how many images show almost nothing and the names of the first; see
            `vitdc.data.statistics.Oddities`.
    """

    kind: ClassVar[str] = "dataset"

    train: Split
    test: Split
    name: str
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    content_hash: str
    num_unreadable: int
    path: Path
    known: np.ndarray
    origin: Mapping[str, str] = field(default_factory=dict)
    decoding: Mapping[str, Any] = field(default_factory=dict)
    oddities: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    copies: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Self:
        path = Path(path)
        metadata = read_metadata(path, cls.kind)
        splits = {split: _read_split(path, split, metadata.get("files")) for split in SPLITS}
        return cls(
            **splits,
            name=metadata["name"],
            class_names=tuple(metadata["class_names"]),
            mean=tuple(metadata["mean"]),
            std=tuple(metadata["std"]),
            content_hash=metadata["content_hash"],
            num_unreadable=metadata["num_unreadable"],
            path=path,
            known=_read_known(path, splits["train"].labels),
            # older data sets have none of these
            origin=metadata.get("origin", {}),
            decoding=metadata.get("decoding", {}),
            oddities=metadata.get("oddities", {}),
            copies=metadata.get("copies", {}),
        )

    @property
    def keeps_images(self) -> bool:
        """Whether decoded images are in it; else they stay in their files."""
        return isinstance(self.train.images, np.ndarray)

    @property
    def supervision(self) -> Supervision:
        """How many of the training images have a label that may be trained on."""
        return "full" if self.known.all() else "partial" if self.known.any() else "none"

    @property
    def num_images(self) -> int:
        """Of both splits."""
        return len(self.train) + len(self.test)

    @property
    def num_own_clusters(self) -> int:
        """Classes that have a cluster of their own: all where labels are partial, else none."""
        return len(self.class_names) if self.supervision == "partial" else 0

    @property
    def training_labels(self) -> np.ndarray:
        """(N,) int64 labels of the training images, -1 where they may not be trained on."""
        return np.where(self.known, self.train.labels, -1)

    def scoring_labels(self, name: str) -> np.ndarray:
        """(N,) int64 labels of a split that score its clusters, -1 for those that must not.

        Partial labels do not: the clusters were made from them.
        """
        if name == "train" and self.supervision == "partial":
            return np.where(self.known, -1, self.train.labels)
        return self.split(name).labels

    def split(self, name: str) -> Split:
        return {"train": self.train, "test": self.test}[name]

    def split_hash(self, name: str) -> str:
        """SHA-256 over images and labels of a split: equal for equal images to be scored on.

        It comes from the hashes of the files; no image is read.
        """
        hashes = payload_hashes(self.path)
        images = hashes.get(f"{name}_images.npy") or hashes[f"{name}_digests.npy"]
        text = images + hashes[f"{name}_labels.npy"]
        return hashlib.sha256(text.encode()).hexdigest()

    def image_names(self) -> Iterator[tuple[str, str]]:
        """Stream (image id or relative path, split), training images first, in array order."""
        return _image_names(self.path)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        height, width, channels = self.train.images.shape[1:]
        return height, width, channels


def _read_split(path: Path, split: str, files: Mapping[str, Any] | None) -> Split:
    images, small = (path / f"{split}_{name}.npy" for name in ("images", "thumbnails"))
    labels = np.array(read_array(path / f"{split}_labels.npy"))
    if files is not None:
        found = cast(np.ndarray, _file_images(path, split, files))  # it reads like one
    else:
        found = read_array(images)
    return Split(found, labels, read_array(small) if small.exists() else found)


def _file_images(path: Path, split: str, files: Mapping[str, Any]) -> FileImages:
    from vitdc.config import DataConfig
    from vitdc.data.streaming import FileImages

    names = [image for image, its_split in _image_names(path) if its_split == split]
    config = DataConfig.parse(dict(files), where=f"{path}: files")
    return FileImages(config, names, np.array(read_array(path / f"{split}_digests.npy")))


def _image_names(path: Path) -> Iterator[tuple[str, str]]:
    for row in read_csv(path / "index.csv"):
        yield row["image"], row["split"]


def image_digests(images: np.ndarray) -> np.ndarray:
    """(n,) uint64: a hash of the pixels of each of (n, H, W, C) uint8 images."""
    hashes = (hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=8) for image in images)
    return np.array([int.from_bytes(each.digest(), "little") for each in hashes], np.uint64)


def _read_known(path: Path, labels: np.ndarray) -> np.ndarray:
    file = path / KNOWN
    return np.array(read_array(file)) if file.exists() else labels >= 0


class DatasetWriter:
    """Streams images into a Dataset, all training images first; made by `writing_dataset`."""

    def __init__(
        self,
        directory: Path,
        image_shape: tuple[int, int, int],
        files: Mapping[str, Any] | None = None,
    ) -> None:
        self.metadata: dict[str, Any] = {}
        self._directory, self._image_shape, self._files = directory, image_shape, files
        self._open()

    def _open(self) -> None:
        directory, image_shape, files = self._directory, self._image_shape, self._files
        small = thumbnails(np.empty((1, *image_shape), np.uint8)).shape[1:]
        self._labels = self._arrays("labels", (), np.int64)
        self._images = {} if files else self._arrays("images", image_shape, np.uint8)
        self._digests = self._arrays("digests", (), np.uint64) if files else {}
        needed = files or small != image_shape
        self._thumbnails = self._arrays("thumbnails", small, np.float32) if needed else {}
        self._index_file = (directory / "index.csv").open("w", encoding="utf-8", newline="")
        self._index = CsvWriter(self._index_file)
        self._index.row(("image", "split", "label"))

    def _arrays(
        self, name: str, row_shape: tuple[int, ...], dtype: Any
    ) -> dict[str, _GrowingArray]:
        paths = {split: self._directory / f"{split}_{name}.npy" for split in SPLITS}
        return {split: _GrowingArray(path, row_shape, dtype) for split, path in paths.items()}

    def append(
        self, split: str, *, names: Iterable[str], labels: np.ndarray, images: np.ndarray
    ) -> None:
        """Add the next images of a split.

        Args:
            split: "train" or "test".
            names: n image ids.
            labels: (n,), -1 where the class is unknown.
            images: (n, H, W, C) uint8.
        """
        assert split == "test" or self._labels["test"].num_rows == 0
        assert images.shape[1:] == self._image_shape, (images.shape, self._image_shape)
        self._labels[split].append(labels)
        if self._files is None:
            self._images[split].append(images)
        else:
            self._digests[split].append(image_digests(images))
        if self._thumbnails:
            self._thumbnails[split].append(thumbnails(images))
        rows = zip(names, labels.tolist(), strict=True)
        self._index.rows((name, split, label) for name, label in rows)

    def describe(
        self,
        *,
        name: str,
        class_names: Iterable[str],
        mean: Iterable[float],
        std: Iterable[float],
        content_hash: str,
        num_unreadable: int,
        origin: Mapping[str, str] | None = None,
        decoding: Mapping[str, Any] | None = None,
        oddities: Mapping[str, Mapping[str, Any]] | None = None,
        known: np.ndarray | None = None,
        copies: Mapping[str, int] | None = None,
    ) -> None:
        """Set the Dataset's other attributes, known when the last image has been added.

        `known` is None where every label may be trained on.
        """
        if known is not None:
            np.save(self._directory / KNOWN, known)
        self.metadata = {
            "name": name,
            "class_names": list(class_names),
            "mean": list(mean),
            "std": list(std),
            "content_hash": content_hash,
            "num_unreadable": num_unreadable,
            "origin": dict(origin or {}),
            "decoding": dict(decoding or {}),
            "oddities": dict(oddities or {}),
        }
        if copies:
            self.metadata["copies"] = dict(copies)
        if self._files is not None:
            self.metadata["files"] = dict(self._files)

    def written(self) -> list[Split]:
        """Both splits as far as they have been written."""
        for array in self._all_arrays():
            array.flush()
        self._index_file.flush()
        return [_read_split(self._directory, split, self._files) for split in SPLITS]

    @contextmanager
    def rewriting(self) -> Iterator[list[Split]]:
        """Begin anew, and read what had been written."""
        self.close()
        before = self._directory / "before"
        before.mkdir()
        for file in [each for each in self._directory.iterdir() if each.is_file()]:
            file.rename(before / file.name)
        self._open()
        yield [_read_split(before, split, self._files) for split in SPLITS]
        remove(before)

    def close(self) -> None:
        """Finish all files."""
        for array in self._all_arrays():
            array.close()
        self._index_file.close()

    def _all_arrays(self) -> Iterator[_GrowingArray]:
        for arrays in (self._images, self._digests, self._labels, self._thumbnails):
            yield from arrays.values()


class _GrowingArray:
    """An .npy file of rows whose number is known only when the last one is there.

    It is written, not mapped: what is written through a map counts as this process's memory.
    """

    def __init__(self, path: Path, row_shape: tuple[int, ...], dtype: Any) -> None:
        self.num_rows = 0
        self._row_shape, self._dtype = row_shape, np.dtype(dtype)
        self._file = path.open("wb")
        self._write_header()

    def append(self, rows: np.ndarray) -> None:
        assert rows.shape[1:] == self._row_shape, (rows.shape, self._row_shape)
        self._file.write(np.ascontiguousarray(rows, self._dtype).data)
        self.num_rows += len(rows)

    def flush(self) -> None:
        """Correct the number of rows in the header; NumPy leaves room for it to grow in place."""
        self._file.seek(0)
        self._write_header()
        self._file.seek(0, os.SEEK_END)
        self._file.flush()

    def close(self) -> None:
        """Finish the file."""
        self.flush()
        self._file.close()

    def _write_header(self) -> None:
        header = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self.num_rows, *self._row_shape),
        }
        np.lib.format.write_array_header_1_0(self._file, header)


@contextmanager
def writing_dataset(
    path: Path,
    made_by: Mapping[str, Any],
    *,
    image_shape: tuple[int, int, int],
    files: Mapping[str, Any] | None = None,
) -> Iterator[DatasetWriter]:
    """Write a Dataset atomically: `append` to the yielded writer, then `describe` it.

    Args:
        path: The artifact's directory; replaced if it exists.
        made_by: As for `writing`.
        image_shape: (H, W, C) of every image.
        files: The `data` section that says where the images are read again; None keeps them.
    """
    with writing(path, Dataset.kind, made_by) as writer:
        with closing(DatasetWriter(writer.directory, image_shape, files)) as dataset:
            yield dataset
        writer.metadata = dataset.metadata
