"""Trained weights: the Checkpoint artifact, and the state of an unfinished training."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

from vitdc.artifacts.dataset import Supervision
from vitdc.artifacts.storage import link, read_array, read_metadata, writing
from vitdc.config import FROZEN
from vitdc.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import torch

MODEL, BACKBONE = "model.safetensors", "backbone.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A trained model and all that is needed to use it.

    Payload: model.safetensors, and targets.npy where the targets were not the labels alone. What
    training never changes lies apart in backbone.safetensors, so that all rounds share one file.

    Attributes:
        round: 0 after the initial training, r after the r-th retraining.
        model: The `model` section of the configuration, with its defaults filled in.
        image_shape: (H, W, C) of the prepared images.
        class_names: One per label value of the data set.
        num_outputs: Of the head, which are classes first and clusters after them; only clusters if
            no label was trained on; 0 without a head, after self-supervision.
        supervision: How many labels were trained on.
        mean: (C,) that images are normalised with: the backbone's where it is pretrained.
        std: (C,) likewise.
        history: A row per epoch of the training that led here, e.g. {"epoch", "loss",
            "cross_entropy", "clustering_loss", "learning_rate"}; parts as of the objective.
        path: Where the weights lie.
        targets: (N,) int64, memory-mapped: output of the head that every training image was trained
            to give, -1 for none; None where these are the labels that may be trained on.
        backbone: What rebuilds the backbone: timm's "name", the "arguments" of `timm.create_model`
            but for the number of classes, and the "image_size" (H, W) that it sees. None in older
            checkpoints, whose configuration says it all.
        decoding: As of `Dataset`.
    """

    kind: ClassVar[str] = "checkpoint"

    round: int
    model: dict[str, Any]
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    num_outputs: int
    supervision: Supervision
    mean: tuple[float, ...]
    std: tuple[float, ...]
    history: list[dict[str, float]]
    path: Path
    targets: np.ndarray | None = None
    backbone: dict[str, Any] | None = None
    decoding: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Self:
        path = Path(path)
        metadata = read_metadata(path, cls.kind)
        targets = path / "targets.npy"
        return cls(
            round=metadata["round"],
            model=metadata["model"],
            image_shape=tuple(metadata["image_shape"]),
            class_names=tuple(metadata["class_names"]),
            # older checkpoints have neither: their outputs are the classes
            num_outputs=metadata.get("num_outputs", len(metadata["class_names"])),
            supervision=metadata.get("supervision", "full"),
            mean=tuple(metadata["mean"]),
            std=tuple(metadata["std"]),
            history=metadata["history"],
            path=path,
            targets=read_array(targets) if targets.exists() else None,
            backbone=metadata.get("backbone"),
            decoding=metadata.get("decoding", {}),
        )

    @property
    def trainable(self) -> str:
        """What training changes, see `ModelConfig.trainable`; in older checkpoints everything."""
        return self.model.get("trainable") or "all"

    @property
    def is_frozen(self) -> bool:
        """Whether training leaves the whole backbone as it is."""
        return self.trainable in FROZEN

    def weights(self) -> dict[str, torch.Tensor]:
        """The model's state dict, on the CPU.

        Raises:
            InputError: The file does not hold tensors, whatever its hash says.
        """
        backbone = self.path / BACKBONE  # none in older checkpoints, and where all is trained
        return _read(self.path / MODEL) | (_read(backbone) if backbone.exists() else {})

    def save(
        self,
        path: Path,
        weights: Mapping[str, torch.Tensor],
        made_by: Mapping[str, Any],
        *,
        constant: Collection[str] = (),
        before: Path | None = None,
    ) -> None:
        """Write this description with `weights` to `path` (`self.path` is not used).

        Args:
            path: Directory of the artifact.
            weights: The model's state dict.
            made_by: As in `writing`.
            constant: Names of the weights that training never changes.
            before: The checkpoint that was trained on, which has the same constant weights.
        """
        from safetensors.torch import save_file

        tensors = {name: tensor.cpu().contiguous() for name, tensor in weights.items()}
        with writing(path, self.kind, made_by) as writer:
            backbone = {name: tensors.pop(name) for name in constant}
            save_file(tensors, writer.directory / MODEL)
            if backbone and before and (before / BACKBONE).exists():
                link(before / BACKBONE, writer.directory / BACKBONE)
            elif backbone:
                save_file(backbone, writer.directory / BACKBONE)
            if self.targets is not None:
                writer.save("targets", self.targets)
            described = [f.name for f in fields(self) if f.name not in ("path", "targets")]
            writer.metadata = {name: getattr(self, name) for name in described}


def _read(file: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except SafetensorError as error:
        raise InputError(f"{file}: not a safetensors file ({error})") from None


class TrainingState(NamedTuple):
    """The state of a training after an epoch, kept in scratch. Payload: state.safetensors.

    Attributes:
        weights: State dict of all that is trained.
        moments: The optimizer's state: name -> tensor, per parameter index.
        history: A row per finished epoch.
    """

    weights: dict[str, torch.Tensor]
    moments: dict[int, dict[str, torch.Tensor]]
    history: list[dict[str, float]]

    def save(self, path: Path) -> None:
        from safetensors.torch import save_file

        tensors = {f"weights/{name}": tensor for name, tensor in self.weights.items()}
        for index, moments in self.moments.items():
            tensors |= {f"moments/{index}/{name}": tensor for name, tensor in moments.items()}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        with writing(path, "training-state", {}) as writer:
            save_file(tensors, writer.directory / "state.safetensors")
            writer.metadata = {"history": self.history}

    @classmethod
    def load(cls, path: Path) -> Self | None:
        """The state kept at `path`; None where there is none. A damaged one is an error."""
        from safetensors.torch import load_file

        if not (path / "artifact.json").exists():
            return None
        metadata = read_metadata(path, "training-state")
        weights: dict[str, torch.Tensor] = {}
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for key, tensor in load_file(path / "state.safetensors").items():
            kind, name = key.split("/", 1)
            if kind == "weights":
                weights[name] = tensor
            else:
                index, name = name.split("/")
                moments.setdefault(int(index), {})[name] = tensor
        return cls(weights, moments, metadata["history"])
