"""What is odd about a result is named, and only that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitdc.artifacts import Dataset, Split
from vitdc.concerns import data_concerns, image_concerns, pixel_concerns, size_concerns
from vitdc.config import ClusteringConfig
from vitdc.errors import InputError
from vitdc.summary import describe


def found(*, nmi: float | None, floor: float | None, split: str = "test") -> dict[str, Any]:
    metrics: dict[str, Any] = {name: {"nmi": None} for name in ("train", "test")}
    metrics[split] = {"nmi": nmi}
    if floor is not None:
        metrics["pixel_kmeans"] = {split: {"nmi": floor}}
    return metrics


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ([10, 12, 8], []),
        ([5, 5, 40], ["Cluster 2 holds 80 % of the 50 training images"]),
        ([99, 1], ["Cluster 0 holds 99 % of the 100 training images"]),
        ([60, 40], []),
        ([10, 0, 10, 0], ["2 of 4 clusters are empty (1, 3)"]),
        ([0, 30, 0], ["Cluster 1 holds 100 % of the 30", "2 of 3 clusters are empty (0, 2)"]),
        ([30], ["There is one cluster, so it holds every image"]),
        ([1, 1, 1], ["Every cluster holds a single image"]),
    ],
)
def test_empty_and_giant_clusters_are_named(sizes: list[int], said: list[str]) -> None:
    concerns = size_concerns(np.array(sizes))
    assert len(concerns) == len(said)
    for concern, start in zip(concerns, said, strict=True):
        assert concern.startswith(start)


def test_a_result_below_k_means_on_the_pixels_is_said_with_both_numbers() -> None:
    for split in ("test", "train"):
        (concern,) = pixel_concerns(found(nmi=0.294, floor=0.557, split=split))
        assert f"worse than k-means on the raw pixels: {split} NMI 0.294 against 0.557" in concern


@pytest.mark.parametrize(("nmi", "floor"), [(0.6, 0.5), (0.5, 0.5), (None, None), (0.1, None)])
def test_nothing_is_said_of_a_result_that_is_no_worse_or_not_scored(
    nmi: float | None, floor: float | None
) -> None:
    assert pixel_concerns(found(nmi=nmi, floor=floor)) == []


@pytest.mark.parametrize(
    ("num_clusters", "num_images", "num_classes", "message"),
    [
        (10, 1, 0, "1 training image: clustering compares images"),
        (1, 1, 0, "needs at least 2"),
        (10, 9, 0, "10 clusters cannot be made of 9 training images; at most 9 are possible"),
        (2, 50, 3, "2 clusters, but the labels, which are partial, name 3 classes"),
    ],
)
def test_a_number_of_clusters_that_cannot_be_is_refused(
    num_clusters: int, num_images: int, num_classes: int, message: str
) -> None:
    config = ClusteringConfig(num_clusters=num_clusters)
    with pytest.raises(InputError, match=message):
        config.check_fit(num_images=num_images, num_classes=num_classes)


@pytest.mark.parametrize(("num_clusters", "num_images"), [(1, 2), (9, 9), (3, 100)])
def test_any_other_number_of_clusters_is_taken(num_clusters: int, num_images: int) -> None:
    ClusteringConfig(num_clusters=num_clusters).check_fit(num_images=num_images, num_classes=0)


def of_classes(train: list[int], test: list[int], *class_names: str) -> Dataset:
    splits = [
        Split(np.zeros((len(labels), 1, 1, 1), np.uint8), np.array(labels), np.zeros(len(labels)))
        for labels in (train, test)
    ]
    known = splits[0].labels >= 0
    return Dataset(*splits, "toy", class_names, (0.5,), (0.1,), "0", 0, Path("unused"), known)


@pytest.mark.parametrize(
    ("train", "test", "said"),
    [
        ([0] * 10 + [1], [0, 1], []),
        ([0] * 11 + [1, -1], [0], ["The classes differ by more than 10:1: a has 11"]),
        ([0, 0, -1], [1], ["No training image is of b"]),
        ([-1, -1], [0, 1], ["No training image is of a, b"]),
    ],
)
def test_classes_that_are_missing_or_far_from_even_are_named(
    train: list[int], test: list[int], said: list[str]
) -> None:
    concerns = data_concerns(of_classes(train, test, "a", "b"))
    assert len(concerns) == len(said)
    assert all(text.startswith(start) for text, start in zip(concerns, said, strict=True))


def test_a_single_class_is_named() -> None:
    (concern,) = data_concerns(of_classes([0, 0], [0], "cats"))
    assert concern.startswith("All labels are of one class (cats)")


def test_of_many_classes_the_first_the_largest_and_the_smallest_are_shown() -> None:
    names = [f"c{number}" for number in range(20)]
    labels = [*range(20), 7, 7]
    assert describe(of_classes(labels, [8], *names)).splitlines()[1] == (
        "classes: c0 1, c1 1, c2 1, c3 1, c4 1, ...; largest c7 3, smallest c0 1"
    )


def test_images_that_show_almost_nothing_are_counted_and_named() -> None:
    oddities = {
        "constant": {"images": 7, "names": ["a", "b", "c", "d", "e"]},
        "faint": {"images": 1, "names": ["f"]},
        "coarse": {"images": 2, "names": ["g", "h"]},
    }
    constant, faint, coarse = image_concerns(oddities, 100)
    assert constant.startswith("7 of 100 images (a, b, c, d, e ...) are constant")
    assert faint.startswith("1 of 100 images (f) are almost constant")
    assert coarse.startswith("2 of 100 images (g, h) are of fewer than 20 levels, unlike")
    assert image_concerns({}, 100) == []


def test_drawings_are_no_concern_among_their_like() -> None:
    coarse = {"coarse": {"images": 50, "names": ["a"]}}
    assert image_concerns(coarse, 100) == []
    assert len(image_concerns(coarse, 101)) == 1
