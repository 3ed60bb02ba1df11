"""timm's Vision Transformer with a linear head, and its embedding (eq. 1 to 4).

The embedding is the image representation after the final LayerNorm; the head classifies that
vector. With `model.normalize` the embedding that is clustered is scaled to length 1 afterwards;
the head sees it unscaled, because logits of unit vectors could not grow.

The model takes images in [0, 1] and normalises and resizes them itself, so that whoever uses a
checkpoint cannot get the preprocessing wrong.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from vitdc.artifacts import Checkpoint
from vitdc.config import ModelConfig
from vitdc.errors import InputError
from vitdc.quick_timm import (
    VisionTransformer,
    checkpoint_filter_fn,
    init_weights_vit_timm,
    timm,
)


class Output(NamedTuple):
    """What the model says about a batch."""

    embedding: Tensor  # (B, D): z
    logits: Tensor  # (B, num_outputs); no outputs where the model has no head


class DeepClusteringViT(nn.Module):
    """A ViT that returns the embedding and the logits of its head."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        vit: VisionTransformer,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        normalize: bool,
    ) -> None:
        """
        Args:
            vit: timm model with a head.
            mean: (C,) of the images, in [0, 1].
            std: (C,) likewise.
            normalize: Scale embeddings to length 1.
        """
        super().__init__()
        self.vit = vit
        self.normalize = normalize
        self.image_size: tuple[int, int] = vit.patch_embed.img_size
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    @property
    def embedding_dim(self) -> int:
        return int(self.vit.num_features)

    @property
    def num_outputs(self) -> int:
        """Outputs of the head; 0 without one."""
        return int(self.vit.num_classes)

    def set_num_outputs(self, num_outputs: int) -> None:
        """Replace a head of another width by a fresh one, drawn from torch's global generator."""
        if num_outputs != self.num_outputs:
            self.vit.reset_classifier(num_outputs)
            init_weights_vit_timm(self.vit.head)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that the optimizer must not decay, biases and norms aside."""
        return {f"vit.{name}" for name in self.vit.no_weight_decay()}

    def forward(self, images: Tensor) -> Output:
        """(B, C, H, W) float in [0, 1] -> embedding (B, D) and logits (B, num_outputs)."""
        if images.shape[-2:] != self.image_size:
            images = functional.interpolate(
                images, self.image_size, mode="bilinear", antialias=True, align_corners=False
            )
        tokens = self.vit.forward_features((images - self.mean) / self.std)  # (B, 1 + N, D)
        representation = self.vit.forward_head(tokens, pre_logits=True)  # (B, D), eq. 4
        logits = self.vit.head(representation) if self.num_outputs else representation[:, :0]
        embedding = representation.float()
        if self.normalize:
            embedding = functional.normalize(embedding, dim=1)
        return Output(embedding, logits.float())


def images_to_tensor(images: np.ndarray, device: torch.device) -> Tensor:
    """(B, H, W, C) uint8 -> (B, C, H, W) float32 in [0, 1] on `device`."""
    batch = torch.from_numpy(np.array(images)).to(device)
    return batch.permute(0, 3, 1, 2).float().div_(255)


def build_model(
    config: ModelConfig,
    *,
    image_shape: tuple[int, int, int],
    num_outputs: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> DeepClusteringViT:
    """Make the model that `config` describes, with fresh or pretrained weights.

    Args:
        config: The `model` section.
        image_shape: (H, W, C) of the prepared images.
        num_outputs: Of the head; 0 makes a model without one.
        mean: (C,) of the training images, in [0, 1].
        std: (C,) likewise.

    Raises:
        InputError: The name is unknown, sizes do not fit each other, or weights cannot be had.
    """
    arguments = timm_arguments(config, image_shape=image_shape, num_outputs=num_outputs)
    vit = _create(config, **arguments)
    return DeepClusteringViT(vit, mean=mean, std=std, normalize=config.normalize)


def timm_arguments(
    config: ModelConfig, *, image_shape: tuple[int, int, int], num_outputs: int
) -> dict[str, Any]:
    """What `timm.create_model` gets beside the name.

    Raises:
        InputError: The name is unknown, or sizes do not fit each other.
    """
    _check_name(config.name)
    height, width, channels = image_shape
    image_size = (config.image_size,) * 2 if config.image_size else (height, width)
    patch_size = config.patch_size or _default_patch_size(config.name)
    _check_sizes(config, image_size, patch_size)
    overrides = {
        key: value
        for key in ("patch_size", "embed_dim", "depth", "num_heads")
        if (value := getattr(config, key)) is not None
    }
    return {
        "img_size": image_size,
        "in_chans": channels,
        "num_classes": num_outputs,
        "global_pool": {"token": "token", "mean": "avg"}[config.pooling],
        "drop_path_rate": config.drop_path,
        **overrides,
    }


def load_model(
    checkpoint: Checkpoint, weights: Mapping[str, Tensor] | None = None
) -> DeepClusteringViT:
    """The model of a checkpoint, in evaluation mode, on the CPU.

    Args:
        checkpoint: Describes the model.
        weights: Its state dict; None reads the one in the checkpoint's directory.
    """
    config = ModelConfig.parse(
        {**checkpoint.model, "pretrained": False}, where=f"{checkpoint.path}: model"
    )
    with torch.random.fork_rng(devices=[]):  # the weights that it draws are replaced
        model = build_model(
            config,
            image_shape=checkpoint.image_shape,
            num_outputs=checkpoint.num_outputs,
            mean=checkpoint.mean,
            std=checkpoint.std,
        )
    model.load_state_dict(checkpoint.weights() if weights is None else weights)
    return model.eval()


def _create(config: ModelConfig, **kwargs: Any) -> VisionTransformer:
    if isinstance(config.pretrained, str):
        path = Path(config.pretrained)
        if path.suffix != ".safetensors" or not path.is_file():
            raise InputError(
                f"model.pretrained: {path} is not a .safetensors file; give one with timm's names,"
                " true (timm downloads) or false (fresh weights)"
            )
        kwargs["pretrained_cfg_overlay"] = {"file": str(path), "custom_load": False}
    try:
        model = timm.create_model(config.name, pretrained=bool(config.pretrained), **kwargs)
    except AssertionError as error:  # timm's own check, e.g. of width against heads
        raise InputError(f"model: {config.name} cannot be built this way: {error}") from None
    except (OSError, RuntimeError, SafetensorError) as error:
        if not config.pretrained:
            raise
        reason = str(error).strip().splitlines()[-1].strip()
        raise InputError(
            f"model.pretrained: weights for {config.name} cannot be loaded from"
            f" {config.pretrained if isinstance(config.pretrained, str) else 'timm'}: {reason}"
        ) from None
    if not isinstance(model, VisionTransformer):
        raise InputError(
            f"model.name: {config.name} is timm's {type(model).__name__}, not a plain"
            " VisionTransformer; take e.g. vit_tiny_patch16_224 or vit_small_patch16_224"
        )
    if isinstance(config.pretrained, str):
        _check_complete(model, Path(config.pretrained))
    return model


def _check_complete(model: VisionTransformer, path: Path) -> None:
    """Refuse a file without weights for some layer: timm would leave it at random in silence.

    The head is always fresh, and the final norm is where the pooling is not the file's.
    """
    found = checkpoint_filter_fn(load_file(path), model)
    fresh = ("head.", "norm.", "fc_norm.")
    missing = [name for name in model.state_dict() if name not in found]
    missing = [name for name in missing if not name.startswith(fresh)]
    if missing:
        raise InputError(
            f"model.pretrained: {path} has no weights for {len(missing)} tensors of this model,"
            f" e.g. {missing[0]}; give a file of the same architecture, with timm's names"
        )


def _check_name(name: str) -> None:
    known = timm.list_models("vit_*")
    architecture, _, tag = name.partition(".")
    if architecture not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        raise InputError(
            f"model.name: timm has no ViT called {name!r}"
            + (f"; near are {', '.join(near)}" if near else "; see timm.list_models('vit_*')")
        )
    if tag and name not in (tagged := timm.list_pretrained(f"{architecture}.*")):
        raise InputError(f"model.name: timm has no {name!r}; it has {', '.join(tagged)}")


def _default_patch_size(name: str) -> int:
    """The patch size in a timm name, e.g. 16 in vit_tiny_patch16_224."""
    digits = [part[5:] for part in name.split("_") if part.startswith("patch")]
    if not digits or not digits[0].isdigit():
        raise InputError(f"model.patch_size: needed, because the name {name!r} does not tell one")
    return int(digits[0])


def _check_sizes(config: ModelConfig, image_size: tuple[int, ...], patch_size: int) -> None:
    for side in image_size:
        if side % patch_size:
            divisors = [str(d) for d in range(1, side + 1) if side % d == 0]
            raise InputError(
                f"model.patch_size: {patch_size} does not divide the image side {side}; these do:"
                f" {', '.join(divisors)} (or set model.image_size)"
            )
    if config.embed_dim and config.num_heads and config.embed_dim % config.num_heads:
        raise InputError(
            f"model.num_heads: {config.num_heads} does not divide model.embed_dim"
            f" {config.embed_dim}"
        )
