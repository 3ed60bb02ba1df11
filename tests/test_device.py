"""Device, precision and threads: what was asked for, or an error."""

from __future__ import annotations

import pytest
import torch

from vitdc.config import ComputeConfig
from vitdc.device import limited_threads, resolve_device, training_dtype
from vitdc.errors import InputError

CPU = torch.device("cpu")
HAS_GPU = torch.cuda.is_available() or torch.backends.mps.is_available()


def test_a_named_cpu_is_taken() -> None:
    assert resolve_device(ComputeConfig(device="cpu")) == CPU


@pytest.mark.skipif(HAS_GPU, reason="there is a GPU")
def test_without_a_gpu_auto_is_the_cpu_and_a_named_gpu_is_refused() -> None:
    assert resolve_device(ComputeConfig()) == CPU
    with pytest.raises(InputError, match=r"compute\.device: no cuda device .* it has cpu"):
        resolve_device(ComputeConfig(device="cuda"))


def test_precision_is_float32_on_a_cpu_unless_asked_otherwise() -> None:
    assert training_dtype(ComputeConfig(), CPU) == torch.float32
    assert training_dtype(ComputeConfig(precision="bfloat16"), CPU) == torch.bfloat16


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_threads_are_limited_in_the_block_and_given_back(num_threads: int) -> None:
    before = torch.get_num_threads()
    inside = []

    def fail() -> None:
        with limited_threads(num_threads):
            inside.append(torch.get_num_threads())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert inside == [num_threads]
    assert torch.get_num_threads() == before
