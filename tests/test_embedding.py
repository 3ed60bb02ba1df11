"""The streaming pass against one forward pass over everything."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toys import MODEL, toy_images

from vitdc.artifacts import SplitEmbeddings
from vitdc.embedding import embed_split
from vitdc.errors import TrainingError
from vitdc.model import DeepClusteringViT, build_model
from vitdc.seeding import seeded

LABELS = np.array([0, 1, 2, -1, 0, 1, -1])
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> DeepClusteringViT:
    with seeded(0):
        return build_model(
            MODEL.model_copy(update={"drop_path": 0.5}),
            image_shape=(8, 8, 1),
            num_outputs=3,
            mean=(0.4,),
            std=(0.2,),
        ).eval()


def empty(num_images: int) -> SplitEmbeddings:
    return SplitEmbeddings(
        embedding=np.full((num_images, 16), 7, np.float32),
        cross_entropy=np.full(num_images, 7, np.float32),
        predicted=np.full(num_images, 7, np.int64),
    )


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_batches_give_what_one_forward_pass_gives(
    model: DeepClusteringViT, batch_size: int
) -> None:
    images = toy_images(np.abs(LABELS))
    out = empty(len(LABELS))
    embed_split(model, images, LABELS, out, device=CPU, batch_size=batch_size)

    with torch.no_grad():
        embedding, logits = model(torch.from_numpy(images / 255).permute(0, 3, 1, 2).float())
    scores = logits.double().numpy()
    log_probability = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    expected = np.where(LABELS >= 0, -log_probability[np.arange(7), LABELS], np.nan)

    np.testing.assert_allclose(out.embedding, embedding, atol=1e-6)
    np.testing.assert_allclose(out.cross_entropy, expected, rtol=1e-4)
    np.testing.assert_array_equal(out.predicted, scores.argmax(axis=1))


def test_an_empty_split_is_passed_over(model: DeepClusteringViT) -> None:
    images, targets = np.zeros((0, 8, 8, 1), np.uint8), np.zeros(0, np.int64)
    embed_split(model, images, targets, empty(0), device=CPU, batch_size=4)


def test_without_a_head_there_is_neither_cross_entropy_nor_prediction() -> None:
    headless = build_model(MODEL, image_shape=(8, 8, 1), num_outputs=0, mean=(0.4,), std=(0.2,))
    images, out = toy_images(np.abs(LABELS)), empty(len(LABELS))
    embed_split(headless.eval(), images, LABELS, out, device=CPU, batch_size=4)
    assert np.isfinite(out.embedding).all()
    assert np.isnan(out.cross_entropy).all()
    assert (out.predicted == -1).all()


def test_a_model_that_gives_nan_stops_the_pass(model: DeepClusteringViT) -> None:
    with torch.no_grad():
        model.vit.head.weight[1] = torch.nan
    with pytest.raises(TrainingError, match="embed test: the model gives numbers"):
        embed_split(
            model,
            toy_images(np.abs(LABELS)),
            LABELS,
            empty(7),
            device=CPU,
            batch_size=4,
            description="embed test",
        )
