"""Which timm model embeds the images, and how it wants to see them.

Any model of timm will do that has `forward_features` and `forward_head(pre_logits=True)` and gives
a vector per image. A `Backbone` is all that rebuilds one but its weights; a checkpoint stores it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from vitdc.artifacts import Checkpoint
from vitdc.config import ModelConfig
from vitdc.errors import InputError
from vitdc.quick_timm import timm

DEFAULT_NAME = "vit_tiny_patch16_224"
MAX_TOKENS = 4096  # per image; attention costs their square
USUAL_TOKENS = 196  # 14 x 14, of a ViT with patch size 16 on 224 pixels
SHAPING = ("patch_size", "embed_dim", "depth", "num_heads")  # named alike here and in timm
FIELDS = {"img_size": "image_size", "global_pool": "pooling", "drop_path_rate": "drop_path"}
POOLINGS = {"token": "token", "mean": "avg"}  # timm's names


@dataclass(frozen=True)
class Backbone:
    """A timm model without its weights.

    Attributes:
        name: timm's name of the architecture.
        arguments: Of `timm.create_model`, but for the number of classes.
        image_size: (H, W) of the images it sees.
        mean: (C,) that images are normalised with, in [0, 1].
        std: (C,) likewise.
    """

    name: str
    arguments: dict[str, Any]
    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def described(self) -> dict[str, Any]:
        """What a checkpoint stores beside mean and std."""
        return {"name": self.name, "arguments": self.arguments, "image_size": self.image_size}

    def create(self, num_outputs: int, **options: Any) -> Any:
        """Make the timm model, with fresh weights drawn from torch's global generator.

        Args:
            num_outputs: Of its head; 0 for none.
            options: Of `timm.create_model`, e.g. where weights are.

        Raises:
            InputError: timm cannot build it with these arguments.
        """
        try:
            return timm.create_model(
                self.name, num_classes=num_outputs, **self.arguments, **options
            )
        except TypeError as error:
            argument = re.search(r"keyword argument '(\w+)'", str(error))
            if argument is None:
                raise
            key = FIELDS.get(argument[1], argument[1])
            raise InputError(
                f"model.{key}: {self.name} cannot be changed in it; leave it null, or take another"
                " model.name"
            ) from None
        except AssertionError as error:  # timm's own check, e.g. of width against heads
            raise InputError(f"model: {self.name} cannot be built this way: {error}") from None

    def create_empty(self, num_outputs: int) -> Any:
        """Make the timm model without drawing weights, for a state dict to fill.

        Drawing takes longer than reading them. Where buffers are computed and not in the state
        dict, say a table of rotary embeddings, the weights are drawn nevertheless.
        """
        with torch.device("meta"):
            model = self.create(num_outputs)
        if {name for name, _ in model.named_buffers()} <= model.state_dict().keys():
            return model.to_empty(device="cpu")
        return self.create(num_outputs)


def fresh_backbone(
    config: ModelConfig,
    *,
    image_shape: tuple[int, int, int],
    mean: Sequence[float],
    std: Sequence[float],
) -> Backbone:
    """The backbone that `config` describes, for images that it is trained on from scratch.

    Args:
        config: The `model` section.
        image_shape: (H, W, C) of the prepared images.
        mean: (C,) of the training images, in [0, 1].
        std: (C,) likewise.
    """
    name = timm.models.split_model_name_tag(config.name or DEFAULT_NAME)[0]
    height, width, channels = image_shape
    image_size = (config.image_size,) * 2 if config.image_size else (height, width)
    arguments = {"in_chans": channels, "global_pool": POOLINGS[config.pooling or "mean"]}
    own = Backbone(name, arguments, image_size, tuple(mean), tuple(std))
    return _changed(own, config)


def adapted_backbone(own: Backbone, config: ModelConfig, origin: str) -> Backbone:
    """The backbone of pretrained weights with the changes of `config`.

    Args:
        own: As the weights were trained.
        config: The `model` section.
        origin: Of the weights, for messages.

    Raises:
        InputError: The section asks for another architecture or pooling than the weights have.
    """
    if config.name and timm.models.split_model_name_tag(config.name)[0] != own.name:
        raise InputError(
            f"model.name: {config.name}, but {origin} is of {own.name}; leave the name null"
        )
    arguments = {**own.arguments, "in_chans": len(own.mean)}
    if config.pooling:  # bare weights do not say theirs; whether it fits, their norms tell
        pooling = POOLINGS[config.pooling]
        if arguments.setdefault("global_pool", pooling) != pooling:
            raise InputError(
                f"model.pooling: {config.pooling}, but {origin} is for another"
                f" ({arguments['global_pool']} in timm's words); leave it null"
            )
    size = (config.image_size,) * 2 if config.image_size else own.image_size
    return _changed(replace(own, arguments=arguments, image_size=size), config)


def _changed(own: Backbone, config: ModelConfig) -> Backbone:
    """With the image size and the architecture's fields of `config` among the arguments."""
    arguments = dict(own.arguments)
    if pretrained_settings(own.name)["fixed_input_size"]:  # others take images of any size
        arguments["img_size"] = own.image_size
    if config.drop_path:
        arguments["drop_path_rate"] = config.drop_path
    arguments |= {key: value for key in SHAPING if (value := getattr(config, key)) is not None}
    return replace(own, arguments=arguments)


def backbone_of(checkpoint: Checkpoint) -> Backbone:
    """The backbone of a checkpoint; older ones do not describe it beyond their configuration."""
    if checkpoint.backbone is None:
        values = {**checkpoint.model, "pretrained": False}
        config = ModelConfig.parse(values, where=f"{checkpoint.path}: model")
        shape, mean, std = checkpoint.image_shape, checkpoint.mean, checkpoint.std
        return fresh_backbone(config, image_shape=shape, mean=mean, std=std)
    described = dict(checkpoint.backbone)
    height, width = described["image_size"]
    return Backbone(
        name=described["name"],
        arguments={
            k: tuple(v) if k == "img_size" else v for k, v in described["arguments"].items()
        },
        image_size=(height, width),
        mean=checkpoint.mean,
        std=checkpoint.std,
    )


def pretrained_settings(name: str) -> dict[str, Any]:
    """timm's `pretrained_cfg` of a name, with or without a tag."""
    found = timm.get_pretrained_cfg(name)
    assert found is not None, name
    return asdict(found)


def check_name(name: str) -> None:
    """Refuse what timm does not know, and say what is near.

    Raises:
        InputError: timm has no such model, or not with this tag.
    """
    architecture, tag = timm.models.split_model_name_tag(name)
    if not timm.models.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3, cutoff=0.5)
        raise InputError(
            f"model.name: timm has no model called {name!r}"
            + (f"; near are {', '.join(near)}" if near else "; see timm.list_models()")
        )
    if tag and name not in (tagged := timm.list_pretrained(f"{architecture}.*")):
        raise InputError(f"model.name: timm has no {name!r}; it has {', '.join(tagged)}")


@torch.no_grad()
def check_backbone(backbone: Backbone, config: ModelConfig) -> None:
    """Build the backbone without memory and show it an image, before anything is trained.

    Args:
        backbone: What would be built.
        config: The `model` section, for messages.

    Raises:
        InputError: Sizes do not fit each other, an image would be cut into more than `MAX_TOKENS`,
            or there is no vector per image.
    """
    if config.embed_dim and config.num_heads and config.embed_dim % config.num_heads:
        raise InputError(
            f"model.num_heads: {config.num_heads} does not divide model.embed_dim"
            f" {config.embed_dim}"
        )
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = backbone.create(num_outputs=0).eval()
        _check_patches(model, backbone.image_size)
        try:
            images = torch.zeros(1, backbone.arguments["in_chans"], *backbone.image_size)
            features = model.forward_features(images)  # (1, N, D) tokens, or a map
            vector = model.forward_head(features, pre_logits=True)
        except Exception as error:  # whatever a model that is none of these raises
            raise InputError(
                f"model.name: timm's {backbone.name} ({type(model).__name__}) gives no embedding of"
                f" images of {backbone.image_size[0]} x {backbone.image_size[1]} pixels:"
                f" {type(error).__name__}: {error}".splitlines()[0]
            ) from None
    if not isinstance(vector, torch.Tensor) or vector.ndim != 2:
        raise InputError(f"model.name: timm's {backbone.name} gives no vector per image")


def _check_patches(model: nn.Module, image_size: tuple[int, int]) -> None:
    patches = getattr(model, "patch_embed", None)
    patch_size = getattr(patches, "patch_size", None)
    if not isinstance(patch_size, tuple):
        return  # a convolutional net takes images of any size
    for side, patch in zip(image_size, patch_size, strict=True):
        if side % patch and not getattr(patches, "dynamic_img_pad", False):
            divisors = [str(d) for d in range(1, side + 1) if side % d == 0]
            raise InputError(
                f"model.patch_size: {patch} does not divide the image side {side}; these do:"
                f" {', '.join(divisors)} (or set model.image_size)"
            )
    num_tokens = (image_size[0] // patch_size[0]) * (image_size[1] // patch_size[1])
    if num_tokens > MAX_TOKENS:
        sensible = _sensible_patch_size(image_size)
        raise InputError(
            f"model.patch_size: {patch_size[0]} cuts images of {image_size[0]} x {image_size[1]}"
            f" pixels into {num_tokens} tokens, more than {MAX_TOKENS}; take {sensible}"
            f" ({image_size[0] // sensible * (image_size[1] // sensible)} tokens), or a smaller"
            " model.image_size"
        )


def _sensible_patch_size(image_size: tuple[int, int]) -> int:
    """The patch size that divides both sides and gives the most usual number of tokens."""
    height, width = image_size
    fitting = [p for p in range(1, min(image_size) + 1) if height % p == 0 == width % p]
    return min(fitting, key=lambda p: abs(height // p * (width // p) - USUAL_TOKENS))
