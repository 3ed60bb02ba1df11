"""What the body of every Kubeflow component does around its step; kfp itself is not imported.

KFP's artifacts are taken as they come: objects with a `path` to write to and a `metadata` mapping
that the KFP UI shows.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import singledispatch
from pathlib import Path
from typing import Any, Protocol

from vitdc import artifacts, summary, tracking
from vitdc.artifacts import (
    OUT_OF_ROOM,
    Checkpoint,
    Clustering,
    Dataset,
    Embeddings,
    Evaluation,
    Round,
    RoundPaths,
)
from vitdc.code import code_version
from vitdc.config import DataConfig, Params
from vitdc.errors import (
    InputError,
    TrainingError,
    end_on_sigterm,
    exit_code,
    explaining_disk,
    one_line,
)

SCRATCH_VARIABLE = "VITDC_SCRATCH"
RUN_VARIABLE = "VITDC_PIPELINE_RUN"
TERMINATION_LOG = Path("/dev/termination-log")
"""What a container writes here before it fails becomes part of its state."""

_TERMINATION_CHARACTERS = 1000  # Kubernetes takes 4096 bytes, and Argo keeps them in every node

SETTINGS = {
    "pretrain": ("seed", "model", "pretraining", "compute"),
    "embed": ("compute",),
    "cluster": ("seed", "clustering", "compute"),
    "retrain": ("seed", "joint", "compute"),
    "check": ("joint", "convergence"),
    "evaluate": ("seed", "evaluation", "compute"),
}
"""The parameters of the pipeline that a task uses."""
RECORDING = ("check", "evaluate")
"""The tasks of a round that record something; they are never taken from the cache."""

_HASH_DIGITS = 16  # what is shown travels with every artifact into the specification of every task

_logger = logging.getLogger(__name__)


class Artifact(Protocol):
    """The part of `kfp.dsl.Artifact` that is used here."""

    path: str
    metadata: dict[str, Any]


@contextmanager
def reporting(code: str | None = None) -> Iterator[None]:
    """Run a component's body so that the last line of a failed task's log is its own error.

    The exit codes are the command line's: 2 for wrong input, 1 for a failure while running.

    Args:
        code: The `code_version` that the pipeline was made for; what is cached under its name must
            not come from other code, such as that of an older image.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see vitdc.cli.main
    _choose_store()
    gc.set_threshold(50_000, 20, 20)  # importing torch and mlflow makes objects, not garbage
    os.environ.setdefault("AWS_MAX_ATTEMPTS", "8")  # over a minute: a store is started again
    logging.getLogger("vitdc").setLevel(logging.INFO)
    end_on_sigterm()
    try:
        if code not in (None, code_version()):
            raise InputError(
                f"kubernetes.image: holds other code ({code_version()}) than the pipeline was"
                f" compiled from ({code}); build the image again (`make image`), or compile again"
            )
        with explaining_disk():
            yield
    except (InputError, TrainingError) as error:
        _tell_kubernetes(str(error))
        sys.stdout.flush()
        print(f"vitdc: {error}", file=sys.stderr, flush=True)
        sys.exit(exit_code(error))
    except Exception as error:
        _tell_kubernetes(f"{type(error).__name__}: {error}")
        raise


def _tell_kubernetes(reason: str) -> None:
    """Leave a reason where Kubernetes looks for it, and Argo after it, when a container fails."""
    if TERMINATION_LOG.exists():
        TERMINATION_LOG.write_text(one_line(reason)[:_TERMINATION_CHARACTERS], encoding="utf-8")


def _choose_store() -> None:
    """Record where VITDC_TRACKING_* say, unless Kubeflow's MLflow plugin has named a server."""
    if "MLFLOW_TRACKING_URI" in os.environ:
        return
    for name in ("URI", "USERNAME", "PASSWORD"):
        if value := os.environ.get(f"VITDC_TRACKING_{name}"):
            os.environ[f"MLFLOW_TRACKING_{name}"] = value


@contextmanager
def configured(settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Run a component's body like `reporting`, with its settings as arguments of its step.

    Args:
        settings: What `task_settings` made for the component.

    Yields:
        The config sections by their names, and `seed` where the step takes one.
    """
    values = parameters(settings)
    with reporting(settings["code"]):
        params = _params(values)
        yield {name: getattr(params, name) for name in values}


def parameters(given: Mapping[str, Any]) -> dict[str, Any]:
    """The pipeline's parameters among all arguments of a component."""
    return {name: value for name, value in given.items() if name in Params.model_fields}


def task_settings(
    parameters: Mapping[str, Any], *, code: str, record: str
) -> dict[str, dict[str, Any]]:
    """Per task the sections that it uses, and the code that is to run.

    A task is given nothing else, so that Kubeflow's cache runs it again only if something changes
    that it uses. The record goes to those that always run. Null is left out, as in all parameters
    of the pipeline.

    Args:
        parameters: The pipeline's parameters.
        code: The `code_version` that the pipeline was made for.
        record: What `start_record` returned.

    Raises:
        InputError: A key is unknown or a value is wrong.
    """
    values = _params(parameters).model_dump(mode="json", exclude_none=True)
    settings = {
        task: {"code": code, **{name: values[name] for name in names}}
        for task, names in SETTINGS.items()
    }
    for task in RECORDING:
        settings[task]["record"] = record
    return settings


def data_section(data: Mapping[str, Any]) -> DataConfig:
    """The dict parameter `data` as its config section.

    Raises:
        InputError: It keeps no images, which the pods of the other tasks could not read.
    """
    found = _params({"data": data}).data
    if not found.keep_decoded:
        raise InputError(
            "data.keep_decoded: false is for `vitdc run` and `dvc repro`; on Kubeflow the prepared"
            " images travel from task to task as an artifact"
        )
    return found


def state(artifact: Artifact) -> RoundPaths:
    """The checkpoint, embeddings and clustering of a round that travel as one artifact."""
    return RoundPaths.in_directory(Path(artifact.path))


def features(initial: Artifact) -> Path | None:
    """The embeddings of round 0, where they hold what a frozen backbone says about the images."""
    found = state(initial)
    return found.embeddings if Checkpoint.load(found.checkpoint).is_frozen else None


def next_round(before: Artifact) -> int:
    """The number of the round that follows the one whose state `before` is."""
    return Checkpoint.load(state(before).checkpoint).round + 1


def scratch() -> Path | None:
    """Where unfinished training is kept: a volume that outlives the pod, if one is mounted."""
    directory = os.environ.get(SCRATCH_VARIABLE)
    run_id = os.environ.get(RUN_VARIABLE, "")  # two runs with equal parameters stay apart
    return Path(directory, run_id) if directory else None


def pin(data: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The `data` section with exact references, and what changes when the images do.

    Null is left out, as in all parameters of the pipeline.
    """
    from vitdc.data.version import pin

    pinned = pin(data_section(data))
    return pinned.config.model_dump(mode="json", exclude_none=True), pinned.version


# --- MLflow --------------------------------------------------------------------------------------


def start_record(parameters: Mapping[str, Any], **run: Any) -> str:
    """Make the MLflow run of the pipeline run; see `tracking.start_record`."""
    return tracking.start_record(_params(parameters), **run)


def continue_record(parameters: Mapping[str, Any], **runs: str) -> tuple[str, dict[str, str]]:
    """Continue the MLflow run of another pipeline run; see `tracking.continue_record`."""
    return tracking.continue_record(_params(parameters), **runs)


def end_record(parameters: Mapping[str, Any], *, pipeline_run_id: str, status: Any) -> None:
    """Record how the pipeline run ended, and clear its scratch.

    Args:
        parameters: The pipeline's parameters.
        pipeline_run_id: Kubeflow's id of the pipeline run.
        status: KFP's `PipelineTaskFinalStatus` of everything before.
    """
    try:
        state = tracking.end_record(
            _params(parameters),
            pipeline_run_id=pipeline_run_id,
            state=status.state,
            reason=_find_reason(pipeline_run_id, status)
            or status.error_message
            or f"the pipeline ended as {status.state}",
        )
        print(f"pipeline run {pipeline_run_id}: {state}")
    finally:
        _clear_scratch(pipeline_run_id)


def _clear_scratch(pipeline_run_id: str) -> None:
    """Remove what unfinished trainings of a pipeline run have left on the volume."""
    if directory := os.environ.get(SCRATCH_VARIABLE):
        artifacts.remove(Path(directory, pipeline_run_id))


def _find_reason(pipeline_run_id: str, status: Any) -> str | None:
    """What the run's Workflow says, where this pod may read it; KFP says no more than a state."""
    if status.state != "FAILED" or "KUBERNETES_SERVICE_HOST" not in os.environ:
        return None
    from vitdc.workflow import Kubernetes, ReadError, describe_end, own_namespace

    try:
        found = Kubernetes.connect().workflow(own_namespace(), pipeline_run_id)
    except (InputError, ReadError) as error:
        _logger.warning("the reason of a failure is not recorded: %s", error)
        return None
    return f"the run {describe_end(found)}" if found else None


@contextmanager
def watched(step: str, round: int, dataset: Path) -> Iterator[tracking.Tracker]:
    """Tell MLflow what a training does while it goes on; see `tracking.watch_training`."""
    with tracking.watch_training(os.environ.get(RUN_VARIABLE, "")) as tracker:
        tracker.log_dataset(Dataset.load(dataset))
        with tracker.timing(step, round):
            yield tracker


def record_round(record: str, history: Round, before: RoundPaths) -> None:
    """Tell MLflow the rounds so far, and the training and the clusters of the round before.

    A server that cannot be reached now stops no round: `record_result` tells everything again.

    Args:
        record: What `start_record` returned.
        history: The rounds so far.
        before: The artifacts of the round before.
    """
    trained = Checkpoint.load(before.checkpoint)
    try:
        with tracking.resume_record(record) as tracker:
            tracker.log_rounds(history.rows)
            tracker.log_history(trained.round, trained.history)
            tracker.log_scores(trained.round, Clustering.load(before.clustering).scores)
    except InputError as error:
        _logger.warning("%s; going on", error)


def record_result(
    record: str,
    evaluation: Evaluation,
    rounds: Iterable[RoundPaths],
    *,
    dataset: Path,
    model_uri: str,
    inputs: Mapping[str, str],
) -> None:
    """Tell MLflow everything about the finished run, and where Kubeflow keeps its model.

    Args:
        record: What `start_record` returned.
        evaluation: The results.
        rounds: The artifacts of the rounds that were evaluated.
        dataset: Directory of the Dataset.
        model_uri: Where Kubeflow keeps the model.
        inputs: Where Kubeflow keeps the `dataset`, the `initial` and the `last` state and the last
            `round`, from which a run that ran out of room is continued.

    Raises:
        TrainingError: MLflow does not take all of it; the task can be repeated.
    """
    with tracking.resume_record(record, complete=True) as tracker:
        tracking.log_evaluation(tracker, evaluation, rounds, dataset=Dataset.load(dataset))
    if tracker.left:
        raise TrainingError(f"MLflow has not taken the whole result: {tracker.left} left")
    out_of_room = evaluation.metrics["stop_reason"] == OUT_OF_ROOM
    tracking.record_evaluated(record, model_uri=model_uri, rest=inputs if out_of_room else None)


def _params(parameters: Mapping[str, Any]) -> Params:
    return Params.parse(parameters, where="the pipeline's parameters")


# --- what the KFP UI shows -----------------------------------------------------------------------


def describe(output: Artifact, made: Any, path: Path | None = None) -> None:
    """Put what a person wants to know about an artifact into the metadata of KFP's.

    Args:
        output: KFP's artifact.
        made: What the step returned.
        path: Where it lies, if not at the path of `output`.
    """
    digest = artifacts.digest(path or Path(output.path))
    shown = {"sha256": digest[:_HASH_DIGITS], **_metadata(made)}
    output.metadata.update(summary=summary.describe(made), **shown)
    print(output.metadata["summary"], flush=True)


@singledispatch
def _metadata(made: object) -> dict[str, Any]:
    raise TypeError(f"nothing is known about a {type(made).__name__}")


@_metadata.register
def _(dataset: Dataset) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "content_hash": dataset.content_hash[:_HASH_DIGITS],
        "training_images": len(dataset.train),
        "test_images": len(dataset.test),
        "image_shape": "x".join(map(str, dataset.image_shape)),
        "classes": len(dataset.class_names),
        "labels": dataset.supervision,
        **dataset.origin,
    }


@_metadata.register
def _(checkpoint: Checkpoint) -> dict[str, Any]:
    return {"round": checkpoint.round, "epochs": len(checkpoint.history)}


@_metadata.register
def _(embeddings: Embeddings) -> dict[str, Any]:
    images, dimensions = embeddings.train.embedding.shape
    return {
        "round": embeddings.round,
        "training_images": images,
        "test_images": len(embeddings.test.embedding),
        "dimensions": dimensions,
    }


@_metadata.register
def _(clustering: Clustering) -> dict[str, Any]:
    return {"round": clustering.round, "clusters": len(clustering.centroids)}


@_metadata.register
def _(history: Round) -> dict[str, Any]:
    return {
        "round": history.current.round,
        "verdict": history.verdict,
        "best_round": history.best_round,
    }


@_metadata.register
def _(evaluation: Evaluation) -> dict[str, Any]:
    found = evaluation.metrics
    shown = {"nmi_test": found["test"]["nmi"], "silhouette": found.get("silhouette")}
    return {
        "stop_reason": found["stop_reason"],
        "best_round": found["best_round"],
        **{name: value for name, value in shown.items() if value is not None},
    }


def log_metrics(output: Artifact, made: Any) -> None:
    """Show the scores of an artifact as KFP metrics.

    They are also written as a file: without one, KFP's local cache takes the artifact for lost.
    """
    values = {name: value for name, value in _scores(made).items() if value is not None}
    output.metadata.update(values)
    Path(output.path).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


@singledispatch
def _scores(made: object) -> dict[str, float | None]:
    raise TypeError(f"a {type(made).__name__} has no scores")


@_scores.register
def _(checkpoint: Checkpoint) -> dict[str, float | None]:
    return {k: v for k, v in (checkpoint.history or [{}])[-1].items() if k != "epoch"}


@_scores.register
def _(clustering: Clustering) -> dict[str, float | None]:
    found = clustering.scores
    splits = {"train": found.train, "test": found.test}
    scores = {f"{key}_{s}": v for s, of in splits.items() for key, v in of.scores().items()}
    return {**scores, "silhouette": found.silhouette, "changed": found.changed}


@_scores.register
def _(history: Round) -> dict[str, float | None]:
    row = history.current
    losses = [r.loss for r in history.rows if r.loss is not None]
    return {
        "loss": row.loss,
        "cross_entropy": row.cross_entropy,
        "clustering_loss": row.clustering_loss,
        "fall": losses[-2] - losses[-1] if len(losses) > 1 else None,
    }


@_scores.register
def _(evaluation: Evaluation) -> dict[str, float | None]:
    found = evaluation.metrics
    splits = {f"{k}_{split}": v for split in artifacts.SPLITS for k, v in found[split].items()}
    silhouette = found.get("silhouette")
    return {**splits, "silhouette": silhouette, "loss": found["loss"], "rounds": found["rounds"]}


def log_confusion(output: Any, dataset_path: Path, evaluation: Evaluation) -> None:
    """Show how the images of every class fall into the clusters, as a KFP confusion matrix.

    KFP draws square matrices only, so a cluster counts as the class that most of its images have.
    The images are those of the test split, or of the training split if no test image has a label;
    labels that the clusters were made from are left out.
    Without classes there is nothing to show.
    """
    from vitdc.metrics import majority_confusion

    dataset = Dataset.load(dataset_path)
    if not dataset.class_names:
        Path(output.path).write_text("[]\n", encoding="utf-8")
        return
    clusters = Clustering.load(evaluation.path / "model" / "clustering")
    split = "test" if dataset.test.has_labels else "train"
    matrix = majority_confusion(
        dataset.scoring_labels(split),
        clusters.split(split).assignment,
        num_classes=len(dataset.class_names),
        num_clusters=len(clusters.centroids),
    )
    output.log_confusion_matrix(list(dataset.class_names), matrix.tolist())
    Path(output.path).write_text(json.dumps(matrix.tolist()) + "\n", encoding="utf-8")


def publish(
    evaluation: Evaluation, *, report: Artifact, overview: Artifact, model: Artifact
) -> None:
    """Give the KFP UI the report and a table of the rounds, and later steps the model alone."""
    shutil.copyfile(evaluation.path / "report.html", report.path)
    Path(overview.path).write_text(summary.markdown(evaluation), encoding="utf-8")
    shutil.copytree(evaluation.path / "model", model.path, dirs_exist_ok=True)
