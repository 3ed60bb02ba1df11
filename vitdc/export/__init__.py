"""A trained model in a form that other programs load without vitdc.

graph       images in; embedding, cluster and distances out, as one torch module
formats     that module as ONNX, as a torch.export archive, or as weights for timm
checking    whether the written file says what the model says
predict.py  copied beside the model: how a program without vitdc uses it

An export is a directory: the model in one file, `preprocessing.json` with all that turns an image
file into its input and its output into a cluster, `predict.py`, and `pixels.py` of `vitdc.data`,
with which it reads image files as the training did.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vitdc import artifacts
from vitdc.config import DataConfig
from vitdc.data import pixels
from vitdc.errors import InputError
from vitdc.export.checking import Difference, compare, random_images, read_images
from vitdc.export.formats import FORMATS
from vitdc.export.graph import ClusteringGraph
from vitdc.prediction import Predictor

__all__ = ["FORMATS", "Export", "export_model", "read_images"]

KIND = "export"
RECIPE = Path(__file__).with_name("predict.py")
READER = Path(pixels.__file__)  # reads image files for it
RESIZE = {
    "crop": "short side to the size, bicubic with antialiasing, then centre crop",
    "pad": "long side to the size, bicubic with antialiasing, then padding with the background",
    "stretch": "both sides to the size, bicubic with antialiasing",
}


class Export(NamedTuple):
    """What was exported.

    Attributes:
        file: The model.
        difference: From the original, on the images it was checked with.
    """

    file: Path
    difference: Difference


def export_model(
    predictor: Predictor,
    *,
    format: str,
    output: Path,
    images: np.ndarray | None = None,
    cluster_names: Mapping[int, str] | None = None,
) -> Export:
    """Write a model in another format, and check it before anything is at `output`.

    Args:
        predictor: The model.
        format: One of `FORMATS`.
        output: Directory; replaced if it is an export already.
        images: (N, H, W, C) uint8 to check with; None draws some like those of the training.
        cluster_names: Names that people gave to clusters.

    Raises:
        InputError: The format is unknown, a package that it needs is missing, or something else is
            at `output`.
        TrainingError: The exported model says something else than the original.
    """
    if format not in FORMATS:
        raise InputError(f"format: {format!r} is unknown; valid are {', '.join(FORMATS)}")
    kind = FORMATS[format]
    kind.check_packages()
    artifacts.check_replaceable(output)
    model = deepcopy(predictor.model).cpu()
    graph = ClusteringGraph(model, predictor.clustering, predictor.image_shape).eval()
    if images is None:
        images = random_images(predictor.checkpoint)
    description = describe(predictor, kind.file_name, cluster_names or {})
    with artifacts.writing(output, KIND, {"step": "export", "format": format}) as writer:
        file = writer.directory / kind.file_name
        kind.write(graph, predictor.image_shape, file)
        text = _to_json(description)
        (writer.directory / "preprocessing.json").write_text(text, encoding="utf-8")
        shutil.copyfile(RECIPE, writer.directory / "predict.py")
        shutil.copyfile(READER, writer.directory / READER.name)
        run = kind.open(file, json.loads(text))  # as whoever loads it has it
        difference = compare(graph, run, images)
    return Export(output / kind.file_name, difference)


def describe(
    predictor: Predictor, file_name: str, cluster_names: Mapping[int, str]
) -> dict[str, Any]:
    """The content of preprocessing.json."""
    checkpoint, clustering = predictor.checkpoint, predictor.clustering
    height, width, channels = checkpoint.image_shape
    limit = predictor.unsure_limit
    backbone = predictor.model.backbone
    decoding = {**DataConfig().decoding, **checkpoint.decoding}
    arguments = {**backbone.arguments, "num_classes": checkpoint.num_outputs}
    return {
        "model": file_name,
        "input": {
            "name": "images",
            "layout": "NCHW",
            "dtype": "float32",
            "range": [0.0, 1.0],
            "height": height,
            "width": width,
            "channels": channels,
            "colour": "greyscale" if channels == 1 else "RGB",
            "resize": RESIZE[decoding["fit"]],
            "decoding": decoding,
        },
        "normalisation": {
            "inside_the_model": file_name != FORMATS["safetensors"].file_name,
            "mean": list(checkpoint.mean),
            "std": list(checkpoint.std),
        },
        "outputs": {
            "embedding": [None, clustering.centroids.shape[1]],
            "cluster": [None],
            "distances": [None, len(clustering.centroids)],
            "atypicality": [None],
        },
        "clusters_are_of_a_manifold": clustering.is_of_manifold,
        "embedding_has_length_1": predictor.model.normalize,
        "cluster_names": [cluster_names.get(i, "") for i in range(len(clustering.centroids))],
        "unsure_beyond_atypicality": limit if math.isfinite(limit) else None,
        "centroids": clustering.centroids.tolist(),
        "class_names": list(checkpoint.class_names),
        "architecture": {
            "library": "timm",
            "name": backbone.name,
            "arguments": arguments,
            "image_size": backbone.image_size,
        },
        "made_with": {name: version(name) for name in ("vitdc", "torch", "timm")},
    }


def _to_json(description: Mapping[str, Any]) -> str:
    """JSON with a line per entry, so that a person can read it in spite of the centroids."""
    lines = (
        f"  {json.dumps(key)}: {json.dumps(value, allow_nan=False, ensure_ascii=False)}"
        for key, value in description.items()
    )
    return "{\n" + ",\n".join(lines) + "\n}\n"
