"""The convergence check; it imports no torch."""

from kfp import dsl

from components.base import component


@component
def check(
    embeddings: dsl.Input[dsl.Dataset],
    before: dsl.Input[dsl.Artifact],
    joint: dict,
    convergence: dict,
    max_rounds: int,
    record: str,
    round: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    previous: dsl.Input[dsl.Artifact] | None = None,
) -> str:
    """Compute the exact joint loss of a round and decide whether the rounds go on."""
    from pathlib import Path

    from vitdc import kubeflow, steps

    with kubeflow.reporting():
        made = steps.check(
            embeddings=Path(embeddings.path),
            clustering=kubeflow.state(before).clustering,
            previous=Path(previous.path) if previous else None,
            **kubeflow.sections(joint=joint, convergence=kubeflow.capped(convergence, max_rounds)),
            output=Path(round.path),
        )
        kubeflow.describe(round, made)
        kubeflow.log_metrics(metrics, made)
        kubeflow.record_round(record, made, kubeflow.state(before))
    return made.verdict
