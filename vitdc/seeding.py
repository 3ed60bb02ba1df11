"""Random streams derived from (seed, step, round, epoch), never from what ran before.

That is what lets a step be cached, resumed at any epoch, or run by another runner, and still
give the same bytes.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


def derive_seed(seed: int, *stream: str | int) -> int:
    """A 32-bit seed for the named stream, e.g. `derive_seed(0, "retrain", 2)`.

    Any change of `seed` or of a name gives an unrelated seed (SHA-256).
    """
    text = "/".join(map(str, (seed, *stream)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")


@contextmanager
def seeded(seed: int, *stream: str | int) -> Iterator[None]:
    """Seed torch, NumPy and `random` for the block and give the caller its own state back.

    For libraries that draw from the global generators (timm's initialisation, drop path, mixup).
    """
    import torch

    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    value = derive_seed(seed, *stream)
    with torch.random.fork_rng():
        torch.manual_seed(value)
        np.random.seed(value)  # noqa: NPY002
        random.seed(value)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)
