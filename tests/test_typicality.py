"""What is typical of a cluster, against NumPy in float64 and on images that are not."""

from __future__ import annotations

import functools
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import toys
from hypothesis import given
from hypothesis import strategies as st

from vitdc import steps
from vitdc.artifacts import Clustering, Dataset, SplitClustering
from vitdc.clustering import assign
from vitdc.config import Params
from vitdc.data.arrays import read_idx, resized
from vitdc.errors import InputError
from vitdc.prediction import UNSURE_RATE, Predictor, unsure_limit
from vitdc.typicality import (
    atypicality,
    describe,
    fit,
    leave_one_out,
    limit,
    most_typical,
    thumbnails,
)

FASHION = Path("/usr/share/datasets/fashion-mnist")


def blobs(num_images: int, *, side: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings in three clusters, noisy images, assignment."""
    random = np.random.default_rng(0)
    assignment = np.arange(num_images) % 3
    embedding = random.normal(size=(num_images, 5)) * [1, 0.1, 2, 1, 1] + assignment[:, None]
    images = random.integers(0, 256, (num_images, side, side, 1), dtype=np.uint8)
    return embedding.astype(np.float32), images, assignment


@pytest.mark.parametrize("chunk_size", [7, 1000])
def test_it_is_the_mahalanobis_distance_to_the_cluster(
    monkeypatch: pytest.MonkeyPatch, chunk_size: int
) -> None:
    monkeypatch.setattr("vitdc.typicality.CHUNK_SIZE", chunk_size)
    embedding, images, assignment = blobs(200)
    found = fit(embedding, images, assignment, num_clusters=3)

    x = np.concatenate([embedding, images.reshape(200, -1) / 255], axis=1).astype(np.float64)
    means = np.stack([x[assignment == cluster].mean(axis=0) for cluster in range(3)])
    deviation = x - means[assignment]
    covariance = deviation.T @ deviation / 200
    covariance[np.arange(5), np.arange(5)] += 1e-3 * np.diag(covariance)[:5].mean()
    covariance[np.arange(5, 21), np.arange(5, 21)] += (1 / 255) ** 2
    expected = np.sqrt(np.einsum("nd,de,ne->n", deviation, np.linalg.inv(covariance), deviation))

    np.testing.assert_allclose(found.mean, means, atol=1e-5)
    distances = atypicality(found, embedding, images, assignment)
    np.testing.assert_allclose(distances, expected, rtol=1e-4)


def test_an_image_is_of_the_cluster_it_is_most_typical_of() -> None:
    embedding, images, assignment = blobs(200)
    typicality = fit(embedding, images, assignment, num_clusters=3)
    every = [atypicality(typicality, embedding, images, np.full(200, c)) for c in range(3)]
    expected = np.argmin(every, axis=0)
    np.testing.assert_array_equal(most_typical(typicality, embedding, images), expected)
    centroids = np.stack([embedding[assignment == cluster].mean(axis=0) for cluster in range(3)])
    assert (assign(embedding, centroids)[0] != expected).any()


def test_large_images_are_described_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    embedding, images, assignment = blobs(40, side=6)
    expected = fit(embedding, images, assignment, num_clusters=3)
    distances = atypicality(expected, embedding, images, assignment)
    monkeypatch.setattr("vitdc.typicality.CHUNK_VALUES", 5 * 36 + 1)
    sizes = []

    def counting(images: np.ndarray) -> np.ndarray:
        sizes.append(len(images))
        return thumbnails(images)

    monkeypatch.setattr("vitdc.typicality.thumbnails", counting)
    found = fit(embedding, images, assignment, num_clusters=3)
    again = atypicality(expected, embedding, images, assignment)
    assert set(sizes) == {1, 5}  # one to learn the length of a description
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-6)
    np.testing.assert_allclose(found.whitening, expected.whitening, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(again, distances, rtol=1e-5)
    monkeypatch.setattr("vitdc.typicality.CHUNK_VALUES", 1)  # not even one
    np.testing.assert_allclose(
        atypicality(expected, embedding, images, assignment), distances, rtol=1e-5
    )


def test_leaving_an_image_out_is_fitting_without_it() -> None:
    embedding, images, assignment = blobs(40)
    found = fit(embedding, images, assignment, num_clusters=3)
    left_out = leave_one_out(atypicality(found, embedding, images, assignment), assignment)
    for index in range(5):
        others, one = np.arange(40) != index, slice(index, index + 1)
        without = fit(embedding[others], images[others], assignment[others], num_clusters=3)
        expected = atypicality(without, embedding[one], images[one], assignment[one])
        np.testing.assert_allclose(left_out[index], expected, rtol=5e-3)  # the ridge


def test_an_image_alone_in_its_cluster_is_typical_of_nothing() -> None:
    assert leave_one_out(np.ones(4, "f4"), np.array([0, 1, 1, 1])).tolist()[0] == math.inf


def test_the_scale_of_the_embedding_does_not_matter() -> None:
    embedding, images, assignment = blobs(100)
    distances = [
        atypicality(fit(z, images, assignment, num_clusters=3), z, images, assignment)
        for z in (embedding, 1000 * embedding)
    ]
    np.testing.assert_allclose(*distances, rtol=1e-3)


@pytest.mark.parametrize("side", [1, 5, 8, 16, 28, 30])
def test_a_thumbnail_is_the_mean_over_equal_areas(side: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, side, side, 3), dtype=np.uint8)
    small = min(side, 8)
    fine = np.kron(images, np.ones((1, small, small, 1)))  # every pixel `small` x `small` times
    expected = fine.reshape(3, small, side, small, side, 3).mean(axis=(2, 4)) / 255
    np.testing.assert_allclose(thumbnails(images), expected, atol=1e-6)


def test_a_description_is_the_embedding_and_the_thumbnail() -> None:
    embedding, images, _ = blobs(4, side=16)
    found = describe(embedding, images)
    assert found.shape == (4, 5 + 64)
    np.testing.assert_array_equal(found[:, :5], embedding)


def test_a_cluster_without_images_is_typical_of_nothing_in_particular() -> None:
    embedding, images, assignment = blobs(30)
    found = fit(embedding, images, assignment, num_clusters=4)
    np.testing.assert_allclose(found.mean[3], describe(embedding, images).mean(axis=0), atol=1e-6)


def test_constant_images_and_embeddings_are_no_division_by_zero() -> None:
    embedding, images = np.ones((9, 5), np.float32), np.full((9, 4, 4, 1), 7, np.uint8)
    found = fit(embedding, images, np.zeros(9, int), num_clusters=1)
    assert atypicality(found, embedding, images, np.zeros(9, int)).max() < 0.1
    brighter = atypicality(found, embedding, images + 100, np.zeros(9, int))
    assert brighter.min() > 100


@given(st.integers(1, 300), st.floats(0.01, 0.99), st.integers(0, 2**32 - 1))
def test_a_further_image_exceeds_the_limit_no_more_often_than_allowed(
    num_values: int, rate: float, seed: int
) -> None:
    values = np.random.default_rng(seed).permutation(num_values).astype(float)
    found = limit(values, rate=rate)
    # its rank among all num_values + 1 is uniform
    above = (values > found).sum() if math.isfinite(found) else 0
    assert (above + (found < math.inf)) / (num_values + 1) <= rate + 1e-9
    if math.isfinite(found):
        assert (above + 2) / (num_values + 1) > rate - 1e-9  # the next lower one is too low


def test_too_few_values_for_the_rate_give_no_limit() -> None:
    assert limit(np.arange(18.0), rate=0.05) == math.inf
    assert limit(np.arange(19.0), rate=0.05) == 18


# --- what `unsure` makes of it --------------------------------------------------------------------


def strange(images: np.ndarray) -> dict[str, np.ndarray]:
    """Images unlike the toys' bright squares in dark noise."""
    random = np.random.default_rng(0)
    return {
        "noise": random.integers(0, 256, images.shape, dtype=np.uint8),
        "inverted": 255 - images,
        "black": np.zeros_like(images),
        "white": np.full_like(images, 255),
        "shuffled": random.permuted(images.reshape(len(images), -1), axis=1).reshape(images.shape),
    }


@pytest.fixture(scope="module")
def predictor(toy_run: toys.ToyRun) -> Predictor:
    return Predictor.load(toy_run.results, toys.COMPUTE)


@pytest.mark.parametrize("kind", ["noise", "inverted", "black", "white", "shuffled"])
def test_images_unlike_anything_in_training_are_unsure(predictor: Predictor, kind: str) -> None:
    images = toys.toy_images(np.arange(30) % 3, seed=99)
    assert predictor.predict(strange(images)[kind]).unsure.all()


def test_a_lower_rate_calls_fewer_images_unsure(toy_run: toys.ToyRun) -> None:
    images = toys.toy_images(np.arange(300) % 3, seed=99)
    shares = [
        Predictor.load(toy_run.results, toys.COMPUTE, unsure_rate=rate)
        .predict(images)
        .unsure.mean()
        for rate in (0.03, 0.2, 0.6)
    ]
    assert shares == sorted(set(shares))


def split_of(atypicality: np.ndarray) -> SplitClustering:
    zeros = np.zeros(len(atypicality))
    return SplitClustering(zeros.astype(np.int64), zeros, atypicality)


def test_a_rate_is_kept_by_as_many_images_as_it_needs_or_refused(
    toy_run: toys.ToyRun, caplog: pytest.LogCaptureFixture
) -> None:
    def found(num_train: int, num_test: int, rate: float | None = None) -> float:
        own = Clustering.load(toy_run.results / "model" / "clustering")
        train, test = np.arange(num_train) + 1.0, np.arange(num_test) + 10_001.0
        return unsure_limit(replace(own, train=split_of(train), test=split_of(test)), rate=rate)

    close = functools.partial(pytest.approx, rel=2e-5)
    assert found(5000, 100) == close(10_000 + 96)  # those that were held out
    assert found(5000, 99) == close(4751)
    assert found(5000, 999, rate=0.001) == close(10_000 + 999)
    assert found(5000, 998, rate=0.001) == close(4996)
    assert not caplog.records
    with pytest.raises(
        InputError, match=r"unsure: 900 images of the run are too few for a rate of 0\.001; ask for"
        r" 0\.0012 or more$",
    ):  # fmt: skip
        found(900, 300, rate=0.001)
    assert found(900, 300, rate=0.0012) == close(900)
    assert found(10, 5) == math.inf
    assert [record.getMessage() for record in caplog.records] == [
        "unsure: 10 images of the run are too few for a rate of 0.05, so no image is called unsure"
    ]


@pytest.mark.skipif(
    not FASHION.exists() and "CI" not in os.environ,
    reason="needs Debian's package dataset-fashion-mnist",
)
def test_a_digits_model_is_unsure_of_clothes(tmp_path: Path) -> None:
    """A short training: `benchmarks/unsure.py` measures the default one."""
    params = Params.load(
        Path(__file__).parents[1] / "params.yaml", ["pretraining.epochs=6", "joint.epochs=2"]
    )
    shared = {"dataset": tmp_path / "dataset", "compute": params.compute, "seed": 0}
    steps.prepare(data=params.data, output=tmp_path / "dataset")
    checkpoint, embeddings, model = (
        tmp_path / name for name in ("model/checkpoint", "embeddings", "model")
    )
    steps.pretrain(**shared, model=params.model, pretraining=params.pretraining, output=checkpoint)
    unseeded = {key: value for key, value in shared.items() if key != "seed"}
    steps.embed(**unseeded, checkpoint=checkpoint, output=embeddings)
    steps.cluster(
        **shared,
        embeddings=embeddings,
        clustering=params.clustering,
        output=model / "clustering",
    )
    predictor = Predictor.load(model, params.compute)
    clothes = read_idx(FASHION / "t10k-images-idx3-ubyte.gz", "images-idx3")[:1000, ..., None]
    assert predictor.predict(resized(clothes, (8, 8, 1), params.data)).unsure.mean() > 0.6
    digits = Dataset.load(tmp_path / "dataset").test.images
    held_out = predictor.clustering.test.atypicality
    half = limit(held_out[::2], rate=UNSURE_RATE)  # the other half has no part in it
    assert 0.01 < np.mean(held_out[1::2] > half) < 0.1
    assert predictor.predict(digits).unsure.mean() <= UNSURE_RATE
    for kind, images in strange(digits).items():
        assert predictor.predict(images).unsure.mean() > 0.95, kind
