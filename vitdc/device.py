"""Device, threads and precision: what the `compute` section asks for, or an error."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vitdc.config import ComputeConfig
from vitdc.errors import InputError

if TYPE_CHECKING:
    import torch


def resolve_device(compute: ComputeConfig) -> torch.device:
    """The torch device that `compute.device` names; `auto` prefers CUDA, then MPS.

    Raises:
        InputError: The named device is not there.
    """
    import torch

    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if compute.device == "auto":
        return torch.device(next(name for name, there in available.items() if there))
    if not available[compute.device]:
        there = ", ".join(name for name, there in available.items() if there)
        raise InputError(
            f"compute.device: no {compute.device} device on this machine; it has {there} (auto"
            " takes the best)"
        )
    return torch.device(compute.device)


def training_dtype(compute: ComputeConfig, device: torch.device) -> torch.dtype:
    """The dtype of the training's matrix products; anything below float32 is autocast."""
    import torch

    if compute.precision == "auto":
        native = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if native else torch.float32
    return getattr(torch, compute.precision)  # type: ignore[no-any-return]


@contextmanager
def limited_threads(num_threads: int) -> Iterator[None]:
    """Run the block with this many threads in torch, faiss and BLAS, whichever are loaded.

    Sums are split by thread, so the number of threads is part of what makes a result repeatable.
    Call it after importing the libraries that it should hold.
    """
    from threadpoolctl import threadpool_limits

    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else 0
    with threadpool_limits(limits=num_threads):
        if torch:
            torch.set_num_threads(num_threads)
        try:
            yield
        finally:
            if torch:
                torch.set_num_threads(before)
