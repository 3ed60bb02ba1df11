"""A model as MLflow loads it: `mlflow models serve` and `mlflow.pyfunc.load_model`.

Its name stands in every model that has been logged (`packaging.LOADER_MODULE`), so it stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST

from vitdc.config import ComputeConfig
from vitdc.errors import InputError
from vitdc.prediction import Predictor
from vitdc.serving import COLUMNS, Service

IMAGE = "image"  # the one column of a request


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> ImageClusters:
    """Load a model directory.

    Args:
        path: Of the model directory.
        model_config: Keys of the `compute` section; `SERVING_MODEL_CONFIG` of the scoring server.
    """
    compute = ComputeConfig.parse(model_config or {}, where="the configuration of the model")
    return ImageClusters(Service(Predictor.load(Path(path), compute)))


class ImageClusters:
    """What MLflow calls."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def predict(self, data: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Assign images to clusters.

        Args:
            data: An image per row in the column `image`: the bytes of a file, their base64 text,
                or pixels.
            params: MLflow's; there are none.

        Returns:
            A row per image with the columns `vitdc.serving.COLUMNS`.

        Raises:
            BadRequest: Something is not an image.
        """
        try:
            rows = self._service.answer(_images(data))
        except InputError as error:
            raise BadRequest(str(error)) from None
        return pd.DataFrame(rows, columns=list(COLUMNS))


class BadRequest(MlflowException):
    """The scoring server answers with status 400 and the message.

    It would put the whole request before the message, which may be megabytes of base64; a message
    that is set stays.
    """

    def __init__(self, message: str) -> None:
        self._message = message
        super().__init__(message, error_code=BAD_REQUEST)

    @property
    def message(self) -> str:
        return self._message

    @message.setter
    def message(self, message: str) -> None:
        pass


def _images(data: pd.DataFrame) -> list[Any]:
    """One by one. Of {"inputs": ["base64", ...]} MLflow makes one row with the whole list.

    Among several rows such a list stands for no image, or the answers would not be those of rows.
    """
    cells: list[Any] = data[IMAGE].tolist()
    alone = cells[0] if len(cells) == 1 else None
    if isinstance(alone, list) and all(isinstance(image, str) for image in alone):
        return alone
    return cells
