"""What a runner tells about one run while it works, and who listens."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from vitdc.artifacts import Checkpoint, Evaluation, RoundPaths, RoundRow
from vitdc.config import Params
from vitdc.errors import TrainingError
from vitdc.tracking.naming import (
    ROUND_METRICS,
    Points,
    history_points,
    result_points,
    round_points,
)
from vitdc.tracking.record import RunRecord, describe_run, open_record
from vitdc.tracking.store import error_text, explaining, patience, reason_of

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
        record = open_record(params, describe_run(params, dataset_name, content_hash, origin))
        tracker = MlflowTracker(record)
    try:
        yield tracker
    except BaseException as error:
        tracker.failed(reason_of(error))
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
        with explaining(
            TrainingError,
            problem="MLflow does not take the result",
            way_out="the results are on disk; run `vitdc evaluate` again to record them",
        ):
            self._record.finish(points, complete=ROUND_METRICS, tags=tags)
            self._record.upload(results)

    def failed(self, reason: str) -> None:
        try:
            with patience(retries=1, timeout=10):
                self._record.fail(reason)
        except Exception as error:
            _logger.warning("MLflow: the failure is not recorded: %s", error_text(error))

    def _log_live(self, points: Points) -> None:
        """Record while the run works; hours of training do not die of a lost server.

        Nothing is lost either: what does not arrive now goes with the next call or, at the
        latest, with `log_result`.
        """
        from mlflow.exceptions import MlflowException

        try:
            with patience(retries=2, timeout=30):
                self._record.add(points)
        except MlflowException as error:
            _logger.warning("MLflow: not recorded yet, going on: %s", error_text(error))
