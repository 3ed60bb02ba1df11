"""What a runner tells about one run while it works, and who listens."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vitdc.artifacts import (
    Checkpoint,
    Clustering,
    ClusteringScores,
    Evaluation,
    RoundPaths,
    RoundRow,
)
from vitdc.config import Params
from vitdc.errors import InputError, one_line
from vitdc.tracking import journal
from vitdc.tracking.naming import (
    ROUND_METRICS,
    Points,
    history_points,
    result_points,
    round_points,
    run_identity,
    score_points,
)
from vitdc.tracking.outbox import Outbox, Waiting, outbox_directory
from vitdc.tracking.record import RunRecord, describe_run, open_record
from vitdc.tracking.store import Trouble, open_store, reason_of, store_name, trouble

RESULT_FILES = ("*.html", "*.csv", "*.json", "figures/*.png")

_logger = logging.getLogger(__name__)


class Tracker:
    """What a runner tells about one run while it works and when it is done; records nothing.

    Attributes:
        left: What MLflow had not taken when the tracker was closed.
    """

    left: Waiting | None = None

    def log_rounds(self, rows: Sequence[RoundRow]) -> None:
        """Record the rows so far; a value that is still unknown (None) may come later."""

    def log_scores(self, round: int, scores: ClusteringScores) -> None:
        """Record how good the clustering that ends a round is."""

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
        """

    def log_model(self, evaluation: Evaluation) -> None:
        """Register the model of the finished run, unless `tracking.registered_model` is false."""

    def failed(self, reason: str) -> None:
        """Record that the run ended badly."""

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
        failures: Whether that is to be told at all.
    """
    try:
        yield tracker
    except BaseException as error:
        if failures:
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
        about = _left_by_others(run_identity(params, content_hash=content_hash))
        if about is None or trouble(error) is not Trouble.OUTAGE:
            raise
        _logger.warning("%s; going on, since an earlier step could record", one_line(error))
        return MlflowTracker.resume(about)
    return MlflowTracker(record)


def _left_by_others(identity: str) -> dict[str, Any] | None:
    """What earlier processes of the same run say about it, if MLflow has not taken all of it."""
    for folder in outbox_directory().glob("*"):
        about = journal.read_about(folder)
        ours = (about.get("identity"), about.get("uri")) == (identity, store_name())
        if ours and journal.journals(folder):
            return about
    return None


def log_evaluation(tracker: Tracker, evaluation: Evaluation, rounds: Iterable[RoundPaths]) -> None:
    """Record a finished run with its model, and the training and clusters of every round."""
    for paths in rounds:
        trained = Checkpoint.load(paths.checkpoint)
        tracker.log_history(trained.round, trained.history)
        tracker.log_scores(trained.round, Clustering.load(paths.clustering).scores)
    tracker.log_result(rows=evaluation.rows, metrics=evaluation.metrics, results=evaluation.path)
    tracker.log_model(evaluation)


class MlflowTracker(Tracker):
    """Gives the values of a run their MLflow names and puts them into the outbox."""

    def __init__(self, record: RunRecord) -> None:
        self._record: RunRecord | None = record
        self._outbox = Outbox(record.about, lambda: record)
        self._registered_model = record.about["registered_model"]

    @classmethod
    def resume(cls, about: Mapping[str, Any]) -> MlflowTracker:
        """Go on with a run whose store cannot be reached now."""
        tracker = cls.__new__(cls)
        tracker._record = None
        tracker._outbox = Outbox(about, lambda: connect(about))
        tracker._registered_model = str(about.get("registered_model", ""))
        return tracker

    @property
    def run_id(self) -> str:
        """Id of the MLflow run."""
        return self._record.run_id if self._record else self._outbox.folder.name

    def log_rounds(self, rows: Sequence[RoundRow]) -> None:
        self._tell(round_points(rows))

    def log_scores(self, round: int, scores: ClusteringScores) -> None:
        self._tell(score_points(round, scores))

    def log_history(self, round: int, history: Sequence[Mapping[str, float | None]]) -> None:
        self._tell(history_points(round, history))

    def log_result(
        self, *, rows: Sequence[RoundRow], metrics: Mapping[str, Any], results: Path
    ) -> None:
        points, tags = result_points(metrics)
        points.update(round_points(rows))
        self._outbox.tell("finish", points=_dated(points), complete=ROUND_METRICS, tags=tags)
        for pattern in RESULT_FILES:
            for file in sorted(results.glob(pattern)):
                folder = file.parent.relative_to(results).as_posix()
                self._outbox.tell("file", keep=file, folder="" if folder == "." else folder)

    def log_model(self, evaluation: Evaluation) -> None:
        if name := self._registered_model:
            self._outbox.tell(
                "model",
                keep=evaluation.path / "model",
                name=name,
                metrics=evaluation.metrics,
                test_data=evaluation.test_data,
            )

    def failed(self, reason: str) -> None:
        self._outbox.tell("fail", reason=reason)

    def flush(self, patience: float | None = None) -> Waiting | None:
        return self._outbox.flush(patience) or None

    def close(self) -> None:
        self.left = self._outbox.close() or None

    def _tell(self, points: Points, *, results: bool = True) -> None:
        if points:
            self._outbox.tell("points", points=_dated(points), results=results)


def connect(about: Mapping[str, Any]) -> RunRecord:
    """The record of the run that a journal is about.

    Raises:
        InputError: The store cannot be used, or the run is in its trash.
    """
    with open_store() as client:
        return RunRecord.resume(client, str(about["run_id"]))


def _dated(points: Points) -> list[tuple[str, int, float, int]]:
    now = int(time.time() * 1000)
    return [(point.key, point.step, value, now) for point, value in points.items()]
