"""Streaming passes: z, per-image cross-entropy, prediction of the head; features below them.

The next batch is read while the model is at work on one.
"""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
import torch
from torch import nn

from vitdc.artifacts import SplitEmbeddings
from vitdc.errors import TrainingError
from vitdc.model import DeepClusteringViT, images_to_tensor, to_tensor
from vitdc.objectives.supervised import cross_entropy_per_image
from vitdc.progress import progress_bar
from vitdc.read_ahead import Ahead


@torch.inference_mode()
def embed_split(
    model: nn.Module,
    inputs: np.ndarray,
    targets: np.ndarray,
    out: SplitEmbeddings,
    *,
    device: torch.device,
    batch_size: int,
    description: str = "embed",
) -> None:
    """Fill `out` for every image, batch by batch, in float32.

    Args:
        model: A `DeepClusteringViT`, or the `Top` of one; in evaluation mode, on `device`.
        inputs: (N, H, W, C) uint8 images, or (N, D) float32 features; may be memory-mapped.
        targets: (N,) int64, may be memory-mapped: the output of the head that the cross-entropy is
            against, -1 for none.
        out: Arrays of N rows, e.g. memory maps; without a target the cross-entropy is NaN, and
            without a head the predicted output is -1.
        device: Where the model is.
        batch_size: Images per batch.
        description: Label of the progress bar.

    Raises:
        TrainingError: The model's output is not finite.
    """
    progress = progress_bar(total=len(inputs), desc=description, unit="image", leave=False)
    with progress, Ahead(_batches(inputs, batch_size), limit=1) as batches:
        for rows, batch in batches:
            output = model(to_tensor(batch, device))
            if not (output.embedding.isfinite().all() and output.logits.isfinite().all()):
                raise TrainingError(
                    f"{description}: the model gives numbers that are not finite; train it again,"
                    " e.g. with a lower learning_rate"
                )
            own = torch.from_numpy(np.array(targets[rows])).to(device)
            out.embedding[rows] = output.embedding.cpu().numpy()
            out.cross_entropy[rows] = cross_entropy_per_image(output.logits, own).cpu().numpy()
            has_head = output.logits.shape[1] > 0
            out.predicted[rows] = output.logits.argmax(dim=1).cpu().numpy() if has_head else -1
            progress.update(len(own))


@torch.inference_mode()
def represent_split(
    model: DeepClusteringViT,
    images: np.ndarray,
    out: np.ndarray,
    *,
    device: torch.device,
    batch_size: int,
    description: str = "features",
) -> None:
    """Fill `out`, (N, D) float32, with what the backbone says about every image.

    Args:
        model: In evaluation mode, on `device`.
        images: (N, H, W, C) uint8, may be memory-mapped.
        out: E.g. a memory map.
        device: Where the model is.
        batch_size: Images per batch, fewer if they are large.
        description: Label of the progress bar.
    """
    step = model.batch_size(batch_size)
    progress = progress_bar(total=len(images), desc=description, unit="image", leave=False)
    with progress, Ahead(_batches(images, step), limit=1) as batches:
        for rows, batch in batches:
            represented = model.represent(images_to_tensor(batch, device))
            out[rows] = represented.float().cpu().numpy()
            progress.update(len(batch))


def _batches(inputs: np.ndarray, size: int) -> Generator[tuple[slice, np.ndarray]]:
    for start in range(0, len(inputs), size):
        rows = slice(start, start + size)
        yield rows, inputs[rows]
