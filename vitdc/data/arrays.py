"""Sources that come as arrays: scikit-learn's digits and torchvision's sets by name."""

from __future__ import annotations

import gzip
import socket
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from vitdc.config import DataConfig
from vitdc.data.sampling import split_train_test, subset
from vitdc.data.sources import Batch
from vitdc.errors import InputError

BATCH_SIZE = 1024
DEFAULT_ROOT = "data"
DOWNLOAD_TIMEOUT = 30  # seconds without a byte

# What torchvision downloads, and so what to put into data.root where it cannot.
TORCHVISION_SETS = {
    "CIFAR10": "cifar-10-python.tar.gz",
    "CIFAR100": "cifar-100-python.tar.gz",
    "FashionMNIST": "the four *-ubyte.gz files",
    "MNIST": "the four *-ubyte.gz files",
    "STL10": "stl10_binary.tar.gz",
    "SVHN": "train_32x32.mat and test_32x32.mat",
}
# Sets in IDX files and their class names, as torchvision has them. They are repeated here because
# importing torchvision takes longer than reading the files.
IDX_SETS = {
    "FashionMNIST": (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    "MNIST": (
        *("0 - zero", "1 - one", "2 - two", "3 - three", "4 - four"),
        *("5 - five", "6 - six", "7 - seven", "8 - eight", "9 - nine"),
    ),
}
IDX_PREFIXES = {"train": "train", "test": "t10k"}
IDX_HEADERS = {"images-idx3": b"\0\0\x08\x03", "labels-idx1": b"\0\0\x08\x01"}  # unsigned bytes


class LabelledImages(NamedTuple):
    """One split as arrays.

    Attributes:
        names: N image ids.
        labels: (N,) int64.
        images: (N, H, W, C) uint8, of the source's own size.
    """

    names: list[str]
    labels: np.ndarray
    images: np.ndarray


@dataclass
class ArraySource:
    """Images that a library loads as arrays, a split at a time."""

    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    num_unreadable = 0
    origin: ClassVar[Mapping[str, str]] = {}
    train_labels: ClassVar[None] = None  # reading the images is as quick

    _load: dict[str, Callable[[], LabelledImages]]
    _config: DataConfig

    @classmethod
    def open(
        cls,
        config: DataConfig,
        *,
        class_names: tuple[str, ...],
        own_shape: tuple[int, int, int],
        load: dict[str, Callable[[], LabelledImages]],
    ) -> ArraySource:
        """Describe a source whose images have `own_shape` unless `config` asks for another."""
        height, width, channels = own_shape
        shape = (
            config.image_size or height,
            config.image_size or width,
            config.channels or channels,
        )
        return cls(class_names, shape, load, config)

    def batches(self) -> Generator[Batch]:
        """Subset, resize and convert, a few images at a time."""
        limits = {"train": self._config.max_train, "test": self._config.max_test}
        for split, limit in limits.items():
            names, labels, images = self._load[split]()
            chosen = subset(names, labels, limit=limit, seed=self._config.seed)
            for start in range(0, len(chosen), BATCH_SIZE):
                indices = chosen[start : start + BATCH_SIZE]
                yield Batch(
                    split,
                    [names[index] for index in indices],
                    labels[indices],
                    resized(images[indices], self.image_shape, self._config),
                )


def resized(images: np.ndarray, shape: tuple[int, int, int], config: DataConfig) -> np.ndarray:
    """Resize and convert a batch of images as image files would be.

    Args:
        images: (n, h, w, 1 or 3) uint8.
        shape: (H, W, C) that is wanted; H and W are equal, or those of the images.
        config: Its fit and background count.
    """
    if images.shape[1:] == shape:
        return images
    from PIL import Image

    from vitdc.data.pixels import border_colour, fit

    result = np.empty((len(images), *shape), np.uint8)
    for index, image in enumerate(images):
        picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
        if image.shape[:2] == shape[:2]:
            pixels = np.asarray(picture.convert("L" if shape[2] == 1 else "RGB"))
            result[index] = pixels.reshape(shape)
        else:
            result[index] = fit(
                picture,
                image_size=shape[0],
                channels=shape[2],
                how=config.fit,
                border=border_colour(config.background),
            )
    return result


def open_digits(config: DataConfig) -> ArraySource:
    """scikit-learn's 1,797 digits of 8 x 8 pixels; their values 0 to 16 become 0 to 255."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = digits.target.astype(np.int64)
    names = [f"digits/{index:04}" for index in range(len(labels))]
    train, test = split_train_test(
        names, labels, test_fraction=config.test_fraction, seed=config.seed
    )

    def select(indices: np.ndarray) -> LabelledImages:
        return LabelledImages([names[i] for i in indices], labels[indices], images[indices])

    return ArraySource.open(
        config,
        class_names=tuple(str(name) for name in digits.target_names),
        own_shape=images.shape[1:],
        load={"train": lambda: select(train), "test": lambda: select(test)},
    )


def open_torchvision_set(config: DataConfig) -> ArraySource:
    """A torchvision set by its class name, read from `data.root` or downloaded into it.

    Raises:
        InputError: It is not there and cannot be downloaded, or its files are corrupt.
    """
    if config.source in IDX_SETS:
        return _open_idx_set(config)
    root = _root(config)
    train = _load_torchvision(config.source, root, "train")
    images, labels, class_names = _as_arrays(train)
    splits = {
        "train": lambda: _named("train", images, labels),
        "test": lambda: _named("test", *_as_arrays(_load_torchvision(config.source, root, "test"))),
    }
    return ArraySource.open(
        config, class_names=class_names, own_shape=images.shape[1:], load=splits
    )


def _named(split: str, images: np.ndarray, labels: np.ndarray, *_: object) -> LabelledImages:
    return LabelledImages([f"{split}/{i:05}" for i in range(len(labels))], labels, images)


def _load_torchvision(name: str, root: Path, split: str) -> Any:
    """The torchvision data set object; downloads what is not in `root`."""
    from torchvision import datasets

    by_split = {"split": split} if name in ("STL10", "SVHN") else {"train": split == "train"}
    try:
        with _socket_timeout(DOWNLOAD_TIMEOUT):
            return getattr(datasets, name)(root, download=True, **by_split)
    except (OSError, RuntimeError, HTTPException) as error:  # URLError is an OSError
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"data.source={name}: not complete in {root} (data.root) and cannot be downloaded"
            f" ({reason}); put {TORCHVISION_SETS[name]} there"
        ) from None


def _as_arrays(dataset: Any) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Images (N, H, W, C), labels (N,) and class names of CIFAR, STL10 or SVHN."""
    images = dataset.data
    labels = np.asarray(dataset.targets if hasattr(dataset, "targets") else dataset.labels)
    if images.shape[1] == 3 and images.shape[3] != 3:  # STL10 and SVHN have channels first
        images = images.transpose(0, 2, 3, 1)
    class_names = getattr(dataset, "classes", "0123456789")  # SVHN names none: they are digits
    return images, labels.astype(np.int64), tuple(class_names)


def _open_idx_set(config: DataConfig) -> ArraySource:
    """MNIST or Fashion-MNIST, from the four IDX files, plain or gzipped."""
    root = _root(config)
    folders = (root, root / config.source / "raw")
    if not any(_has_idx_files(folder) for folder in folders):
        _load_torchvision(config.source, root, "train")
    folder = next(folder for folder in folders if _has_idx_files(folder))
    class_names = IDX_SETS[config.source]

    def load(split: str) -> LabelledImages:
        images = read_idx(_idx_file(folder, split, "images-idx3"), "images-idx3")
        labels = read_idx(_idx_file(folder, split, "labels-idx1"), "labels-idx1")
        if len(images) != len(labels) or labels.max(initial=0) >= len(class_names):
            raise InputError(
                f"{folder}: {len(images)} {split} images and {len(labels)} labels up to"
                f" {labels.max(initial=0)} are not {config.source}; get its files again"
            )
        return _named(split, images[..., None], labels.astype(np.int64))

    train = load("train")
    return ArraySource.open(
        config,
        class_names=class_names,
        own_shape=train.images.shape[1:],
        load={"train": lambda: train, "test": lambda: load("test")},
    )


def _has_idx_files(folder: Path) -> bool:
    return all(
        _idx_file(folder, split, content).is_file()
        for split in IDX_PREFIXES
        for content in IDX_HEADERS
    )


def _idx_file(folder: Path, split: str, content: str) -> Path:
    plain = folder / f"{IDX_PREFIXES[split]}-{content}-ubyte"
    return plain if plain.is_file() else plain.with_name(f"{plain.name}.gz")


def read_idx(path: Path, content: str) -> np.ndarray:
    """Read an IDX file of unsigned bytes, gzipped or not.

    Args:
        path: The file.
        content: "images-idx3" or "labels-idx1".

    Returns:
        (N, H, W) or (N,) uint8.

    Raises:
        InputError: It is truncated, corrupt or of another type.
    """
    header = IDX_HEADERS[content]
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            magic = file.read(len(header))
            shape = np.frombuffer(file.read(4 * header[-1]), ">u4").tolist()
            pixels = np.frombuffer(file.read(), np.uint8)
        if magic != header:
            raise ValueError(f"starts with {magic.hex()}, not {header.hex()}")
        return pixels.reshape(shape)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise InputError(f"{path}: not a sound {content} file ({error}); get it again") from None


def _root(config: DataConfig) -> Path:
    return Path(config.root or DEFAULT_ROOT).expanduser()


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """Let torchvision's downloads fail rather than hang; urllib has no limit of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
