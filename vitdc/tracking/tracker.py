"""What a runner tells about one run while it works, and who listens."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vitdc.artifacts import (
    OUT_OF_ROOM,
    Checkpoint,
    Clustering,
    ClusteringScores,
    Dataset,
    Evaluation,
    RoundPaths,
    RoundRow,
)
from vitdc.config import Params
from vitdc.errors import InputError, is_sigterm, one_line
from vitdc.tracking import journal
from vitdc.tracking.describing import dataset_fields, describe_result
from vitdc.tracking.monitor import SystemMonitor
from vitdc.tracking.naming import (
    DVC_TAG,
    PROVISIONAL_TAG,
    ROUND_METRICS,
    SYSTEM,
    Point,
    Points,
    batch_points,
    epoch_points,
    history_points,
    result_points,
    round_points,
    run_identity,
    score_points,
)
from vitdc.tracking.outbox import FINISH, Outbox, Waiting, outbox_directory
from vitdc.tracking.provenance import dvc_hash
from vitdc.tracking.record import RunRecord, describe_run, open_record
from vitdc.tracking.store import Trouble, open_store, reason_of, store_name, trouble
from vitdc.watching import Watcher

BATCH_INTERVAL = 2.0  # seconds between batches that are told
RESULT_FILES = ("*.html", "*.csv", "*.json", "figures/*.png")

_logger = logging.getLogger(__name__)


class Tracker(Watcher):
    """What a runner tells about one run while it works and when it is done; records nothing.

    Attributes:
        left: What MLflow had not taken when the tracker was closed.
    """

    left: Waiting | None = None

    def log_rounds(self, rows: Sequence[RoundRow]) -> None:
        """Record the rows so far; a value that is still unknown (None) may come later."""

    def log_scores(self, round: int, scores: ClusteringScores) -> None:
        """Record how good the clustering that ends a round is."""

    def log_dataset(self, dataset: Dataset) -> None:
        """Record the data that the run works on."""

    def log_history(self, round: int, history: Sequence[Mapping[str, float | None]]) -> None:
        """Record the epochs of the training that led to `round` (`Checkpoint.history`)."""

    def log_result(
        self,
        *,
        rows: Sequence[RoundRow],
        metrics: Mapping[str, Any],
        results: Path,
        provisional: bool = False,
    ) -> None:
        """Record the finished run.

        Args:
            rows: The rows of all rounds, with their scores.
            metrics: The content of metrics.json.
            results: Directory of the files people read; weights in it are not recorded.
            provisional: More rounds may follow: the next result takes the place of this one.
        """

    def log_model(self, evaluation: Evaluation) -> None:
        """Register the model of the finished run, unless `tracking.registered_model` is false."""

    def log_description(self, evaluation: Evaluation) -> None:
        """Record the scores and the rounds as what a person reads first about the run."""

    def log_hash(self, name: str, directory: Path) -> None:
        """Record DVC's hash of the `dataset` or the `model`."""

    def failed(self, reason: str, *, status: str = "FAILED") -> None:
        """Record that the run ended badly, as FAILED or KILLED."""

    def flush(self, patience: float | None = None) -> Waiting | None:
        """Wait until MLflow has what was told; return what is left when `patience` (s) is over."""

    def close(self) -> None:
        """Deliver everything; what could not be delivered stays on disk."""


class NullTracker(Tracker):
    """Records nothing."""


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
        tracker = _open(params, dataset_name, content_hash, origin)
    with reporting_to(tracker):
        yield tracker


@contextmanager
def reporting_to(tracker: Tracker, *, failures: bool = True) -> Iterator[Tracker]:
    """Close the tracker after the block, and tell it what ended the block early.

    Args:
        failures: Whether failures are to be told, too; SIGTERM is in any case. Where Kubernetes
            ends a task, what would tell of it later may be ended as well.
    """
    try:
        yield tracker
    except BaseException as error:
        if is_sigterm(error):
            tracker.failed("terminated", status="KILLED")
        elif failures:
            tracker.failed(reason_of(error))
        raise
    finally:
        tracker.close()


def _open(
    params: Params, dataset_name: str, content_hash: str, origin: Mapping[str, str] | None
) -> Tracker:
    try:
        record = open_record(params, describe_run(params, dataset_name, content_hash, origin))
    except InputError as error:
        about = _begun(run_identity(params, content_hash=content_hash))
        if about is None or trouble(error) is not Trouble.OUTAGE:
            raise
        _logger.warning("%s; going on, since an earlier step could record", one_line(error))
        return MlflowTracker(about, remember=True)
    return MlflowTracker(record.about, record, remember=True)


def _begun(identity: str) -> dict[str, Any] | None:
    """What earlier stages, also in other processes, say about the same run, if it is not done."""
    for folder in outbox_directory().glob("*"):
        about = journal.read_about(folder)
        if (about.get("identity"), about.get("uri")) == (identity, store_name()):
            return about
    return None


def log_evaluation(
    tracker: Tracker, evaluation: Evaluation, rounds: Iterable[RoundPaths], *, dataset: Dataset
) -> None:
    """Record a finished run with its model, and the training and clusters of every round."""
    tracker.log_dataset(dataset)
    for paths in rounds:
        trained = Checkpoint.load(paths.checkpoint)
        tracker.log_history(trained.round, trained.history)
        tracker.log_scores(trained.round, Clustering.load(paths.clustering).scores)
    tracker.log_result(
        rows=evaluation.rows,
        metrics=evaluation.metrics,
        results=evaluation.path,
        provisional=evaluation.metrics["stop_reason"] == OUT_OF_ROOM,
    )
    tracker.log_description(evaluation)
    tracker.log_hash("dataset", dataset.path)
    tracker.log_hash("model", evaluation.path / "model")
    tracker.log_model(evaluation)


class MlflowTracker(Tracker):
    """Gives the values of a run their MLflow names and puts them into the outbox.

    Args:
        about: Which run of which store; see `RunRecord.about`.
        record: The run, or None if its store cannot be reached now.
        remember: As of `Outbox`.
        patience: As of `Outbox.close`.
        limit: As of `Outbox.close`.
    """

    def __init__(
        self,
        about: Mapping[str, Any],
        record: RunRecord | None = None,
        *,
        remember: bool = False,
        patience: float | None = None,
        limit: float = math.inf,
    ) -> None:
        self._patience, self._limit = patience, limit
        self._about = about
        self._record = record
        self._outbox = Outbox(about, lambda: record or connect(about), remember=remember)
        self._next_batch = 0.0
        self._monitor: SystemMonitor | None = None
        if not (record and record.finished):
            self._monitor = SystemMonitor(self._log_system)

    @classmethod
    def of(cls, record: RunRecord, **options: Any) -> MlflowTracker:
        """Of a run whose store has just been reached."""
        return cls(record.about, record, **options)

    @property
    def run_id(self) -> str:
        """Id of the MLflow run."""
        return self._record.run_id if self._record else str(self._about["run_id"])

    def on_batch(
        self, round: int, step: int, values: Mapping[str, float], *, num_steps: int
    ) -> None:
        if time.monotonic() >= self._next_batch:
            self._next_batch = time.monotonic() + BATCH_INTERVAL
            self._tell(batch_points(round, step, values, num_steps=num_steps))

    def on_epoch(self, round: int, row: Mapping[str, float], *, num_epochs: int) -> None:
        self._tell(epoch_points(round, row, num_epochs=num_epochs))

    def on_clustered(self, round: int, scores: ClusteringScores) -> None:
        self.log_scores(round, scores)

    def on_step(self, name: str, round: int, seconds: float) -> None:
        self._tell({Point(f"seconds/{name}", round): seconds})

    def _log_system(self, values: Mapping[str, float]) -> None:
        seconds = int(time.time() - self._about["started"])
        self._tell({Point(f"{SYSTEM}{name}", seconds): value for name, value in values.items()})

    def log_rounds(self, rows: Sequence[RoundRow]) -> None:
        self._tell(round_points(rows))

    def log_scores(self, round: int, scores: ClusteringScores) -> None:
        self._tell(score_points(round, scores))

    def log_history(self, round: int, history: Sequence[Mapping[str, float | None]]) -> None:
        self._tell(history_points(round, history))

    def log_result(
        self,
        *,
        rows: Sequence[RoundRow],
        metrics: Mapping[str, Any],
        results: Path,
        provisional: bool = False,
    ) -> None:
        points, tags = result_points(metrics)
        if provisional:
            tags[PROVISIONAL_TAG] = "true"
        points.update(round_points(rows))
        self._outbox.tell(FINISH, points=_dated(points), complete=ROUND_METRICS, tags=tags)
        for pattern in RESULT_FILES:
            for file in sorted(results.glob(pattern)):
                folder = file.parent.relative_to(results).as_posix()
                self._outbox.tell("file", keep=file, folder="" if folder == "." else folder)

    def log_model(self, evaluation: Evaluation) -> None:
        if name := self._about.get("registered_model"):
            self._outbox.tell(
                "model",
                keep=evaluation.path / "model",
                name=name,
                metrics=evaluation.metrics,
                test_data=evaluation.test_data,
            )

    def log_dataset(self, dataset: Dataset) -> None:
        self._outbox.tell("dataset", dataset=dataset_fields(dataset))

    def log_description(self, evaluation: Evaluation) -> None:
        self._outbox.tell("describe", text=describe_result(evaluation))

    def log_hash(self, name: str, directory: Path) -> None:
        try:
            self._outbox.tell("tags", tags={f"{DVC_TAG}{name}": dvc_hash(directory)})
        except Exception as error:  # a DVC repository that is broken is not this run's business
            _logger.warning("DVC cannot say its hash of %s: %s", directory, one_line(error))

    def failed(self, reason: str, *, status: str = "FAILED") -> None:
        self._stop_monitor()
        self._outbox.tell("fail", reason=reason, status=status)

    def flush(self, patience: float | None = None) -> Waiting | None:
        return self._outbox.flush(patience) or None

    def close(self) -> None:
        self._stop_monitor()
        self.left = self._outbox.close(self._patience, self._limit) or None

    def _stop_monitor(self) -> None:
        if self._monitor:
            self._monitor.stop()

    def _tell(self, points: Points) -> None:
        if points:
            self._outbox.tell("points", points=_dated(points))


def connect(about: Mapping[str, Any]) -> RunRecord:
    """The record of the run that a journal is about.

    Raises:
        InputError: The store cannot be used, or the run is in its trash.
    """
    with open_store() as client:
        return RunRecord.resume(client, str(about["run_id"]), code=about.get("code"))


def _dated(points: Points) -> list[tuple[str, int, float, int]]:
    now = int(time.time() * 1000)
    return [(point.key, point.step, value, now) for point, value in points.items()]
