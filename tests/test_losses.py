"""The losses against a float64 computation written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional

from vitdc.config import JointConfig
from vitdc.losses import clustering_loss, cross_entropy_loss, one_hot_targets
from vitdc.model import Output
from vitdc.objectives import Anchors, Joint, Supervised, Views

Array = NDArray[np.float64]


def tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.asarray(values)).float()


def expected_cross_entropy(logits: Array, targets: Array, smoothing: float = 0.0) -> float:
    """Eq. 5 image by image; a target row sums to the known share of its image."""
    total = known = 0.0
    for row, target in zip(logits, targets, strict=True):
        log_probability = row - row.max() - np.log(np.exp(row - row.max()).sum())
        smooth = (1 - smoothing) * target + smoothing * target.sum() / len(target)
        total -= float(smooth @ log_probability)
        known += target.sum()
    return total / known if known else 0.0


def expected_clustering(embedding: Array, centroids: Array, mixing: Array) -> float:
    """Eq. 7 pair by pair."""
    size = len(embedding)
    squared = [
        mixing[i, j] * ((embedding[i] - centroids[j]) ** 2).sum()
        for i in range(size)
        for j in range(size)
    ]
    return sum(squared) / size


def toy_batch(seed: int, size: int) -> tuple[Array, np.ndarray, Array, Array]:
    """Logits (B, 3), labels (B,) with unknown ones, embeddings and centroids (B, 4)."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(-1, 3, size)
    logits, embedding, centroids = (
        generator.normal(size=shape) for shape in ((size, 3), (size, 4), (size, 4))
    )
    return logits, labels, embedding, centroids


def one_hot(labels: np.ndarray) -> Array:
    return np.eye(4)[labels][:, :3]  # -1 takes the last row, whose first three are zero


def joint_loss(
    logits: Array,
    labels: np.ndarray,
    embedding: torch.Tensor,
    anchors: Anchors | None,
    *,
    label_smoothing: float = 0.0,
    mixing: torch.Tensor | None = None,
    class_weights: str = "none",
) -> dict[str, torch.Tensor]:
    """The parts of the loss of one batch, of all images, by their names."""
    config = JointConfig(label_smoothing=label_smoothing, class_weights=class_weights)
    objective = Joint(Supervised(labels, config), anchors)
    views = Views(torch.zeros(len(labels), 1, 2, 2), np.arange(len(labels)), mixing)
    loss = objective.loss(Output(embedding, tensor(logits)), views)
    return dict(zip(objective.parts, loss, strict=True))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    size=st.integers(1, 6),
    gamma=st.floats(0, 10),
    smoothing=st.floats(0, 0.9),
    mixed=st.booleans(),
)
def test_joint_loss_is_eq_8_in_float64(
    seed: int, size: int, gamma: float, smoothing: float, mixed: bool
) -> None:
    logits, labels, embedding, centroids = toy_batch(seed, size)
    mixing = np.eye(size)
    if mixed:
        mixing = np.random.default_rng(seed).dirichlet(np.ones(size), size)
    cross_entropy = expected_cross_entropy(logits, mixing @ one_hot(labels), smoothing)
    clustering = expected_clustering(embedding, centroids, mixing)

    loss = joint_loss(
        logits,
        labels,
        tensor(embedding),
        Anchors(centroids.astype(np.float32), np.arange(size), gamma),
        label_smoothing=smoothing,
        mixing=tensor(mixing) if mixed else None,
    )

    assert loss["cross_entropy"].item() == pytest.approx(cross_entropy, rel=1e-4, abs=1e-5)
    assert loss["clustering_loss"].item() == pytest.approx(clustering, rel=1e-4, abs=1e-5)
    assert loss["loss"].item() == pytest.approx(cross_entropy + gamma * clustering, rel=1e-4)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_cross_entropy_equals_torchs_own_where_labels_are_unknown(smoothing: float) -> None:
    logits, labels, _, _ = toy_batch(seed=1, size=12)
    assert (labels == -1).any()
    known = torch.from_numpy(labels)
    expected = functional.cross_entropy(
        tensor(logits), known, ignore_index=-1, label_smoothing=smoothing
    )
    found = cross_entropy_loss(tensor(logits), one_hot_targets(known, 3), label_smoothing=smoothing)
    torch.testing.assert_close(found, expected)


def test_balanced_classes_weigh_as_scikit_learn_and_torch_have_it() -> None:
    labels = np.array([0] * 9 + [2] * 3 + [-1, 1])
    logits = np.random.default_rng(0).normal(size=(len(labels), 3))
    known = labels[labels >= 0]
    weights = compute_class_weight("balanced", classes=np.arange(3), y=known)
    expected = functional.cross_entropy(
        tensor(logits), torch.from_numpy(labels), weight=tensor(weights), ignore_index=-1
    )
    embedding = torch.zeros(len(labels), 4)
    loss = joint_loss(logits, labels, embedding, None, class_weights="balanced")
    torch.testing.assert_close(loss["cross_entropy"], expected)
    plain = joint_loss(logits, labels, embedding, None)["cross_entropy"]
    assert not torch.isclose(plain, expected)


def test_one_hot_targets_are_a_zero_row_where_the_label_is_unknown() -> None:
    targets = one_hot_targets(torch.tensor([2, -1, 0]), 3)
    assert targets.tolist() == [[0, 0, 1], [0, 0, 0], [1, 0, 0]]


def test_cross_entropy_and_its_gradient_are_zero_without_any_label() -> None:
    logits = torch.randn(4, 3, requires_grad=True)
    loss = cross_entropy_loss(logits, torch.zeros(4, 3), label_smoothing=0.1)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert logits.grad.eq(0).all()


def test_without_centroids_the_joint_loss_is_the_cross_entropy() -> None:
    logits, labels, embedding, _ = toy_batch(seed=2, size=5)
    loss = joint_loss(logits, labels, tensor(embedding), None)
    assert loss["loss"] == loss["cross_entropy"]
    assert loss["clustering_loss"] == 0


def test_gamma_zero_takes_the_clusters_out_of_the_gradient() -> None:
    logits, labels, embedding, centroids = toy_batch(seed=3, size=5)
    point = tensor(embedding).requires_grad_()
    anchors = Anchors(centroids.astype(np.float32), np.arange(5), gamma=0.0)
    loss = joint_loss(logits, labels, point, anchors)
    loss["loss"].backward()
    assert loss["clustering_loss"] > 0
    assert point.grad is not None
    assert point.grad.eq(0).all()


@pytest.mark.parametrize("mixed", [False, True])
def test_clustering_gradient_is_finite_at_the_centroid_and_right_elsewhere(mixed: bool) -> None:
    centroids = tensor(np.random.default_rng(0).normal(size=(4, 3)))
    offset = torch.tensor([0.0, 0.0, 0.5, -2.0])[:, None]
    embedding = (centroids + offset).requires_grad_()
    clustering_loss(embedding, centroids, torch.eye(4) if mixed else None).backward()
    # the derivative of mean ||z - mu||^2 is 2 (z - mu) / B
    torch.testing.assert_close(embedding.grad, (2 * offset / 4).expand(4, 3), atol=1e-5, rtol=1e-4)
