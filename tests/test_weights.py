"""Pretrained weights of every kind, the preprocessing that comes with them, and what is refused."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from toys import ToyRun

from vitdc.artifacts import Checkpoint
from vitdc.config import ModelConfig
from vitdc.errors import InputError
from vitdc.model import DeepClusteringViT, build_model, load_model
from vitdc.quick_timm import timm
from vitdc.weights import fingerprint

NAME = "test_vit"  # timm's own toy: 160 pixels, patches of 16, 6 blocks of width 64
SAMPLE = "blocks.1.mlp.fc1.weight"


def build(*, channels: int = 3, **values: Any) -> DeepClusteringViT:
    return build_model(
        ModelConfig(**values),
        image_shape=(12, 12, channels),
        num_outputs=4,
        mean=(0.1,) * channels,
        std=(0.9,) * channels,
    ).eval()


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return dict(timm.create_model(NAME).state_dict())  # with a head for 1000 classes


@pytest.fixture
def file(tensors: dict[str, torch.Tensor], tmp_path: Path) -> Path:
    save_file(tensors, tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As timm saves a model of one's own: another size, its own mean, one channel."""
    torch.manual_seed(2)
    vit = timm.create_model(
        NAME, img_size=32, patch_size=8, depth=3, in_chans=1, num_classes=5, global_pool="avg"
    )
    data = {"mean": (0.3,), "std": (0.2,), "input_size": (1, 32, 32)}
    timm.models.save_for_hf(vit, tmp_path / "own", safe_serialization=True, data_config=data)
    return tmp_path / "own"


# --- the four kinds ----------------------------------------------------------------------------


def test_a_file_is_loaded_exactly_with_the_preprocessing_of_its_name(
    file: Path, tensors: dict[str, torch.Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    model = build(name=NAME, pretrained=str(file))
    state = model.vit.state_dict()
    for name, expected in tensors.items():
        if not name.startswith("head."):  # of 1000 classes
            assert torch.equal(state[name], expected), name
    assert state["head.weight"].shape == (4, 64)
    assert model.backbone.mean == (0.5, 0.5, 0.5)
    assert model.backbone.image_size == (160, 160)
    assert "images as for timm's test_vit: mean (0.5, 0.5, 0.5)" in caplog.text


def test_a_folder_of_timm_says_its_architecture_and_its_preprocessing(folder: Path) -> None:
    model = build(pretrained=f"local-dir:{folder}", channels=1)
    expected = load_file(folder / "model.safetensors")
    assert torch.equal(model.vit.state_dict()[SAMPLE], expected[SAMPLE])
    assert torch.equal(model.vit.state_dict()["pos_embed"], expected["pos_embed"])
    assert (model.backbone.mean, model.backbone.std) == ((0.3,), (0.2,))
    assert (model.backbone.image_size, len(model.vit.blocks)) == ((32, 32), 3)
    assert model.vit.global_pool == "avg"


@pytest.mark.parametrize("place", ["", "model", "model/checkpoint"])
def test_a_run_of_our_own_is_a_backbone(toy_run: ToyRun, place: str) -> None:
    model = build(pretrained=str(toy_run.results / place), channels=1)
    checkpoint = Checkpoint.load(toy_run.results / "model" / "checkpoint")
    expected = load_model(checkpoint)
    assert torch.equal(model.vit.state_dict()[SAMPLE], expected.vit.state_dict()[SAMPLE])
    assert (model.backbone.mean, model.backbone.image_size) == ((0.25,), (8, 8))
    assert model.num_outputs == 4
    images = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(model(images).embedding, expected(images).embedding)


def test_weights_of_timm_come_from_the_hub(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(**where: Any) -> str:
        asked.append((where["repo_id"], where["filename"]))
        return str(file)

    monkeypatch.setattr("timm.models._hub.hf_hub_download", download)
    model = build(name=NAME, pretrained=True)
    assert asked == [("timm/test_vit.r160_in1k", "model.safetensors")]  # never a pickle
    assert torch.equal(model.vit.state_dict()[SAMPLE], load_file(file)[SAMPLE])


def test_without_a_network_the_ways_out_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(**where: Any) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("no connection\nand no cache")

    monkeypatch.setattr("timm.models._hub.hf_hub_download", offline)
    with pytest.raises(InputError, match=r"cannot be had \(no connection\); without a") as caught:
        build(name=NAME, pretrained=True)
    for way in (".safetensors", "local-dir:", "results directory", "false"):
        assert way in str(caught.value)
    assert "\n" not in str(caught.value)


# --- preprocessing -----------------------------------------------------------------------------


def test_images_are_sized_and_normalised_as_the_backbone_needs_it(file: Path) -> None:
    model = build(name=NAME, pretrained=str(file))
    images = torch.rand(2, 3, 12, 12)
    resized = torch.nn.functional.interpolate(images, (160, 160), mode="bilinear", antialias=True)
    with torch.no_grad():
        expected = model.vit.forward_head(
            model.vit.forward_features((resized - 0.5) / 0.5), pre_logits=True
        )
        torch.testing.assert_close(model.represent(images), expected)


def test_greyscale_images_are_seen_as_grey_colours(file: Path) -> None:
    grey, colour = (build(name=NAME, pretrained=str(file), channels=n) for n in (1, 3))
    images = torch.rand(2, 1, 160, 160)
    torch.testing.assert_close(
        grey(images).embedding, colour(images.expand(-1, 3, -1, -1)).embedding
    )


def test_position_embeddings_of_another_size_are_resampled(file: Path) -> None:
    found = build(name=NAME, pretrained=str(file), image_size=64).vit.state_dict()["pos_embed"]
    expected = load_file(file)["pos_embed"]
    assert found.shape[1] == expected.shape[1] - 10 * 10 + 4 * 4
    assert found.mean().item() == pytest.approx(expected.mean().item(), abs=0.01)


# --- what is refused ---------------------------------------------------------------------------


def save(name: str, change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file.with_name(name))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.write_bytes(b"these are no weights " * 10), "cannot be read as safet"),
        (lambda file: file.write_bytes(file.read_bytes()[:-100]), "cannot be read as safetensors"),
        (lambda file: file.unlink(), "no such file; give a .safetensors file"),
        (
            save("weights.safetensors", lambda t: t.update({"norm.weight": torch.zeros(3)})),
            "norm.weight has the shape .3. there and .64. here",
        ),
        (
            save("weights.safetensors", lambda t: t.pop("blocks.2.attn.proj.bias")),
            "there are no weights for blocks.2.attn.proj.bias",
        ),
        (
            save("weights.safetensors", lambda t: t.update({"decoder.weight": torch.zeros(3)})),
            "there is no place for decoder.weight here",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused_not_left_random(
    file: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(file)
    with pytest.raises(InputError, match=rf"model\.pretrained: .*{message}") as caught:
        build(name=NAME, pretrained=str(file))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
def test_a_pickle_is_refused_with_the_line_that_converts_it(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"weights{suffix}"
    torch.save({"a": torch.zeros(2)}, file)
    with pytest.raises(InputError, match="is a pickle, which can run code") as caught:
        build(name=NAME, pretrained=str(file))
    program = str(caught.value).split('python -c "')[1].rstrip('"')
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.chdir(tmp_path)
        exec(program)  # noqa: S102 the program that the message gives
    assert load_file(tmp_path / "weights.safetensors").keys() == {"a"}


def test_a_folder_with_a_pickle_only_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pytorch_model\.bin is a pickle"):
        build(pretrained=f"local-dir:{folder}", channels=1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": NAME, "depth": 3}, "does not say how its images were .*model.depth.*local-dir:"),
        ({"name": NAME, "pooling": "mean"}, "there are no weights for fc_norm.weight"),
        ({"name": "test_vit2"}, "does not fit test_vit2"),
    ],
)
def test_a_file_of_another_model_is_refused(
    file: Path, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        build(**values, pretrained=str(file))


def test_what_contradicts_the_weights_is_refused(folder: Path, toy_run: ToyRun) -> None:
    own = f"local-dir:{folder}"
    with pytest.raises(InputError, match=r"name: test_vit2, but .* is of test_vit;"):
        build(name="test_vit2", pretrained=own, channels=1)
    with pytest.raises(InputError, match=r"pooling: token, but .* is for another \(avg"):
        build(pooling="token", pretrained=own, channels=1)
    with pytest.raises(InputError, match=r"data\.channels: the images have 3, but .* is for 1"):
        build(pretrained=own)
    with pytest.raises(InputError, match=r"holds no checkpoint of vitdc; .*local-dir:"):
        build(pretrained=str(folder))
    with pytest.raises(InputError, match=r"cls_token has the shape \[1, 1, 16\] there"):
        build(pretrained=str(toy_run.results), embed_dim=32, channels=1)
    (folder / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(InputError, match=r"config\.json is not timm's"):
        build(pretrained=own, channels=1)


def test_local_weights_are_named_by_their_content(
    file: Path, folder: Path, toy_run: ToyRun
) -> None:
    sources = [str(file), f"local-dir:{folder}", str(toy_run.results)]
    before = [fingerprint(ModelConfig(pretrained=source)) for source in sources]
    assert all(before)
    assert len({str(each) for each in before}) == 3
    tensors = load_file(file)
    save_file({**tensors, SAMPLE: tensors[SAMPLE] + 1}, file)
    assert fingerprint(ModelConfig(pretrained=str(file))) != before[0]
    assert fingerprint(ModelConfig(pretrained=True)) == {}


def test_a_model_keeps_no_second_copy_of_its_weights(file: Path) -> None:
    model = build(name=NAME, pretrained=str(file))
    assert "state_dict" not in model.vit.pretrained_cfg
    assert np.prod(model.vit.head.weight.shape) == 4 * 64
