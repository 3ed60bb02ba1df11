"""Requests for predictions: what stands for an image in them, and the answer.

An image is the bytes of an image file (in JSON as base64 text) or its pixels, as nested lists or an
array; one batch may hold both. Either way it becomes what `prepare` made of the files that the
model was trained on: upright, opaque, in the size and the channels of the model. Of a file with
several pages the first counts.
"""

from __future__ import annotations

import base64
import binascii
import re
import threading
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from vitdc.data.decoding import decode_chunk
from vitdc.data.pixels import Pixels, to_pixels
from vitdc.errors import InputError
from vitdc.inference import wanted_pixels
from vitdc.prediction import Predictor

COLUMNS = ("cluster", "distance", "second_distance", "margin", "unsure")  # of an answer

_CHANNELS = (1, 3, 4)
_DATA_URL = re.compile(r"data:[^,]*;base64,")
_SHOWN = 3  # problems that a message names


class Service:
    """Answers requests, which may come from several threads at once.

    Raises:
        InputError: The model takes images that are not square, see `wanted_pixels`.
    """

    def __init__(self, predictor: Predictor) -> None:
        self._pixels = replace(wanted_pixels(predictor.checkpoint), pages="first")
        self._predictor = predictor
        # the number of threads that a prediction is made with belongs to the whole process
        self._predicting = threading.Lock()

    def answer(self, images: Iterable[Any]) -> list[dict[str, Any]]:
        """Predict a batch.

        Args:
            images: Bytes, base64 text or pixels, one per image.

        Returns:
            A row per image with `COLUMNS`, which mean what they mean in `Prediction`. The distance
            to a second centroid that does not exist is None.

        Raises:
            InputError: Something in the batch is not an image.
        """
        decoded = decode_images(list(images), self._pixels)
        with self._predicting:
            prediction = self._predictor.predict(decoded)
        found = {name: getattr(prediction, name).tolist() for name in COLUMNS}
        found["second_distance"] = [
            None if distance == float("inf") else distance for distance in found["second_distance"]
        ]
        return [dict(zip(COLUMNS, row, strict=True)) for row in zip(*found.values(), strict=True)]


def decode_images(items: list[Any], pixels: Pixels) -> np.ndarray:
    """(N, H, W, C) uint8 from bytes, base64 text or pixels.

    Raises:
        InputError: Some are not images; the message says which and why.
    """
    images = np.empty((len(items), *pixels.shape), np.uint8)
    problems = {}
    for position, item in enumerate(items):
        try:
            images[position] = _decode(item, pixels)
        except ValueError as error:
            problems[position] = str(error)
    if problems:
        shown = [f"image {at}: {why}" for at, why in list(problems.items())[:_SHOWN]]
        more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        raise InputError("; ".join([*shown, *more]))
    return images


def _decode(item: Any, pixels: Pixels) -> np.ndarray:
    if isinstance(item, str | bytes | bytearray):
        file = _from_base64(item) if isinstance(item, str) else bytes(item)
        decoded = decode_chunk([file], pixels)
        if decoded.problems:
            raise ValueError(decoded.problems[0])
        image: np.ndarray = decoded.images[0]
        return image
    if isinstance(item, list | tuple | np.ndarray):
        return _from_pixels(item, pixels)
    raise ValueError(
        "neither the base64 text of an image file nor nested lists of pixels, but"
        f" {'nothing' if item is None else f'of type {type(item).__name__}'}"
    )


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(_DATA_URL.sub("", text, count=1), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("not the base64 text of an image file") from None


def _from_pixels(item: Any, pixels: Pixels) -> np.ndarray:
    """The image that a file with these pixels would give."""
    from PIL import Image

    values = _checked(item)
    if values.shape[0] * values.shape[1] > pixels.max_pixels:
        raise ValueError(f"more than {pixels.max_pixels} pixels")
    image = Image.fromarray(values[..., 0] if values.shape[2] == 1 else values)
    return to_pixels(image, pixels)[0]


def _checked(item: Any) -> np.ndarray:
    """(H, W, C) uint8 from nested lists or an array."""
    try:
        values = np.asarray(item)
    except ValueError:
        raise ValueError("pixels in rows of different lengths") from None
    if values.ndim == 2 and values.shape[1] not in _CHANNELS:
        values = values[..., None]
    if values.ndim != 3 or values.shape[2] not in _CHANNELS or 0 in values.shape:
        raise ValueError(
            f"pixels of shape {values.shape}; an image is (height, width) or (height, width,"
            " channels), and a batch is a list of images"
        )
    if values.dtype.kind not in "iuf" or not ((values >= 0) & (values <= 255)).all():
        raise ValueError("pixels that are not numbers from 0 to 255")
    if (whole := values.astype(np.uint8)).dtype != values.dtype and (whole != values).any():
        raise ValueError("pixels that are not whole numbers; 0 to 255 is expected, not 0 to 1")
    return whole
