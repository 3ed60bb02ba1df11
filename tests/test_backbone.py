"""Backbones of several timm classes: what they take, what they give, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from vitdc.artifacts import Checkpoint
from vitdc.backbone import backbone_of, check_backbone, fresh_backbone
from vitdc.config import ModelConfig
from vitdc.errors import InputError
from vitdc.model import DeepClusteringViT, build_model, load_model
from vitdc.seeding import seeded

TINY: dict[str, dict[str, Any]] = {  # of a class each, as small as timm lets them be
    "vit_small_patch14_reg4_dinov2": {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2},
    "vit_small_patch16_dinov3": {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2},
    "eva02_base_patch16_clip_224": {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2},
    "vit_base_patch16_siglip_224": {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2},
    "vit_pe_core_tiny_patch16_384": {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2},
    "test_convnext": {},
    "test_resnet": {},
}


def build(name: str, *, image_size: int = 32, **values: Any) -> DeepClusteringViT:
    with seeded(0, "weights"):
        return build_model(
            ModelConfig(name=name, image_size=image_size, **{**TINY.get(name, {}), **values}),
            image_shape=(16, 16, 3),
            num_outputs=3,
            mean=(0.4,) * 3,
            std=(0.2,) * 3,
        ).eval()


@pytest.mark.parametrize("name", TINY)
def test_any_class_gives_an_embedding_and_logits_and_comes_back_from_its_checkpoint(
    name: str, tmp_path: Path
) -> None:
    model, images = build(name), torch.rand(2, 3, 16, 16)
    embedding, logits = model(images)
    assert embedding.shape == (2, model.embedding_dim)
    assert logits.shape == (2, 3)
    assert not torch.equal(embedding[0], embedding[1])
    described = Checkpoint(
        round=0,
        model=ModelConfig(name=name).model_dump(),
        image_shape=(16, 16, 3),
        class_names=("a", "b", "c"),
        num_outputs=3,
        supervision="full",
        mean=model.backbone.mean,
        std=model.backbone.std,
        history=[],
        path=tmp_path,
        backbone=model.backbone.described(),
    )
    described.save(tmp_path / "c", model.state_dict(), {"step": "test"})
    loaded = load_model(Checkpoint.load(tmp_path / "c"))
    assert loaded.backbone == model.backbone
    assert torch.equal(loaded(images).embedding, embedding)


def test_a_checkpoint_of_an_older_vitdc_says_its_backbone_by_its_configuration(
    tmp_path: Path,
) -> None:
    config = {"name": "vit_tiny_patch16_224", "patch_size": 4, "pooling": "mean", "drop_path": 0.0}
    older = Checkpoint(
        round=0,
        model={**config, "pretrained": True, "normalize": True},
        image_shape=(8, 8, 1),
        class_names=(),
        num_outputs=0,
        supervision="none",
        mean=(0.4,),
        std=(0.2,),
        history=[],
        path=tmp_path,
    )
    found = backbone_of(older)
    assert (found.name, found.image_size) == ("vit_tiny_patch16_224", (8, 8))
    assert found.arguments["global_pool"] == "avg"
    assert older.trainable == "all"


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("test_resnet", {"embed_dim": 16}, "model.embed_dim: test_resnet cannot be changed in it"),
        ("test_convnext", {"depth": 2}, "model.depth: test_convnext cannot be changed in it"),
        ("test_resnet", {"trainable": "last_1"}, "test_resnet has no blocks in a row"),
        ("test_vit", {"image_size": 2080}, "take 160 \\(169 tokens\\), or a smaller"),
    ],
)
def test_what_an_architecture_does_not_know_is_named(
    name: str, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        build(name, **values)
    assert "\n" not in str(caught.value)


def test_a_model_that_gives_no_vector_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig(name="test_resnet")
    own = fresh_backbone(config, image_shape=(32, 32, 3), mean=(0.5,) * 3, std=(0.5,) * 3)
    monkeypatch.setattr(type(own), "create", lambda self, num_outputs: nn.Linear(2, 2))
    with pytest.raises(InputError, match=r"test_resnet \(Linear\) gives no embedding of images"):
        check_backbone(own, config)


def test_checking_a_backbone_draws_no_random_number() -> None:
    config = ModelConfig(**TINY["vit_small_patch14_reg4_dinov2"])
    own = fresh_backbone(config, image_shape=(32, 32, 3), mean=(0.5,) * 3, std=(0.5,) * 3)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    check_backbone(own, config)
    assert torch.equal(torch.rand(3), expected)
