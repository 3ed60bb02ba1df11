"""The exact joint loss of a round and the stopping rule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from vitdc.artifacts import (
    COLLAPSED,
    CONTINUE,
    CONVERGED,
    LOSS_ROSE,
    MAX_ROUNDS,
    SETTLED,
    RoundRow,
    Verdict,
)
from vitdc.config import ConvergenceConfig

CHUNK = 65536  # rows that are widened to float64 at a time


class RoundLoss(NamedTuple):
    """l and its parts: loss = cross_entropy + gamma * clustering_loss."""

    loss: float
    cross_entropy: float
    clustering_loss: float


def round_loss(
    *,
    embedding: np.ndarray,
    cross_entropy: np.ndarray,
    centroids: np.ndarray,
    assignment: np.ndarray,
    gamma: float,
) -> RoundLoss:
    """l over all training images (eq. 8), with the clusters the round was trained against.

    Args:
        embedding: (N, D) of the retrained model, in evaluation mode.
        cross_entropy: (N,) per image, NaN where there was no target; the mean is over the rest.
        centroids: (K, D) of the round before.
        assignment: (N,) of the round before.
        gamma: Weight of the clustering loss.

    Returns:
        The three means, computed in float64.
    """
    squared = 0.0
    for rows in _chunks(len(embedding)):
        own = centroids[assignment[rows]].astype(np.float64)
        squared += float(np.square(embedding[rows] - own).sum())
    clustering = squared / len(embedding)
    known = np.asarray(cross_entropy, dtype=np.float64)
    known = known[~np.isnan(known)]
    mean_cross_entropy = float(known.mean()) if len(known) else 0.0
    return RoundLoss(mean_cross_entropy + gamma * clustering, mean_cross_entropy, clustering)


def effective_rank(embedding: np.ndarray) -> float:
    """How many dimensions the embeddings really use: e to the entropy of their spectrum.

    Roy and Vetterli, "The effective rank" (EUSIPCO 2007), of the covariance. It is D where all
    directions vary alike, 1 on a line, and 0 where the embeddings are all the same.

    Args:
        embedding: (N, D) float32; may be memory-mapped.
    """
    mean = np.asarray(embedding.mean(axis=0, dtype=np.float64))
    covariance = np.zeros((len(mean), len(mean)))
    for rows in _chunks(len(embedding)):
        centred = embedding[rows] - mean
        covariance += centred.T @ centred
    variances = np.maximum(np.linalg.eigvalsh(covariance / len(embedding)), 0)
    # float32 cannot tell embeddings apart that differ by less
    if variances.sum() <= (np.finfo(np.float32).eps * np.linalg.norm(mean)) ** 2:
        return 0.0
    shares = variances[variances > 0] / variances.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def is_collapsed(embedding: np.ndarray, assignment: np.ndarray) -> bool:
    """Whether a retrained embedding tells apart no more than half of the clusters it was given.

    It tells those apart that some image is nearest to, where a cluster is the mean of the images it
    had.

    Args:
        embedding: (N, D) float32 of the retrained model; may be memory-mapped.
        assignment: (N,) clusters that the round was trained against.
    """
    given, place, counts = np.unique(assignment, return_inverse=True, return_counts=True)
    sums = np.zeros((len(given), embedding.shape[1]))
    for rows in _chunks(len(embedding)):
        np.add.at(sums, place[rows], embedding[rows])
    means = sums / counts[:, None]
    left: set[int] = set()
    for rows in _chunks(len(embedding)):
        from_each = np.square(means).sum(axis=1) - 2 * embedding[rows] @ means.T
        left.update(from_each.argmin(axis=1).tolist())
    return 1 < len(given) >= 2 * len(left)


def verdict(
    rows: Sequence[RoundRow], config: ConvergenceConfig, *, is_collapsed: bool = False
) -> Verdict:
    """Whether the rounds go on, and if not, why.

    The paper stops when l_current - l_new < epsilon. A loss that rose satisfies that too, but is
    named as what it is.

    Args:
        rows: All rounds so far, from round 0 on.
        config: The `convergence` section.
        is_collapsed: Whether the last round is: it is worth nothing, however low its l is.
    """
    if is_collapsed:
        return COLLAPSED
    losses = [row.loss for row in rows if row.loss is not None]
    changed = rows[-2].changed
    if len(losses) >= 2:
        fall = losses[-2] - losses[-1]
        if fall < 0:
            return LOSS_ROSE
        if fall < config.epsilon:
            return CONVERGED
    if changed is not None and changed < config.min_changed:
        return SETTLED
    return MAX_ROUNDS if len(losses) >= config.max_rounds else CONTINUE


def best_round(rows: Sequence[RoundRow], verdict: Verdict) -> int:
    """The round (from 1) with the lowest l; the latest of equals.

    With epsilon = 0 equal losses do not stop the rounds; the latest keeps the best round the last
    or the one before, which are those that whoever evaluates has at hand. A round that collapsed is
    never the best: the one before is, even if it is round 0.
    """
    if verdict == COLLAPSED:
        return rows[-2].round
    losses = [row.loss for row in reversed(rows) if row.loss is not None]
    return len(losses) - int(np.argmin(losses))


def _chunks(num_rows: int) -> Iterator[slice]:
    for start in range(0, num_rows, CHUNK):
        yield slice(start, start + CHUNK)
