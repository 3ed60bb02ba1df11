"""The formats: how each is written, and how a program without vitdc would run it.

TorchScript is not among them: torch has deprecated it for `torch.export`.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from vitdc.errors import InputError
from vitdc.export.checking import Outputs, Run
from vitdc.export.graph import ClusteringGraph

OPSET = 18  # the first with antialiased resizing


class Format(Protocol):
    """One way to store a model."""

    file_name: str

    def check_packages(self) -> None:
        """Refuse early what cannot be written here."""

    def write(self, graph: ClusteringGraph, image_shape: tuple[int, int, int], file: Path) -> None:
        """Store the graph, for batches of any size."""

    def open(self, file: Path, description: Mapping[str, Any]) -> Run:
        """Load it as another program would."""


class Onnx:
    """For onnxruntime and whatever else reads ONNX."""

    file_name = "model.onnx"

    def check_packages(self) -> None:
        needed = ("onnx", "onnxscript", "onnxruntime")  # the last one checks what was written
        missing = [name for name in needed if not find_spec(name)]
        if missing:
            raise InputError(
                f"export: ONNX needs {' and '.join(missing)}, which this environment lacks; run"
                f" pip install {' '.join(missing)}, or take --format pt2"
            )

    def write(self, graph: ClusteringGraph, image_shape: tuple[int, int, int], file: Path) -> None:
        with _quiet():
            torch.onnx.export(
                graph,
                _example(image_shape),
                file,
                dynamo=True,
                external_data=False,
                opset_version=OPSET,
                input_names=["images"],
                output_names=list(Outputs._fields),
                dynamic_shapes=_any_batch(),
                verbose=False,
            )

    def open(self, file: Path, description: Mapping[str, Any]) -> Run:
        import onnxruntime

        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        names = list(Outputs._fields)
        return lambda images: Outputs(*session.run(names, {"images": images}))


class ExportedProgram:
    """For torch without vitdc and timm, in Python or compiled by AOTInductor."""

    file_name = "model.pt2"

    def check_packages(self) -> None:
        pass

    def write(self, graph: ClusteringGraph, image_shape: tuple[int, int, int], file: Path) -> None:
        with _quiet():
            program = torch.export.export(graph, _example(image_shape), dynamic_shapes=_any_batch())
            torch.export.save(program, file)

    def open(self, file: Path, description: Mapping[str, Any]) -> Run:
        module = torch.export.load(file).module()

        def run(images: np.ndarray) -> Outputs:
            found = module(torch.from_numpy(images))
            return Outputs(**{name: tensor.detach().numpy() for name, tensor in found.items()})

        return run


class Weights:
    """For timm: the weights and centroids; what surrounds them is code, as in predict.py."""

    file_name = "model.safetensors"

    def check_packages(self) -> None:
        pass

    def write(self, graph: ClusteringGraph, image_shape: tuple[int, int, int], file: Path) -> None:
        from safetensors.torch import save_file

        tensors = {**graph.model.state_dict(), **graph.constants()}
        tensors = {name: value.contiguous() for name, value in tensors.items()}
        save_file(tensors, file)

    def open(self, file: Path, description: Mapping[str, Any]) -> Run:
        recipe = import_module("vitdc.export.predict")
        run = recipe.load_safetensors(file, description)
        return lambda images: Outputs(**run(images))


def _example(image_shape: tuple[int, int, int]) -> tuple[torch.Tensor]:
    """Two images, because torch takes a single one for a batch that is always single."""
    height, width, channels = image_shape
    return (torch.zeros(2, channels, height, width),)


def _any_batch() -> dict[str, Any]:
    return {"images": {0: torch.export.Dim("batch", min=1)}}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what the exporters tell about themselves; failures are exceptions."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


FORMATS: dict[str, Format] = {
    "onnx": Onnx(),
    "pt2": ExportedProgram(),
    "safetensors": Weights(),
}
