"""Whole-batch augmentation: what each transform does to an image, and that images differ."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vitdc import augmentation
from vitdc.augmentation import augment
from vitdc.config import PretrainingConfig
from vitdc.seeding import seeded

EVERYTHING = {"flip": True, "shift": 0.2, "rotate": 20, "zoom": 0.2, "jitter": 0.4}


def config(**values: Any) -> PretrainingConfig:
    return PretrainingConfig(**values)


@pytest.fixture
def images() -> Tensor:
    """(6, 2, 8, 8) in [0, 1], no two alike and none symmetric."""
    return torch.from_numpy(np.random.default_rng(0).random((6, 2, 8, 8))).float()


@pytest.fixture
def extreme(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every random number is the largest that its limit allows."""
    monkeypatch.setattr(
        augmentation, "_uniform", lambda images, limit: torch.full((len(images),), float(limit))
    )


def test_nothing_changes_where_everything_is_off(images: Tensor) -> None:
    assert torch.equal(augment(images, config()), images)


@pytest.mark.parametrize("also", [{}, {"shift": 1e-9}], ids=["alone", "with an affine transform"])
def test_flip_mirrors_some_images_exactly_and_leaves_the_others(
    images: Tensor, also: dict[str, float]
) -> None:
    batch = images.repeat(10, 1, 1, 1)
    with seeded(0, "flip"):
        found = augment(batch, config(flip=True, **also))
    kept = (found - batch).abs().amax(dim=(1, 2, 3)) < 1e-5
    mirrored = (found - batch.flip(-1)).abs().amax(dim=(1, 2, 3)) < 1e-5
    assert torch.all(kept ^ mirrored)
    assert 15 <= int(mirrored.sum()) <= 45  # of 60, fair coins


@pytest.mark.usefixtures("extreme")
def test_shift_by_whole_pixels_is_exact_and_black_comes_in(images: Tensor) -> None:
    found = augment(images, config(shift=2 / 8))
    expected = torch.zeros_like(images)
    expected[:, :, :-2, :-2] = images[:, :, 2:, 2:]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.usefixtures("extreme")
@pytest.mark.parametrize(("degrees", "quarters"), [(90, 1), (180, 2)])
def test_rotation_by_right_angles_is_exact(images: Tensor, degrees: int, quarters: int) -> None:
    found = augment(images, config(rotate=degrees))
    expected = np.rot90(images.numpy(), quarters, axes=(2, 3))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.usefixtures("extreme")
def test_zoom_magnifies_around_the_centre(images: Tensor) -> None:
    plateau = torch.zeros_like(images)
    plateau[:, :, 2:6, 2:6] = 1  # a square of half the side
    grown = augment(plateau, config(zoom=0.5))
    assert grown.sum() / plateau.sum() == pytest.approx(1.5**2, rel=0.05)
    torch.testing.assert_close(grown, grown.flip(-1), atol=1e-5, rtol=0)


@pytest.mark.usefixtures("extreme")
def test_jitter_scales_brightness_then_contrast(images: Tensor) -> None:
    found = augment(images, config(jitter=0.25))
    bright = images.double().numpy() * 1.25
    mean = bright.mean(axis=(1, 2, 3), keepdims=True)
    np.testing.assert_allclose(found, np.clip(mean + (bright - mean) * 1.25, 0, 1), atol=1e-5)


@pytest.mark.parametrize("knob", ["shift", "rotate", "zoom", "jitter"])
def test_every_image_gets_its_own_transform(images: Tensor, knob: str) -> None:
    alike = images[:1].repeat(8, 1, 1, 1)
    found = augment(alike, config(**{knob: EVERYTHING[knob]}))
    assert len(torch.unique(found, dim=0)) == 8


@pytest.mark.parametrize("name", ["zeros", "ones", "random"])
def test_values_stay_in_range(images: Tensor, name: str) -> None:
    batch = {"zeros": images * 0, "ones": images * 0 + 1, "random": images}[name]
    found = augment(batch.repeat(20, 1, 1, 1), config(**EVERYTHING))
    assert found.min() >= 0
    assert found.max() <= 1


def test_the_same_stream_gives_the_same_images_and_another_others(images: Tensor) -> None:
    def augmented(stream: int) -> Tensor:
        with seeded(0, "augment", stream):
            return augment(images, config(**EVERYTHING))

    assert torch.equal(augmented(1), augmented(1))
    assert not torch.equal(augmented(1), augmented(2))


def test_the_input_is_left_as_it_was(images: Tensor) -> None:
    before = images.clone()
    augment(images, config(**EVERYTHING))
    assert torch.equal(images, before)
