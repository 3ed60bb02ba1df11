"""The evaluation of a finished run.

By the `verdict` of the last round the pipeline decides whether it runs. After round 1 the round
before is the initial one, and `previous` is left out: ML Metadata takes an artifact once per task.
"""

from kfp import dsl

from components.base import component


@component
def evaluate(
    dataset: dsl.Input[dsl.Dataset],
    initial: dsl.Input[dsl.Artifact],
    last: dsl.Input[dsl.Artifact],
    round: dsl.Input[dsl.Artifact],
    settings: dict,
    verdict: str,
    results: dsl.Output[dsl.Artifact],
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    confusion: dsl.Output[dsl.ClassificationMetrics],
    report: dsl.Output[dsl.HTML],
    overview: dsl.Output[dsl.Markdown],
    previous: dsl.Input[dsl.Artifact] = None,
):
    """Score the best round, draw the pictures and write the report."""
    from pathlib import Path

    from vitdc import kubeflow, steps

    with kubeflow.configured(settings) as config:
        rounds = {"initial": initial, "previous": previous or initial, "last": last}
        made = steps.evaluate(
            dataset=Path(dataset.path),
            **{name: kubeflow.state(artifact) for name, artifact in rounds.items()},
            round=Path(round.path),
            **config,
            output=Path(results.path),
        )
        kubeflow.describe(results, made)
        kubeflow.log_metrics(metrics, made)
        kubeflow.log_confusion(confusion, Path(dataset.path), made)
        kubeflow.publish(made, report=report, overview=overview, model=model)
        states = [kubeflow.state(artifact) for artifact in rounds.values()]
        inputs = {"dataset": dataset, "initial": initial, "last": last, "round": round}
        kubeflow.record_result(
            settings["record"],
            made,
            states,
            dataset=Path(dataset.path),
            model_uri=model.uri,
            inputs={name: artifact.uri for name, artifact in inputs.items()},
        )
