"""The split and the subsets: stratified, seeded, independent of order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitdc.data.sampling import apportion, split_train_test, subset

labels_of_images = st.lists(st.integers(-1, 4), min_size=1, max_size=60).map(np.array)
fractions = st.floats(0.01, 0.99)
seeds = st.integers(0, 1000)


def names_of(labels: np.ndarray) -> list[str]:
    return [f"image-{index}" for index in range(len(labels))]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=8).map(np.array), st.data())
def test_seats_add_up_and_stay_within_one_of_the_exact_share(counts, data):
    total = data.draw(st.integers(0, int(counts.sum())))
    seats = apportion(counts, total)
    assert seats.sum() == total
    assert (np.abs(seats - counts * total / counts.sum()) < 1).all()
    assert (seats <= counts).all()


@given(labels_of_images, fractions, seeds)
def test_split_is_a_partition(labels, fraction, seed):
    train, test = split_train_test(names_of(labels), labels, test_fraction=fraction, seed=seed)
    assert sorted([*train, *test]) == list(range(len(labels)))
    assert (np.diff(train) > 0).all()
    assert (np.diff(test) > 0).all()


@given(labels_of_images, fractions, seeds)
def test_every_class_keeps_a_training_image(labels, fraction, seed):
    train, _ = split_train_test(names_of(labels), labels, test_fraction=fraction, seed=seed)
    assert set(labels[train]) == set(labels)


@given(labels_of_images, fractions, seeds)
def test_split_is_stratified(labels, fraction, seed):
    _, test = split_train_test(names_of(labels), labels, test_fraction=fraction, seed=seed)
    classes, counts = np.unique(labels, return_counts=True)
    held_out = np.array([(labels[test] == label).sum() for label in classes])
    share = counts * fraction
    # one for the rounding of the total, one for that of the class
    assert (held_out <= np.maximum(share, 1) + 2).all()
    assert (held_out >= np.minimum(share, counts - 1) - 2).all()


def test_split_of_even_classes_is_exact():
    labels = np.repeat(np.arange(10), 50)
    _, test = split_train_test(names_of(labels), labels, test_fraction=0.2, seed=0)
    assert np.bincount(labels[test]).tolist() == [10] * 10


@given(labels_of_images, fractions, seeds, st.randoms(use_true_random=False))
def test_choice_does_not_depend_on_the_order_of_listing(labels, fraction, seed, random):
    names = np.array(names_of(labels))
    order = list(range(len(labels)))
    random.shuffle(order)
    _, test = split_train_test(names, labels, test_fraction=fraction, seed=seed)
    _, again = split_train_test(names[order], labels[order], test_fraction=fraction, seed=seed)
    assert set(names[test]) == set(names[order][again])


@given(labels_of_images, st.integers(1, 80), seeds)
def test_subset_has_the_size_asked_for_and_the_proportions_of_the_whole(labels, limit, seed):
    chosen = subset(names_of(labels), labels, limit=limit, seed=seed)
    assert len(set(chosen)) == len(chosen) == min(limit, len(labels))
    for label in set(labels):
        share = (labels == label).sum() * len(chosen) / len(labels)
        assert abs((labels[chosen] == label).sum() - share) < 1


def test_another_seed_chooses_other_images():
    labels = np.zeros(1000, int)
    names = names_of(labels)
    chosen = [set(subset(names, labels, limit=500, seed=seed)) for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert len(chosen[0] & chosen[2]) == pytest.approx(250, abs=60)  # as chance would have it


@pytest.mark.parametrize(("number", "num_test"), [(1, 0), (2, 1), (3, 1)])
def test_few_images_leave_one_to_test_if_there_are_two(number, num_test):
    labels = np.full(number, -1)
    _, test = split_train_test(names_of(labels), labels, test_fraction=0.01, seed=0)
    assert len(test) == num_test


def test_a_fraction_of_0_holds_nothing_out():
    labels = np.repeat(np.arange(3), 4)
    train, test = split_train_test(names_of(labels), labels, test_fraction=0, seed=0)
    assert train.tolist() == list(range(12))
    assert len(test) == 0


@given(labels_of_images, fractions, seeds)
def test_a_group_per_image_changes_nothing(labels, fraction, seed):
    names = names_of(labels)
    plain, grouped = (
        split_train_test(names, labels, test_fraction=fraction, seed=seed, groups=groups)
        for groups in (None, names)
    )
    np.testing.assert_array_equal(plain[1], grouped[1])


@given(labels_of_images, fractions, seeds, st.data())
def test_groups_stay_on_one_side_and_every_class_keeps_a_training_image(
    labels, fraction, seed, data
):
    count = len(labels)
    groups = data.draw(st.lists(st.integers(0, 9), min_size=count, max_size=count))
    train, test = split_train_test(
        names_of(labels), labels, test_fraction=fraction, seed=seed, groups=groups
    )
    assert sorted([*train, *test]) == list(range(count))
    assert {groups[i] for i in train}.isdisjoint(groups[i] for i in test)
    assert set(labels[train]) == set(labels)


def test_pairs_are_held_out_in_the_share_asked_for():
    labels = np.repeat(np.arange(2), 40)
    groups = np.arange(80) // 2
    _, test = split_train_test(
        names_of(labels), labels, test_fraction=0.25, seed=0, groups=groups.tolist()
    )
    assert np.bincount(labels[test]).tolist() == [10, 10]


def test_groups_larger_than_the_share_leave_one_of_them_to_test():
    labels, groups = np.zeros(20, int), [0] * 10 + [1] * 10
    _, test = split_train_test(names_of(labels), labels, test_fraction=0.2, seed=0, groups=groups)
    assert len(test) == 10
