"""The record of a Kubeflow pipeline run, whose steps are processes of their own."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from vitdc.config import NOT_IDENTIFYING, Params, TrackingConfig
from vitdc.errors import InputError, mask_credentials, one_line
from vitdc.tracking.naming import (
    MODEL_TAG,
    PIPELINE_RUN_TAG,
    PIPELINE_STATE_TAG,
    REST_TAG,
    run_params,
)
from vitdc.tracking.record import (
    GOING_ON,
    RunRecord,
    describe_run,
    find_run,
    injected_run,
    open_record,
)
from vitdc.tracking.store import existing_store, find_experiment, open_store
from vitdc.tracking.tracker import MlflowTracker, NullTracker, Tracker, reporting_to

RECORD_VARIABLE = "VITDC_RECORD"

_logger = logging.getLogger(__name__)

_EVALUATED = "EVALUATED"
_SUCCESSES = ("SUCCEEDED", "COMPLETE", "CACHED")  # of Kubeflow's releases


def start_record(
    params: Params,
    *,
    dataset_name: str,
    content_hash: str,
    origin: Mapping[str, str] | None = None,
    pipeline_run_id: str,
) -> str:
    """Find or make the run as `open_tracker` does, and say which pipeline run fills it.

    Args:
        params: All parameters.
        dataset_name: `Dataset.name`, for people.
        content_hash: `Dataset.content_hash`.
        origin: `Dataset.origin`.
        pipeline_run_id: Kubeflow's id of the pipeline run.

    Returns:
        What `resume_record` needs: the ids of the MLflow run and of the pipeline run; empty if
        nothing is recorded.

    Raises:
        InputError: MLFLOW_TRACKING_URI or `tracking.experiment` cannot be used.
    """
    if not params.tracking.enabled:
        return ""
    record = open_record(params, describe_run(params, dataset_name, content_hash, origin))
    record.tag({PIPELINE_RUN_TAG: pipeline_run_id, _state_tag(pipeline_run_id): GOING_ON})
    return f"{record.run_id}/{pipeline_run_id}"


def continue_record(
    params: Params, *, continued_run_id: str, pipeline_run_id: str
) -> tuple[str, dict[str, str]]:
    """Continue the MLflow run of a pipeline run that ran out of room, in another pipeline run.

    Args:
        params: All parameters; the continued run had the same.
        continued_run_id: Kubeflow's id of the pipeline run that ran out of room.
        pipeline_run_id: Kubeflow's id of the one that goes on.

    Returns:
        What `resume_record` needs, and the `rest` that `record_evaluated` was given.

    Raises:
        InputError: Nothing is recorded, the pipeline run has left no rest, or it had other
            parameters.
    """
    problem = f"the pipeline run {continued_run_id} cannot be continued"
    if not params.tracking.enabled:
        raise InputError(f"{problem}: with tracking.enabled=false nobody knows its last round")
    with open_store() as client:
        experiment_id = find_experiment(client, params.tracking.experiment)
        run = find_run(client, experiment_id, _state_tag(continued_run_id))
        if run is None:
            raise InputError(
                f"{problem}: it is not recorded in experiment {params.tracking.experiment!r}"
            )
        if REST_TAG not in run.data.tags:
            ended = run.data.tags.get("vitdc.stop_reason", "it has not ended well")
            raise InputError(f"{problem}: it did not run out of room ({ended})")
        _check_parameters(problem, params, run.data.params)
        record = RunRecord.resume(client, str(run.info.run_id))
        record.tag({PIPELINE_RUN_TAG: pipeline_run_id, _state_tag(pipeline_run_id): GOING_ON})
        return f"{record.run_id}/{pipeline_run_id}", json.loads(run.data.tags[REST_TAG])


def _check_parameters(problem: str, params: Params, recorded: Mapping[str, str]) -> None:
    """The parameters are the recorded ones, but for the exact references that data got since."""
    wanted = {k: v for k, v in run_params(params).items() if not k.startswith("data.")}
    others = [name for name, value in wanted.items() if recorded.get(name, value) != value]
    others = [name for name in others if name not in NOT_IDENTIFYING]
    if others:
        name = others[0]
        raise InputError(f"{problem}: {name} was {recorded[name]}, and is {wanted[name]} now")


@contextmanager
def resume_record(record: str) -> Iterator[Tracker]:
    """Continue the run that `start_record` made; a failure is left to `end_record` to tell.

    Args:
        record: What `start_record` returned.

    Raises:
        InputError: MLFLOW_TRACKING_URI cannot be used or has no such run.
    """
    tracker: Tracker = NullTracker()
    if record:
        with open_store() as client:
            tracker = MlflowTracker.of(RunRecord.resume(client, record.partition("/")[0]))
    with reporting_to(tracker, failures=False):
        yield tracker


@contextmanager
def watch_training(pipeline_run_id: str) -> Iterator[Tracker]:
    """Record a training while it goes on, without being told the run by a parameter.

    Parameters are part of Kubeflow's cache keys, and who watches is no reason to train again. So
    the run is found by what surrounds the task: MLFLOW_RUN_ID, VITDC_RECORD (what `start_record`
    returned), or the id of the pipeline run. Nothing that goes wrong here stops the training;
    `check` and `evaluate` tell its epochs again.

    Args:
        pipeline_run_id: Kubeflow's id of the pipeline run, empty if it is not known.
    """
    tracker: Tracker = NullTracker()
    try:
        tracker = _find_tracker(pipeline_run_id)
    except Exception as error:
        _logger.warning("the training is not recorded while it goes on: %s", one_line(error))
    with reporting_to(tracker, failures=False):
        yield tracker


def _find_tracker(pipeline_run_id: str) -> Tracker:
    record = os.environ.get(RECORD_VARIABLE, "")
    on_cluster = "MLFLOW_TRACKING_URI" in os.environ and pipeline_run_id
    if not (record or on_cluster or os.environ.get("MLFLOW_RUN_ID")):
        return NullTracker()
    with open_store() as client:
        if record:
            return MlflowTracker.of(RunRecord.resume(client, record.partition("/")[0]))
        run = injected_run(client)
        if run is None:
            ids = [str(found.experiment_id) for found in client.search_experiments()]
            run = find_run(client, ids, _state_tag(pipeline_run_id))
        return MlflowTracker.of(RunRecord.resume(client, run.info.run_id)) if run else NullTracker()


def record_evaluated(record: str, *, model_uri: str, rest: Mapping[str, str] | None = None) -> None:
    """Record that the pipeline run has done all its work, and where it left its model.

    Args:
        record: What `start_record` returned.
        model_uri: Of a directory, in the store of the pipeline's artifacts.
        rest: What a run that ran out of room continues from: where its artifacts lie, by name.
    """
    if record:
        run_id, _, pipeline_run_id = record.partition("/")
        with open_store() as client:
            run = RunRecord.resume(client, run_id)
            run.tag({MODEL_TAG: model_uri, _state_tag(pipeline_run_id): _EVALUATED})
            if rest:
                run.tag({REST_TAG: json.dumps(dict(rest))})
            elif REST_TAG in run.tags:
                client.delete_tag(run.run_id, REST_TAG)


def end_record(params: Params, *, pipeline_run_id: str, state: str, reason: str) -> str:
    """Record how a pipeline run ended, also when it failed before there was anything to record.

    What has been evaluated has succeeded, whatever Kubeflow says: it names success differently from
    release to release, and tells exit handlers of failures that a retry made good.

    Args:
        params: All parameters.
        pipeline_run_id: Kubeflow's id of the pipeline run.
        state: In which Kubeflow says it is.
        reason: What failed, in words; ignored for a success.

    Returns:
        "SUCCEEDED" or "FAILED".

    Raises:
        InputError: MLFLOW_TRACKING_URI or `tracking.experiment` cannot be used.
    """
    succeeded = state.upper() in _SUCCESSES
    if params.tracking.enabled:
        with open_store() as client:
            experiment_id = find_experiment(client, params.tracking.experiment)
            tag = _state_tag(pipeline_run_id)
            run = injected_run(client) or find_run(client, experiment_id, tag)
            if run:
                record = RunRecord.resume(client, str(run.info.run_id))
                succeeded = succeeded or record.tags.get(tag) == _EVALUATED
            else:
                unread = describe_run(params, "no data", "", None)
                unread = unread._replace(identity=f"{unread.identity}/{pipeline_run_id}")
                record = RunRecord.open(client, experiment_id=experiment_id, description=unread)
            record.tag({tag: "SUCCEEDED" if succeeded else "FAILED"})
            if not succeeded:
                record.fail(reason)
    return "SUCCEEDED" if succeeded else "FAILED"


def find_model(tracking: TrackingConfig, run_id: str) -> str:
    """The URI that `record_evaluated` recorded.

    Args:
        tracking: Which experiment to look in for Kubeflow's id.
        run_id: The id of the MLflow run, or Kubeflow's id of the pipeline run.

    Raises:
        InputError: There is no such run, or it has left no model.
    """
    from mlflow.exceptions import MlflowException

    if not re.fullmatch(r"[\w-]+", run_id):
        raise InputError(f"{run_id!r}: not the id of a run; it has letters, digits and dashes only")
    with existing_store(way_out="set MLFLOW_TRACKING_URI to where the run was recorded") as client:
        try:
            run = client.get_run(run_id)
        except MlflowException:
            experiment = client.get_experiment_by_name(tracking.experiment)
            found = experiment and find_run(client, experiment.experiment_id, _state_tag(run_id))
            if not found:
                raise InputError(
                    f"{run_id}: neither an MLflow run nor a pipeline run recorded in experiment"
                    f" {tracking.experiment!r} at {mask_credentials(client.tracking_uri)}"
                ) from None
            run = found
    if MODEL_TAG not in run.data.tags:
        raise InputError(
            f"{run_id}: the run has left no model; only pipeline runs that have evaluated have"
        )
    return str(run.data.tags[MODEL_TAG])


def _state_tag(pipeline_run_id: str) -> str:
    """The tag with the state of one of the pipeline runs that an MLflow run stands for."""
    return f"{PIPELINE_STATE_TAG}{pipeline_run_id}"
