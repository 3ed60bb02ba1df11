"""Mean, deviation and content hash against NumPy and hashlib on the whole arrays."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from vitdc.data.statistics import ContentHash, Oddities, PixelStatistics, histograms


def test_statistics_of_a_stream_are_those_of_the_whole():
    images = np.random.default_rng(0).integers(0, 200, (11, 4, 5, 3), dtype=np.uint8)
    statistics = PixelStatistics(3)
    for start in range(0, 11, 4):
        statistics.update(histograms(images[start : start + 4]))
    mean, std = statistics.mean_std()
    scaled = images.astype(np.float64) / 255
    assert mean == pytest.approx(scaled.mean(axis=(0, 1, 2)), rel=1e-12)
    assert std == pytest.approx(scaled.std(axis=(0, 1, 2)), rel=1e-12)


def test_constant_channel_has_a_deviation_to_divide_by():
    statistics = PixelStatistics(1)
    statistics.update(histograms(np.full((3, 2, 2, 1), 255, np.uint8)))
    assert statistics.mean_std() == ((1.0,), (1 / 255,))


def test_histograms_are_those_of_every_image_and_channel():
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 2), dtype=np.uint8)
    found = histograms(images)
    for image, channels in zip(images, found, strict=True):
        for channel in range(2):
            expected, _ = np.histogram(image[..., channel], bins=np.arange(257))
            np.testing.assert_array_equal(channels[channel], expected)


@pytest.mark.parametrize(
    ("side", "levels", "kind"),
    [
        (8, [77], "constant"),
        (8, [0, 1], "faint"),
        (40, list(range(100, 119)), "faint"),
        (40, list(range(100, 121)), None),
        (40, [0, 255], "coarse"),
        (40, list(range(0, 247, 13)), "coarse"),
        (40, list(range(0, 256, 12)), None),
        (8, [0, 255], None),  # as small as digits
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_images_that_show_almost_nothing_are_told_apart(side, levels, kind, channels):
    image = np.resize(np.array(levels, np.uint8), (1, side, side, 1)).repeat(channels, axis=3)
    oddities = Oddities()
    oddities.update(["a"], histograms(image))
    assert oddities.found() == ({} if kind is None else {kind: {"images": 1, "names": ["a"]}})


def test_one_channel_that_shows_something_is_enough():
    image = np.zeros((1, 8, 8, 3), np.uint8)
    image[..., 2] = np.arange(64).reshape(8, 8)
    oddities = Oddities()
    oddities.update(["a"], histograms(image))
    assert oddities.found() == {}


def test_content_hash_is_as_documented_and_independent_of_batches():
    images = np.arange(5 * 2 * 2 * 1, dtype=np.uint8).reshape(5, 2, 2, 1)
    labels = np.arange(5)
    content = ContentHash((2, 2, 1))
    content.update("train", images[:3], labels[:3])
    content.update("train", images[3:4], labels[3:4])
    content.update("test", images[4:], labels[4:])

    def split(part: slice) -> dict[str, object]:
        return {
            "shape": list(images[part].shape),
            "images": hashlib.sha256(images[part].tobytes()).hexdigest(),
            "labels": hashlib.sha256(labels[part].astype("<i8").tobytes()).hexdigest(),
        }

    expected = {"class_names": ["a"], "train": split(slice(4)), "test": split(slice(4, 5))}
    text = json.dumps(expected, sort_keys=True).encode()
    assert content.hexdigest(["a"]) == hashlib.sha256(text).hexdigest()
    assert content.hexdigest(["b"]) != content.hexdigest(["a"])
