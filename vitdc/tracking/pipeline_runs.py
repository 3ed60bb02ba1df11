"""The record of a Kubeflow pipeline run, whose steps are processes of their own."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vitdc.config import Params, TrackingConfig
from vitdc.errors import InputError, mask_credentials, one_line
from vitdc.tracking.naming import (
    MODEL_TAG,
    PIPELINE_RUN_TAG,
    PIPELINE_STATE_TAG,
    PLUGIN_RUN_TAG,
    REST_TAG,
    RUN_TAG,
    run_params,
)
from vitdc.tracking.record import GOING_ON, RunRecord, describe_run, find_run
from vitdc.tracking.store import existing_store, find_experiment, open_store
from vitdc.tracking.tracker import MlflowTracker, NullTracker, Tracker, reporting_to

if TYPE_CHECKING:
    from mlflow import MlflowClient

RECORD_VARIABLE = "VITDC_RECORD"

_logger = logging.getLogger(__name__)

RETRIES = 5  # over about a minute, as long as a server needs to start again
PATIENCE = 120.0  # seconds that the end of an evaluation waits for a server that is away
LIMIT = 4.0  # seconds that the end of any other task waits, with one more for the last request

_EVALUATED = "EVALUATED"
_SUCCEEDED, _FAILED, _TERMINATED = "SUCCEEDED", "FAILED", "TERMINATED"
_SUCCESSES = (_SUCCEEDED, "COMPLETE", "CACHED")  # of Kubeflow's releases
_TERMINATIONS = ("RUNNING", "CANCELING", "CANCELED")  # what an exit handler is told then: RUNNING


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
    about = describe_run(params, dataset_name, content_hash, origin)
    with open_store(retries=RETRIES) as client:
        experiment_id = find_experiment(client, params.tracking.experiment)
        record = RunRecord.open(client, experiment_id=experiment_id, description=about)
        return _fill(client, record, pipeline_run_id)


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
    with open_store(retries=RETRIES) as client:
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
        return _fill(client, record, pipeline_run_id), json.loads(run.data.tags[REST_TAG])


def _fill(client: MlflowClient, record: RunRecord, pipeline_run_id: str) -> str:
    """Note that a pipeline run fills the record; gives what `resume_record` needs."""
    record.tag({PIPELINE_RUN_TAG: pipeline_run_id, _state_tag(pipeline_run_id): GOING_ON})
    _link(client, record)
    return f"{record.run_id}/{pipeline_run_id}"


def _check_parameters(problem: str, params: Params, recorded: Mapping[str, str]) -> None:
    """The parameters are the recorded ones, but for the exact references that data got since."""
    wanted = {k: v for k, v in run_params(params).items() if not k.startswith("data.")}
    others = [name for name, value in wanted.items() if recorded.get(name, value) != value]
    if others:
        name = others[0]
        raise InputError(f"{problem}: {name} was {recorded[name]}, and is {wanted[name]} now")


def _link(client: MlflowClient, record: RunRecord) -> None:
    """Have our run and the one that Kubeflow's MLflow plugin made for the pipeline name each other.

    The plugin gives every task the id of a run of its own, which names the pipeline's as its
    parent, and ends both. So ours, which stands for parameters and data, is another one.
    """
    from mlflow.exceptions import MlflowException

    if not (run_id := os.environ.get("MLFLOW_RUN_ID")):
        return
    try:
        theirs = client.get_run(run_id).data.tags.get("mlflow.parentRunId", run_id)
        record.tag({PLUGIN_RUN_TAG: theirs})
        client.set_tag(theirs, RUN_TAG, record.run_id)
    except MlflowException as error:
        _logger.warning(
            "this run and MLFLOW_RUN_ID=%s cannot name each other: %s", run_id, one_line(error)
        )


@contextmanager
def resume_record(record: str, *, complete: bool = False) -> Iterator[Tracker]:
    """Continue the run that `start_record` made; a failure is left to `end_record` to tell.

    Args:
        record: What `start_record` returned.
        complete: Wait until MLflow has everything; else the task ends within 5 seconds, and what is
            left then is told by a later one.

    Raises:
        InputError: MLFLOW_TRACKING_URI cannot be used or has no such run.
    """
    tracker: Tracker = NullTracker()
    if record:
        with open_store(retries=RETRIES if complete else 1) as client:
            found = RunRecord.resume(client, record.partition("/")[0])
        how_long = {"patience": PATIENCE} if complete else {"limit": LIMIT}
        tracker = MlflowTracker.of(found, **how_long)
    with reporting_to(tracker, failures=False):
        yield tracker


@contextmanager
def watch_training(pipeline_run_id: str) -> Iterator[Tracker]:
    """Record a training while it goes on, without being told the run by a parameter.

    Parameters are part of Kubeflow's cache keys, and who watches is no reason to train again. So
    the run is found by what surrounds the task: VITDC_RECORD (what `start_record` returned), or the
    id of the pipeline run. Nothing that goes wrong here stops the training, or keeps its task at
    the end for more than 5 seconds; `check` and `evaluate` tell its epochs again.

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
    if not (record or on_cluster):
        return NullTracker()
    with open_store() as client:
        run_id = record.partition("/")[0]
        if not run_id:
            ids = [str(found.experiment_id) for found in client.search_experiments()]
            run = find_run(client, ids, _state_tag(pipeline_run_id))
            if run is None:
                return NullTracker()
            run_id = run.info.run_id
        return MlflowTracker.of(RunRecord.resume(client, run_id), limit=LIMIT)


def record_evaluated(record: str, *, model_uri: str, rest: Mapping[str, str] | None = None) -> None:
    """Record that the pipeline run has done all its work, and where it left its model.

    Args:
        record: What `start_record` returned.
        model_uri: Of a directory, in the store of the pipeline's artifacts.
        rest: What a run that ran out of room continues from: where its artifacts lie, by name.
    """
    if record:
        run_id, _, pipeline_run_id = record.partition("/")
        with open_store(retries=RETRIES) as client:
            run = RunRecord.resume(client, run_id)
            run.tag({MODEL_TAG: model_uri, _state_tag(pipeline_run_id): _EVALUATED})
            if rest:
                run.tag({REST_TAG: json.dumps(dict(rest))})
            elif REST_TAG in run.tags:
                client.delete_tag(run.run_id, REST_TAG)


def end_record(params: Params, *, pipeline_run_id: str, state: str, reason: str) -> str:
    """Record how a pipeline run ended, also when it failed before there was anything to record.

    What has been evaluated has succeeded, whatever Kubeflow says: it names success differently from
    release to release, and tells exit handlers of failures that a retry made good. Where another
    pipeline run is filling the same MLflow run, that one stays as it is.

    Args:
        params: All parameters.
        pipeline_run_id: Kubeflow's id of the pipeline run.
        state: In which Kubeflow says it is; RUNNING if it was terminated.
        reason: What failed, in words; ignored for a success and for what was terminated.

    Returns:
        "SUCCEEDED", "FAILED" or "TERMINATED".

    Raises:
        InputError: MLFLOW_TRACKING_URI or `tracking.experiment` cannot be used.
    """
    outcome = _outcome(state)
    if not params.tracking.enabled:
        return outcome
    tag = _state_tag(pipeline_run_id)
    with open_store(retries=RETRIES) as client:
        experiment_id = find_experiment(client, params.tracking.experiment)
        if run := find_run(client, experiment_id, tag):
            record = RunRecord.resume(client, str(run.info.run_id))
        else:
            unread = describe_run(params, "no data", "", None)
            unread = unread._replace(identity=f"{unread.identity}/{pipeline_run_id}")
            record = RunRecord.open(client, experiment_id=experiment_id, description=unread)
        if record.tags.get(tag) == _EVALUATED:
            outcome = _SUCCEEDED
        record.tag({tag: outcome})
        _link(client, record)  # once more, since it may have superseded the one that was linked
        if not _others_go_on(record, tag):
            if outcome == _FAILED:
                record.fail(reason)
            if outcome == _TERMINATED:
                record.fail("terminated", status="KILLED")
    return outcome


def _outcome(state: str) -> str:
    if state.upper() in _SUCCESSES:
        return _SUCCEEDED
    return _TERMINATED if state.upper() in _TERMINATIONS else _FAILED


def _others_go_on(record: RunRecord, tag: str) -> bool:
    """Whether another pipeline run than the one of the tag fills a record; such runs are rare."""
    others = {key: value for key, value in record.tags.items() if key != tag}
    return any(k.startswith(PIPELINE_STATE_TAG) and v == GOING_ON for k, v in others.items())


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
