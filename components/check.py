"""The convergence check; it imports no torch."""

from kfp import dsl

from components.base import component


@component
def check(
    embeddings: dsl.Input[dsl.Dataset],
    before: dsl.Input[dsl.Artifact],
    settings: dict,
    round: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    previous: dsl.Input[dsl.Artifact] = None,
) -> str:
    """Compute the exact joint loss of a round and decide whether the rounds go on."""
    from pathlib import Path

    from vitdc import kubeflow, steps

    with kubeflow.configured(settings) as config:
        made = steps.check(
            embeddings=Path(embeddings.path),
            clustering=kubeflow.state(before).clustering,
            previous=Path(previous.path) if previous else None,
            **config,
            output=Path(round.path),
        )
        kubeflow.describe(round, made)
        kubeflow.log_metrics(metrics, made)
        kubeflow.record_round(settings["record"], made, kubeflow.state(before))
    return made.verdict
