"""One MLflow run: found or made by its identity, and what is added twice is recorded once."""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vitdc.config import Params
from vitdc.errors import InputError
from vitdc.tracking.naming import (
    DATA_TAG,
    DESCRIPTION_TAG,
    FAILURE_TAG,
    IDENTITY_TAG,
    PIPELINE_RUN_TAG,
    PIPELINE_STATE_TAG,
    PROVISIONAL_TAG,
    REGISTERED_TAG,
    RESULT,
    SUPERSEDES_TAG,
    SYSTEM,
    Point,
    Told,
    as_text,
    data_name,
    is_result,
    run_identity,
    run_name,
    run_params,
)
from vitdc.tracking.provenance import code_tags
from vitdc.tracking.registry import Scores, register_model, registered_name
from vitdc.tracking.store import (
    Trouble,
    find_experiment,
    open_store,
    patience,
    store_name,
    trouble,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_logger = logging.getLogger(__name__)

GOING_ON = "RUNNING"  # the state of a pipeline run that has not ended

_UPLOAD_TIMEOUT = 300  # seconds: a server answers when its own store has the whole file
_MAX_METRICS, _MAX_PARAMS = 1000, 100  # of one request


class RunDescription(NamedTuple):
    """What a run is, before anything has been measured."""

    identity: str
    name: str
    params: dict[str, str]
    dataset_name: str
    content_hash: str
    origin: Mapping[str, str]
    registered_model: str  # name for the final model; empty: it is not registered
    code: Mapping[str, str]  # tags that say what it is made by


class RunRecord:
    """One MLflow run, found or made by its identity; what is added twice is recorded once.

    Values are of two kinds. Results depend on nothing but the parameters, so another result at the
    same place means that the code or the machine changed, and starts a new run. What was merely
    measured (seconds, images per second) differs every time; there, the first one stays.
    """

    def __init__(self, client: MlflowClient, run: Run, description: RunDescription) -> None:
        self._client = client
        self._run = run
        self._description = description
        self._told: dict[Point, Told] = {}
        self._unwritten: dict[Point, Told] = {}
        self._known: defaultdict[str, dict[int, float]] = defaultdict(dict)  # key, step: value
        self._unread: dict[str, int] = {}  # keys of which more may be recorded before this step
        self._note_latest()
        self._write_params()

    @classmethod
    def open(
        cls, client: MlflowClient, *, experiment_id: str, description: RunDescription
    ) -> RunRecord:
        """Find the run by its identity, or make it."""
        run = find_run(client, experiment_id, IDENTITY_TAG, description.identity)
        name = description.registered_model
        if run and run.data.tags.get(REGISTERED_TAG, "") != name:  # for who resumes the run
            client.set_tag(run.info.run_id, REGISTERED_TAG, name)
        return cls(client, run or _create_run(client, experiment_id, description), description)

    @classmethod
    def resume(
        cls, client: MlflowClient, run_id: str, *, code: Mapping[str, str] | None = None
    ) -> RunRecord:
        """Continue a run by its id, or the one that superseded it.

        Args:
            client: Of the store.
            run_id: Of the MLflow run.
            code: What made the results that are going to be told; by default this process.
        """
        run = client.get_run(run_id)
        while run.info.lifecycle_stage == "deleted":
            newer = find_run(client, run.info.experiment_id, SUPERSEDES_TAG, run.info.run_id)
            if newer is None:
                raise InputError(
                    f"the MLflow run {run_id} is in MLflow's trash; restore it with `mlflow runs"
                    f" restore --run-id {run_id}`, or run again"
                )
            run = newer
        return cls(client, run, _description_of(run, code_tags() if code is None else code))

    @property
    def run_id(self) -> str:
        return str(self._run.info.run_id)

    @property
    def tags(self) -> Mapping[str, str]:
        return dict(self._run.data.tags)

    @property
    def finished(self) -> bool:
        """Whether the run has ended well, and no other result takes the place of the one it has."""
        return bool(self._run.info.status == "FINISHED") and not self._is_provisional

    @property
    def _is_provisional(self) -> bool:
        return self.tags.get(PROVISIONAL_TAG) == "true"

    @property
    def about(self) -> dict[str, Any]:
        """What the journal of the run says about it."""
        return {
            "run_id": self.run_id,
            "name": str(self._run.info.run_name),
            "identity": self._description.identity,
            "registered_model": self._description.registered_model,
            "code": dict(self._description.code),
            "uri": store_name(),
            "started": self._run.info.start_time / 1000,
        }

    # --- delivery --------------------------------------------------------------------------------

    def deliver(self, entry: Mapping[str, Any], folder: Path) -> None:
        """Take an entry of the outbox (`vitdc.tracking.outbox`); a second time changes nothing.

        Args:
            entry: Its `kind` says which method below it is for.
            folder: Of the files that entries name.
        """
        with patience(retries=0, timeout=_UPLOAD_TIMEOUT if "file" in entry else 15):
            try:
                self._deliver(entry, folder)
            except Exception as error:
                self._explain_trash(error)
                raise

    def _deliver(self, entry: Mapping[str, Any], folder: Path) -> None:
        points: dict[Point, Told] = {}
        for key, step, value, time in entry.get("points", ()):
            _note(points, Point(key, step), Told(value, time))
        match entry["kind"]:
            case "points":
                self.add(points)
            case "tags":
                self.tag(entry["tags"])
            case "finish":
                self.finish(points, complete=entry["complete"], tags=entry["tags"])
            case "dataset":
                self.use(entry["dataset"])
            case "describe":
                self.describe(entry["text"])
            case "fail":
                self.fail(entry["reason"], status=entry.get("status", "FAILED"))
            case "file":
                self._client.log_artifact(
                    self.run_id, str(folder / entry["file"]), entry["folder"] or None
                )
            case "model":
                register_model(
                    self._client,
                    self.run_id,
                    folder / entry["file"],
                    name=entry["name"],
                    scores=Scores(entry["metrics"], entry["test_data"]),
                )
            case kind:
                raise ValueError(f"{kind!r}: no such kind of entry; it is of another vitdc")

    def answers(self) -> bool:
        """Whether MLflow can be reached at all."""
        try:
            with patience(retries=0, timeout=5):
                self._client.get_run(self.run_id)
        except Exception:
            return False
        return True

    def _explain_trash(self, error: Exception) -> None:
        """Say that the run was deleted, if that is why MLflow takes nothing more."""
        if trouble(error) is not Trouble.REFUSED:
            return
        try:
            stage = self._client.get_run(self.run_id).info.lifecycle_stage
        except Exception:  # the first error says it
            return
        if stage == "deleted":
            raise InputError(
                f"the run {self.run_id} is in MLflow's trash; `mlflow runs restore --run-id"
                f" {self.run_id}` restores it"
            ) from None

    # --- what is recorded ------------------------------------------------------------------------

    def add(self, points: Mapping[Point, Told]) -> None:
        """Record the values that are not there yet.

        What MLflow refuses is forgotten, so that it takes what is told later.
        """
        for point, told in points.items():
            _note(self._told, point, told)
        changed = {p for p, told in points.items() if self._is_changed(p, told.value)}
        if not all(self._is_provisional and point.key.startswith(RESULT) for point in changed):
            self._supersede()
        if self._run.info.status in ("FAILED", "KILLED"):  # it goes on
            self._client.delete_tag(self.run_id, FAILURE_TAG)
            self._set_status("RUNNING")
        for point in points:
            if point in changed or self._recorded(point) is None:
                self._unwritten[point] = self._told[point]
        try:
            self._write()
        except Exception as error:
            if trouble(error) is Trouble.REFUSED:
                for point in points:
                    self._told.pop(point, None)
                    self._unwritten.pop(point, None)
            raise

    def _is_changed(self, point: Point, value: float) -> bool:
        """Whether another result is recorded at a point."""
        return is_result(point.key) and self._recorded(point, value) != value

    def _recorded(self, point: Point, default: float | None = None) -> float | None:
        """The value that is recorded at a point, or the default.

        The load of the machine is never looked up: it has many values, and no two at one time.
        """
        if point.key.startswith(SYSTEM):
            return default
        if point.step < self._unread.get(point.key, point.step):
            self._history(point.key)
        return self._known[point.key].get(point.step, default)

    def _note_latest(self) -> None:
        """Note what a run tells of itself: the value at the last step of every metric."""
        latest = self._run.data.to_proto().metrics
        self._known = defaultdict(dict, {each.key: {each.step: each.value} for each in latest})
        self._unread = {each.key: each.step for each in latest if each.step > 0}

    def _history(self, key: str) -> dict[int, float]:
        """All that is recorded of a metric: step -> value; one request, unless that is known."""
        if key in self._unread:
            found = self._client.get_metric_history(self.run_id, key)
            self._known[key] |= {each.step: each.value for each in found}
            del self._unread[key]
        return self._known[key]

    def finish(
        self, points: Mapping[Point, Told], *, complete: Iterable[str], tags: Mapping[str, str]
    ) -> None:
        """Record the last points and that the run is done.

        Args:
            points: The last points.
            complete: Metrics of which every step has been told: one that is recorded beyond them
                belongs to another result.
            tags: Recorded, too.
        """
        told = {**self._told, **points}
        if any(Point(key, step) not in told for key in complete for step in self._history(key)):
            self._supersede()
        self.add(points)
        self.tag({PROVISIONAL_TAG: "false", **tags} if self._is_provisional else tags)
        if not self.finished:
            self._client.set_terminated(self.run_id, "FINISHED")
            self._run = self._client.get_run(self.run_id)

    def use(self, dataset: Mapping[str, str]) -> None:
        """Record which data the run works on, by the run's name for them.

        The fields are those of MLflow's own `Dataset`.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag
        from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

        context = InputTag(MLFLOW_DATASET_CONTEXT, "training and test")
        used = Dataset(**{**dataset, "name": self._description.dataset_name})
        self._client.log_inputs(self.run_id, [DatasetInput(used, [context])])

    def describe(self, text: str) -> None:
        """Record what the UI shows as the description, unless a person has written another.

        RUN_ID in the text stands for the id of the run.
        """
        from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

        text = text.replace("RUN_ID", self.run_id)
        tags = self._client.get_run(self.run_id).data.tags
        there = tags.get(MLFLOW_RUN_NOTE, "")
        if there in ("", text) or _digest(there) == tags.get(DESCRIPTION_TAG):
            self.tag({MLFLOW_RUN_NOTE: text, DESCRIPTION_TAG: _digest(text)})

    def tag(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run."""
        from mlflow.entities import RunTag

        if tags:
            self._client.log_batch(self.run_id, tags=[RunTag(*each) for each in tags.items()])

    def fail(self, reason: str, *, status: str = "FAILED") -> None:
        """Record that the run ended badly; a run that had been finished before stays so.

        What was killed can have failed after all: a task whose pod was lost once too often.
        """
        if self._run.info.status not in ("RUNNING", "KILLED"):
            return
        self._client.set_tag(self.run_id, FAILURE_TAG, as_text(reason))
        self._client.set_terminated(self.run_id, status)
        self._run = self._client.get_run(self.run_id)

    def _write(self) -> None:
        """Send what is not recorded yet; what could not be sent is sent by the next call."""
        from mlflow.entities import Metric

        points = list(self._unwritten.items())
        for start in range(0, len(points), _MAX_METRICS):
            part = points[start : start + _MAX_METRICS]
            metrics = [Metric(p.key, told.value, told.time, p.step) for p, told in part]
            self._client.log_batch(self.run_id, metrics=metrics)
            for point, told in part:
                self._unwritten.pop(point)
                if not point.key.startswith(SYSTEM):
                    self._known[point.key][point.step] = told.value

    def _write_params(self) -> None:
        """Record the parameters that are missing: all of a new run's."""
        from mlflow.entities import Param

        there = self._run.data.params
        params = [Param(k, v) for k, v in self._description.params.items() if k not in there]
        for start in range(0, len(params), _MAX_PARAMS):
            self._client.log_batch(self.run_id, params=params[start : start + _MAX_PARAMS])

    def _supersede(self) -> None:
        """Put the run into the trash and start over with a fresh one."""
        run = self._client.get_run(self.run_id)
        old = run.info
        newer = find_run(self._client, old.experiment_id, SUPERSEDES_TAG, old.run_id)
        if newer is None:  # else this is the second attempt
            tags = {SUPERSEDES_TAG: old.run_id, **_pipeline_tags(run)}
            newer = _create_run(self._client, old.experiment_id, self._description, tags)
        if old.lifecycle_stage != "deleted":
            self._client.delete_run(old.run_id)
            _logger.warning(
                "run %s has other results for the same parameters and images, so it was moved to"
                " MLflow's trash (`mlflow runs restore --run-id %s` brings it back); %s takes its"
                " place",
                *(old.run_name, old.run_id, newer.info.run_id),
            )
        inputs = run.inputs.dataset_inputs if run.inputs else []
        self._client.log_inputs(newer.info.run_id, inputs)
        self._run = newer
        self._note_latest()
        self._unwritten = {p: told for p, told in self._told.items() if self._recorded(p) is None}
        self._write_params()

    def _set_status(self, status: str) -> None:
        self._client.update_run(self.run_id, status)
        self._run = self._client.get_run(self.run_id)


def _note(points: dict[Point, Told], point: Point, told: Told) -> None:
    """Keep what is told about a point: another result replaces it, the same keeps its first time.

    An answer of MLflow may get lost. Then it is told again what it has, with what was told since,
    and it knows a value again only if the time is equal, too.
    """
    before = points.get(point)
    if before is None or (is_result(point.key) and before.value != told.value):
        points[point] = told


def find_run(
    client: MlflowClient, experiments: str | Sequence[str], tag: str, value: str | None = None
) -> Run | None:
    """The newest run of one or several experiments that has the tag, with the value or with any."""
    wanted = f"= '{value}'" if value else "LIKE '%'"
    runs = client.search_runs(
        [experiments] if isinstance(experiments, str) else list(experiments),
        filter_string=f"tags.`{tag}` {wanted}",
        order_by=["attributes.start_time DESC"],
        max_results=1,
    )
    return runs[0] if runs else None


def _create_run(
    client: MlflowClient,
    experiment_id: str,
    about: RunDescription,
    extra_tags: Mapping[str, str] | None = None,
) -> Run:
    tags = {**_run_tags(about), **(extra_tags or {})}
    return client.create_run(experiment_id, tags=tags, run_name=about.name)


def _run_tags(about: RunDescription) -> dict[str, str]:
    data = {"name": about.dataset_name, "sha256": about.content_hash, **about.origin}
    known = {f"{DATA_TAG}{key}": value for key, value in data.items() if value}
    known |= {"vitdc.seed": about.params.get("seed", ""), REGISTERED_TAG: about.registered_model}
    return {IDENTITY_TAG: about.identity, **known, **about.code}


def _pipeline_tags(run: Run) -> dict[str, str]:
    """By which the pipeline runs that are filling a run find it."""
    return {
        key: value
        for key, value in run.data.tags.items()
        if key == PIPELINE_RUN_TAG or (key.startswith(PIPELINE_STATE_TAG) and value == GOING_ON)
    }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def describe_run(
    params: Params, dataset_name: str, content_hash: str, origin: Mapping[str, str] | None
) -> RunDescription:
    dataset_name = data_name(params.data, dataset_name=dataset_name)
    return RunDescription(
        identity=run_identity(params, content_hash=content_hash),
        name=run_name(params, dataset_name=dataset_name),
        params=run_params(params),
        dataset_name=dataset_name,
        content_hash=content_hash,
        origin=origin or {},
        registered_model=registered_name(params.tracking, dataset_name=dataset_name),
        code=code_tags(),
    )


def _description_of(run: Run, code: Mapping[str, str]) -> RunDescription:
    """What a recorded run is, read back from its record."""
    tags = run.data.tags
    data = {k.removeprefix(DATA_TAG): v for k, v in tags.items() if k.startswith(DATA_TAG)}
    return RunDescription(
        identity=tags.get(IDENTITY_TAG, ""),
        name=run.info.run_name,
        params=dict(run.data.params),
        dataset_name=data.pop("name", ""),
        content_hash=data.pop("sha256", ""),
        origin=data,
        registered_model=tags.get(REGISTERED_TAG, ""),
        code=code,
    )


def open_record(params: Params, description: RunDescription) -> RunRecord:
    with open_store() as client:
        experiment_id = find_experiment(client, params.tracking.experiment)
        return RunRecord.open(client, experiment_id=experiment_id, description=description)
