"""Small pictures of images, made once and kept, and strips of them for the page.

A strip holds the pictures of one piece of a grid side by side, whatever images these are, so that
a screen of pictures is a handful of requests. Its address says which images it shows, so browsers
keep it for good.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vitdc.artifacts import create_array
from vitdc.explore.collection import Collection

MAX_SIDE = 64
MAX_STRIP = 256
LOSSLESS_SIDE = 32  # smaller pictures are shown enlarged, where JPEG's blocks would be seen


class Thumbnails:
    """Pictures of at most `MAX_SIDE` pixels.

    Images that small already are read where they are. Others are shrunk when they are first
    asked for, into an array on disk that later runs find.

    Attributes:
        side: Of a picture, in pixels.
    """

    def __init__(self, images: Collection, cache: Path) -> None:
        height, width, channels = images.run.dataset.image_shape
        self._images = images
        self._kept: np.ndarray | None = None
        self.side = tile_side(images)
        if self.side < max(height, width):
            kept, made = (cache / f"thumbnails-{self.side}{part}.npy" for part in ("", "-made"))
            shape = (len(images), self.side, self.side, channels)
            if read_cached(kept, shape, np.uint8) is None:
                made.unlink(missing_ok=True)  # or pictures that are gone would count as made
            self._kept = _open(kept, shape, np.uint8)
            self._made = _open(made, (len(images),), np.bool_)

    def strip(self, numbers: Sequence[int]) -> tuple[bytes, str]:
        """The pictures of these images from left to right: an image file and its media type."""
        pictures = np.concatenate([self._picture(number) for number in numbers], axis=1)
        return encode(pictures, lossless=self.side <= LOSSLESS_SIDE)

    def _picture(self, number: int) -> np.ndarray:
        """(side, side, C) uint8."""
        if self._kept is None:
            return self._images.pixels(number)
        if not self._made[number]:
            self._kept[number] = _shrink(self._images.pixels(number), self.side)
            self._made[number] = True
        picture: np.ndarray = self._kept[number]
        return picture


def tile_side(images: Collection) -> int:
    """Pixels of a small picture, along each side."""
    height, width, _ = images.run.dataset.image_shape
    return min(height, width, MAX_SIDE)


def encode(pixels: np.ndarray, *, lossless: bool = True) -> tuple[bytes, str]:
    """(H, W, C) uint8 -> an image file and its media type."""
    from PIL import Image

    image = Image.fromarray(np.squeeze(pixels, axis=2) if pixels.shape[2] == 1 else pixels)
    file = io.BytesIO()
    if lossless:
        image.save(file, "PNG", compress_level=1)
        return file.getvalue(), "image/png"
    image.save(file, "JPEG", quality=88, subsampling=0)
    return file.getvalue(), "image/jpeg"


def _shrink(pixels: np.ndarray, side: int) -> np.ndarray:
    from PIL import Image

    from vitdc.data.pixels import fit

    channels = pixels.shape[2]
    image = Image.fromarray(np.squeeze(pixels, axis=2) if channels == 1 else pixels)
    return fit(image, image_size=side, channels=channels)


def _open(path: Path, shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray:
    """A writable array on disk, all zero at first."""
    if read_cached(path, shape, dtype) is not None:
        return np.lib.format.open_memmap(path, mode="r+")
    return create_array(path, shape, dtype)


def read_cached(path: Path, shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray | None:
    """An array of the cache, memory-mapped; None if there is none, or only what is left of it."""
    try:
        found = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, EOFError):
        return None
    return found if found.shape == shape and found.dtype == dtype else None
