"""Images that a program hands over: arrays, tensors, lists of images, torch Datasets.

What they look like:

- arrays (N, H, W) or (N, H, W, C);
- tensors (N, H, W), (N, C, H, W) or (N, H, W, C); where both could be meant, the second dimension
  is taken for the channels, as everywhere in torch;
- lists and torch Datasets of images, or of pairs (image, class index): arrays (H, W) or (H, W, C),
  tensors (H, W), (C, H, W) or (H, W, C), Pillow images.

C is 1 or 3. Values are uint8, or floats in [0, 1], which are rounded to the 256 levels that every
image of vitdc has. Anything else is refused, not guessed. Images stream in chunks; only what is
handed over as an array or a list is in memory, because it was before.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np

from vitdc.config import DataConfig
from vitdc.data.arrays import resized
from vitdc.data.sampling import split_train_test
from vitdc.data.sources import Batch
from vitdc.errors import InputError
from vitdc.names import find_twins, normal_form

Shape = tuple[int, int, int]

CHUNK_SIZE = 1024
CHANNELS = (1, 3)
ROUNDING = 1e-4  # by which floats may leave [0, 1]: what resizing does to a white pixel
UNKNOWN = -1
NAME = "images"  # of the source, where a data set of vitdc has its name


class Chunk(NamedTuple):
    """Consecutive images.

    Attributes:
        images: (n, H, W, C) uint8.
        labels: Class indices that came with the images, if they bring their own.
    """

    images: np.ndarray
    labels: list[int] | None


class Target(NamedTuple):
    """What images have to look like.

    Attributes:
        shape: (H, W, C).
        resize: Whether images of another size are resized as `DataConfig.fit` says, or refused.
        recolour: Whether greyscale and RGB images are converted into each other, or refused.
        config: Its `decoding` counts, as for image files.
    """

    shape: Shape
    resize: bool
    recolour: bool
    config: DataConfig

    @classmethod
    def of(cls, own: Shape, config: DataConfig) -> Target:
        """What `config` asks of images of shape `own`; what it leaves open stays as it is."""
        height, width, channels = own
        size = config.image_size
        shape = (size or height, size or width, config.channels or channels)
        return cls(shape, size is not None, config.channels is not None, config)

    def fit(self, images: np.ndarray) -> np.ndarray:
        """(n, h, w, c) uint8 -> (n, H, W, C) uint8.

        Raises:
            InputError: They are of another shape and must not be converted.
        """
        own = images.shape[1:]
        if own == self.shape:
            return images
        if own[:2] != self.shape[:2] and not self.resize:
            raise InputError(
                f"images of {_by(own)}, but {_by(self.shape)} are needed; set image_size to have"
                " all images resized"
            )
        if own[2] != self.shape[2] and not self.recolour:
            raise InputError(
                f"images with {own[2]} channels, but {self.shape[2]} are needed; set"
                " params={'data': {'channels': ...}} to have all images converted"
            )
        return resized(images, self.shape, self.config)


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


class Given(Protocol):
    """Images that were handed over."""

    @property
    def num_images(self) -> int | None:
        """None where it is not known before the last one."""

    @property
    def shape(self) -> Shape:
        """(H, W, C) of the images, or of the first one."""

    @property
    def class_names(self) -> Sequence[str] | None:
        """Names of the class indices that the images bring; None if they bring none."""

    def chunks(self, size: int, target: Target, rows: np.ndarray | None = None) -> Generator[Chunk]:
        """Stream the images, or those of the given rows, as `target` wants them."""


def open_given(images: Any, config: DataConfig) -> Given:
    """Find out what was handed over.

    Args:
        images: See the module.
        config: Its `decoding` counts for Pillow images.

    Raises:
        InputError: It is nothing that holds images.
    """
    if isinstance(images, np.ndarray):
        return Stack(_channels_last(images))
    if isinstance(images, list | tuple):
        return Items(images, config)
    import torch

    if isinstance(images, torch.Tensor):
        return Stack(_tensor_to_array(images))
    if isinstance(images, torch.utils.data.Dataset):
        return Items(images, config)
    raise InputError(
        f"images: cannot be read from a {type(images).__name__}; give an array (N, H, W) or"
        " (N, H, W, C), a tensor (N, C, H, W), a list of images, a torch Dataset or the path of a"
        " folder"
    )


@dataclass(frozen=True)
class Stack:
    """Images in one array (N, H, W, C), which is never copied as a whole."""

    array: np.ndarray
    class_names: ClassVar[None] = None

    @property
    def num_images(self) -> int:
        return len(self.array)

    @property
    def shape(self) -> Shape:
        height, width, channels = self.array.shape[1:]
        return height, width, channels

    def chunks(self, size: int, target: Target, rows: np.ndarray | None = None) -> Generator[Chunk]:
        for start in range(0, len(self.array) if rows is None else len(rows), size):
            part = slice(start, start + size)
            images = self.array[part] if rows is None else self.array[rows[part]]
            yield Chunk(target.fit(to_uint8(images)), None)


class Items:
    """Images one by one, from a list, a torch Dataset or an IterableDataset."""

    def __init__(self, items: Any, config: DataConfig) -> None:
        self._items = items
        first = next(iter(self._iterate(None)), None)
        self._has_labels = _is_pair(first)
        self.shape: Shape = (0, 0, 1) if first is None else _pixels(_image_of(first), config).shape
        self._class_names = getattr(items, "classes", None)
        self._num_classes = 0

    @property
    def num_images(self) -> int | None:
        return len(self._items) if hasattr(self._items, "__len__") else None

    @property
    def class_names(self) -> Sequence[str] | None:
        """Those of the Dataset, as torchvision's have them, or the numbers seen so far."""
        if not self._has_labels:
            return None
        return self._class_names or [str(number) for number in range(self._num_classes)]

    def chunks(self, size: int, target: Target, rows: np.ndarray | None = None) -> Generator[Chunk]:
        items = enumerate(self._iterate(rows))
        while part := list(itertools.islice(items, size)):
            images = np.stack([_fitted(item, position, target) for position, item in part])
            labels = [self._label(item, position) for position, item in part]
            yield Chunk(images, labels if self._has_labels else None)

    def _iterate(self, rows: np.ndarray | None) -> Iterator[Any]:
        """By index, where there is a length: not every Dataset ends its iteration by itself."""
        if self.num_images is None:
            return iter(self._items)
        return (self._items[int(row)] for row in (range(self.num_images) if rows is None else rows))

    def _label(self, item: Any, position: int) -> int:
        if _is_pair(item) != self._has_labels:
            raise InputError(f"images[{position}]: some images come with a label, others without")
        if not self._has_labels:
            return UNKNOWN
        label = item[1]
        if not hasattr(label, "__index__") or (number := int(label)) < UNKNOWN:
            raise InputError(
                f"images[{position}]: its label is {item[1]!r}, but a torch Dataset gives class"
                " indices: 0, 1, ..., and -1 where the class is unknown"
            )
        self._num_classes = max(self._num_classes, number + 1)
        if self._class_names and number >= len(self._class_names):
            raise InputError(
                f"images[{position}]: its label is {number}, but the Dataset names"
                f" {len(self._class_names)} classes"
            )
        return number


def _is_pair(item: Any) -> bool:
    return isinstance(item, tuple | list) and len(item) == 2


def _image_of(item: Any) -> Any:
    return item[0] if _is_pair(item) else item


def _fitted(item: Any, position: int, target: Target) -> np.ndarray:
    """One image as (H, W, C) uint8 of the wanted shape."""
    try:
        fitted: np.ndarray = target.fit(_pixels(_image_of(item), target.config)[None])[0]
    except InputError as error:
        raise InputError(f"images[{position}]: {error}") from None
    return fitted


def _pixels(image: Any, config: DataConfig) -> np.ndarray:
    """One image as (h, w, C) uint8."""
    pixels: np.ndarray = to_uint8(_one_image(image, config))[0]
    return pixels


def _one_image(image: Any, config: DataConfig) -> np.ndarray:
    """One image as (1, h, w, C) of its own type."""
    from PIL import Image

    if isinstance(image, Image.Image):
        from vitdc.data.pixels import RefusedError, flatten

        try:
            flat = flatten(image, background=config.background, pixel_range=config.pixel_range)
        except RefusedError as error:
            raise InputError(str(error)) from None
        image = np.asarray(flat.image)
    if isinstance(image, np.ndarray):
        return _channels_last(image[None])
    import torch

    if isinstance(image, torch.Tensor):
        return _tensor_to_array(image[None])
    raise InputError(
        f"a {type(image).__name__} is no image; give arrays, tensors or Pillow images, alone or in"
        " pairs (image, class index)"
    )


def _tensor_to_array(images: Any) -> np.ndarray:
    """(N, H, W), (N, C, H, W) or (N, H, W, C) -> (N, H, W, C); bfloat16, which NumPy lacks, too."""
    images = images.detach().cpu()
    array: np.ndarray = (images.float() if images.is_floating_point() else images).numpy()
    if array.ndim == 4 and array.shape[1] in CHANNELS:
        array = array.transpose(0, 2, 3, 1)
    return _channels_last(array)


def _channels_last(array: np.ndarray) -> np.ndarray:
    """(N, H, W) or (N, H, W, C) -> (N, H, W, C), without a copy."""
    shape = "x".join(map(str, array.shape)) or "a scalar"
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim == 2:
        raise InputError(
            f"images: {shape} are rows of numbers, not images; give (N, H, W), e.g."
            " X.reshape(len(X), height, width)"
        )
    if array.ndim != 4:
        raise InputError(f"images: {shape} are not images; give (N, H, W) or (N, H, W, C)")
    if array.shape[3] not in CHANNELS:
        way_out = (
            "arrays have the channels last: images.transpose(0, 2, 3, 1)"
            if array.shape[1] in CHANNELS
            else "C is 1 or 3"
        )
        raise InputError(f"images: {shape} are not (N, H, W, C); {way_out}")
    if 0 in array.shape[1:]:
        raise InputError(f"images: {shape} have no pixels")
    return array


def to_uint8(images: np.ndarray) -> np.ndarray:
    """uint8 as it is, floats in [0, 1] to 0 to 255.

    Raises:
        InputError: The type or the range is another one.
    """
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind != "f":
        raise InputError(
            f"images: of type {images.dtype}, but uint8 or floats in [0, 1] are needed; e.g."
            " images.astype('uint8') if they hold 0 to 255"
        )
    low, high = images.min(initial=0), images.max(initial=0)
    if not np.isfinite([low, high]).all():
        raise InputError("images: some values are not finite; replace them")
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise InputError(
            f"images: floats from {low:g} to {high:g}, but they must lie in [0, 1]; divide them by"
            " the largest value there can be, e.g. 255"
        )
    levels: np.ndarray = np.rint(np.clip(images, 0, 1) * 255).astype(np.uint8)
    return levels


class Labels(NamedTuple):
    """Labels as class indices.

    Attributes:
        codes: (N,) int64, -1 where the class is unknown.
        classes: The sorted labels there are, text in its normal form; `codes` index it.
    """

    codes: np.ndarray
    classes: np.ndarray


def encode_labels(labels: Any, *more: Any) -> list[Labels]:
    """Number the classes of one or more sets of labels in one order.

    Args:
        labels: (N,) integers or strings, -1 where the class is unknown; in an object array or a
            list, None says so, too.
        more: Likewise.

    Raises:
        InputError: They are not labels of images.
    """
    columns = [_label_values(values) for values in (labels, *more)]
    known = {value for column in columns for value in column if value != UNKNOWN}
    if len({type(value) for value in known}) > 1:
        raise InputError("labels: strings and numbers are mixed; only -1, unknown, may stand alone")
    if twins := find_twins(value for value in known if isinstance(value, str)):
        raise InputError(
            f"labels: {twins[0]!a} and {twins[1]!a} are the same text in two Unicode forms; write"
            " one of them"
        )
    named = {value: normal_form(value) if isinstance(value, str) else value for value in known}
    classes = sorted(named.values())
    order = {name: number for number, name in enumerate(classes)}
    numbers = {value: order[name] for value, name in named.items()} | {UNKNOWN: UNKNOWN}
    return [
        Labels(np.array([numbers[value] for value in column], np.int64), np.array(classes))
        for column in columns
    ]


def _label_values(labels: Any) -> list[int | str]:
    if isinstance(labels, list | tuple):
        labels = np.array(labels, object)  # NumPy would make strings of ["cat", -1]
    column = np.asarray(labels)  # tensors, pandas
    if column.ndim != 1:
        raise InputError(f"labels: of shape {column.shape}, but (N,) is needed, one per image")
    if column.dtype.kind == "U" and "-1" in column:
        raise InputError(
            "labels: '-1' in an array of strings is a class like any other; give an array of"
            " dtype=object with the number -1 where the class is unknown"
        )
    return [_label_value(value) for value in column.tolist()]


def _label_value(value: Any) -> int | str:
    if isinstance(value, str):
        return str(value)  # NumPy has strings of its own
    if value is None:
        return UNKNOWN
    whole = isinstance(value, Integral) or (isinstance(value, float) and value.is_integer())
    if not whole or value < UNKNOWN:
        raise InputError(
            f"labels: {value!r} is no label; give integers from 0 or strings, and -1 where the"
            " class is unknown"
        )
    return int(value)


class Part(NamedTuple):
    """Images of one split.

    Attributes:
        given: Where they come from.
        codes: (N,) class indices of all of `given`; None if they bring their own.
        rows: Which of them belong to the split; None means all.
        prefix: Of their names.
    """

    given: Given
    codes: np.ndarray | None
    rows: np.ndarray | None = None
    prefix: str = ""


@dataclass
class GivenSource:
    """A `sources.Source` of images that were handed over."""

    parts: dict[str, Part]
    target: Target
    classes: np.ndarray | None
    num_unreadable: ClassVar[int] = 0
    origin: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def open(
        cls,
        images: Any,
        labels: Any,
        *,
        test: tuple[Any, Any] | None,
        config: DataConfig,
    ) -> GivenSource:
        """Check what was handed over, as far as that is possible before it is read.

        Args:
            images: See the module.
            labels: (N,), or None where there are none or the images bring class indices.
            test: Held-out images and labels.
            config: Its image_size, channels, test_fraction, seed and `decoding` count.

        Raises:
            InputError: They are not images, or do not fit each other.
        """
        given = open_given(images, config)
        held_out = open_given(test[0], config) if test else None
        target = Target.of(given.shape, config)
        columns = [(given, labels, "labels")]
        if held_out is not None and test is not None:
            columns.append((held_out, test[1], "test labels"))
        if given.num_images == 0:
            raise InputError("images: none were given")
        for of, values, name in columns:
            _check_labels(of, values, name)
        if len({of.class_names is None for of, _, _ in columns}) > 1:
            raise InputError(
                "test: `images` and the held-out images must both bring their labels, or neither;"
                " else nobody knows which label means which class"
            )
        codes: list[np.ndarray | None] = [None] * len(columns)
        classes = None
        if given.class_names is None:
            encoded = encode_labels(*(_or_unknown(values, of) for of, values, _ in columns))
            counts = [of.num_images for of, _, _ in columns]
            codes = [
                e.codes if n is not None else None for e, n in zip(encoded, counts, strict=True)
            ]
            classes = encoded[0].classes
        if held_out is not None:
            parts = {
                "train": Part(given, codes[0]),
                "test": Part(held_out, codes[1], None, "test-"),
            }
        else:
            parts = _split(given, codes[0], config)
        return cls(parts, target, classes)

    @property
    def image_shape(self) -> Shape:
        return self.target.shape

    @property
    def train_labels(self) -> np.ndarray | None:
        codes, rows = self.parts["train"].codes, self.parts["train"].rows
        return codes if codes is None or rows is None else codes[rows]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Final when the images have been streamed."""
        if self.classes is not None:
            return tuple(map(str, self.classes.tolist()))
        names = [tuple(part.given.class_names or ()) for part in self.parts.values()]
        longest = max(names, key=lambda each: len(each))
        return tuple(map(normal_form, longest))

    def batches(self) -> Generator[Batch]:
        """Stream all training images, then all test images."""
        for split, part in self.parts.items():
            start = 0
            for chunk in part.given.chunks(CHUNK_SIZE, self.target, part.rows):
                end = start + len(chunk.images)
                rows = np.arange(start, end) if part.rows is None else part.rows[start:end]
                labels = chunk.labels if part.codes is None else part.codes[rows]
                if labels is None:
                    labels = [UNKNOWN] * len(rows)
                names = [f"{part.prefix}{row:010d}" for row in rows]
                yield Batch(split, names, np.array(labels, np.int64), chunk.images)
                start = end


def _or_unknown(labels: Any, given: Given) -> Any:
    return np.full(given.num_images or 0, UNKNOWN) if labels is None else labels


def _check_labels(given: Given, labels: Any, name: str) -> None:
    if given.class_names is not None and labels is not None:
        raise InputError(f"{name}: the images bring their own; leave {name} out")
    if labels is not None and not hasattr(labels, "__len__"):
        raise InputError(f"{name}: a {type(labels).__name__}, but one per image is needed")
    if labels is not None and given.num_images is not None and len(labels) != given.num_images:
        raise InputError(f"{name}: {len(labels)} for {given.num_images} images; one each is needed")


def _split(given: Given, codes: np.ndarray | None, config: DataConfig) -> dict[str, Part]:
    if not config.test_fraction:
        return {"train": Part(given, codes)}
    if codes is None or given.num_images is None:
        raise InputError(
            "test_fraction: a Dataset whose labels are not known before it is read cannot be split;"
            " give the held-out part as test=(dataset, None), e.g. from"
            " torch.utils.data.random_split"
        )
    names = [f"{row:010d}" for row in range(given.num_images)]
    train, test = split_train_test(
        names, codes, test_fraction=config.test_fraction, seed=config.seed
    )
    return {"train": Part(given, codes, train), "test": Part(given, codes, test)}
