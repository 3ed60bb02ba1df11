"""Images that stay in their files: decoded whenever they are read, no decoded copy on disk."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from vitdc.artifacts.dataset import image_digests
from vitdc.config import DataConfig
from vitdc.data.decoding import decode_chunk, num_cores
from vitdc.data.files import pixels_of
from vitdc.data.opening import open_store
from vitdc.errors import InputError

REMEMBER_BYTES = 2**28  # of images that are read one by one


class FileImages:
    """An array (N, H, W, C) uint8 whose rows are decoded when they are indexed.

    Rows are indexed as those of a NumPy array: by a number, a slice, or an array of numbers or
    booleans. Every row is compared with what `prepare` saw.

    Attributes:
        shape: (N, H, W, C).
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, config: DataConfig, names: Sequence[str], digests: np.ndarray) -> None:
        """Nothing is read yet.

        Args:
            config: The `data` section the images were prepared with.
            names: N relative paths.
            digests: (N,) uint64 from `vitdc.artifacts.dataset.image_digests`.
        """
        self._config, self._names, self._digests = config, names, digests
        self._pixels = pixels_of(config)
        self._store: Any = None
        self.shape = (len(names), *self._pixels.shape)
        remembered = max(1, REMEMBER_BYTES // int(np.prod(self._pixels.shape)))
        self._row = lru_cache(remembered)(lambda number: self._decode([number])[0])

    def __len__(self) -> int:
        return len(self._names)

    @property
    def nbytes(self) -> int:
        """What the decoded images would take."""
        return int(np.prod(self.shape))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or self.dtype)

    def __getitem__(self, rows: Any) -> np.ndarray:
        numbers = np.arange(len(self))[rows]
        if not numbers.ndim:  # a picture of the report, which shows it more than once
            row: np.ndarray = self._row(int(numbers))
            return row
        return self._decode(numbers.tolist())

    def _decode(self, numbers: list[int]) -> np.ndarray:
        if self._store is None:
            self._store = open_store(self._config)
        names = [self._names[number] for number in numbers]
        found = np.empty((len(names), *self.shape[1:]), np.uint8)
        with (
            closing(self._store.files(names)) as files,
            ThreadPoolExecutor(num_cores()) as pool,
        ):
            # threads: Pillow decodes and resizes without Python's lock
            decoded = pool.map(lambda file: decode_chunk([file], self._pixels), files)
            for position, one in enumerate(decoded):
                if one.problems:
                    self._refuse(names[position], one.problems[0])
                found[position] = one.images[0]
        changed = np.flatnonzero(image_digests(found) != self._digests[numbers])
        if len(changed):
            self._refuse(names[changed[0]], "its pixels have changed")
        return found

    def _refuse(self, name: str, reason: str) -> None:
        raise InputError(
            f"{self._store.location}: {name} is not as `prepare` read it ({reason}); prepare the"
            " images again, with data.keep_decoded if the folder is going to change"
        )


def located(config: DataConfig) -> dict[str, Any]:
    """What a Dataset keeps of the `data` section: where the files are and how they are decoded."""
    kept = config.model_dump(exclude={"num_workers", "max_unreadable"})
    return kept | {"root": config.root and str(Path(config.root).expanduser().absolute())}
