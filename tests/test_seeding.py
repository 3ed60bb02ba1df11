"""Random streams: named, unrelated, and invisible to the caller."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vitdc.seeding import derive_seed, seeded

streams = st.tuples(
    st.integers(0, 2**40), st.sampled_from(["pretrain", "retrain"]), st.integers(0, 99)
)


def draw() -> tuple[float, float, float]:
    return torch.rand(()).item(), float(np.random.random()), random.random()  # noqa: NPY002


@given(streams, streams)
def test_streams_have_equal_seeds_only_where_they_are_the_same(
    one: tuple[int, str, int], other: tuple[int, str, int]
) -> None:
    assert (derive_seed(*one) == derive_seed(*other)) == (one == other)
    assert 0 <= derive_seed(*one) < 2**32


def test_a_block_draws_from_its_own_stream() -> None:
    drawn = []
    for stream in (("a", 1), ("a", 1), ("a", 2), ("b", 1)):
        with seeded(0, *stream):
            drawn.append(draw())
    assert drawn[0] == drawn[1]
    assert len({number for numbers in drawn[1:] for number in numbers}) == 9


@pytest.mark.parametrize("fails", [False, True])
def test_the_caller_draws_on_as_if_nothing_had_been(fails: bool) -> None:
    def start() -> None:
        torch.manual_seed(5)
        np.random.seed(5)  # noqa: NPY002
        random.seed(5)

    start()
    expected = draw()
    start()
    try:
        with seeded(0, "block"):
            draw()
            if fails:
                raise ValueError
    except ValueError:
        assert fails
    assert draw() == expected
