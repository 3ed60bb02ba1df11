"""A small convolutional decoder from embeddings to images, for the pictures only.

It shows what an embedding still knows about its image (the paper's Fig. 5). Embeddings are frozen,
and every round that is compared gets the same architecture, initial weights, steps and batch order,
so a picture that looks better comes from the embedding and not from a luckier decoder. How well it
does is measured on held-out images: `reconstruction_error`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from vitdc.progress import progress_bar

BATCH_SIZE = 64
LEARNING_RATE = 4e-3
LARGEST_GRID = 32  # an embedding holds no finer detail; larger images are interpolated
WIDTH, SMALLEST_WIDTH = 32, 16
STREAM_SIZE = 512  # images at a time, at most
STREAM_VALUES = 2**24  # pixels times channels of them, at most


class Decoder(nn.Module):
    """Project an embedding to a small grid, then upsample and convolve up to the image.

    Inputs are standardised with the mean and the spread of the training embeddings, so that the
    scale of a round's embeddings does not matter.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self, mean: torch.Tensor, std: torch.Tensor, *, image_shape: tuple[int, int, int]
    ) -> None:
        super().__init__()
        self.image_shape = image_shape
        height, width, channels = image_shape
        shrink = min(1.0, LARGEST_GRID / max(height, width))
        self.grid_shape = (max(1, round(height * shrink)), max(1, round(width * shrink)))
        num_stages = _num_stages(max(self.grid_shape))
        base = [-(-side // 2**num_stages) for side in self.grid_shape]  # rounded up, then cropped
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        layers: list[nn.Module] = [
            nn.Linear(len(mean), WIDTH * base[0] * base[1]),
            nn.Unflatten(1, (WIDTH, base[0], base[1])),
            nn.ReLU(),
        ]
        features = WIDTH
        for _ in range(num_stages):
            narrower = max(SMALLEST_WIDTH, features // 2)
            layers += [
                nn.Upsample(scale_factor=2),
                nn.Conv2d(features, narrower, kernel_size=3, padding=1),
                nn.ReLU(),
            ]
            features = narrower
        self.layers = nn.Sequential(
            *layers, nn.Conv2d(features, channels, kernel_size=3, padding=1)
        )

    def forward(self, embedding: torch.Tensor) -> torch.Tensor:
        """Turn (B, D) embeddings into (B, C, *grid_shape) images in [0, 1]."""
        pixels: torch.Tensor = self.layers((embedding - self.mean) / self.std)
        height, width = self.grid_shape
        return torch.sigmoid(pixels[:, :, :height, :width])


def _num_stages(side: int) -> int:
    """Doublings from a grid of at most 8 to `side`, at least one."""
    num_stages = 1
    while -(-side // 2**num_stages) > 8:
        num_stages += 1
    return num_stages


def train_decoder(
    embedding: np.ndarray,
    images: np.ndarray,
    *,
    steps: int,
    seed: int,
    device: torch.device | str = "cpu",
) -> Decoder:
    """Train a decoder on frozen embeddings by the fixed protocol.

    Args:
        embedding: (N, D) float32.
        images: (N, H, W, C) uint8, may be memory-mapped.
        steps: Optimizer steps.
        seed: Of the initial weights and the batch order. The global random state is not touched.
        device: Where to train.
    """
    assert len(embedding) == len(images) > 0, "every image needs its embedding"
    mean, std = _mean_and_std(embedding)
    height, width, channels = images.shape[1:]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        decoder = Decoder(mean, std, image_shape=(height, width, channels)).to(device)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    batches = list(islice(_batches(len(images), seed=seed), steps))
    small = _shrunk(images, batches, decoder.grid_shape, device)
    progress = progress_bar(iterable=batches, desc="decoder", unit="step", leave=False)
    for batch in progress:
        target = _pixels(small[batch], device)
        decoded = decoder(torch.from_numpy(embedding[batch]).to(device))
        loss = F.mse_loss(decoded, target)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        progress.set_postfix(error=f"{loss.item():.4f}", refresh=False)
    return decoder.eval()


def _shrunk(
    images: np.ndarray,
    batches: Sequence[np.ndarray],
    grid_shape: tuple[int, int],
    device: torch.device | str,
) -> np.ndarray:
    """(N, *grid_shape, C) uint8: the images of the batches, each shrunk once; other rows are empty.

    Images that are no larger than the grid are returned as they are.
    """
    num_images, height, width, channels = images.shape
    if (height, width) == grid_shape or not batches:
        return images
    small = np.empty((num_images, *grid_shape, channels), np.uint8)
    used = np.unique(np.concatenate(batches))
    for rows in np.split(used, range(0, len(used), _stream_size(images.shape[1:]))[1:]):
        pooled = F.adaptive_avg_pool2d(_pixels(images[rows], device), grid_shape)
        small[rows] = _to_bytes(pooled)
    return small


def decode(decoder: Decoder, embedding: np.ndarray) -> np.ndarray:
    """Turn (N, D) embeddings into (N, H, W, C) uint8 images."""
    decoded = np.empty((len(embedding), *decoder.image_shape), dtype=np.uint8)
    for part, pixels in _stream(decoder, embedding):
        decoded[part] = _to_bytes(pixels)
    return decoded


def reconstruction_error(decoder: Decoder, embedding: np.ndarray, images: np.ndarray) -> float:
    """Mean squared error per pixel, on the [0, 1] scale, over images not trained on.

    Args:
        decoder: Trained.
        embedding: (N, D) float32.
        images: (N, H, W, C) uint8, may be memory-mapped; at least one.
    """
    assert len(embedding) == len(images) > 0, "an error needs images"
    total = 0.0
    for part, pixels in _stream(decoder, embedding):
        original = _pixels(images[part], pixels.device)
        total += float((pixels - original).square().sum(dtype=torch.float64))
    return total / images.size


def _stream(decoder: Decoder, embedding: np.ndarray) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield slices of the rows of `embedding` with their (B, C, H, W) images in [0, 1]."""
    device = decoder.mean.device
    size = decoder.image_shape[:2]
    step = _stream_size(decoder.image_shape)
    for start in range(0, len(embedding), step):
        part = slice(start, start + step)
        with torch.inference_mode():
            pixels = decoder(torch.from_numpy(np.array(embedding[part])).to(device))
            if size != decoder.grid_shape:
                pixels = F.interpolate(pixels, size, mode="bilinear", align_corners=False)
        yield part, pixels


def _stream_size(image_shape: tuple[int, ...]) -> int:
    """Images at a time, fewer where they are large."""
    return max(1, min(STREAM_SIZE, STREAM_VALUES // math.prod(image_shape)))


def _to_bytes(pixels: torch.Tensor) -> np.ndarray:
    """Turn (B, C, H, W) float in [0, 1] into (B, H, W, C) uint8."""
    found: np.ndarray = (pixels * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return found


def _pixels(images: np.ndarray, device: torch.device | str) -> torch.Tensor:
    """Turn (B, H, W, C) uint8 into (B, C, H, W) float32 in [0, 1]."""
    pixels = torch.from_numpy(np.array(images)).to(device).permute(0, 3, 1, 2)
    return pixels.float().div(255)


def _mean_and_std(embedding: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """(D,) mean and spread; a dimension that hardly varies keeps the scale of the widest."""
    mean = embedding.mean(axis=0, dtype=np.float64)
    variance = np.zeros_like(mean)
    for start in range(0, len(embedding), STREAM_SIZE):
        variance += np.square(embedding[start : start + STREAM_SIZE] - mean).sum(axis=0)
    std = np.sqrt(variance / len(embedding))
    widest = std.max() or 1.0
    std[std < 1e-3 * widest] = widest
    return torch.from_numpy(mean).float(), torch.from_numpy(std).float()


def _batches(num_images: int, *, seed: int) -> Iterator[np.ndarray]:
    """Yield index batches, epoch after epoch, that depend on nothing but the arguments."""
    generator = np.random.default_rng(seed)
    size = min(BATCH_SIZE, num_images)
    while True:
        order = generator.permutation(num_images)
        for start in range(0, num_images - size + 1, size):
            yield np.sort(order[start : start + size])  # sorted: kinder to a memory map
