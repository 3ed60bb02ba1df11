"""What a person should know before believing a result, one sentence each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from vitdc.artifacts import SPLITS, Dataset
from vitdc.data.statistics import FEW_LEVELS

MAX_NAMED = 5  # clusters or classes
IMBALANCE = 10  # from which ratio of the largest class to the smallest it is said


def data_concerns(dataset: Dataset) -> list[str]:
    """What is odd about prepared images and their classes."""
    concerns = image_concerns(dataset.oddities, dataset.num_images)
    concerns += _copy_concerns(dataset.copies)
    counts = np.bincount(dataset.train.labels[dataset.train.labels >= 0])
    present = np.flatnonzero(counts)
    names = dataset.class_names
    if len(names) == 1:
        concerns.append(
            f"All labels are of one class ({names[0]}), so they can neither train nor score; if it"
            " is a folder around the images, take data.labels=none."
        )
    elif missing := [name for label, name in enumerate(names) if label not in present]:
        concerns.append(f"No training image is of {_listed(missing)}; only test images are.")
    if dataset.supervision != "none" and len(present):
        known = dataset.training_labels[dataset.known]
        trained = np.bincount(known, minlength=len(names))[np.unique(known)]
        small, large = (np.unique(known)[each] for each in (trained.argmin(), trained.argmax()))
        if trained.max() > IMBALANCE * trained.min():
            concerns.append(
                f"The classes differ by more than {IMBALANCE}:1: {names[large]} has {trained.max()}"
                f" training images, {names[small]} {trained.min()};"
                " pretraining.class_weights=balanced and joint.class_weights=balanced make them"
                " count alike."
            )
    return concerns


def _copy_concerns(copies: Mapping[str, int]) -> list[str]:
    if not copies:
        return []
    text = f"Copies of other images, identical or nearly so: {copies['images']}"
    if copies["tested"]:
        text += (
            f"; test images with one among the training images, which flatters the test scores:"
            f" {copies['tested']}. data.split=random with data.copies=together keeps them together."
        )
    else:
        text += ", each on the side of the split that the other is on."
    if copies["ambiguous"]:
        text += f" Pictures that are in more than one class: {copies['ambiguous']}."
    return [text]


def result_concerns(found: Mapping[str, Any], sizes: np.ndarray) -> list[str]:
    """Everything that is odd about a finished run.

    Args:
        found: The content of metrics.json.
        sizes: (K,) training images per cluster.
    """
    return [*found.get("data_notes", ()), *pixel_concerns(found), *size_concerns(sizes)]


def image_concerns(oddities: Mapping[str, Mapping[str, Any]], num_images: int) -> list[str]:
    """Name images that show almost nothing.

    Few levels from dark to bright are no concern where at least half of the images have no more:
    masks, line art and digits are like that.

    Args:
        oddities: From `vitdc.data.statistics.Oddities`.
        num_images: All there are.
    """
    texts = {
        "constant": "constant: one colour, nothing to cluster by. Is it transparency"
        " (data.background), or what lies outside of the crop (data.fit)?",
        "faint": f"almost constant: their levels span fewer than {FEW_LEVELS} of the 256. Is it the"
        " range of deep pixels (data.pixel_range)?",
        "coarse": f"of fewer than {FEW_LEVELS} levels, unlike others. Are they masks or drawings?",
    }
    concerns = []
    for kind, text in texts.items():
        number = oddities.get(kind, {}).get("images", 0)
        if number == 0 or (kind == "coarse" and 2 * number >= num_images):
            continue
        names = oddities[kind]["names"]
        named = ", ".join(names) + (" ..." if number > len(names) else "")
        concerns.append(f"{number} of {num_images} images ({named}) are {text}")
    return concerns


def pixel_concerns(found: Mapping[str, Any]) -> list[str]:
    """Whether k-means on the pixels agrees better with the labels; of held-out images if scored."""
    for split in reversed(SPLITS):
        nmi = found[split]["nmi"]
        floor = found.get("pixel_kmeans", {}).get(split, {}).get("nmi")
        if nmi is not None and floor is not None:
            if nmi >= floor:
                return []
            worse = f"{split} NMI {nmi:.3f} against {floor:.3f}"
            ways_out = (
                "Train longer (pretraining.epochs) or from pretrained weights (model.pretrained)."
            )
            return [f"The clusters are worse than k-means on the raw pixels: {worse}. {ways_out}"]
    return []


def size_concerns(sizes: np.ndarray) -> list[str]:
    """Name empty clusters and a giant one.

    A cluster is a giant that holds more than the middle between an even share and all images.

    Args:
        sizes: (K,) training images per cluster.
    """
    num_clusters, num_images = len(sizes), int(sizes.sum())
    if num_clusters == 1:
        return ["There is one cluster, so it holds every image; take clustering.num_clusters >= 2."]
    if num_clusters == num_images and sizes.max() == 1:
        return ["Every cluster holds a single image; take a smaller clustering.num_clusters."]
    concerns = []
    share = sizes.max() / max(1, num_images)
    if share > (1 + 1 / num_clusters) / 2:
        concerns.append(
            f"Cluster {sizes.argmax()} holds {100 * share:.3g} % of the {num_images} training"
            " images: one kind of image, or what the model cannot tell apart."
        )
    empty = np.flatnonzero(sizes == 0)
    if len(empty):
        concerns.append(
            f"{len(empty)} of {num_clusters} clusters are empty ({_listed(empty)}); take a smaller"
            " clustering.num_clusters, or look for identical images."
        )
    return concerns


def _listed(names: Iterable[Any]) -> str:
    names = [str(name) for name in names]
    return ", ".join(names[:MAX_NAMED]) + (" ..." if len(names) > MAX_NAMED else "")
