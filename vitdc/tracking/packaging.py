"""A model directory as an MLflow model: MLflow's description around it, neither pickle nor code."""

from __future__ import annotations

import base64
import io
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from vitdc import __version__, artifacts, environment
from vitdc.artifacts import Checkpoint
from vitdc.config import ComputeConfig

if TYPE_CHECKING:
    from mlflow.models import Model, ModelSignature

LOADER_MODULE = "vitdc.tracking.pyfunc"
MODEL_PARTS = ("checkpoint", "clustering")


def write_mlflow_model(directory: Path, path: Path, description: Model | None = None) -> None:
    """Write what `mlflow models serve --model-uri PATH` serves.

    Args:
        directory: The model directory.
        path: New directory of the MLflow model.
        description: What MLflow's description says beyond that, such as the run.
    """
    import mlflow.pyfunc

    with (
        tempfile.TemporaryDirectory() as temporary,
        environment.defaults({"MLFLOW_UV_AUTO_DETECT": "false"}),  # else it copies our own lock
    ):
        parts = Path(temporary, "model")
        for part in MODEL_PARTS:  # a round of `refine` has more
            artifacts.copy(directory / part, parts / part)
        mlflow.pyfunc.save_model(
            path,
            loader_module=LOADER_MODULE,
            data_path=str(parts),
            mlflow_model=description,
            signature=_signature(),
            input_example=_input_example(directory),
            model_config=ComputeConfig().model_dump(mode="json"),
            pip_requirements=[f"vitdc=={__version__}"],
        )


def _signature() -> ModelSignature:
    """An image in, a row of an answer out.

    The type of an image is `any`: no other type of MLflow lets a column hold base64 text in one row
    and pixels in the next. `vitdc.serving` checks what it gets.
    """
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, ColSpec, DataType, Schema

    outputs = Schema(
        [
            ColSpec(DataType.long, "cluster"),
            ColSpec(DataType.float, "distance"),
            ColSpec(DataType.float, "second_distance", required=False),  # of one cluster: none
            ColSpec(DataType.float, "margin"),
            ColSpec(DataType.boolean, "unsure"),
        ]
    )
    image = ColSpec(AnyType(), "image")  # type: ignore[no-untyped-call]
    return ModelSignature(Schema([image]), outputs)


def _input_example(directory: Path) -> dict[str, list[str]]:
    """A PNG in the size of the model, plain in the mean colour of its training images."""
    import numpy as np
    from PIL import Image

    checkpoint = Checkpoint.load(directory / "checkpoint")
    pixels = np.empty(checkpoint.image_shape, np.uint8)
    pixels[:] = np.round(np.array(checkpoint.mean[: pixels.shape[2]]) * 255)
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze(axis=2) if pixels.shape[2] == 1 else pixels).save(file, "PNG")
    return {"image": [base64.b64encode(file.getvalue()).decode()]}
