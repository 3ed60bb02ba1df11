"""The exact joint loss and the stopping rule, against direct readings of the paper."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy

from vitdc import convergence
from vitdc.artifacts import RoundRow
from vitdc.config import ConvergenceConfig
from vitdc.convergence import best_round, effective_rank, is_collapsed, round_loss, verdict

losses = st.lists(st.floats(-100, 100), min_size=1, max_size=8)


def rounds(values: list[float]) -> list[RoundRow]:
    """Round 0 and a round per loss."""
    return [RoundRow(0), *(RoundRow(i, loss=value) for i, value in enumerate(values, start=1))]


def judge(rows: list[RoundRow], **config: float) -> str:
    return verdict(rows, ConvergenceConfig(**config))


@given(losses, st.floats(0, 10), st.integers(1, 8))
def test_the_rounds_stop_exactly_when_the_paper_says_so(
    values: list[float], epsilon: float, max_rounds: int
) -> None:
    papers_rule = len(values) >= 2 and values[-2] - values[-1] < epsilon
    rose = len(values) >= 2 and values[-1] > values[-2]
    found = judge(rounds(values), epsilon=epsilon, max_rounds=max_rounds)
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
    assert judge(rounds(values), epsilon=0.125, max_rounds=3) == expected


def test_rounds_settle_when_hardly_an_image_changed_cluster() -> None:
    rows = [RoundRow(0), RoundRow(1, loss=3.0, changed=0.01), RoundRow(2, loss=2.0)]
    assert judge(rows) == "continue"
    assert judge(rows, min_changed=0.01) == "continue"
    assert judge(rows, min_changed=0.02) == "settled"
    assert judge(rounds([3.0]), min_changed=0.02) == "continue"  # round 0 has nothing to compare
    assert best_round(rows, "settled") == 2


@pytest.mark.parametrize(("values", "best"), [([3.0], 0), ([3.0, 2.0], 1)])
def test_a_collapsed_round_is_never_the_best(values: list[float], best: int) -> None:
    rows = rounds(values)
    assert verdict(rows, ConvergenceConfig(), is_collapsed=True) == "collapsed"
    assert best_round(rows, "collapsed") == best


@pytest.mark.parametrize("chunk", [3, 10**6])
def test_an_embedding_that_tells_half_of_the_clusters_apart_has_collapsed(
    monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(convergence, "CHUNK", chunk)
    assignment = np.repeat([0, 1, 2, 4], 5)  # 3 was empty before
    line = np.outer(assignment, [1, 2]).astype(np.float32) + 0.3  # far apart, on a line
    assert not is_collapsed(line, assignment)
    assert not is_collapsed(np.minimum(line, 2.4), assignment)  # 2 and 4 coincide
    assert is_collapsed(np.minimum(line, 1.2), assignment)  # 1, too: two are left of four
    assert is_collapsed(np.full((20, 2), 0.1, np.float32), assignment)
    assert not is_collapsed(line, np.zeros(20, np.int64))  # one cluster cannot collapse


@pytest.mark.parametrize("chunk", [3, 10**6])
def test_effective_rank_is_that_of_the_singular_values(
    monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(convergence, "CHUNK", chunk)
    points = np.random.default_rng(0).normal(5, [3, 2, 1, 0.1], (50, 4)).astype(np.float32)
    variances = np.linalg.svd(points.astype(np.float64) - points.mean(0, np.float64))[1] ** 2
    expected = np.exp(entropy(variances))
    assert effective_rank(points) == pytest.approx(expected, rel=1e-6)


def test_effective_rank_of_extremes() -> None:
    line = np.outer(np.arange(8), [1, 2, 3]).astype(np.float32)
    ball = np.vstack([np.eye(3), -np.eye(3)]).astype(np.float32)
    assert effective_rank(line) == pytest.approx(1)
    assert effective_rank(ball) == pytest.approx(3)
    assert effective_rank(np.full((5, 3), 0.1, np.float32)) == 0


@given(st.lists(st.floats(-100, 100) | st.just(1.0), min_size=1, max_size=8), st.floats(0, 1))
def test_when_the_loop_stops_the_best_round_is_the_last_or_the_one_before(
    values: list[float], epsilon: float
) -> None:
    falling = [values[0]]
    for _, new in pairwise(values):
        falling.append(new)
        if judge(rounds(falling), epsilon=epsilon, max_rounds=8) != "continue":
            break
    best = best_round(rounds(falling), "continue")
    assert best in (len(falling), len(falling) - 1)
    assert falling[best - 1] == min(falling)


def test_the_latest_of_equally_good_rounds_is_best() -> None:
    assert best_round(rounds([2.0, 1.0, 1.0, 1.0]), "continue") == 4


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
