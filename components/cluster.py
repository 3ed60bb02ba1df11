"""Clustering of the embeddings, which ends a round and bundles what the round made."""

from kfp import dsl

from components.base import component


@component
def cluster(
    dataset: dsl.Input[dsl.Dataset],
    checkpoint: dsl.Input[dsl.Model],
    embeddings: dsl.Input[dsl.Dataset],
    settings: dict,
    state: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    before: dsl.Input[dsl.Artifact] = None,
):
    """Cluster the training embeddings; test images go to their nearest centroid."""
    from pathlib import Path

    from vitdc import artifacts, kubeflow, steps

    with kubeflow.configured(settings) as config:
        made = steps.cluster(
            dataset=Path(dataset.path),
            embeddings=Path(embeddings.path),
            previous=kubeflow.state(before).clustering if before else None,
            **config,
            output=kubeflow.state(state).clustering,
        )
        artifacts.copy(Path(checkpoint.path), kubeflow.state(state).checkpoint)
        artifacts.copy(Path(embeddings.path), kubeflow.state(state).embeddings)
        kubeflow.describe(state, made, kubeflow.state(state).clustering)
        kubeflow.log_metrics(metrics, made)
