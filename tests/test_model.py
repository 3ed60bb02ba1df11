"""The ViT: equations 1 to 4, its own preprocessing, checkpoints, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from toys import MODEL

from vitdc.artifacts import Checkpoint
from vitdc.config import ModelConfig
from vitdc.errors import InputError
from vitdc.model import DeepClusteringViT, build_model, images_to_tensor, load_model
from vitdc.seeding import seeded


def build(*, image_shape: tuple[int, int, int] = (8, 8, 1), **values: Any) -> DeepClusteringViT:
    config = ModelConfig(**{**MODEL.model_dump(), **values})
    channels = image_shape[2]
    with seeded(0, "weights"):
        model = build_model(
            config,
            image_shape=image_shape,
            num_outputs=3,
            mean=(0.4,) * channels,
            std=(0.2,) * channels,
        )
    return model.eval()


@pytest.fixture
def images() -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).random((5, 1, 8, 8))).float()


def patches_of(images: Tensor, side: int) -> Tensor:
    """(B, N, C * side^2) patches in reading order, each channel-first."""
    patches = functional.unfold(images, kernel_size=side, stride=side)
    return patches.transpose(1, 2)


# --- eq. 1 to 4 --------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "patch_size"), [(8, 4), (8, 2), (12, 4)])
def test_an_image_becomes_hw_by_p_squared_tokens_and_a_class_token(
    side: int, patch_size: int
) -> None:
    model = build(image_shape=(side, side, 1), patch_size=patch_size)
    tokens = model.vit.forward_features(torch.zeros(1, 1, side, side))
    assert tokens.shape == (1, side * side // patch_size**2 + 1, 16)


def test_the_input_is_eq_1(images: Tensor) -> None:
    vit = build().vit
    weight, bias = vit.patch_embed.proj.weight.flatten(1), vit.patch_embed.proj.bias
    projected = patches_of(images, 4) @ weight.T + bias
    class_token = vit.cls_token.expand(len(images), -1, -1)
    expected = torch.cat([class_token, projected], dim=1) + vit.pos_embed
    seen: list[Tensor] = []
    vit.blocks[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    vit.forward_features(images)
    torch.testing.assert_close(seen[0], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("pooling", ["token", "mean"])
def test_embedding_and_logits_are_eq_2_to_4(images: Tensor, pooling: str) -> None:
    model = build(pooling=pooling, normalize=False)
    vit = model.vit
    normalised = (images - 0.4) / 0.2
    tokens = vit._pos_embed(vit.patch_embed(normalised))
    for block in vit.blocks:  # eq. 2 and 3: pre-norm, residual
        tokens = tokens + block.attn(block.norm1(tokens))
        tokens = tokens + block.mlp(block.norm2(tokens))
    pooled = tokens[:, 0] if pooling == "token" else tokens[:, 1:].mean(dim=1)
    norm = vit.norm if pooling == "token" else vit.fc_norm
    representation = functional.layer_norm(pooled, (16,), norm.weight, norm.bias, eps=norm.eps)

    output = model(images)
    torch.testing.assert_close(output.embedding, representation, atol=1e-5, rtol=1e-4)
    expected = representation @ vit.head.weight.T + vit.head.bias
    torch.testing.assert_close(output.logits, expected, atol=1e-5, rtol=1e-4)


def test_normalized_embeddings_have_length_one_and_the_head_sees_them_unscaled(
    images: Tensor,
) -> None:
    plain, unit = build(normalize=False)(images), build(normalize=True)(images)
    lengths = plain.embedding.norm(dim=1, keepdim=True)
    assert (lengths - 1).abs().min() > 0.1
    torch.testing.assert_close(unit.embedding, plain.embedding / lengths)
    torch.testing.assert_close(unit.logits, plain.logits)


def test_drop_path_rises_from_the_first_layer_to_the_last_and_is_off_in_evaluation(
    images: Tensor,
) -> None:
    model = build(drop_path=0.4, depth=3)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in model.vit.blocks]
    assert rates == pytest.approx([0, 0.2, 0.4])
    assert torch.equal(model(images).embedding, model(images).embedding)


# --- preprocessing -----------------------------------------------------------------------------


@pytest.mark.parametrize("side", [4, 16])
def test_images_of_another_size_are_resized_in_the_model(images: Tensor, side: int) -> None:
    model = build(image_size=side)
    assert model.backbone.image_size == (side, side)
    resized = functional.interpolate(
        images, (side, side), mode="bilinear", antialias=True, align_corners=False
    )
    torch.testing.assert_close(model(images).embedding, model(resized).embedding)


def test_pixels_become_channel_first_floats_in_0_to_1() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 3), dtype=np.uint8)
    found = images_to_tensor(pixels, torch.device("cpu"))
    np.testing.assert_allclose(found, pixels.transpose(0, 3, 1, 2) / 255, rtol=1e-6)
    assert found.dtype == torch.float32


def test_reading_pixels_does_not_touch_the_array() -> None:
    pixels = np.full((1, 2, 2, 1), 255, np.uint8)
    pixels.flags.writeable = False
    images_to_tensor(pixels, torch.device("cpu")).zero_()
    assert pixels.min() == 255


# --- checkpoints and heads ---------------------------------------------------------------------


def test_a_checkpoint_gives_the_same_model_back(images: Tensor, tmp_path: Path) -> None:
    model = build(drop_path=0.1)
    config = {**MODEL.model_dump(), "drop_path": 0.1, "pretrained": "gone.safetensors"}
    description = Checkpoint(
        round=0,
        model=config,
        image_shape=(8, 8, 1),
        class_names=("a", "b", "c"),
        num_outputs=3,
        supervision="full",
        mean=(0.4,),
        std=(0.2,),
        history=[],
        path=tmp_path,
    )
    description.save(tmp_path / "c", model.state_dict(), {"step": "test"})
    loaded = load_model(Checkpoint.load(tmp_path / "c"))
    assert not loaded.training
    for found, expected in zip(loaded(images), model(images), strict=True):
        assert torch.equal(found, expected)


def test_only_a_head_of_another_width_is_replaced_and_the_seed_says_by_which() -> None:
    model, again = build(), build()
    kept = model.vit.head.weight.clone()
    model.set_num_outputs(3)
    assert torch.equal(model.vit.head.weight, kept)
    for each in (model, again):
        with seeded(0, "head"):
            each.set_num_outputs(5)
    assert model(torch.zeros(2, 1, 8, 8)).logits.shape == (2, 5)
    assert torch.equal(model.vit.head.weight, again.vit.head.weight)
    assert torch.equal(model.vit.head.bias, torch.zeros(5))


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "vit_tinny_patch16_224"}, "near are vit_tiny_patch16_224"),
        ({"name": "dinov3"}, "model.name: timm has no model called 'dinov3'"),
        (
            {"name": "vit_tiny_patch16_224.nonsense"},
            "model.name: .*nonsense.*; it has vit_tiny_patch16_224\\.",
        ),
        ({"patch_size": 3}, "3 does not divide the image side 8; these do: 1, 2, 4, 8"),
        ({"patch_size": None}, "16 does not divide the image side 8"),
        ({"image_size": 10}, "4 does not divide the image side 10"),
        ({"num_heads": 3}, "model.num_heads: 3 does not divide model.embed_dim 16"),
        ({"num_heads": 5, "embed_dim": None}, "divisible by num_heads"),
        (
            {"image_size": 224, "patch_size": 2},
            "2 cuts images of 224 x 224 pixels into 12544 tokens, .*; take 16 .196 tokens.,",
        ),
        ({"trainable": "last_3"}, "model.trainable: last_3, but .* has 2 blocks"),
    ],
)
def test_what_cannot_be_built_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        build(**values)
    assert "\n" not in str(caught.value)
