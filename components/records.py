"""The MLflow run of a pipeline run: made before the training, closed whatever happens."""

from kfp import dsl

from components.base import component


@component
def start_record(
    dataset_name: str,
    content_hash: str,
    origin: dict,
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
) -> str:
    """Find or make the MLflow run that these parameters and data stand for; return its id."""
    from vitdc import kubeflow

    parameters = {
        "seed": seed,
        "data": data,
        "model": model,
        "pretraining": pretraining,
        "clustering": clustering,
        "joint": joint,
        "convergence": convergence,
        "evaluation": evaluation,
        "compute": compute,
        "tracking": tracking,
    }
    with kubeflow.reporting():
        return kubeflow.start_record(
            parameters,
            dataset_name=dataset_name,
            content_hash=content_hash,
            origin=origin,
            pipeline_run_id=pipeline_run_id,
        )


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

    parameters = {
        "seed": seed,
        "data": data,
        "model": model,
        "pretraining": pretraining,
        "clustering": clustering,
        "joint": joint,
        "convergence": convergence,
        "evaluation": evaluation,
        "compute": compute,
        "tracking": tracking,
    }
    with kubeflow.reporting():
        kubeflow.end_record(parameters, pipeline_run_id=pipeline_run_id, status=status)
