"""Retraining with the joint loss, which begins a round."""

from kfp import dsl

from components.base import component


@component
def retrain(
    dataset: dsl.Input[dsl.Dataset],
    before: dsl.Input[dsl.Artifact],
    settings: dict,
    checkpoint: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    initial: dsl.Input[dsl.Artifact] = None,
):
    """Train on with the joint loss (eq. 8), against the frozen clusters of the round before."""
    from pathlib import Path

    from vitdc import kubeflow, steps

    data = Path(dataset.path)
    with (
        kubeflow.configured(settings) as config,
        kubeflow.watched("retrain", kubeflow.next_round(before), data) as watcher,
    ):
        made = steps.retrain(
            dataset=data,
            checkpoint=kubeflow.state(before).checkpoint,
            clustering=kubeflow.state(before).clustering,
            features=kubeflow.features(initial or before),
            **config,
            output=Path(checkpoint.path),
            scratch=kubeflow.scratch(),
            watcher=watcher,
        )
        kubeflow.describe(checkpoint, made)
        kubeflow.log_metrics(metrics, made)
