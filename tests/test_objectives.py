"""Objectives against float64 computations written out by hand, and what the initial one is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from toys import COMPUTE, MODEL, from_call, interrupt, toy_images

from vitdc.artifacts import Supervision
from vitdc.config import SelfSupervisedConfig
from vitdc.errors import InputError
from vitdc.model import DeepClusteringViT, Output, build_model
from vitdc.objectives import (
    Anchors,
    Joint,
    SelfSupervised,
    Views,
    choose_initial,
    neighbours,
    pixel_neighbours,
    pseudo_labels,
    self_supervised,
)
from vitdc.objectives.initial import Asked
from vitdc.objectives.self_supervised import Name
from vitdc.seeding import seeded
from vitdc.training import train

Array = NDArray[np.float64]
LABELS = np.arange(33) % 3  # two batches of 16, and a rest of one image
CONFIG = SelfSupervisedConfig(
    epochs=3, batch_size=16, learning_rate=3e-3, shift=0.1, jitter=0.1, projector_dim=8
)


def objective(
    name: Name,
    config: SelfSupervisedConfig = CONFIG,
    *,
    num_images: int = 33,
    num_neighbours: int = 2,
) -> SelfSupervised:
    neighbours = pixel_neighbours(toy_images(LABELS[:num_images]), num_neighbours, seed=0)
    with seeded(0, "projector"):
        return SelfSupervised(name, config, neighbours=neighbours, embedding_dim=16)


def fresh_model() -> DeepClusteringViT:
    with seeded(0, "weights"):
        return build_model(MODEL, image_shape=(8, 8, 1), num_outputs=0, mean=(0.4,), std=(0.2,))


# --- self-supervision --------------------------------------------------------------------------


def expected_simclr(one: Array, other: Array, temperature: float) -> float:
    """NT-Xent, view by view: the own other view against all views but itself."""
    views = np.concatenate([one, other])
    views /= np.linalg.norm(views, axis=1, keepdims=True)
    similarity = views @ views.T / temperature
    size = len(one)
    total = 0.0
    for i in range(2 * size):
        others = np.delete(similarity[i], i)
        total -= similarity[i, (i + size) % (2 * size)] - np.log(np.exp(others).sum())
    return total / (2 * size)


def expected_vicreg(one: Array, other: Array) -> float:
    """25 invariance + 25 variance + covariance, with the means of the paper."""
    dim = one.shape[1]
    loss = 25 * np.square(one - other).mean()
    for view in (one, other):
        deviation = np.sqrt(view.var(axis=0, ddof=1) + 1e-4)
        loss += 25 * np.maximum(0, 1 - deviation).mean() / 2
        covariance = np.cov(view.T)
        loss += (np.square(covariance).sum() - np.square(np.diag(covariance)).sum()) / dim
    return float(loss)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**16), size=st.integers(2, 9), temperature=st.floats(0.1, 2))
def test_the_losses_are_those_of_the_papers(seed: int, size: int, temperature: float) -> None:
    config = CONFIG.model_copy(update={"temperature": temperature})
    embedding = np.random.default_rng(seed).normal(size=(2 * size, 16))
    output = Output(torch.from_numpy(embedding).float(), torch.zeros(2 * size, 0))
    views = Views(torch.zeros(2 * size, 1, 2, 2), np.arange(size))
    for name in ("simclr", "vicreg"):
        found = objective(name, config)
        with torch.no_grad():
            projected = found.module(output.embedding).double().numpy()
            (loss,) = found.loss(output, views)
        one, other = projected[:size], projected[size:]
        expected = (
            expected_simclr(one, other, temperature)
            if name == "simclr"
            else expected_vicreg(one, other)
        )
        assert loss.item() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("num_neighbours", [0, 3])
def test_a_batch_shows_every_image_and_a_partner(num_neighbours: int) -> None:
    found = objective("simclr", num_neighbours=num_neighbours)
    neighbours = pixel_neighbours(toy_images(LABELS), num_neighbours, seed=0)
    batch = np.array([30, 4, 7, 11])
    with seeded(1):
        drawn = np.array([found.shown(batch) for _ in range(100)])  # (100, 2 * 4)
    assert (drawn[:, :4] == batch).all()
    for image, partners in zip(batch, drawn[:, 4:].T, strict=True):
        assert set(partners) == (set(neighbours[image]) if num_neighbours else {image})


def test_two_views_of_an_image_differ() -> None:
    images = torch.from_numpy(toy_images(LABELS) / 255).permute(0, 3, 1, 2).float()
    found = objective("simclr", num_neighbours=0)
    rows = found.shown(np.arange(33))
    views = found.views(images[rows], rows)
    np.testing.assert_array_equal(views.rows, rows)
    one, other = views.images.chunk(2)
    assert one.shape == other.shape == images.shape
    assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_view_is_pulled_to_the_centroid_of_the_image_that_it_shows() -> None:
    found = objective("simclr")
    anchors = Anchors(np.eye(3, 16, dtype=np.float32), np.arange(33) % 3, gamma=2.0)
    rows = found.shown(np.array([5, 6, 7]))
    embedding = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    views = Views(torch.zeros(6, 1, 8, 8), rows)
    loss, own, clustering = Joint(found, anchors).loss(Output(embedding, torch.zeros(6, 0)), views)
    squared = np.square(embedding.double().numpy() - anchors.centroids[rows % 3]).sum(axis=1)
    assert clustering.item() == pytest.approx(squared.mean(), rel=1e-6)
    assert loss.item() == pytest.approx(own.item() + 2 * squared.mean(), rel=1e-6)


@pytest.mark.parametrize("name", ["simclr", "vicreg"])
@pytest.mark.parametrize("anchored", [False, True])
def test_the_loss_falls_on_the_toy(name: Name, anchored: bool) -> None:
    config = CONFIG.model_copy(update={"epochs": 15, "learning_rate": 1e-2})
    history = run(name, config, anchored=anchored)[1]
    assert history[-1][name] < 0.9 * history[0][name]
    assert list(history[0]) == ["epoch", "loss", name, "clustering_loss", "learning_rate"]
    for row in history:
        assert row["loss"] == pytest.approx(row[name] + 0.5 * row["clustering_loss"], rel=1e-6)
    if anchored:
        assert history[-1]["clustering_loss"] < 0.9 * history[0]["clustering_loss"]


def run(
    name: Name,
    config: SelfSupervisedConfig = CONFIG,
    *,
    anchored: bool = False,
    scratch: Path | None = None,
) -> tuple[DeepClusteringViT, list[dict[str, float]]]:
    model = fresh_model()
    anchors = Anchors(np.eye(3, 16, dtype=np.float32), LABELS, gamma=0.5) if anchored else None
    history = train(
        model,
        toy_images(LABELS),
        Joint(objective(name, config), anchors),
        config,
        compute=COMPUTE,
        seed=0,
        stream=("pretrain", 0),
        scratch=scratch,
    )
    return model, history


@pytest.mark.parametrize("call", [2, 3, 6], ids=lambda call: f"step {call}")
@pytest.mark.parametrize("name", ["simclr", "vicreg"])
def test_interrupted_self_supervision_resumes_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: Name, call: int
) -> None:
    undisturbed, expected = run(name)
    with monkeypatch.context() as patch:
        stopping = from_call(call, use=interrupt, before=self_supervised.augment)
        patch.setattr(self_supervised, "augment", stopping)
        with pytest.raises(KeyboardInterrupt):
            run(name, scratch=tmp_path / "state")
    model, history = run(name, scratch=tmp_path / "state")
    assert history == expected
    for found, tensor in zip(model.parameters(), undisturbed.parameters(), strict=True):
        assert torch.equal(found, tensor)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(InputError, match="there is only 1"):
        objective("simclr", num_images=1)
    with pytest.raises(InputError, match=r"pretraining\.self_supervised\.batch_size: 1"):
        objective("vicreg", CONFIG.model_copy(update={"batch_size": 1}))


# --- neighbours --------------------------------------------------------------------------------


def expected_neighbours(images: np.ndarray, number: int) -> np.ndarray:
    """Image by image, in float64; all components, which these few pixels have."""
    pixels = images.reshape(len(images), -1).astype(np.float64)
    pixels -= pixels.mean(axis=0)
    pixels /= np.linalg.norm(pixels, axis=1, keepdims=True)
    distance = np.linalg.norm(pixels[:, None] - pixels[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    return np.argsort(distance, axis=1)[:, :number]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**16), size=st.integers(2, 40), number=st.integers(1, 6))
def test_neighbours_are_the_nearest_other_images(seed: int, size: int, number: int) -> None:
    images = np.random.default_rng(seed).integers(0, 256, (size, 4, 3, 2)).astype(np.uint8)
    found = pixel_neighbours(images, number, seed=seed)
    if size > 2:  # of two images, each is as far from their mean
        np.testing.assert_array_equal(found, expected_neighbours(images, min(number, size - 1)))
    assert found.shape == (size, min(number, size - 1))


@pytest.mark.parametrize("size", [1, 2, 30])
def test_equal_images_are_neighbours_of_each_other_and_none_of_itself(size: int) -> None:
    found = pixel_neighbours(np.full((size, 4, 4, 1), 7, np.uint8), 5, seed=0)
    assert found.shape == (size, min(5, size - 1))
    assert not (found == np.arange(size)[:, None]).any()


def test_components_of_a_sample_and_of_chunks_find_the_same_neighbours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = toy_images(np.arange(60) % 3)
    expected = pixel_neighbours(images, 5, seed=0)
    monkeypatch.setattr(neighbours, "CHUNK_VALUES", 64 * 7)
    np.testing.assert_array_equal(pixel_neighbours(images, 5, seed=0), expected)
    monkeypatch.setattr(neighbours, "SAMPLE_IMAGES", 40)
    sampled = pixel_neighbours(images, 5, seed=0)
    np.testing.assert_array_equal(pixel_neighbours(images, 5, seed=0), sampled)
    assert (sampled % 3 == np.arange(60)[:, None] % 3).all()  # of the same class, as they are


# --- pseudo-labels -----------------------------------------------------------------------------


@st.composite
def clusterings(draw: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, clusters and distances of a few images."""
    size = draw(st.integers(1, 40))
    generator = np.random.default_rng(draw(st.integers(0, 2**16)))
    distance = generator.choice([0.1, 0.2, 0.3, 0.4], size)  # many are equal
    return generator.integers(-1, 3, size), generator.integers(0, 4, size), distance


@given(clusterings(), st.floats(0.01, 1))
def test_targets_are_labels_and_else_the_clusters_of_the_nearest_images(
    given_images: tuple[np.ndarray, np.ndarray, np.ndarray], confident: float
) -> None:
    labels, assignment, distance = given_images
    targets = pseudo_labels(labels, assignment, distance, confident=confident)
    known = labels >= 0
    np.testing.assert_array_equal(targets[known], labels[known])
    assert set(targets[~known] - assignment[~known]) <= {0, *(-1 - np.arange(4))}
    for cluster in range(4):
        members = ~known & (assignment == cluster)
        chosen = members & (targets >= 0)
        assert (targets[chosen] == cluster).all()
        assert chosen.sum() == int(np.ceil(confident * members.sum()))
        if chosen.any() and (members & ~chosen).any():
            assert distance[chosen].max() <= distance[members & ~chosen].min()


def test_all_clusters_are_targets_where_every_image_is_confident() -> None:
    labels, assignment = np.array([2, -1, -1]), np.array([0, 1, 0])
    targets = pseudo_labels(labels, assignment, np.ones(3), confident=1.0)
    assert targets.tolist() == [2, 1, 0]
    assert labels.tolist() == [2, -1, -1]


# --- the initial objective ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "supervision", "is_pretrained", "expected"),
    [
        ("auto", "full", False, "supervised"),
        ("auto", "full", True, "supervised"),
        ("auto", "partial", False, "simclr"),
        ("auto", "partial", True, "supervised"),
        ("auto", "none", False, "simclr"),
        ("auto", "none", True, None),
        ("vicreg", "none", True, "vicreg"),
        ("vicreg", "full", False, "vicreg"),
        ("supervised", "partial", True, "supervised"),
    ],
)
def test_the_initial_objective_follows_the_labels(
    asked: Asked, supervision: Supervision, is_pretrained: bool, expected: str | None
) -> None:
    choice = choose_initial(asked, supervision=supervision, is_pretrained=is_pretrained)
    assert choice.objective == expected
    assert choice.reason


def test_some_labels_train_an_adapter_at_once() -> None:
    choice = choose_initial("auto", supervision="partial", is_pretrained=False, trainable="head")
    assert choice.objective == "supervised"


def test_supervised_training_without_labels_is_refused() -> None:
    with pytest.raises(InputError, match="no label may be trained on"):
        choose_initial("supervised", supervision="none", is_pretrained=False)
