"""New images in, clusters out: the same as the run itself found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toys

from vitdc.artifacts import Clustering, Dataset
from vitdc.errors import InputError
from vitdc.prediction import Prediction, Predictor, find_model_directory
from vitdc.typicality import most_typical


@pytest.fixture(scope="module")
def predictor(toy_run: toys.ToyRun) -> Predictor:
    return Predictor.load(toy_run.results, toys.COMPUTE)


def test_a_model_repeats_the_clusters_of_its_run(
    toy_run: toys.ToyRun, predictor: Predictor
) -> None:
    images = Dataset.load(toy_run.dataset)
    found = Clustering.load(toy_run.results / "model" / "clustering")
    for split in ("train", "test"):
        prediction = predictor.predict(images.split(split).images)
        np.testing.assert_array_equal(prediction.cluster, found.split(split).assignment)
        np.testing.assert_allclose(
            prediction.distance, found.split(split).distance, rtol=1e-5, atol=1e-6
        )


def test_both_distances_are_those_of_numpy(predictor: Predictor) -> None:
    random = np.random.default_rng(0)
    embedding = random.normal(size=(50, predictor.clustering.centroids.shape[1])).astype("f4")
    prediction = predictor.assign(embedding, np.zeros((50, *predictor.image_shape), np.uint8))
    centroids = predictor.clustering.centroids.astype(np.float64)
    distances = np.sort(np.linalg.norm(embedding[:, None] - centroids, axis=2), axis=1)
    np.testing.assert_allclose(prediction.distance, distances[:, 0], rtol=1e-5)
    np.testing.assert_allclose(prediction.second_distance, distances[:, 1], rtol=1e-5)
    expected = (distances[:, 1] - distances[:, 0]) / distances[:, 1]
    np.testing.assert_allclose(prediction.margin, expected, rtol=1e-4, atol=1e-6)


def test_what_is_most_typical_of_another_cluster_than_the_nearest_has_no_margin(
    predictor: Predictor,
) -> None:
    found = predictor.clustering
    found = replace(found, config={**found.config, "space": "manifold"})
    random = np.random.default_rng(0)
    embedding = random.normal(size=(50, found.centroids.shape[1])).astype("f4")
    images = random.integers(0, 256, (50, *predictor.image_shape), dtype=np.uint8)
    prediction = replace(predictor, clustering=found).assign(embedding, images)
    np.testing.assert_array_equal(
        prediction.cluster, most_typical(found.typicality, embedding, images)
    )
    distances = np.linalg.norm(embedding[:, None] - found.centroids.astype(np.float64), axis=2)
    np.testing.assert_allclose(
        prediction.distance, distances[np.arange(50), prediction.cluster], rtol=1e-5
    )
    elsewhere = prediction.cluster != distances.argmin(axis=1)
    assert 0 < elsewhere.sum() < 50
    np.testing.assert_array_equal(prediction.margin > 0, ~elsewhere)


def test_the_nearest_centroids_are_sought_with_the_threads_that_were_asked_for(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    import faiss

    used = []

    class Watched(faiss.IndexFlatL2):  # type: ignore[misc]
        def search(self, *arguments: Any) -> Any:
            used.append(faiss.omp_get_max_threads())
            return super().search(*arguments)

    monkeypatch.setattr(faiss, "IndexFlatL2", Watched)
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(before + 1)
    predictor.predict(np.zeros((2, *predictor.image_shape), np.uint8))
    assert used == [1]
    assert faiss.omp_get_max_threads() == before + 1
    faiss.omp_set_num_threads(before)


def test_the_margin_is_defined_at_its_ends() -> None:
    first, second = np.array([0, 1, 0, 1], "f4"), np.array([2, 1, 0, np.inf], "f4")
    prediction = Prediction(np.zeros(4, int), first, second, np.zeros(4, bool))
    assert prediction.margin.tolist() == [1, 0, 0, 1]


def test_no_images_are_no_clusters(predictor: Predictor) -> None:
    prediction = predictor.predict(np.zeros((0, *predictor.image_shape), np.uint8))
    assert len(prediction.cluster) == len(prediction.margin) == 0


@pytest.mark.parametrize("images", [np.zeros((2, 9, 8, 1), "u1"), np.zeros((2, 8, 8, 1), "f4")])
def test_other_images_are_refused(predictor: Predictor, images: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"the model takes \(N, 8, 8, 1\) uint8"):
        predictor.predict(images)


def test_a_model_is_found_in_results_and_by_itself(toy_run: toys.ToyRun, tmp_path: Path) -> None:
    model = toy_run.results / "model"
    assert find_model_directory(toy_run.results) == find_model_directory(model) == model
    with pytest.raises(InputError, match="no model here; name a results directory"):
        find_model_directory(tmp_path)
