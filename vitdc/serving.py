"""Requests for predictions: what stands for an image in them, and the answer.

An image is the bytes of an image file (in JSON as base64 text) or its pixels as nested lists or an
array; one batch may hold both. Either way it becomes what `prepare` makes of a file: turned upright,
on white, in the size and the channels of the model.
"""

from __future__ import annotations

import base64
import binascii
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from vitdc.config import DataConfig
from vitdc.data.decoding import Pixels, decode_chunk, fit, flatten
from vitdc.errors import InputError
from vitdc.prediction import Predictor

MAX_IMAGES = 10_000  # in one request
_SHOWN = 3  # problems of one request


class Service:
    """Answers requests, which may come from several threads at once."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self._alone = threading.Lock()  # the number of threads belongs to the whole process

    def answer(self, images: Iterable[Any]) -> list[dict[str, Any]]:
        """Predict a batch.

        Args:
            images: Bytes, base64 text or pixels, one per image.

        Returns:
            A row per image: what `Predictor.predict` says of it. A distance that does not exist,
            to the second of one cluster, is None.

        Raises:
            InputError: Something in the batch is not an image.
        """
        pixels = self._decode(list(images))
        with self._alone:
            prediction = self._predictor.predict(pixels)
        columns = {**prediction._asdict(), "margin": prediction.margin}
        names = ("cluster", "distance", "second_distance", "margin", "unsure")
        rows = zip(*(columns[name].tolist() for name in names), strict=True)
        return [
            {name: None if value == float("inf") else value for name, value in zip(names, row)}
            for row in rows
        ]
