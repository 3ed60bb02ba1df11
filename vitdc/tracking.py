"""Where runs are recorded: the only module that imports mlflow.

There is one MLflow run per distinct set of parameters (and data set), whoever records it and how
often. `refine` tells what it knows after every round, so that a person can watch; `evaluate`
tells everything again, so that the record is complete even where DVC skipped the stages before.
Telling the same twice adds nothing. Telling something else about the same parameters (the code or
the machine changed) moves the old run to MLflow's trash and makes a fresh one.

Where every step is a process of its own (Kubeflow), `start_record` makes the run, hands its id on,
`resume_record` continues it, and `end_record` says how the whole ended. If Kubeflow's MLflow plugin
has made a run for the pipeline (MLFLOW_RUN_ID is the task's nested one), that run is used.

Records go to `sqlite:///mlflow.db` or wherever MLFLOW_TRACKING_URI points. Beside an SQLite file,
artifacts lie in the folder `mlartifacts`; a server decides for itself where its artifacts lie.

Importing mlflow takes seconds, so that happens when a tracker is opened, not before.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import logging
import os
import re
import sqlite3
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import urlsplit

from vitdc import __version__, environment
from vitdc.artifacts import SPLITS, Checkpoint, Evaluation, RoundPaths, RoundRow
from vitdc.config import Params, TrackingConfig
from vitdc.errors import InputError, TrainingError, mask_credentials, one_line

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

DEFAULT_URI = "sqlite:///mlflow.db"
ARTIFACT_FOLDER = "mlartifacts"
RESULT_FILES = ("*.html", "*.csv", "*.json", "figures/*.png")
ROUND_METRICS = tuple(name for name in RoundRow.header() if name not in ("round", "verdict"))

# Where the data came from and how fast: the result does not depend on these, given the content.
_NOT_IDENTIFYING = (
    *("data.root", "data.endpoint_url", "data.repo", "data.rev", "data.path"),
    "data.num_workers",
)

_IDENTITY_TAG = "vitdc.identity"
_FAILURE_TAG = "vitdc.failure"
_SUPERSEDES_TAG = "vitdc.supersedes"
_PIPELINE_RUN_TAG = "vitdc.kfp_run_id"
_EVALUATED = "EVALUATED"
_SUCCESSES = ("SUCCEEDED", "COMPLETE", "CACHED")  # of Kubeflow's releases
_MODEL_TAG = "vitdc.model_uri"
_ORIGIN_TAG = "vitdc.data."  # and what is known of the data's origin, e.g. commit

_MAX_METRICS, _MAX_PARAMS, _MAX_VALUE = 1000, 100, 500  # of one request; of old servers, too
_SQL_SCHEMES = ("sqlite", "postgresql", "mysql", "mssql")
_SCHEMES = (*_SQL_SCHEMES, "http", "https")

_logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """What a runner tells about one run while it works and when it is done."""

    def log_rounds(self, rows: Sequence[RoundRow]) -> None:
        """Record the rows so far; a value that is still unknown (None) may come later."""

    def log_history(self, round: int, history: Sequence[Mapping[str, float | None]]) -> None:
        """Record the epochs of the training that led to `round` (`Checkpoint.history`)."""

    def log_result(
        self, *, rows: Sequence[RoundRow], metrics: Mapping[str, Any], results: Path
    ) -> None:
        """Record the finished run.

        Args:
            rows: The rows of all rounds, with their scores.
            metrics: The content of metrics.json.
            results: Directory of the files people read; weights in it are not recorded.

        Raises:
            TrainingError: MLflow does not take it.
        """

    def failed(self, reason: str) -> None:
        """Record that the run ended badly; called by `open_tracker`. Never raises."""


class NullTracker:
    """Records nothing."""

    def log_rounds(self, rows: Sequence[RoundRow]) -> None:
        pass

    def log_history(self, round: int, history: Sequence[Mapping[str, float | None]]) -> None:
        pass

    def log_result(
        self, *, rows: Sequence[RoundRow], metrics: Mapping[str, Any], results: Path
    ) -> None:
        pass

    def failed(self, reason: str) -> None:
        pass


@contextmanager
def open_tracker(
    params: Params,
    *,
    dataset_name: str,
    content_hash: str,
    origin: Mapping[str, str] | None = None,
) -> Iterator[Tracker]:
    """Find or make the run that `params` and the data set stand for, and record into it.

    Whatever ends the block early, Ctrl-C included, marks the run as failed. A run that ends well
    keeps the status RUNNING until `log_result` sets FINISHED.

    Args:
        params: All parameters; `tracking` says whether and under which names to record.
        dataset_name: `Dataset.name`, for people.
        content_hash: `Dataset.content_hash`.
        origin: `Dataset.origin`; recorded, but runs on equal content are the same run.

    Raises:
        InputError: MLFLOW_TRACKING_URI or `tracking.experiment` cannot be used.
    """
    tracker: Tracker = NullTracker()
    if params.tracking.enabled:
        record = _open_record(params, _describe_run(params, dataset_name, content_hash, origin))
        tracker = MlflowTracker(record)
    try:
        yield tracker
    except BaseException as error:
        tracker.failed(_reason(error))
        raise


def log_evaluation(tracker: Tracker, evaluation: Evaluation, rounds: Iterable[RoundPaths]) -> None:
    """Record a finished run with the training of every one of `rounds`.

    Raises:
        TrainingError: MLflow does not take it.
    """
    for paths in rounds:
        trained = Checkpoint.load(paths.checkpoint)
        tracker.log_history(trained.round, trained.history)
    tracker.log_result(rows=evaluation.rows, metrics=evaluation.metrics, results=evaluation.path)


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
    record = _open_record(params, _describe_run(params, dataset_name, content_hash, origin))
    record.tag({_PIPELINE_RUN_TAG: pipeline_run_id, _state_tag(pipeline_run_id): "RUNNING"})
    return f"{record.run_id}/{pipeline_run_id}"


def resume_record(record: str) -> Tracker:
    """Continue the run that `start_record` made; a failure is left to `end_record` to tell.

    Args:
        record: What `start_record` returned.

    Raises:
        InputError: MLFLOW_TRACKING_URI cannot be used or has no such run.
    """
    if not record:
        return NullTracker()
    with _store() as client:
        return MlflowTracker(RunRecord.resume(client, record.partition("/")[0]))


def record_evaluated(record: str, *, model_uri: str) -> None:
    """Record that the pipeline run has done all its work, and where it left its model.

    Args:
        record: What `start_record` returned.
        model_uri: Of a directory, in the store of the pipeline's artifacts.
    """
    if record:
        run_id, _, pipeline_run_id = record.partition("/")
        with _store() as client:
            RunRecord.resume(client, run_id).tag(
                {_MODEL_TAG: model_uri, _state_tag(pipeline_run_id): _EVALUATED}
            )


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
        with _store() as client:
            experiment_id = _experiment(client, params.tracking.experiment)
            tag = _state_tag(pipeline_run_id)
            run = _injected_run(client) or _find_run(client, experiment_id, tag)
            if run:
                record = RunRecord.resume(client, str(run.info.run_id))
                succeeded = succeeded or record.tags.get(tag) == _EVALUATED
            else:
                unread = _describe_run(params, "no data", "", None)
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
    with _store(way_out="set MLFLOW_TRACKING_URI to where the run was recorded") as client:
        try:
            run = client.get_run(run_id)
        except MlflowException:
            experiment = client.get_experiment_by_name(tracking.experiment)
            found = experiment and _find_run(client, experiment.experiment_id, _state_tag(run_id))
            if not found:
                raise InputError(
                    f"{run_id}: neither an MLflow run nor a pipeline run recorded in experiment"
                    f" {tracking.experiment!r} at {mask_credentials(client.tracking_uri)}"
                ) from None
            run = found
    if _MODEL_TAG not in run.data.tags:
        raise InputError(
            f"{run_id}: the run has left no model; only pipeline runs that have evaluated have"
        )
    return str(run.data.tags[_MODEL_TAG])


def _state_tag(pipeline_run_id: str) -> str:
    """The tag with the state of one of the pipeline runs that an MLflow run stands for."""
    return f"vitdc.kfp_run.{pipeline_run_id}"


class MlflowTracker:
    """Gives the values of a run their MLflow names and hands them to its record."""

    def __init__(self, record: RunRecord) -> None:
        self._record = record

    @property
    def run_id(self) -> str:
        return self._record.run_id

    def log_rounds(self, rows: Sequence[RoundRow]) -> None:
        self._log_live(round_points(rows))

    def log_history(self, round: int, history: Sequence[Mapping[str, float | None]]) -> None:
        self._log_live(history_points(round, history))

    def log_result(
        self, *, rows: Sequence[RoundRow], metrics: Mapping[str, Any], results: Path
    ) -> None:
        points, tags = result_points(metrics)
        points.update(round_points(rows))
        with _explaining(
            TrainingError,
            problem="MLflow does not take the result",
            way_out="the results are on disk; run `vitdc evaluate` again to record them",
        ):
            self._record.finish(points, complete=ROUND_METRICS, tags=tags)
            self._record.upload(results)

    def failed(self, reason: str) -> None:
        try:
            with _patience(retries=1, timeout=10):
                self._record.fail(reason)
        except Exception as error:
            _logger.warning("MLflow: the failure is not recorded: %s", _one_line(error))

    def _log_live(self, points: Points) -> None:
        """Record while the run works; hours of training do not die of a lost server.

        Nothing is lost either: what does not arrive now goes with the next call or, at the
        latest, with `log_result`.
        """
        from mlflow.exceptions import MlflowException

        try:
            with _patience(retries=2, timeout=30):
                self._record.add(points)
        except MlflowException as error:
            _logger.warning("MLflow: not recorded yet, going on: %s", _one_line(error))


# --- Names: what is recorded under which name and step -----------------------------------------


class Point(NamedTuple):
    """Where a value stands in MLflow. MLflow's charts are grouped by the part before a slash."""

    key: str
    step: int


Points = dict[Point, float]


def round_points(rows: Iterable[RoundRow]) -> Points:
    """The metrics of rounds.csv under its own column names, step = round."""
    values = ((row.round, name, getattr(row, name)) for row in rows for name in ROUND_METRICS)
    return {Point(name, step): float(value) for step, name, value in values if value is not None}


def history_points(round: int, history: Sequence[Mapping[str, float | None]]) -> Points:
    """Epochs as `pretraining/...` (round 0) or `joint/...`, the steps of the rounds in a row.

    Every round trains for as many epochs as this one.
    """
    prefix = "joint" if round else "pretraining"
    offset = max(round - 1, 0) * len(history)
    points: Points = {}
    for row in history:
        step = offset + int(row["epoch"] or 0)
        values = {name: value for name, value in row.items() if name != "epoch"}
        points |= {
            Point(f"{prefix}/{n}", step): float(v) for n, v in values.items() if v is not None
        }
    return points


def result_points(metrics: Mapping[str, Any]) -> tuple[Points, dict[str, str]]:
    """metrics.json as `final/...` metrics and `vitdc....` tags.

    The split goes last, as in rounds.csv: {"test": {"nmi": 0.9}} becomes `final/nmi_test`. Text
    (the stop reason) becomes a tag; what is null is left out.
    """
    points: Points = {}
    tags: dict[str, str] = {}
    for path, value in _flatten(metrics):
        name = "_".join(sorted(path, key=SPLITS.__contains__))
        if isinstance(value, str):
            tags[f"vitdc.{name}"] = value
        elif isinstance(value, int | float):
            points[Point(f"final/{name}", 0)] = float(value)
    return points, tags


def run_params(params: Params) -> dict[str, str]:
    """All parameters of the method, flat: {"seed": "0", "joint.gamma": "0.1", ...}."""
    values = params.model_dump(mode="json", exclude={"tracking", "kubernetes"})
    return {".".join(path): _text(value) for path, value in _flatten(values)}


def run_identity(params: Params, *, content_hash: str) -> str:
    """Hash of all that the result depends on: runs with the same one are the same run."""
    values = {k: v for k, v in run_params(params).items() if k not in _NOT_IDENTIFYING}
    text = json.dumps({"dataset": content_hash, **values}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def run_name(params: Params, *, dataset_name: str) -> str:
    """The chosen name, or one like `gamma=0.1 seed=0 k=10 digits`.

    MLflow's lists show about 16 characters, so what most often differs comes first.
    """
    k, gamma = params.clustering.num_clusters, params.joint.gamma
    return params.tracking.run_name or f"gamma={gamma:g} seed={params.seed} k={k} {dataset_name}"


def _flatten(
    values: Mapping[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, (*path, key))
        else:
            yield (*path, key), value


def _text(value: Any) -> str:
    text = mask_credentials(value) if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _MAX_VALUE else text[: _MAX_VALUE - 3] + "..."


# --- Record: one MLflow run --------------------------------------------------------------------


class RunDescription(NamedTuple):
    """What a run is, before anything has been measured."""

    identity: str
    name: str
    params: dict[str, str]
    dataset_name: str
    content_hash: str
    origin: Mapping[str, str]


class RunRecord:
    """One MLflow run, found or made by its identity; what is added twice is recorded once."""

    def __init__(self, client: MlflowClient, run: Run, description: RunDescription) -> None:
        self._client = client
        self._run = run
        self._description = description
        self._told: Points = {}
        self._write_params()

    @classmethod
    def open(
        cls, client: MlflowClient, *, experiment_id: str, description: RunDescription
    ) -> RunRecord:
        """Find the run by its identity, or make it; a run that Kubeflow made is taken as it is."""
        if run := _injected_run(client):
            for key, value in _run_tags(description).items():
                client.set_tag(run.info.run_id, key, value)
        else:
            run = _find_run(client, experiment_id, _IDENTITY_TAG, description.identity)
        return cls(client, run or _create_run(client, experiment_id, description), description)

    @classmethod
    def resume(cls, client: MlflowClient, run_id: str) -> RunRecord:
        """Continue a run by its id, or the one that superseded it."""
        run = client.get_run(run_id)
        while run.info.lifecycle_stage == "deleted":
            newer = _find_run(client, run.info.experiment_id, _SUPERSEDES_TAG, run.info.run_id)
            if newer is None:
                raise InputError(
                    f"the MLflow run {run_id} is in MLflow's trash; restore it with `mlflow runs"
                    f" restore --run-id {run_id}`, or run again"
                )
            run = newer
        return cls(client, run, _description_of(run))

    @property
    def run_id(self) -> str:
        return str(self._run.info.run_id)

    @property
    def tags(self) -> Mapping[str, str]:
        return dict(self._run.data.tags)

    @cached_property
    def _recorded(self) -> Points:
        """All points that are recorded (one request per metric, none for a new run)."""
        return {
            Point(key, metric.step): metric.value
            for key in self._run.data.metrics
            for metric in self._client.get_metric_history(self.run_id, key)
        }

    def add(self, points: Points) -> None:
        """Record the points that are not there yet."""
        self._told.update(points)
        if any(self._recorded.get(point, value) != value for point, value in self._told.items()):
            self._supersede()
        if self._run.info.status in ("FAILED", "KILLED"):  # it goes on
            self._client.delete_tag(self.run_id, _FAILURE_TAG)
            self._set_status("RUNNING")
        self._write({p: v for p, v in self._told.items() if p not in self._recorded})

    def finish(self, points: Points, *, complete: Iterable[str], tags: dict[str, str]) -> None:
        """Record the last points and that the run is done.

        Args:
            points: The last points.
            complete: Metrics of which every step has been told: one that is recorded beyond them
                belongs to another result.
            tags: Recorded, too.
        """
        complete = frozenset(complete)
        told = {**self._told, **points}
        if any(p.key in complete and p not in told for p in self._recorded):
            self._supersede()
        self.add(points)
        self.tag(tags)
        if self._run.info.status != "FINISHED":
            self._client.set_terminated(self.run_id, "FINISHED")
            self._run = self._client.get_run(self.run_id)

    def tag(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run."""
        for key, value in tags.items():
            self._client.set_tag(self.run_id, key, value)

    def upload(self, directory: Path) -> None:
        """Copy the files people read to the run, over those of an earlier time."""
        for pattern in RESULT_FILES:
            for file in sorted(directory.glob(pattern)):
                folder = file.parent.relative_to(directory).as_posix()
                folder_or_root = None if folder == "." else folder
                self._client.log_artifact(self.run_id, str(file), folder_or_root)

    def fail(self, reason: str) -> None:
        """Record that the run ended badly; a run that had been finished before stays so."""
        if self._run.info.status != "RUNNING":
            return
        self._client.set_tag(self.run_id, _FAILURE_TAG, _text(reason))
        self._client.set_terminated(self.run_id, "FAILED")

    def _write(self, points: Points) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(p.key, value, now, p.step) for p, value in points.items()]
        for start in range(0, len(metrics), _MAX_METRICS):
            self._client.log_batch(self.run_id, metrics=metrics[start : start + _MAX_METRICS])
        self._recorded.update(points)

    def _write_params(self) -> None:
        """Record the parameters that are missing: all of a new run's."""
        from mlflow.entities import Param

        there = self._run.data.params
        params = [Param(k, v) for k, v in self._description.params.items() if k not in there]
        for start in range(0, len(params), _MAX_PARAMS):
            self._client.log_batch(self.run_id, params=params[start : start + _MAX_PARAMS])

    def _supersede(self) -> None:
        """Put the run into the trash and start over with a fresh one."""
        old = self.run_id
        if "MLFLOW_RUN_ID" in os.environ:  # it is Kubeflow's, and stays what it is
            return
        self._client.delete_run(old)
        self._run = _create_run(
            self._client, self._run.info.experiment_id, self._description, {_SUPERSEDES_TAG: old}
        )
        self._recorded = {}
        self._write_params()

    def _set_status(self, status: str) -> None:
        self._client.update_run(self.run_id, status)
        self._run = self._client.get_run(self.run_id)


def _find_run(
    client: MlflowClient, experiment_id: str, tag: str, value: str | None = None
) -> Run | None:
    """The newest run of the experiment that has the tag, with the value or with any."""
    wanted = f"= '{value}'" if value else "LIKE '%'"
    runs = client.search_runs(
        [experiment_id],
        filter_string=f"tags.`{tag}` {wanted}",
        order_by=["attributes.start_time DESC"],
        max_results=1,
    )
    return runs[0] if runs else None


def _injected_run(client: MlflowClient) -> Run | None:
    """The run that Kubeflow's MLflow plugin made for the pipeline: the parent of the task's own."""
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if not run_id:
        return None
    run = client.get_run(run_id)
    parent = run.data.tags.get("mlflow.parentRunId")
    return client.get_run(parent) if parent else run


def _create_run(
    client: MlflowClient,
    experiment_id: str,
    about: RunDescription,
    extra_tags: Mapping[str, str] | None = None,
) -> Run:
    from mlflow.entities import Dataset, DatasetInput

    tags = {**_run_tags(about), **(extra_tags or {})}
    run = client.create_run(experiment_id, tags=tags, run_name=about.name)
    if about.content_hash:
        source = json.dumps({"sha256": about.content_hash, **about.origin})
        dataset = Dataset(about.dataset_name, about.content_hash[:16], "vitdc", source)
        client.log_inputs(run.info.run_id, [DatasetInput(dataset)])
    return run


def _run_tags(about: RunDescription) -> dict[str, str]:
    origin = {f"{_ORIGIN_TAG}{key}": value for key, value in about.origin.items()}
    return {_IDENTITY_TAG: about.identity, **origin, **_provenance()}


def _describe_run(
    params: Params, dataset_name: str, content_hash: str, origin: Mapping[str, str] | None
) -> RunDescription:
    return RunDescription(
        identity=run_identity(params, content_hash=content_hash),
        name=run_name(params, dataset_name=dataset_name),
        params=run_params(params),
        dataset_name=dataset_name,
        content_hash=content_hash,
        origin=origin or {},
    )


def _description_of(run: Run) -> RunDescription:
    """What a recorded run is, read back from its record."""
    datasets = [item.dataset for item in run.inputs.dataset_inputs] if run.inputs else []
    source = json.loads(datasets[0].source) if datasets else {}
    return RunDescription(
        identity=run.data.tags.get(_IDENTITY_TAG, ""),
        name=run.info.run_name,
        params=dict(run.data.params),
        dataset_name=datasets[0].name if datasets else "",
        content_hash=source.pop("sha256", ""),
        origin=source,
    )


def _provenance() -> dict[str, str]:
    """Tags that say who and what made the run, under MLflow's own names where it has them."""
    tags = {"vitdc.version": __version__, "mlflow.source.name": "vitdc"}
    with suppress(KeyError, OSError, ImportError):  # a container's user without a name
        tags["mlflow.user"] = getpass.getuser()
    with suppress(OSError, subprocess.SubprocessError):  # no git, or not a repository
        git = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        )
        tags["mlflow.source.git.commit"] = git.stdout.strip()
    return tags


# --- Store: where the records are --------------------------------------------------------------


def _open_record(params: Params, description: RunDescription) -> RunRecord:
    with _store() as client:
        experiment_id = _experiment(client, params.tracking.experiment)
        return RunRecord.open(client, experiment_id=experiment_id, description=description)


@contextmanager
def _store(
    way_out: str = "set MLFLOW_TRACKING_URI to a store that works, or tracking.enabled to false",
) -> Iterator[MlflowClient]:
    """The store that MLFLOW_TRACKING_URI names; what goes wrong with it is said in one line."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
    _check_scheme(uri)
    _quiet_mlflow()
    with (
        _explaining(
            InputError,
            problem=f"MLflow at {mask_credentials(uri)} cannot be used",
            way_out=way_out,
        ),
        _patience(retries=1, timeout=10),
    ):
        from mlflow import MlflowClient

        uri = _prepare_database(uri)
        yield MlflowClient(uri, registry_uri=uri)


def _check_scheme(uri: str) -> None:
    scheme = urlsplit(uri).scheme.partition("+")[0]
    if scheme in _SCHEMES:
        return
    problem = "MLflow no longer records in folders" if scheme in ("", "file") else "unknown scheme"
    raise InputError(
        f"MLFLOW_TRACKING_URI={mask_credentials(uri)}: {problem}; valid are sqlite:///FILE.db, http://HOST:PORT"
        " and other databases (postgresql://...)"
    )


def _quiet_mlflow() -> None:
    """Keep mlflow's chatter out of the terminal, and the news of our runs on this machine."""
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)


def _prepare_database(uri: str) -> str:
    """Open a database once: mlflow itself retries for minutes before it says what is wrong.

    Returns:
        The URI, with the absolute path of an SQLite file, so that it does not depend on the
        working directory.
    """
    if urlsplit(uri).scheme.partition("+")[0] not in _SQL_SCHEMES:
        return uri
    import sqlalchemy

    url = sqlalchemy.make_url(uri)
    if file := _sqlite_file(uri):
        file.parent.mkdir(parents=True, exist_ok=True)
        url = url.set(database=str(file))
    engine = sqlalchemy.create_engine(url)
    try:
        sqlalchemy.inspect(engine).get_table_names()
    finally:
        engine.dispose()
    return url.render_as_string(hide_password=False)


def _sqlite_file(uri: str) -> Path | None:
    """The absolute path of an SQLite store, None for another store."""
    if not uri.startswith("sqlite"):
        return None
    import sqlalchemy

    name = sqlalchemy.make_url(uri).database
    return Path(name).absolute() if name and name != ":memory:" else None


def _experiment(client: MlflowClient, name: str) -> str:
    """Id of the experiment, made if need be."""
    from mlflow.exceptions import MlflowException

    file = _sqlite_file(client.tracking_uri)
    artifacts = str(file.parent / ARTIFACT_FOLDER) if file else None
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return client.create_experiment(name, artifact_location=artifacts)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            experiment = client.get_experiment_by_name(name)  # another process was faster
            assert experiment is not None
    if experiment.lifecycle_stage == "deleted":
        raise InputError(
            f"tracking.experiment: {name!r} is in MLflow's trash; restore it with `mlflow"
            f" experiments restore -x {experiment.experiment_id}` or choose another name"
        )
    if file and artifacts:
        _check_artifacts(file, experiment.artifact_location, artifacts, name)
    return str(experiment.experiment_id)


def _check_artifacts(file: Path, recorded: str, expected: str, experiment: str) -> None:
    """Follow an SQLite store that was moved: MLflow keeps absolute paths of artifacts in it."""
    if recorded.startswith("mlflow-artifacts:"):
        raise InputError(
            f"tracking.experiment: {experiment!r} was made by a server, which alone can store its"
            " artifacts; set MLFLOW_TRACKING_URI to the server or choose another name"
        )
    if recorded == expected or Path(recorded).name != ARTIFACT_FOLDER:
        return
    connection = sqlite3.connect(file)
    with connection:
        connection.execute(
            "UPDATE experiments SET artifact_location = ? WHERE artifact_location = ?",
            (expected, recorded),
        )
        connection.execute(
            "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?)"
            " WHERE substr(artifact_uri, 1, ?) = ?",
            (expected, len(recorded) + 1, len(recorded) + 1, f"{recorded}/"),
        )
    connection.close()


def _patience(*, retries: int, timeout: int) -> AbstractContextManager[None]:
    """Let a lost server be noticed soon, unless the user chose otherwise; mlflow waits minutes."""
    return environment.defaults(
        {
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(retries),
            "MLFLOW_HTTP_REQUEST_TIMEOUT": str(timeout),
        }
    )


@contextmanager
def _explaining(kind: type[Exception], *, problem: str, way_out: str) -> Iterator[None]:
    """Turn an error of mlflow or below into one of ours, in one line."""
    try:
        yield
    except (InputError, TrainingError):
        raise
    except Exception as error:
        raise kind(f"{problem}: {_one_line(error)}; {way_out}") from error


def _reason(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return f"{type(error).__name__}: {_one_line(error)}"


def _one_line(error: BaseException) -> str:
    """The message without line breaks, what was said first and last if it is long."""
    cause = getattr(error, "orig", None) or error  # SQLAlchemy wraps the driver's own error
    text = one_line(cause)
    return text if len(text) <= 600 else f"{text[:250]} ... {text[-250:]}"
