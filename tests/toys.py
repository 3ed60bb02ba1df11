"""Toys that the tests share: separable 8-pixel images, a two-block ViT, short trainings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vitdc import loop, steps
from vitdc.artifacts import RoundPaths, writing_dataset
from vitdc.config import (
    ClusteringConfig,
    ComputeConfig,
    ConvergenceConfig,
    EvaluationConfig,
    JointConfig,
    ModelConfig,
    PretrainingConfig,
    SelfSupervisedConfig,
)

WriteImages = Callable[..., Path]  # of the fixture `write_images`
CLASS_NAMES = ("left", "right", "bottom")
MODEL = ModelConfig(patch_size=4, embed_dim=16, depth=2, num_heads=2)
BRIEFLY: dict[str, Any] = {"epochs": 3, "batch_size": 16, "learning_rate": 3e-3}
PRETRAINING = PretrainingConfig(**BRIEFLY, self_supervised=SelfSupervisedConfig(**BRIEFLY))
JOINT = JointConfig(epochs=1, batch_size=16, learning_rate=1e-3, gamma=0.5)
CLUSTERING = ClusteringConfig(num_clusters=3, num_restarts=3, num_iterations=20)
CONVERGENCE = ConvergenceConfig(epsilon=0, max_rounds=2)
COMPUTE = ComputeConfig(device="cpu", num_threads=1, embedding_batch_size=20)
EVALUATION = EvaluationConfig(gallery_size=2, map_points=20)


SMALL_PARAMS = {
    "seed": 0,
    "data": {"source": "digits", "max_train": 300, "max_test": 100},
    "model": {"embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 4},
    "pretraining": {
        "epochs": 2,
        "learning_rate": 0.003,
        "self_supervised": {"epochs": 2},
    },
    "clustering": {"num_clusters": 4, "num_restarts": 2},
    "joint": {"epochs": 1, "gamma": 0.1},
    "convergence": {"epsilon": 0.0, "max_rounds": 2},
    "evaluation": {"map_points": 50, "gallery_size": 2},
    "compute": {"device": "cpu", "num_threads": 1},
}
"""A params.yaml that every runner is done with in seconds."""


class ToyRun(NamedTuple):
    """A finished run of the whole method on the toy images."""

    dataset: Path
    rounds: Path
    results: Path

    @property
    def pretrained(self) -> Path:
        return self.paths(0).checkpoint

    def paths(self, number: int) -> RoundPaths:
        return RoundPaths.in_directory(self.rounds / f"{number:02d}")

    def round(self, number: int) -> Path:
        return self.rounds / f"{number:02d}" / "round"


def make_toy_run(
    dataset: Path,
    directory: Path,
    *,
    pretraining: PretrainingConfig = PRETRAINING,
    clustering: ClusteringConfig = CLUSTERING,
) -> ToyRun:
    """Two rounds and their evaluation."""
    run = ToyRun(dataset, directory / "rounds", directory / "results")
    shared: dict[str, Any] = {"dataset": dataset, "compute": COMPUTE, "seed": 0}
    pretrained = directory / "pretrained"
    steps.pretrain(**shared, model=MODEL, pretraining=pretraining, output=pretrained)
    loop.refine(
        **shared,
        checkpoint=pretrained,
        clustering=clustering,
        joint=JOINT,
        convergence=CONVERGENCE,
        output=run.rounds,
    )
    steps.evaluate(
        **shared,
        **loop.round_arguments(loop.round_directories(run.rounds)),
        evaluation=EVALUATION,
        output=run.results,
    )
    return run


def toy_images(labels: np.ndarray, *, side: int = 8, seed: int = 0) -> np.ndarray:
    """(N, side, side, 1) uint8: noise, and a bright square in the place of the label."""
    images = np.random.default_rng(seed).integers(0, 60, (len(labels), side, side, 1))
    half = side // 2
    for image, label in zip(images, labels, strict=True):
        top, left = ((0, 0), (0, half), (half, half // 2))[label]
        image[top : top + half, left : left + half] += 180
    return images.astype(np.uint8)


def write_toy_dataset(
    path: Path,
    *,
    num_train: int = 42,
    num_test: int = 12,
    unlabelled: int = 0,
    side: int = 8,
    num_known: int | None = None,
) -> Path:
    """A Dataset of three classes, the first `unlabelled` training images without their label.

    With `num_known`, only the labels of so many training images, the first, may be trained on.
    """
    with writing_dataset(path, {"step": "prepare"}, image_shape=(side, side, 1)) as writer:
        for split, count in (("train", num_train), ("test", num_test)):
            labels = np.arange(count) % len(CLASS_NAMES)
            images = toy_images(labels, side=side, seed=len(split))
            if split == "train":
                labels[:unlabelled] = -1
            names = [f"{split}-{index}" for index in range(count)]
            writer.append(split, names=names, labels=labels, images=images)
        writer.describe(
            name="toy",
            class_names=CLASS_NAMES,
            mean=(0.25,),
            std=(0.3,),
            content_hash="0" * 64,
            num_unreadable=0,
            known=None if num_known is None else np.arange(num_train) < num_known,
        )
    return path


def contents(directory: Path) -> dict[str, bytes]:
    """Every file under a directory, by its relative path."""
    files = (path for path in sorted(directory.rglob("*")) if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


def from_call(
    number: int, *, use: Callable[..., Any], before: Callable[..., Any]
) -> Callable[..., Any]:
    """A function that is `before` until its call `number` (from 1), and `use` from then on."""
    calls = 0

    def function(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return (use if calls >= number else before)(*args, **kwargs)

    return function


def interrupt(*args: Any, **kwargs: Any) -> None:
    """Ctrl-C, wherever a function is called."""
    raise KeyboardInterrupt
