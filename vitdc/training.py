"""The one training loop, for the initial training and for every retraining.

The state after each epoch can be kept in a scratch directory. Because every epoch draws its
random numbers from its own stream (see `seeding`), the state is just weights (of the model and of
what the objective trains beside it), optimizer moments and history, and a continued run gives the
bytes of an undisturbed one.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.optim import param_groups_weight_decay  # type: ignore[attr-defined]
from torch import Tensor, nn

from vitdc.artifacts import TrainingState
from vitdc.config import ComputeConfig, TrainingConfig
from vitdc.device import resolve_device, training_dtype
from vitdc.errors import TrainingError
from vitdc.model import DeepClusteringViT, to_tensor
from vitdc.objectives import Joint, Views
from vitdc.progress import progress_bar
from vitdc.seeding import derive_seed, seeded
from vitdc.watching import NOBODY, Watcher

logger = logging.getLogger(__name__)

CHECK_EVERY = 10  # steps between looks at the loss; each look waits for the device


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
    model: nn.Module,
    inputs: np.ndarray,
    objective: Joint,
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
        model: A `DeepClusteringViT`, or the `Top` of one; on any device; ends in evaluation mode on
            the CPU.
        inputs: (N, H, W, C) uint8 images, or (N, D) float32 features; may be memory-mapped.
        objective: What is minimised.
        config: A training section.
        compute: Device and precision.
        seed: The run's seed.
        stream: (step name, round), which name the random streams.
        scratch: Directory for the state after each epoch; continues from what is there.
        watcher: Hears of batches and epochs.

    Returns:
        A row per epoch: "epoch", the parts of the objective (means over the epoch's batches) and
        "learning_rate".

    Raises:
        TrainingError: The loss is not finite; the state of the last good epoch is kept.
    """
    device = resolve_device(compute)
    trained = nn.ModuleDict({"model": model})
    if objective.module is not None:
        trained["objective"] = objective.module
    trained.to(device).train()
    optimizer = _optimizer(trained, config, device)
    usable = objective.usable()
    steps_per_epoch = num_batches(len(usable), config.batch_size, least=objective.min_batch)
    num_steps = config.epochs * steps_per_epoch
    history = _restore(scratch, trained, optimizer)
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
                losses = []  # per step: (P,) the parts, on the device
                for index in range(steps_per_epoch):
                    batch = order[index * config.batch_size : (index + 1) * config.batch_size]
                    rows = objective.shown(batch)
                    views = objective.views(to_tensor(inputs[rows], device), rows)
                    step = epoch * steps_per_epoch + index
                    rate = learning_rate(step, config, steps_per_epoch=steps_per_epoch)
                    with clock.compute():
                        loss = _step(trained, objective, views, optimizer, rate, config, compute)
                    losses.append(loss)
                    clock.images += len(batch)
                    if index % CHECK_EVERY == 0 or index + 1 == steps_per_epoch:
                        _check_finite(losses, objective.parts, stream, epoch, scratch)
                        values = _named(objective.parts, loss) | {"learning_rate": rate}
                        progress.set_postfix_str(clock.describe(values), refresh=False)
                        speed = {"images_per_second": clock.images_per_second()}
                        watcher.on_batch(stream[1], step + 1, values | speed, num_steps=num_steps)
                    progress.update()
            means = _named(objective.parts, torch.stack(losses).double().mean(dim=0))
            history.append({"epoch": epoch + 1, **means, "learning_rate": rate})
            rate_of_images = (clock.images - images_before) / (time.perf_counter() - epoch_start)
            ended = {**history[-1], "images_per_second": rate_of_images}
            watcher.on_epoch(stream[1], ended, num_epochs=config.epochs)
            _keep(scratch, trained, optimizer, history)
    trained.cpu().eval()
    if throughput := clock.throughput():
        logger.info("%s: %s", _title(stream), throughput)
    return history


def num_batches(num_images: int, batch_size: int, *, least: int) -> int:
    """Batches of an epoch; a rest of fewer than `least` images is none."""
    return math.ceil((num_images - least + 1) / batch_size)


def _title(stream: tuple[str, int]) -> str:
    """E.g. "pretrain" or "retrain, round 2"."""
    name, round_number = stream
    return f"{name}, round {round_number}" if round_number else name


def _named(parts: tuple[str, ...], loss: Tensor) -> dict[str, float]:
    """The parts of a loss, (P,), by their names."""
    return dict(zip(parts, loss.tolist(), strict=True))


def _step(
    trained: nn.ModuleDict,
    objective: Joint,
    views: Views,
    optimizer: torch.optim.Optimizer,
    rate: float,
    config: TrainingConfig,
    compute: ComputeConfig,
) -> Tensor:
    """Forward, backward and one optimizer step at learning rate `rate`; (P,) parts of the loss."""
    device = views.images.device
    dtype = training_dtype(compute, device)
    with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        output = trained["model"](views.images)
    loss = objective.loss(output, views)
    loss[0].backward()  # type: ignore[no-untyped-call]
    if config.clip_norm:
        torch.nn.utils.clip_grad_norm_(trained.parameters(), config.clip_norm)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return torch.stack(loss).detach()


def _optimizer(
    trained: nn.ModuleDict, config: TrainingConfig, device: torch.device
) -> torch.optim.AdamW:
    groups: list[dict[str, Any]] = []
    for module in trained.values():
        spared = module.no_weight_decay() if isinstance(module, DeepClusteringViT) else ()
        groups += param_groups_weight_decay(
            module, config.weight_decay, no_weight_decay_list=spared
        )
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=device.type in ("cpu", "cuda"))


def _permutation(indices: np.ndarray, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(indices)


def _check_finite(
    losses: list[Tensor],
    parts: tuple[str, ...],
    stream: tuple[str, int],
    epoch: int,
    scratch: Path | None,
) -> None:
    finite = torch.stack(losses).isfinite().all(dim=1).tolist()
    if all(finite):
        return
    step = finite.index(False)
    name, round_number = stream
    values = ", ".join(f"{part} {value:g}" for part, value in _named(parts, losses[step]).items())
    kept = (
        f"the state after epoch {epoch} is kept in {scratch}"
        if scratch and epoch
        else "no epoch was finished, so nothing is kept"
        if scratch
        else "nothing is kept, because no --scratch was given"
    )
    raise TrainingError(
        f"{name}: the loss is not finite in round {round_number}, epoch {epoch + 1}, step"
        f" {step + 1} ({values}); {kept}; try a lower learning_rate, a longer warmup_epochs or a"
        " smaller clip_norm"
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
    trained: nn.ModuleDict,
    optimizer: torch.optim.Optimizer,
    history: list[dict[str, float]],
) -> None:
    if scratch is not None:
        frozen = {name for name, each in trained.named_parameters() if not each.requires_grad}
        weights = {name: each for name, each in trained.state_dict().items() if name not in frozen}
        TrainingState(weights, optimizer.state_dict()["state"], history).save(scratch)


def _restore(
    scratch: Path | None, trained: nn.ModuleDict, optimizer: torch.optim.Optimizer
) -> list[dict[str, Any]]:
    """Load the state kept in `scratch`, if any; returns the history so far."""
    state = TrainingState.load(scratch) if scratch else None
    if state is None:
        return []
    trained.load_state_dict({**trained.state_dict(), **state.weights})
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state.moments, "param_groups": groups})
    return list(state.history)
