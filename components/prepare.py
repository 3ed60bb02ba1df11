"""Data preparation."""

from typing import NamedTuple

from kfp import dsl

from components.base import component


@component
def prepare(data: dict, version: str, code: str, dataset: dsl.Output[dsl.Dataset]) -> NamedTuple(
    "Prepared", [("name", str), ("content_hash", str), ("origin", dict)]
):
    """Read images from their source into the prepared format."""
    from pathlib import Path

    from vitdc import kubeflow, steps

    with kubeflow.reporting(code):
        made = steps.prepare(data=kubeflow.data_section(data), output=Path(dataset.path))
        kubeflow.describe(dataset, made)
    return made.name, made.content_hash, dict(made.origin)
