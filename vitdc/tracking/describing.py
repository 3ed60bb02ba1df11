"""Data and results in the forms that MLflow's own pages show."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from vitdc import summary
from vitdc.artifacts import Dataset, Evaluation

_MAX_TEXT = 7000  # characters; MLflow takes 8000 bytes
PICTURES = ("nmi", "sizes", "loss")  # of the report's figures, as far as there are any


def dataset_fields(dataset: Dataset) -> dict[str, str]:
    """The fields of MLflow's `Dataset`: name, digest, source, schema, profile."""
    return {
        "name": dataset.name,
        "digest": dataset.content_hash[:16],
        "source_type": "dvc" if "commit" in dataset.origin else "vitdc",
        "source": json.dumps({"sha256": dataset.content_hash, **dataset.origin}),
        "schema": json.dumps({"mlflow_tensorspec": _tensors(dataset)}),
        "profile": json.dumps(_profile(dataset)),
    }


def _tensors(dataset: Dataset) -> dict[str, str]:
    """Images and labels as MLflow writes tensors, -1 for their number."""
    images = {"dtype": "uint8", "shape": [-1, *dataset.image_shape]}
    labels = {"dtype": "int64", "shape": [-1]}
    return {
        name: json.dumps([{"type": "tensor", "tensor-spec": spec}])
        for name, spec in (("features", images), ("targets", labels))
    }


def _profile(dataset: Dataset) -> dict[str, Any]:
    images = [dataset.train.images, dataset.test.images]
    return {
        "num_rows": sum(len(each) for each in images),
        "train_images": len(dataset.train),
        "test_images": len(dataset.test),
        "image_shape": list(dataset.image_shape),
        "bytes": sum(each.nbytes for each in images),
        "classes": len(dataset.class_names),
        **dataset.origin,  # MLflow's page shows the profile only
    }


def describe_result(evaluation: Evaluation) -> str:
    """The scores and the rounds as Markdown, with pictures; RUN_ID stands for the run's id.

    MLflow serves the artifacts of a run under an address that its pages can show pictures from.
    """
    text = summary.markdown(evaluation).rstrip()
    if len(text) > _MAX_TEXT:
        text = text[:_MAX_TEXT].rpartition("\n")[0] + "\n\n(cut off; all rounds are in rounds.csv)"
    names = [path.stem for path in sorted((evaluation.path / "figures").glob("*.png"))]
    shown = [name for word in PICTURES for name in names if word in name]
    pictures = [f"![{name}]({_address(f'figures/{name}.png')})" for name in shown]
    report = f"[The whole report]({_address('report.html')})"
    return "\n\n".join([text, *pictures, report]) + "\n"


def _address(path: str) -> str:
    return f"get-artifact?run_uuid=RUN_ID&path={quote(path, safe='')}"
