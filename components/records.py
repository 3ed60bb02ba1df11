"""The MLflow run of a pipeline run: made before the training, closed whatever happens."""

from typing import NamedTuple

from kfp import dsl

from components.base import component


@component
def start_record(
    name: str,
    content_hash: str,
    origin: dict,
    pipeline_run_id: str,
    code: str,
    seed: int,
    data: dict,
    model: dict,
    pretraining: dict,
    clustering: dict,
    joint: dict,
    convergence: dict,
    evaluation: dict,
    compute: dict,
    tracking: dict,
) -> NamedTuple(
    "Started",
    [
        ("pretrain", dict),
        ("embed", dict),
        ("cluster", dict),
        ("retrain", dict),
        ("check", dict),
        ("evaluate", dict),
    ],
):
    """Find or make the MLflow run of these parameters and data; give every task its settings."""
    from vitdc import kubeflow

    parameters = kubeflow.parameters(locals())
    with kubeflow.reporting(code):
        record = kubeflow.start_record(
            parameters,
            dataset_name=name,
            content_hash=content_hash,
            origin=origin,
            pipeline_run_id=pipeline_run_id,
        )
        return tuple(kubeflow.task_settings(parameters, code=code, record=record).values())


@component
def continue_record(
    continued_run_id: str,
    pipeline_run_id: str,
    code: str,
    seed: int,
    data: dict,
    model: dict,
    pretraining: dict,
    clustering: dict,
    joint: dict,
    convergence: dict,
    evaluation: dict,
    compute: dict,
    tracking: dict,
) -> NamedTuple(
    "Continued",
    [
        ("pretrain", dict),
        ("embed", dict),
        ("cluster", dict),
        ("retrain", dict),
        ("check", dict),
        ("evaluate", dict),
        ("dataset_uri", str),
        ("initial_uri", str),
        ("last_uri", str),
        ("round_uri", str),
    ],
):
    """Find the MLflow run of a pipeline run that ran out of room, and where its last round is."""
    from vitdc import kubeflow

    parameters = kubeflow.parameters(locals())
    with kubeflow.reporting(code):
        record, uris = kubeflow.continue_record(
            parameters, continued_run_id=continued_run_id, pipeline_run_id=pipeline_run_id
        )
        settings = kubeflow.task_settings(parameters, code=code, record=record)
        return (*settings.values(), *uris.values())


@component
def end_record(
    status: dsl.PipelineTaskFinalStatus,
    pipeline_run_id: str,
    seed: int,
    data: dict,
    model: dict,
    pretraining: dict,
    clustering: dict,
    joint: dict,
    convergence: dict,
    evaluation: dict,
    compute: dict,
    tracking: dict,
):
    """Record in MLflow how the pipeline run ended, also when a task failed."""
    from vitdc import kubeflow

    parameters = kubeflow.parameters(locals())
    with kubeflow.reporting():
        kubeflow.end_record(parameters, pipeline_run_id=pipeline_run_id, status=status)
