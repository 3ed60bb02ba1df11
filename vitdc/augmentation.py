"""Light augmentation of whole batches of tensors: every image gets its own random transform.

Random numbers are drawn on the CPU, so a batch is augmented alike on every device. torchvision's
batch transforms would give all images of a batch the same shift or angle.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from vitdc.config import TrainingConfig

RANDOM = ("flip", "shift", "rotate", "zoom", "jitter", "mixup", "cutmix")
"""All that changes images in training, by their knobs."""


def augment(images: Tensor, config: TrainingConfig) -> Tensor:
    """Flip, shift, rotate, zoom and jitter as the training section says.

    Args:
        images: (B, C, H, W) float in [0, 1].
        config: A training section; its zeros switch the respective transform off.

    Returns:
        (B, C, H, W); what is moved in from outside the image is black.
    """
    if config.shift or config.rotate or config.zoom:
        images = _affine(images, config)
    elif config.flip:
        mirrored = _uniform(images, 1.0)[:, None, None, None] < 0
        images = torch.where(mirrored, images.flip(-1), images)
    if config.jitter:
        images = _jitter(images, config.jitter)
    return images


def _uniform(images: Tensor, limit: float) -> Tensor:
    """(B,) uniform in [-limit, limit], drawn on the CPU, on the images' device."""
    return ((torch.rand(len(images)) * 2 - 1) * limit).to(images.device, non_blocking=True)


def _affine(images: Tensor, config: TrainingConfig) -> Tensor:
    angle = _uniform(images, math.radians(config.rotate))
    zoom = 1 + _uniform(images, config.zoom)
    cosine, sine = angle.cos() / zoom, angle.sin() / zoom
    mirror = torch.ones_like(cosine)
    if config.flip:
        mirror = torch.where(_uniform(images, 1.0) < 0, -1.0, mirror)
    shift_x, shift_y = (2 * _uniform(images, config.shift) for _ in range(2))  # grid is [-1, 1]
    theta = torch.stack(
        [
            torch.stack([cosine * mirror, -sine, shift_x], dim=1),
            torch.stack([sine * mirror, cosine, shift_y], dim=1),
        ],
        dim=1,
    )  # (B, 2, 3)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


def _jitter(images: Tensor, limit: float) -> Tensor:
    brightness = 1 + _uniform(images, limit)[:, None, None, None]
    contrast = 1 + _uniform(images, limit)[:, None, None, None]
    images = images * brightness
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return (mean + (images - mean) * contrast).clamp(0, 1)
