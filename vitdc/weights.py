"""Pretrained weights: where they come from, and what belongs to them.

true         timm's, from the Hugging Face hub or its cache
a file       .safetensors with timm's names
local-dir:   a folder as timm's `save_for_hf` writes it: config.json and model.safetensors
a run        a results directory of vitdc, its `model` or its `checkpoint`

Weights come with their architecture and with the mean, std and size of the images that they were
trained on. A bare file does not say these, so it has to be of a model as timm has it. Nothing is
unpickled.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vitdc import artifacts
from vitdc.artifacts import Checkpoint
from vitdc.backbone import (
    DEFAULT_NAME,
    SHAPING,
    Backbone,
    backbone_of,
    check_name,
    pretrained_settings,
)
from vitdc.config import ModelConfig
from vitdc.errors import InputError
from vitdc.quick_timm import timm

FOLDER = "local-dir:"
FILE_NAME = "model.safetensors"
PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".pkl", ".tar")
OTHER_WAYS = (
    "give a .safetensors file with timm's names, local-dir:FOLDER or a results directory of vitdc,"
    " or false for fresh weights"
)


@dataclass(frozen=True)
class Pretrained:
    """Weights and what belongs to them.

    Attributes:
        origin: What messages call them.
        backbone: As they were trained.
        tensors: The backbone's state dict, without a classifier.
        adapter: State dict of the adapter above it; empty without one.
        note: What a person should know about them, for the log.
    """

    origin: str
    backbone: Backbone
    tensors: Mapping[str, Tensor]
    adapter: Mapping[str, Tensor] = field(default_factory=dict)
    note: str = ""


def find_weights(config: ModelConfig) -> Pretrained | None:
    """Read the weights that `model.pretrained` names; None where it names none.

    Args:
        config: The `model` section; its name has been checked.

    Raises:
        InputError: They cannot be had or read, or are a pickle.
    """
    source = config.pretrained
    if not source:
        return None
    if source is True:
        return _from_timm(config.name or DEFAULT_NAME)
    if source.startswith(FOLDER):
        return _from_folder(Path(source.removeprefix(FOLDER)))
    path = Path(source)
    if path.is_dir():
        return _from_run(path)
    return _from_file(path, config)


def fingerprint(config: ModelConfig) -> dict[str, str]:
    """The content of local weights, by a name for `made_by`: a path is not enough to name them."""
    source = config.pretrained
    if not isinstance(source, str):
        return {}
    if source.startswith(FOLDER):
        folder = Path(source.removeprefix(FOLDER))
        _check_file(folder / FILE_NAME)
        _read_json(folder / "config.json")
        return {
            "pretrained_sha256": artifacts.sha256(folder / FILE_NAME),
            "pretrained_config_sha256": artifacts.sha256(folder / "config.json"),
        }
    if Path(source).is_dir():
        return {"pretrained_sha256": artifacts.digest(_find_checkpoint(Path(source)))}
    _check_file(Path(source))
    return {"pretrained_sha256": artifacts.sha256(Path(source))}


# --- the four kinds ------------------------------------------------------------------------------


def _from_timm(name: str) -> Pretrained:
    settings = pretrained_settings(name)
    if not (address := settings["hf_hub_id"]):
        raise InputError(
            f"model.pretrained: timm has no weights in safetensors for {name}; {OTHER_WAYS}"
        )
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it says every retry twice
    try:
        tensors = timm.models.load_state_dict_from_hf(address, FILE_NAME)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"model.pretrained: the weights {address} cannot be had"
            f" ({_first_line(error)}); without a network, fetch {FILE_NAME} and config.json from"
            f" https://huggingface.co/{address} elsewhere and name their folder,"
            f" model.pretrained={FOLDER}FOLDER; or {OTHER_WAYS}"
        ) from None
    note = f"{address}, licence {settings['license'] or 'unknown'}"
    return replace(_described(address, name, settings, tensors), note=note)


def _from_file(path: Path, config: ModelConfig) -> Pretrained:
    """Tensors of a model as timm has it; of any other, nothing says how images were normalised."""
    name = config.name or DEFAULT_NAME
    settings, tensors = pretrained_settings(name), _read(path)
    changed = [f"model.{key}" for key in SHAPING if getattr(config, key) is not None]
    first = tensors.get(f"{settings['first_conv']}.weight")
    if first is not None and first.ndim == 4 and first.shape[1] != settings["input_size"][0]:
        changed.append(f"its {first.shape[1]} input channels")
    if changed:
        raise InputError(
            f"model.pretrained: {path} does not say how its images were normalised and sized, and"
            f" it is not timm's {name} ({', '.join(changed)}); take {FOLDER}FOLDER, as timm's"
            " save_for_hf writes it"
        )
    found = _described(str(path), name, settings, tensors)
    own = found.backbone
    height, width = own.image_size
    note = (
        f"{path}, with images as for timm's {name}: mean {own.mean}, std {own.std},"
        f" {height} x {width} pixels"
    )
    return replace(found, note=note)


def _from_folder(folder: Path) -> Pretrained:
    """As timm's `save_for_hf` writes it; older ones hold the settings at the top."""
    description = _read_json(folder / "config.json")
    settings = description.get("pretrained_cfg", description)
    name = description.get("architecture")
    if not isinstance(name, str) or not {"mean", "std", "input_size"} <= settings.keys():
        raise InputError(
            f"model.pretrained: {folder}/config.json is not timm's: `architecture` and a"
            " `pretrained_cfg` with mean, std and input_size are needed"
        )
    check_name(name)
    settings = {**pretrained_settings(name), **settings}
    arguments = {**description.get("model_args", {})}
    arguments.pop("num_classes", None)
    tensors = _read(folder / FILE_NAME)
    return _described(f"{FOLDER}{folder}", name, settings, tensors, arguments)


def _from_run(path: Path) -> Pretrained:
    checkpoint = Checkpoint.load(_find_checkpoint(path))
    own = backbone_of(checkpoint)
    parts: dict[str, dict[str, Tensor]] = {"vit": {}, "adapter": {}}
    for key, tensor in checkpoint.weights().items():
        part, _, name = key.partition(".")
        if part in parts:
            parts[part][name] = tensor
    heads = _classifier(pretrained_settings(own.name)["classifier"])
    tensors = {name: tensor for name, tensor in parts["vit"].items() if name not in heads}
    return Pretrained(str(path), own, tensors, parts["adapter"])


def _described(
    origin: str,
    name: str,
    settings: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    arguments: Mapping[str, Any] | None = None,
) -> Pretrained:
    """Put together tensors and timm's `pretrained_cfg`, and leave the classifier out."""
    heads = _classifier(settings.get("classifier"))
    _, height, width = settings["input_size"]
    own = Backbone(
        name=timm.models.split_model_name_tag(name)[0],
        arguments=dict(arguments or {}),
        image_size=(height, width),
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
    )
    kept = {key: tensor for key, tensor in tensors.items() if key not in heads}
    return Pretrained(origin, own, kept)


def _classifier(names: str | Sequence[str] | None) -> set[str]:
    """Names of the classifier's tensors, from timm's name or names of it."""
    each = [names] if isinstance(names, str) else names or ()
    return {f"{name}.{part}" for name in each for part in ("weight", "bias")}


# --- files ---------------------------------------------------------------------------------------


def _read(path: Path) -> dict[str, Tensor]:
    _check_file(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"model.pretrained: {path} cannot be read as safetensors ({_first_line(error)}); copy"
            " or download it again"
        ) from None


def _check_file(path: Path) -> None:
    """Refuse what is not there and what is a pickle."""
    if not path.is_file():
        pickles = [p for p in path.parent.glob("*") if p.suffix in PICKLES]
        if path.name == FILE_NAME and pickles:
            path = pickles[0]
        else:
            raise InputError(f"model.pretrained: {path}: no such file; {OTHER_WAYS}")
    if path.suffix in PICKLES:
        target = path.with_suffix(".safetensors").name
        raise InputError(
            f"model.pretrained: {path} is a pickle, which can run code when it is loaded; convert"
            ' it where you trust it: python -c "import torch, safetensors.torch as s;'
            f" s.save_file(torch.load('{path.name}', weights_only=True), '{target}')\""
        )
    if path.suffix != ".safetensors":
        raise InputError(f"model.pretrained: {path} is not a .safetensors file; {OTHER_WAYS}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"model.pretrained: {path} cannot be read ({_first_line(error)}); a folder that timm's"
            " save_for_hf wrote is needed, with config.json and model.safetensors"
        ) from None
    return found if isinstance(found, dict) else {}


def _find_checkpoint(path: Path) -> Path:
    """The Checkpoint in a results directory, in its `model`, or given itself."""
    places = (path / "model" / "checkpoint", path / "checkpoint", path)
    for place in places:
        if (place / "artifact.json").is_file() and (place / FILE_NAME).is_file():
            return place
    raise InputError(
        f"model.pretrained: {path} holds no checkpoint of vitdc; name a results directory, its"
        f" `model` or its `checkpoint`, or {FOLDER}{path} for a folder that timm has saved"
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].strip().rstrip(".") if lines else type(error).__name__
