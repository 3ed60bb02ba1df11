"""Targets for images without a label: their cluster of the round before, where it is confident."""

from __future__ import annotations

import numpy as np


def pseudo_labels(
    labels: np.ndarray, assignment: np.ndarray, distance: np.ndarray, *, confident: float
) -> np.ndarray:
    """The label where it is known, else the cluster where it is confident, else -1.

    Args:
        labels: (N,) int64, -1 where the label is unknown.
        assignment: (N,) int64 clusters.
        distance: (N,) to the centroid of the own cluster.
        confident: Share of a cluster's unlabelled images that count as confident, the nearest to
            its centroid; at least one of every cluster that has some.

    Returns:
        (N,) int64 targets.
    """
    targets = labels.copy()
    unknown = np.flatnonzero(labels < 0)
    for cluster in np.unique(assignment[unknown]):
        members = unknown[assignment[unknown] == cluster]
        number = int(np.ceil(confident * len(members)))
        nearest = members[np.argsort(distance[members], kind="stable")[:number]]
        targets[nearest] = cluster
    return targets
