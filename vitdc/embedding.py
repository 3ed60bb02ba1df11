"""One streaming pass over the images: z, per-image cross-entropy and the predicted class."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from vitdc.artifacts import Split, SplitEmbeddings
from vitdc.errors import TrainingError
from vitdc.model import DeepClusteringViT, images_to_tensor
from vitdc.progress import progress_bar


@torch.inference_mode()
def embed_split(
    model: DeepClusteringViT,
    split: Split,
    out: SplitEmbeddings,
    *,
    device: torch.device,
    batch_size: int,
    description: str = "embed",
) -> None:
    """Fill `out` for every image of `split`, batch by batch, in float32.

    Args:
        model: In evaluation mode, on `device`.
        split: N images and their labels.
        out: Arrays of N rows, e.g. memory maps; the cross-entropy of an unknown label is NaN.
        device: Where the model is.
        batch_size: Images per batch.
        description: Label of the progress bar.

    Raises:
        TrainingError: The model's output is not finite.
    """
    progress = progress_bar(total=len(split), desc=description, unit="image", leave=False)
    with progress:
        for start in range(0, len(split), batch_size):
            rows = slice(start, start + batch_size)
            labels = torch.from_numpy(split.labels[rows]).to(device)
            output = model(images_to_tensor(split.images[rows], device))
            cross_entropy = functional.cross_entropy(
                output.logits, labels, reduction="none", ignore_index=-1
            )
            known = (labels >= 0).cpu().numpy()
            out.embedding[rows] = output.embedding.cpu().numpy()
            out.cross_entropy[rows] = np.where(known, cross_entropy.cpu().numpy(), np.nan)
            if not (np.isfinite(out.embedding[rows]).all() and cross_entropy.isfinite().all()):
                raise TrainingError(
                    f"{description}: the model gives numbers that are not finite; train it again,"
                    " e.g. with a lower learning_rate"
                )
            out.predicted[rows] = output.logits.argmax(dim=1).cpu().numpy()
            progress.update(len(labels))
