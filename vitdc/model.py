"""A timm model with a linear head, and its embedding (for a ViT, eq. 1 to 4 of the paper).

The embedding is the image representation after the final LayerNorm; the head classifies that
vector. With `model.normalize` the embedding that is clustered is scaled to length 1 afterwards;
the head sees it unscaled, because logits of unit vectors could not grow.

The model takes images in [0, 1] and normalises and resizes them itself, so that whoever uses a
checkpoint cannot get the preprocessing wrong.

Above a frozen backbone the embedding would never change, so an adapter comes between the two, and
the joint loss trains that. It is linear: distances of embeddings then are distances of features
with directions weighed anew. A deeper one could fold the features around whatever clusters it is
given, which lowers the loss and says nothing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from vitdc.artifacts import Checkpoint
from vitdc.backbone import (
    Backbone,
    adapted_backbone,
    backbone_of,
    check_backbone,
    check_name,
    fresh_backbone,
)
from vitdc.config import FROZEN, ModelConfig
from vitdc.errors import InputError
from vitdc.quick_timm import init_weights_vit_timm
from vitdc.weights import Pretrained, find_weights

logger = logging.getLogger(__name__)

BATCH_VALUES = 2**24  # pixels times channels that the backbone sees at once, at most


class Output(NamedTuple):
    """What the model says about a batch."""

    embedding: Tensor  # (B, D): z
    logits: Tensor  # (B, num_outputs); no outputs where the model has no head


class Adapter(nn.Linear):
    """(B, D) -> (B, D): x + (W x + b) / sqrt(D), which begins as the identity.

    Weight decay pulls it back there. The root keeps one optimizer step, which moves every weight
    about as far, from growing with D.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        shift: Tensor = super().forward(input) * self.in_features**-0.5
        return input + shift


class DeepClusteringViT(nn.Module):
    """A backbone that returns the embedding and the logits of its head."""

    vit: Any  # a timm model
    mean: Tensor
    std: Tensor

    def __init__(
        self, vit: Any, backbone: Backbone, *, normalize: bool, trainable: str = "all"
    ) -> None:
        """
        Args:
            vit: timm model with a head.
            backbone: Its description.
            normalize: Scale embeddings to length 1.
            trainable: What training changes, as `model.trainable`.

        Raises:
            InputError: It has not the blocks that `trainable` counts.
        """
        super().__init__()
        self.vit, self.backbone = vit, backbone
        self.normalize, self.trainable = normalize, trainable
        self.adapter = Adapter(self.embedding_dim) if trainable == "head" else None
        self.register_buffer("mean", torch.tensor(backbone.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(backbone.std).view(1, -1, 1, 1))
        if trainable != "all":
            self.requires_grad_(False)
            for module in self._trained_modules():
                module.requires_grad_(True)

    @property
    def embedding_dim(self) -> int:
        return int(self.vit.head_hidden_size)

    @property
    def head(self) -> nn.Module:
        """The classifier; the identity without one."""
        head: nn.Module = self.vit.get_classifier()
        return head

    @property
    def num_outputs(self) -> int:
        """Outputs of the head; 0 without one."""
        return int(self.vit.num_classes)

    @property
    def is_frozen(self) -> bool:
        """Whether training leaves the whole backbone as it is."""
        return self.trainable in FROZEN

    def set_num_outputs(self, num_outputs: int) -> None:
        """Replace a head of another width by a fresh one, drawn from torch's global generator."""
        if num_outputs != self.num_outputs:
            self.vit.reset_classifier(num_outputs)
            init_weights_vit_timm(self.head)
            self.head.requires_grad_(self.trainable != "none")

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that the optimizer must not decay, biases and norms aside."""
        names = self.vit.no_weight_decay() if hasattr(self.vit, "no_weight_decay") else ()
        return {f"vit.{name}" for name in names}

    def train(self, mode: bool = True) -> Self:
        """Frozen parts stay in evaluation mode: no drop path, no running statistics."""
        super().train(mode)
        for module in self.vit.modules():
            parameters = list(module.parameters())
            if parameters and not any(each.requires_grad for each in parameters):
                module.eval()
        return self

    def forward(self, images: Tensor) -> Output:
        """(B, C, H, W) float in [0, 1] -> embedding (B, D) and logits (B, num_outputs)."""
        return self.finish(self.represent(images))

    def represent(self, images: Tensor) -> Tensor:
        """(B, C, H, W) float in [0, 1] -> (B, D): what the backbone says, eq. 4.

        Greyscale images become as many equal channels as the backbone has.
        """
        if images.shape[-2:] != self.backbone.image_size:
            size = self.backbone.image_size
            images = functional.interpolate(
                images, size, mode="bilinear", antialias=True, align_corners=False
            )
        features = self.vit.forward_features((images - self.mean) / self.std)  # (B, 1 + N, D)
        representation: Tensor = self.vit.forward_head(features, pre_logits=True)
        return representation

    def finish(self, representation: Tensor) -> Output:
        """(B, D) from `represent` -> embedding (B, D) and logits (B, num_outputs)."""
        if self.adapter is not None:
            representation = self.adapter(representation)
        logits = self.head(representation) if self.num_outputs else representation[:, :0]
        embedding = representation.float()
        if self.normalize:
            embedding = functional.normalize(embedding, dim=1)
        return Output(embedding, logits.float())

    def batch_size(self, asked: int) -> int:
        """At most `asked` images, fewer where they are large."""
        height, width = self.backbone.image_size
        return max(1, min(asked, BATCH_VALUES // (height * width * len(self.backbone.mean))))

    def fingerprint(self) -> str:
        """SHA-256 of all that `represent` depends on."""
        digest = hashlib.sha256(json.dumps(asdict(self.backbone), sort_keys=True).encode())
        tensors = self.state_dict()
        for name in self.backbone_names():
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(tensors[name].cpu().numpy()).data)
        return digest.hexdigest()

    def backbone_names(self) -> list[str]:
        """Of the weights that `represent` depends on, sorted."""
        head = {f"vit.{name}" for name in _classifier_names(self)}
        names = sorted(self.state_dict().keys() - head)
        return [name for name in names if not name.startswith("adapter.")]

    def _trained_modules(self) -> list[nn.Module]:
        """What training changes, where it is not all."""
        if self.trainable == "none":
            return []
        if self.adapter is not None:
            return [self.adapter, self.head]
        number = int(self.trainable.removeprefix("last_"))
        blocks = getattr(self.vit, "blocks", None)
        if not isinstance(blocks, nn.Sequential | nn.ModuleList) or number > len(blocks):
            has = "no blocks in a row" if blocks is None else f"{len(blocks)} blocks"
            raise InputError(
                f"model.trainable: {self.trainable}, but {self.backbone.name} has {has}; take head"
                " or all"
            )
        parts = (getattr(self.vit, name, None) for name in ("norm", "fc_norm", "attn_pool"))
        return [*blocks[-number:], *(part for part in parts if part is not None), self.head]


class Top(nn.Module):
    """The part of a model above its frozen backbone: takes features (B, D) for images.

    It shares the adapter and the head with the model; its state is only theirs.
    """

    def __init__(self, model: DeepClusteringViT) -> None:
        super().__init__()
        self.adapter, self.head = model.adapter, model.head
        self._finish = model.finish

    def forward(self, features: Tensor) -> Output:
        return self._finish(features)


def to_tensor(batch: np.ndarray, device: torch.device) -> Tensor:
    """Images or features for a model.

    Args:
        batch: (B, H, W, C) uint8 images, or (B, D) float32 features.
        device: Where to.

    Returns:
        (B, C, H, W) float32 in [0, 1], or (B, D).
    """
    if batch.ndim == 2:
        return torch.from_numpy(np.array(batch)).to(device)
    return images_to_tensor(batch, device)


def images_to_tensor(images: np.ndarray, device: torch.device) -> Tensor:
    """(B, H, W, C) uint8 -> (B, C, H, W) float32 in [0, 1] on `device`."""
    batch = torch.from_numpy(np.array(images)).to(device)
    return batch.permute(0, 3, 1, 2).float().div_(255)


def check_model(config: ModelConfig, *, image_shape: tuple[int, int, int]) -> DeepClusteringViT:
    """Refuse a model that cannot be, or whose weights cannot be had, before images are there.

    Args:
        config: The `model` section.
        image_shape: (H, W, C) that the prepared images will have.

    Returns:
        The model, as large as the one that will be trained.

    Raises:
        InputError: As `build_model`.
    """
    any_mean = (0.5,) * image_shape[2]
    with torch.random.fork_rng(devices=[]):
        return _build(config, image_shape=image_shape, num_outputs=0, mean=any_mean, std=any_mean)[
            0
        ]


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
        mean: (C,) of the training images, in [0, 1]; pretrained weights have their own.
        std: (C,) likewise.

    Raises:
        InputError: The name is unknown, sizes do not fit each other, or weights cannot be had.
    """
    model, note = _build(
        config, image_shape=image_shape, num_outputs=num_outputs, mean=mean, std=std
    )
    if note:
        logger.info("weights: %s", note)
    return model


def _build(
    config: ModelConfig,
    *,
    image_shape: tuple[int, int, int],
    num_outputs: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> tuple[DeepClusteringViT, str]:
    """The model, and what a person should know about its weights."""
    if config.name:
        check_name(config.name)
    weights = find_weights(config)
    if weights is None:
        backbone = fresh_backbone(config, image_shape=image_shape, mean=mean, std=std)
        check_backbone(backbone, config)
        vit = backbone.create(num_outputs)
    else:
        _check_channels(weights, image_shape[2])
        backbone = adapted_backbone(weights.backbone, config, weights.origin)
        check_backbone(backbone, config)
        vit = _load(backbone, weights)
    trainable = config.resolved_trainable
    model = DeepClusteringViT(vit, backbone, normalize=config.normalize, trainable=trainable)
    model.set_num_outputs(num_outputs)
    if weights is not None and weights.adapter:
        _load_adapter(model, weights)
    return model, weights.note if weights else ""


def load_model(
    checkpoint: Checkpoint, weights: Mapping[str, Tensor] | None = None
) -> DeepClusteringViT:
    """The model of a checkpoint, in evaluation mode, on the CPU.

    Args:
        checkpoint: Describes the model.
        weights: Its state dict; None reads the one in the checkpoint's directory.
    """
    backbone = backbone_of(checkpoint)
    with torch.random.fork_rng(devices=[]):  # the weights that it draws are replaced
        model = DeepClusteringViT(
            backbone.create_empty(checkpoint.num_outputs),
            backbone,
            normalize=checkpoint.model["normalize"],
            trainable=checkpoint.trainable,
        )
    model.load_state_dict(checkpoint.weights() if weights is None else weights)
    return model.eval()


def _load(backbone: Backbone, weights: Pretrained) -> Any:
    """The backbone with these weights and no head; timm resamples what depends on the image size.

    timm loads strictly only where the number of classes is the same, so it is told that it is.
    """
    height, width = weights.backbone.image_size
    settings: dict[str, Any] = {
        "state_dict": dict(weights.tensors),
        "input_size": (len(backbone.mean), height, width),
        "num_classes": 0,
        "classifier": None,
    }
    try:
        vit = backbone.create(0, pretrained=True, pretrained_cfg_overlay=settings)
    except (RuntimeError, KeyError, AttributeError, ValueError) as error:
        raise InputError(
            f"model.pretrained: {weights.origin} does not fit {backbone.name}: {_misfit(error)}"
        ) from None
    vit.pretrained_cfg.pop("state_dict")  # a second copy of all weights
    return vit


def _misfit(error: Exception) -> str:
    """What torch says about tensors that do not fit, in a line."""
    text = str(error)
    sizes = re.search(r"size mismatch for (\S+): .*?Size\((.*?)\).*?Size\((.*?)\)", text)
    if sizes:
        name, there, here = sizes.groups()
        return f"{name} has the shape {there} there and {here} here; change name or sizes in model"
    missing = re.search(r"Missing key\(s\) in state_dict: \"(.*?)\"", text)
    if missing:
        return (
            f"there are no weights for {missing[1]}; the file has to be of the same architecture"
            " and pooling, with timm's names"
        )
    unknown = re.search(r"Unexpected key\(s\) in state_dict: \"(.*?)\"", text)
    if unknown:
        return f"there is no place for {unknown[1]} here; is it of another architecture or pooling?"
    return text.strip().splitlines()[-1].strip()


def _load_adapter(model: DeepClusteringViT, weights: Pretrained) -> None:
    if model.adapter is None:
        raise InputError(
            f"model.trainable: {model.trainable}, but {weights.origin} was trained with an adapter"
            " above its backbone; take head"
        )
    model.adapter.load_state_dict(dict(weights.adapter))


def _check_channels(weights: Pretrained, num_channels: int) -> None:
    needed = len(weights.backbone.mean)
    if num_channels not in (1, needed):
        raise InputError(
            f"data.channels: the images have {num_channels}, but {weights.origin} is for {needed};"
            f" set data.channels={needed}"
        )


def _classifier_names(model: DeepClusteringViT) -> list[str]:
    """Names of the head's parameters within the backbone."""
    own = {id(each) for each in model.head.parameters()}
    return [name for name, each in model.vit.named_parameters() if id(each) in own]
