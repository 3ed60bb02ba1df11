"""The decoder on toy images whose pixels are a function of the embedding."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vitdc.decoder import decode, reconstruction_error, train_decoder


def toy(
    num_images: int = 120, shape: tuple[int, int, int] = (8, 8, 1), seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Bright squares at one of four corners; the embedding says which, with noise."""
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 4, num_images)
    images = rng.integers(0, 30, (num_images, *shape), dtype=np.uint8)
    height, width, _ = shape
    for image, place in zip(images, corner, strict=True):
        top, left = divmod(int(place), 2)
        rows = slice(top * height // 2, (top + 1) * height // 2)
        image[rows, left * width // 2 : (left + 1) * width // 2] = 220
    embedding = np.eye(4)[corner] + 0.05 * rng.standard_normal((num_images, 4))
    return embedding.astype(np.float32), images


def test_decoder_beats_predicting_the_mean_image_on_held_out_images() -> None:
    embedding, images = toy()
    decoder = train_decoder(embedding[:80], images[:80], steps=60, seed=0)
    mean = images[:80].mean(axis=0, dtype=np.float64) / 255
    baseline = np.square(images[80:] / 255 - mean).mean()
    assert reconstruction_error(decoder, embedding[80:], images[80:]) < 0.3 * baseline


def test_reconstruction_error_is_the_mean_squared_difference_of_the_decoded_pixels() -> None:
    embedding, images = toy()
    decoder = train_decoder(embedding, images, steps=5, seed=0)
    decoded = decode(decoder, embedding) / 255
    expected = np.square(decoded - images / 255).mean()
    error = reconstruction_error(decoder, embedding, images)
    assert error == pytest.approx(expected, abs=1e-3)  # decoded pixels are rounded to 8 bits


def test_same_seed_decodes_to_the_same_bytes_and_another_seed_to_others() -> None:
    embedding, images = toy(40)
    first, second, other = (
        decode(train_decoder(embedding, images, steps=4, seed=seed), embedding)
        for seed in (1, 1, 2)
    )
    assert first.tobytes() == second.tobytes()
    assert first.tobytes() != other.tobytes()


def test_shift_and_scale_of_an_embedding_do_not_matter() -> None:
    embedding, images = toy(60)
    plain = decode(train_decoder(embedding, images, steps=8, seed=0), embedding)
    scaled = (embedding * 512 + 64).astype(np.float32)
    decoded = decode(train_decoder(scaled, images, steps=8, seed=0), scaled)
    assert np.abs(plain.astype(int) - decoded).max() <= 2


def test_a_dimension_that_never_varies_does_no_harm() -> None:
    embedding, images = toy(40)
    padded = np.hstack([embedding, np.full((40, 2), 7, dtype=np.float32)])
    decoder = train_decoder(padded, images, steps=4, seed=0)
    assert np.isfinite(reconstruction_error(decoder, padded, images))


def test_global_random_state_is_untouched() -> None:
    embedding, images = toy(20)
    before = torch.random.get_rng_state()
    train_decoder(embedding, images, steps=2, seed=3)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 9, 3), (28, 28, 1), (33, 20, 3), (96, 96, 3)])
def test_any_image_shape_is_decoded(shape: tuple[int, int, int]) -> None:
    embedding, images = toy(6, shape)
    decoder = train_decoder(embedding, images, steps=1, seed=0)
    assert decode(decoder, embedding).shape == images.shape
    assert decode(decoder, embedding[:0]).shape == (0, *shape)
    assert 0 < reconstruction_error(decoder, embedding, images) < 1
