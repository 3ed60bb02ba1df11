"""The exact joint loss of a round and the stopping rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vitdc.artifacts import CONTINUE, CONVERGED, LOSS_ROSE, MAX_ROUNDS, Verdict

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
    for start in range(0, len(embedding), CHUNK):
        rows = slice(start, start + CHUNK)
        own = centroids[assignment[rows]].astype(np.float64)
        squared += float(np.square(embedding[rows] - own).sum())
    clustering = squared / len(embedding)
    known = np.asarray(cross_entropy, dtype=np.float64)
    known = known[~np.isnan(known)]
    mean_cross_entropy = float(known.mean()) if len(known) else 0.0
    return RoundLoss(mean_cross_entropy + gamma * clustering, mean_cross_entropy, clustering)


def verdict(losses: Sequence[float], *, epsilon: float, max_rounds: int) -> Verdict:
    """Whether the rounds go on, and if not, why.

    The paper stops when l_current - l_new < epsilon. A loss that rose satisfies that too, but is
    named as what it is.

    Args:
        losses: l of every round so far, from round 1 on.
        epsilon: The smallest fall that is worth another round.
        max_rounds: The most rounds there may be.
    """
    if len(losses) >= 2:
        fall = losses[-2] - losses[-1]
        if fall < 0:
            return LOSS_ROSE
        if fall < epsilon:
            return CONVERGED
    return MAX_ROUNDS if len(losses) >= max_rounds else CONTINUE


def best_round(losses: Sequence[float]) -> int:
    """The round (from 1) with the lowest l; the latest of equals.

    With epsilon = 0 equal losses do not stop the rounds; the latest keeps the best round the last
    or the one before, which are those that whoever evaluates has at hand.
    """
    return len(losses) - int(np.argmin(losses[::-1]))
