"""The one training loop, for the initial training and for every retraining.

The state after each epoch can be kept in a scratch directory. Because every epoch draws its
random numbers from its own stream (see `seeding`), the state is just weights, optimizer moments
and history, and a continued run gives the bytes of an undisturbed one.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from timm.data.mixup import Mixup
from timm.optim import param_groups_weight_decay  # type: ignore[attr-defined]
from torch import Tensor

from vitdc.artifacts import TrainingState
from vitdc.augmentation import augment
from vitdc.config import ComputeConfig, TrainingConfig
from vitdc.device import resolve_device, training_dtype
from vitdc.errors import TrainingError
from vitdc.losses import JointLoss, joint_loss, one_hot_targets
from vitdc.model import DeepClusteringViT, images_to_tensor
from vitdc.progress import progress_bar
from vitdc.seeding import derive_seed, seeded
from vitdc.watching import NOBODY, Watcher

logger = logging.getLogger(__name__)

CHECK_EVERY = 10  # steps between looks at the loss; each look waits for the device


class Anchors(NamedTuple):
    """What a retraining pulls the embeddings towards, frozen during the round."""

    centroids: np.ndarray  # (K, D) float32
    assignment: np.ndarray  # (N,) cluster of every training image
    gamma: float


@dataclass(frozen=True)
class TrainingData:
    """Images and targets of a training.

    Attributes:
        images: (N, H, W, C) uint8, may be memory-mapped.
        labels: (N,) int64, -1 where unknown.
        num_classes: Outputs of the head.
        anchors: Frozen clusters for the joint loss, or None for cross-entropy alone.
    """

    images: np.ndarray
    labels: np.ndarray
    num_classes: int
    anchors: Anchors | None = None

    def usable(self) -> np.ndarray:
        """Indices of the images that carry any loss: the labelled ones, or all with anchors."""
        if self.anchors is not None:
            return np.arange(len(self.labels))
        return np.flatnonzero(self.labels >= 0)


class Batch(NamedTuple):
    """One batch on the device."""

    images: Tensor  # (B, C, H, W) float in [0, 1], augmented
    targets: Tensor  # (B, num_classes)
    centroids: Tensor | None  # (B, D)
    mixing: Tensor | None  # (B, B)


@dataclass(frozen=True)
class Throughput:
    """How fast a training was, and which share of it was not forward, backward or optimizer."""

    images: int
    seconds: float
    overhead: float

    def __str__(self) -> str:
        return (
            f"{self.images} images in {self.seconds:.1f} s, {self.images / self.seconds:.0f}"
            f" images/s, {self.overhead:.0%} of the time outside forward, backward and optimizer"
        )


def learning_rate(step: int, config: TrainingConfig, *, steps_per_epoch: int) -> float:
    """Linear warm-up to the peak, then cosine decay to the final share of it.

    Args:
        step: Optimizer step, from 0.
        config: The training section.
        steps_per_epoch: Optimizer steps per epoch.
    """
    total = config.epochs * steps_per_epoch
    warmup = min(round(config.warmup_epochs * steps_per_epoch), total - 1)
    if step < warmup:
        return config.learning_rate * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, total - warmup)
    floor = config.final_learning_rate
    return config.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def train(
    model: DeepClusteringViT,
    data: TrainingData,
    config: TrainingConfig,
    *,
    compute: ComputeConfig,
    seed: int,
    stream: tuple[str, int],
    scratch: Path | None = None,
    watcher: Watcher = NOBODY,
) -> list[dict[str, float]]:
    """Train `model` in place.

    Args:
        model: On any device; ends in evaluation mode on the CPU.
        data: Images, labels and, for a retraining, the frozen clusters.
        config: A training section.
        compute: Device and precision.
        seed: The run's seed.
        stream: (step name, round), which name the random streams.
        scratch: Directory for the state after each epoch; continues from what is there.
        watcher: Hears of batches and epochs.

    Returns:
        A row per epoch: "epoch", "loss", "cross_entropy", "clustering_loss" (means over the
        epoch's batches) and "learning_rate".

    Raises:
        TrainingError: The loss is not finite; the state of the last good epoch is kept.
    """
    device = resolve_device(compute)
    model.to(device).train()
    optimizer = _optimizer(model, config, device)
    usable = data.usable()
    steps_per_epoch = math.ceil(len(usable) / config.batch_size)
    num_steps = config.epochs * steps_per_epoch
    history = _restore(scratch, model, optimizer)
    clock = Clock(device)
    progress = progress_bar(
        total=num_steps,
        initial=len(history) * steps_per_epoch,
        desc=_title(stream),
        unit="step",
        leave=False,
    )
    with progress:
        for epoch in range(len(history), config.epochs):
            epoch_start, images_before = time.perf_counter(), clock.images
            with seeded(seed, *stream, epoch):
                order = _permutation(usable, derive_seed(seed, *stream, epoch, "order"))
                losses = []  # per step: (3,) on the device
                for index, batch in enumerate(_batches(order, data, config, device)):
                    step = epoch * steps_per_epoch + index
                    rate = learning_rate(step, config, steps_per_epoch=steps_per_epoch)
                    with clock.compute():
                        loss = _step(model, batch, optimizer, rate, config, compute, data.anchors)
                    losses.append(torch.stack(loss).detach())
                    clock.images += len(batch.images)
                    if index % CHECK_EVERY == 0 or index + 1 == steps_per_epoch:
                        _check_finite(losses, stream, epoch, scratch)
                        values = _values(losses[-1], rate)
                        progress.set_postfix_str(clock.describe(values), refresh=False)
                        speed = {"images_per_second": clock.images_per_second()}
                        watcher.on_batch(stream[1], step + 1, values | speed, num_steps=num_steps)
                    progress.update()
            total, cross_entropy, clustering = torch.stack(losses).double().mean(dim=0).tolist()
            row = {"epoch": epoch + 1, "loss": total, "cross_entropy": cross_entropy}
            history.append({**row, "clustering_loss": clustering, "learning_rate": rate})
            rate_of_images = (clock.images - images_before) / (time.perf_counter() - epoch_start)
            ended = {**history[-1], "images_per_second": rate_of_images}
            watcher.on_epoch(stream[1], ended, num_epochs=config.epochs)
            _keep(scratch, model, optimizer, history)
    model.cpu().eval()
    if throughput := clock.throughput():
        logger.info("%s: %s", _title(stream), throughput)
    return history


def _title(stream: tuple[str, int]) -> str:
    """E.g. "pretrain" or "retrain, round 2"."""
    name, round_number = stream
    return f"{name}, round {round_number}" if round_number else name


def _values(loss: Tensor, rate: float) -> dict[str, float]:
    """The parts of a batch's loss, (3,), and the learning rate it was trained with."""
    total, cross_entropy, clustering = loss.tolist()
    parts = {"loss": total, "cross_entropy": cross_entropy, "clustering_loss": clustering}
    return parts | {"learning_rate": rate}


def _step(
    model: DeepClusteringViT,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    rate: float,
    config: TrainingConfig,
    compute: ComputeConfig,
    anchors: Anchors | None,
) -> JointLoss:
    """Forward, backward and one optimizer step at learning rate `rate`."""
    device = batch.images.device
    dtype = training_dtype(compute, device)
    with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        output = model(batch.images)
    loss = joint_loss(
        output.logits,
        batch.targets,
        embedding=output.embedding,
        centroids=batch.centroids,
        gamma=anchors.gamma if anchors else 0.0,
        label_smoothing=config.label_smoothing,
        mixing=batch.mixing,
    )
    loss.total.backward()  # type: ignore[no-untyped-call]
    if config.clip_norm:
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss


def _optimizer(
    model: DeepClusteringViT, config: TrainingConfig, device: torch.device
) -> torch.optim.AdamW:
    groups = param_groups_weight_decay(
        model.vit, config.weight_decay, no_weight_decay_list=model.vit.no_weight_decay()
    )
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=device.type in ("cpu", "cuda"))


def _permutation(indices: np.ndarray, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(indices)


def _batches(
    order: np.ndarray, data: TrainingData, config: TrainingConfig, device: torch.device
) -> Iterator[Batch]:
    """The epoch's batches, on the device and augmented."""
    mixup = _mixup(config)
    for start in range(0, len(order), config.batch_size):
        rows = order[start : start + config.batch_size]
        images = augment(images_to_tensor(data.images[rows], device), config)
        targets = one_hot_targets(torch.from_numpy(data.labels[rows]).to(device), data.num_classes)
        centroids = None
        if data.anchors is not None:
            own = data.anchors.centroids[data.anchors.assignment[rows]]
            centroids = torch.from_numpy(own).to(device)
        mixing = None
        if mixup is not None and len(rows) % 2 == 0:  # timm mixes pairs; an odd last batch is not
            images, mixing = _mix(mixup, images)
        yield Batch(images, targets, centroids, mixing)


def _mixup(config: TrainingConfig) -> Mixup | None:
    if not (config.mixup or config.cutmix):
        return None
    return Mixup(  # type: ignore[no-untyped-call]
        mixup_alpha=config.mixup, cutmix_alpha=config.cutmix, label_smoothing=0.0
    )


def _mix(mixup: Mixup, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mix a batch; row i of the (B, B) mixing holds the share of every image in image i.

    Each image is given its own "class", so that timm's soft labels are the shares themselves and
    serve the labels and the centroids alike.
    """
    mixup.num_classes = len(images)
    own = torch.arange(len(images), device=images.device)
    mixed, shares = mixup(images, own)
    return mixed, shares.to(images.device)


def _check_finite(
    losses: list[Tensor], stream: tuple[str, int], epoch: int, scratch: Path | None
) -> None:
    finite = torch.stack(losses).isfinite().all(dim=1).tolist()
    if all(finite):
        return
    step = finite.index(False)
    name, round_number = stream
    total, cross_entropy, clustering = losses[step].tolist()
    kept = (
        f"the state after epoch {epoch} is kept in {scratch}"
        if scratch and epoch
        else "no epoch was finished, so nothing is kept"
        if scratch
        else "nothing is kept, because no --scratch was given"
    )
    raise TrainingError(
        f"{name}: the loss is not finite in round {round_number}, epoch {epoch + 1}, step"
        f" {step + 1} (loss {total:g} = cross-entropy {cross_entropy:g} + gamma * clustering loss"
        f" {clustering:g}); {kept}; try a lower learning_rate, a longer warmup_epochs or a smaller"
        " clip_norm"
    )


class Clock:
    """Splits the training time into compute (forward, backward, optimizer) and the rest."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.images = 0
        self.start = time.perf_counter()
        self.compute_seconds = 0.0
        self._entered = 0.0

    def compute(self) -> Clock:
        return self

    def __enter__(self) -> None:
        self._entered = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.compute_seconds += time.perf_counter() - self._entered

    def images_per_second(self) -> float:
        return self.images / (time.perf_counter() - self.start)

    def describe(self, values: Mapping[str, float]) -> str:
        return f"loss {values['loss']:.4f}, {self.images_per_second():.0f} images/s"

    def throughput(self) -> Throughput | None:
        """None where no image was trained on. On a GPU, compute only covers the launches."""
        if not self.images:
            return None
        elapsed = time.perf_counter() - self.start
        return Throughput(self.images, elapsed, 1 - self.compute_seconds / elapsed)


def _keep(
    scratch: Path | None,
    model: DeepClusteringViT,
    optimizer: torch.optim.Optimizer,
    history: list[dict[str, float]],
) -> None:
    if scratch is not None:
        moments = optimizer.state_dict()["state"]
        TrainingState(dict(model.state_dict()), moments, history).save(scratch)


def _restore(
    scratch: Path | None, model: DeepClusteringViT, optimizer: torch.optim.Optimizer
) -> list[dict[str, Any]]:
    """Load the state kept in `scratch`, if any; returns the history so far."""
    state = TrainingState.load(scratch) if scratch else None
    if state is None:
        return []
    model.load_state_dict(state.weights)
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state.moments, "param_groups": groups})
    return list(state.history)
