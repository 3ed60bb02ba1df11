"""Initial training of the ViT."""

from kfp import dsl

from components.base import component


@component
def pretrain(
    dataset: dsl.Input[dsl.Dataset],
    settings: dict,
    checkpoint: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
):
    """Train the ViT, on labels (eq. 1-5) or on none; the result is round 0."""
    from pathlib import Path

    from vitdc import kubeflow, steps

    data = Path(dataset.path)
    with (
        kubeflow.configured(settings) as config,
        kubeflow.watched("pretrain", 0, data) as watcher,
    ):
        made = steps.pretrain(
            dataset=data,
            **config,
            output=Path(checkpoint.path),
            scratch=kubeflow.scratch(),
            watcher=watcher,
        )
        kubeflow.describe(checkpoint, made)
        kubeflow.log_metrics(metrics, made)
