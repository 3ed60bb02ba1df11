"""Embedding of every image."""

from kfp import dsl

from components.base import component


@component
def embed(
    dataset: dsl.Input[dsl.Dataset],
    checkpoint: dsl.Input[dsl.Model],
    settings: dict,
    embeddings: dsl.Output[dsl.Dataset],
    initial: dsl.Input[dsl.Artifact] = None,
):
    """Embed every image of both splits, with its cross-entropy and what the head predicts."""
    from pathlib import Path

    from vitdc import kubeflow, steps

    with kubeflow.configured(settings) as config:
        made = steps.embed(
            dataset=Path(dataset.path),
            checkpoint=Path(checkpoint.path),
            features=kubeflow.features(initial) if initial else None,
            **config,
            output=Path(embeddings.path),
        )
        kubeflow.describe(embeddings, made)
