"""The evaluation of a finished run."""

from kfp import dsl

from components.base import component


@component
def evaluate(
    dataset: dsl.Input[dsl.Dataset],
    initial: dsl.Input[dsl.Artifact],
    previous: dsl.Input[dsl.Artifact],
    last: dsl.Input[dsl.Artifact],
    round: dsl.Input[dsl.Artifact],
    evaluation: dict,
    compute: dict,
    seed: int,
    record: str,
    results: dsl.Output[dsl.Artifact],
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    confusion: dsl.Output[dsl.ClassificationMetrics],
    report: dsl.Output[dsl.HTML],
    overview: dsl.Output[dsl.Markdown],
):
    """Score the best round, draw the pictures and write the report."""
    from pathlib import Path

    from vitdc import kubeflow, steps

    with kubeflow.reporting():
        rounds = {"initial": initial, "previous": previous, "last": last}
        made = steps.evaluate(
            dataset=Path(dataset.path),
            **{name: kubeflow.state(artifact) for name, artifact in rounds.items()},
            round=Path(round.path),
            **kubeflow.sections(evaluation=evaluation, compute=compute),
            seed=seed,
            output=Path(results.path),
        )
        kubeflow.describe(results, made)
        kubeflow.log_metrics(metrics, made)
        kubeflow.log_confusion(confusion, Path(dataset.path), made)
        kubeflow.publish(made, report=report, overview=overview, model=model)
        states = [kubeflow.state(artifact) for artifact in rounds.values()]
        kubeflow.record_result(
            record, made, states, dataset=Path(dataset.path), model_uri=model.uri
        )
