"""The exact joint loss and the stopping rule, against direct readings of the paper."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitdc import convergence
from vitdc.convergence import best_round, round_loss, verdict

losses = st.lists(st.floats(-100, 100), min_size=1, max_size=8)


@given(losses, st.floats(0, 10), st.integers(1, 8))
def test_the_rounds_stop_exactly_when_the_paper_says_so(
    values: list[float], epsilon: float, max_rounds: int
) -> None:
    papers_rule = len(values) >= 2 and values[-2] - values[-1] < epsilon
    rose = len(values) >= 2 and values[-1] > values[-2]
    found = verdict(values, epsilon=epsilon, max_rounds=max_rounds)
    if rose:
        assert found == "loss-rose"
    elif papers_rule:
        assert found == "converged"
    elif len(values) >= max_rounds:
        assert found == "max-rounds"
    else:
        assert found == "continue"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0], "continue"),  # nothing to compare with yet
        ([1.0, 0.5], "continue"),
        ([1.0, 0.875], "continue"),  # falls by exactly epsilon
        ([1.0, 0.9], "converged"),
        ([1.0, 1.0], "converged"),
        ([1.0, 1.01], "loss-rose"),
        ([3.0, 2.0, 1.0], "max-rounds"),
        ([3.0, 2.0, 1.99], "converged"),  # the reason that is worth more is named
    ],
)
def test_verdicts(values: list[float], expected: str) -> None:
    assert verdict(values, epsilon=0.125, max_rounds=3) == expected


@given(st.lists(st.floats(-100, 100) | st.just(1.0), min_size=1, max_size=8), st.floats(0, 1))
def test_when_the_loop_stops_the_best_round_is_the_last_or_the_one_before(
    values: list[float], epsilon: float
) -> None:
    falling = [values[0]]
    for _, new in pairwise(values):
        falling.append(new)
        if verdict(falling, epsilon=epsilon, max_rounds=8) != "continue":
            break
    assert best_round(falling) in (len(falling), len(falling) - 1)
    assert falling[best_round(falling) - 1] == min(falling)


def test_the_latest_of_equally_good_rounds_is_best() -> None:
    assert best_round([2.0, 1.0, 1.0, 1.0]) == 4


@pytest.mark.parametrize("chunk", [1, 7, 10**6])
@pytest.mark.parametrize("gamma", [0.0, 0.3])
def test_round_loss_is_eq_8_in_float64(
    monkeypatch: pytest.MonkeyPatch, chunk: int, gamma: float
) -> None:
    monkeypatch.setattr(convergence, "CHUNK", chunk)
    generator = np.random.default_rng(0)
    embedding, centroids = (generator.normal(size=(n, 4)).astype(np.float32) for n in (30, 3))
    cross_entropy = generator.exponential(size=30).astype(np.float32)
    cross_entropy[::4] = np.nan  # unknown labels
    assignment = generator.integers(0, 3, 30)

    known = [float(value) for value in cross_entropy if not np.isnan(value)]
    expected_cross_entropy = sum(known) / len(known)
    squared = [
        sum((float(a) - float(b)) ** 2 for a, b in zip(z, centroids[c], strict=True))
        for z, c in zip(embedding, assignment, strict=True)
    ]
    found = round_loss(
        embedding=embedding,
        cross_entropy=cross_entropy,
        centroids=centroids,
        assignment=assignment,
        gamma=gamma,
    )
    assert found.cross_entropy == pytest.approx(expected_cross_entropy, rel=1e-12)
    assert found.clustering_loss == pytest.approx(sum(squared) / 30, rel=1e-12)
    assert found.loss == found.cross_entropy + gamma * found.clustering_loss


def test_without_any_label_the_loss_is_the_clusters_alone() -> None:
    found = round_loss(
        embedding=np.ones((2, 2), np.float32),
        cross_entropy=np.full(2, np.nan, np.float32),
        centroids=np.zeros((1, 2), np.float32),
        assignment=np.zeros(2, np.int64),
        gamma=0.5,
    )
    assert found == (1.0, 0.0, 2.0)
