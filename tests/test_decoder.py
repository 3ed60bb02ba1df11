"""The decoder on toy images whose pixels are a function of the embedding."""

from __future__ import annotations

import numpy as np
import pytest

from vitdc.decoder import MAX_IMAGES, decode, fit_decoder, reconstruction_error


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
    decoder = fit_decoder(embedding[:80], images[:80], seed=0)
    mean = images[:80].mean(axis=0, dtype=np.float64) / 255
    baseline = np.square(images[80:] / 255 - mean).mean()
    assert reconstruction_error(decoder, embedding[80:], images[80:], seed=0) < 0.1 * baseline


def test_reconstruction_error_is_the_mean_squared_difference_of_the_decoded_pixels() -> None:
    embedding, images = toy()
    decoder = fit_decoder(embedding[:80], images[:80], seed=0)
    decoded = decode(decoder, embedding[80:]) / 255
    expected = np.square(decoded - images[80:] / 255).mean()
    error = reconstruction_error(decoder, embedding[80:], images[80:], seed=0)
    assert error == pytest.approx(expected, abs=1e-3)  # decoded pixels are rounded to 8 bits


def test_large_images_are_decoded_as_their_means_over_a_grid() -> None:
    embedding, images = toy(60, (64, 96, 3))
    decoder = fit_decoder(embedding, images, seed=0)
    small = images.reshape(60, 32, 2, 32, 3, 3).mean(axis=(2, 4)) / 255
    expected = np.square(decoder.pixels(embedding) - small).mean()
    assert reconstruction_error(decoder, embedding, images, seed=0) == pytest.approx(expected)
    assert expected < 0.01
    corners = np.abs(decode(decoder, embedding).astype(int) - images)[:, ::63, ::95]
    assert corners.mean() < 20  # of 255: bright corners stay bright


def test_same_seed_decodes_to_the_same_bytes_and_another_seed_samples_other_images() -> None:
    embedding, images = toy(MAX_IMAGES + 40, (2, 2, 1))
    first, second, other = (
        decode(fit_decoder(embedding, images, seed=seed), embedding) for seed in (1, 1, 2)
    )
    assert first.tobytes() == second.tobytes()
    assert first.tobytes() != other.tobytes()


def test_shift_and_scale_of_an_embedding_do_not_matter() -> None:
    embedding, images = toy(60)
    plain = decode(fit_decoder(embedding, images, seed=0), embedding)
    scaled = (embedding * 512 + 64).astype(np.float32)
    decoded = decode(fit_decoder(scaled, images, seed=0), scaled)
    assert np.abs(plain.astype(int) - decoded).max() <= 2


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_embeddings_that_are_all_equal_decode_to_the_mean_image(value: float) -> None:
    _, images = toy(40)
    equal = np.full((40, 3), value, np.float32)
    mean = images.mean(axis=0)
    assert np.abs(decode(fit_decoder(equal, images, seed=0), equal) - mean).max() <= 1


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 9, 3), (28, 28, 1), (33, 20, 3), (96, 96, 3)])
@pytest.mark.parametrize("num_images", [1, 2, 6])
def test_any_image_shape_is_decoded(shape: tuple[int, int, int], num_images: int) -> None:
    embedding, images = toy(num_images, shape)
    decoder = fit_decoder(embedding, images, seed=0)
    assert decode(decoder, embedding).shape == images.shape
    assert decode(decoder, embedding[:0]).shape == (0, *shape)
    error = reconstruction_error(decoder, embedding, images, seed=0)
    assert 0 <= error < 1
    assert error > 0 or num_images == 1  # which is decoded as it is
