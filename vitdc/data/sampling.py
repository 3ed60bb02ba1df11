"""Stratified, seeded choice of images: the train/test split and the subsets.

Every image has a pseudo-random rank that depends on its name and the seed alone, and a choice
takes the lowest ranks of each class. So a choice does not depend on the order that a source lists
its images in, and adding images moves few others.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence

import numpy as np

from vitdc.names import normal_form


def apportion(counts: np.ndarray, total: int) -> np.ndarray:
    """Share `total` seats among classes in proportion to `counts` (largest remainder method).

    No class is one seat or more away from its exact share, none gets more than its count, and
    ties go to the earlier class.
    """
    assert 0 <= total <= counts.sum()
    if total == 0:
        return np.zeros_like(counts)
    shares, remainders = np.divmod(counts * total, counts.sum())  # integers: exact
    left = total - shares.sum()
    shares[np.argsort(-remainders, kind="stable")[:left]] += 1
    return shares


def split_train_test(
    names: Sequence[str],
    labels: np.ndarray,
    *,
    test_fraction: float,
    seed: int,
    groups: Sequence[Hashable] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training and of the test images, each ascending.

    Every class keeps an image in training, so a class of one image is never tested and a class
    too small for its share is tested with less. Two images or more leave something to test,
    unless every class has only one, or the fraction is 0.

    Args:
        names: N, in ascending order if there are groups.
        labels: (N,)
        test_fraction: Share to be tested.
        seed: Of the draw.
        groups: N: images of one group stay together. Then the share is met as nearly as the groups
            allow, and nothing is tested if every group has all images of a class. With a group
            per image the split is that without groups.
    """
    classes, counts = np.unique(labels, return_counts=True)
    total = max(round(test_fraction * len(names)), 1 if test_fraction and len(names) > 1 else 0)
    held_out = np.minimum(apportion(counts, total), counts - 1)
    if total and not held_out.any() and counts.max() > 1:
        held_out[counts.argmax()] = 1
    if groups is None:
        test = _lowest_ranks(names, labels, classes, held_out, seed=seed)
    else:
        test = _whole_groups(
            names, labels, dict(zip(classes.tolist(), held_out, strict=True)), groups, seed
        )
    return np.setdiff1d(np.arange(len(names)), test), test


def subset(names: Sequence[str], labels: np.ndarray, *, limit: int | None, seed: int) -> np.ndarray:
    """Indices of at most `limit` images in the proportions of their classes, ascending."""
    if limit is None or limit >= len(names):
        return np.arange(len(names))
    classes, counts = np.unique(labels, return_counts=True)
    return _lowest_ranks(names, labels, classes, apportion(counts, limit), seed=seed)


def fraction_per_class(
    names: Sequence[str], labels: np.ndarray, *, fraction: float, seed: int
) -> np.ndarray:
    """Indices of the nearest whole number to `fraction` of every class, halves up, ascending."""
    classes, counts = np.unique(labels, return_counts=True)
    take = np.floor(fraction * counts + 0.5).astype(np.int64)
    return _lowest_ranks(names, labels, classes, take, seed=seed)


def _lowest_ranks(
    names: Sequence[str], labels: np.ndarray, classes: np.ndarray, take: np.ndarray, *, seed: int
) -> np.ndarray:
    ranks = np.array([_rank(name, seed) for name in names], dtype=np.uint64)
    chosen = []
    for label, number in zip(classes, take, strict=True):
        members = np.flatnonzero(labels == label)
        chosen.append(members[np.argsort(ranks[members], kind="stable")[:number]])
    return np.sort(np.concatenate(chosen)) if chosen else np.arange(0)


def _whole_groups(
    names: Sequence[str],
    labels: np.ndarray,
    wanted: dict[int, int],
    groups: Sequence[Hashable],
    seed: int,
) -> np.ndarray:
    """The groups of lowest rank, each taken if that brings the classes nearer to what is wanted."""
    members = defaultdict[Hashable, list[int]](list)
    for index, name in enumerate(groups):
        members[name].append(index)
    codes = labels.tolist()
    missing, left, chosen = dict(wanted), Counter(codes), list[int]()

    def gain(group: list[int]) -> int:
        """Images by which a group brings the classes nearer; the least where one has no other."""
        sizes = Counter(codes[index] for index in group)
        if any(size >= left[label] for label, size in sizes.items()):
            return -len(codes)
        return sum(abs(missing[c]) - abs(missing[c] - size) for c, size in sizes.items())

    ranked = sorted(members.values(), key=lambda group: _rank(names[group[0]], seed))
    for group in ranked:
        if gain(group) > 0:
            chosen += group
            for index in group:
                missing[codes[index]] -= 1
                left[codes[index]] -= 1
    if not chosen and any(wanted.values()):  # every group is larger than the share
        nearest = max(ranked, key=gain)
        chosen = nearest if gain(nearest) > -len(codes) else []
    return np.sort(np.array(chosen, np.int64))


def _rank(name: str, seed: int) -> int:
    digest = hashlib.blake2b(f"{seed}/{normal_form(name)}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")
