"""Watching a run until it ends."""

from __future__ import annotations

import datetime
import sys
import time
from typing import NamedTuple, TextIO

import kfp_server_api as api
import urllib3

from pipelines.cluster.connection import Cluster
from pipelines.cluster.details import (
    ENDED,
    describe_end,
    describe_state,
    is_terminated,
    names_of,
    task_details,
    task_labels,
)
from pipelines.cluster.errors import TIMEOUT, NotKubeflowError, describe
from pipelines.cluster.line import ProgressLine
from pipelines.cluster.observer import Observer
from pipelines.deep_clustering import OUT_OF_ROOM
from vitdc import workflow
from vitdc.errors import InputError, TrainingError

PATIENCE = 300.0
"""Seconds without an answer after which following a run gives up."""
PENDING_SECONDS = 120.0
"""Seconds that a pod may wait for its start before a person is told where to look, where Kubeflow's
API is all there is."""


class Ended(NamedTuple):
    """A run that has succeeded."""

    tasks: frozenset[str]
    """Names of the tasks that succeeded, as far as they are known: Kubeflow's API alone does not
    know the later ones of a long run."""

    def is_out_of_room(self, last: int) -> bool:
        """Whether its rounds would have gone on after the last that its pipeline had room for."""
        return OUT_OF_ROOM.format(last) in self.tasks


def follow(
    cluster: Cluster,
    run_id: str,
    *,
    context: str | None = None,
    timeout: float | None = None,
    poll: float = 5.0,
    stream: TextIO | None = None,
) -> Ended:
    """Show a run's progress until it ends. Ctrl-C ends the following, not the run.

    A server that does not answer for a while is asked again, for up to five minutes. Where a
    kubeconfig reaches the cluster, or inside it, Kubernetes tells what Kubeflow's API does not:
    what a pod waits for, and at a failure the reason and the last lines of the log.

    Args:
        cluster: From `connect`.
        run_id: The run.
        context: Of the kubeconfig; by default its current one, if it can be used.
        timeout: Seconds after which to stop following; by default never.
        poll: Seconds between two looks.
        stream: Where the progress goes, by default standard error; on a terminal one line that
            changes, else a line per change.

    Returns:
        What is known of a run that succeeded.

    Raises:
        InputError: There is no such run or context, or the token is no longer accepted.
        TrainingError: The run failed or was terminated, or did not end in time, or the server did
            not answer for too long.
    """
    line = ProgressLine(stream or sys.stderr)
    observer = Observer(cluster.namespace or "kubeflow", run_id, context)
    watch = _Watch(cluster, run_id, line, observer)
    deadline = float("inf") if timeout is None else time.monotonic() + timeout
    try:
        while not watch.look():
            if time.monotonic() + poll > deadline:
                raise TrainingError(
                    f"the run has not ended after {timeout:g} s of following; it goes on:"
                    f" {watch.url}"
                )
            time.sleep(poll)
    except KeyboardInterrupt:
        line.note(f"no longer following; the run goes on, watch or terminate it: {watch.url}")
        raise
    finally:
        line.end()
    if watch.run.state != "SUCCEEDED":
        raise TrainingError(f"the run {watch.explain()}; its logs: {watch.url}")
    return Ended(frozenset(watch.succeeded()))


class _Watch:
    """Asks for a run's state, and remembers what cannot be seen at a single look."""

    def __init__(
        self, cluster: Cluster, run_id: str, line: ProgressLine, observer: Observer
    ) -> None:
        self.cluster = cluster
        self.run_id = run_id
        self.url = cluster.run_url(run_id)
        self.line = line
        self.observer = observer
        self.run = api.V2beta1Run()
        self.labels: dict[str, str] | None = None
        self._answered = time.monotonic()
        self._silent = False
        self._pending: tuple[str, ...] = ()
        self._pending_since = self._answered
        self._hinted = False

    def look(self) -> bool:
        """Show what the run does; whether it has ended."""
        try:
            run = self.cluster.client.runs.run_service_get_run(
                run_id=self.run_id, _request_timeout=TIMEOUT
            )
            if run.run_id is None:
                raise NotKubeflowError
            run.state = run.state or "PENDING"  # Kubeflow has none for the first moments
            if self.labels is None:
                self.labels = task_labels(self.cluster, run)
        except (api.ApiException, urllib3.exceptions.HTTPError, NotKubeflowError) as error:
            self._bear(error)
            return False
        self.run, self._answered, self._silent = run, time.monotonic(), False
        self.observer.look()
        if self.observer.tasks is None:
            self._hint_at_pending()
        self.line.show(self._elapsed(), self._doing())
        return run.state in ENDED

    def _bear(self, error: Exception) -> None:
        """Let an error pass that may be gone the next time, with a note the first time."""
        reason = describe(error, self.cluster.host, self.cluster.namespace)
        status = getattr(error, "status", None) or 0
        if status == 404:
            raise InputError(f"{self.cluster.host}: there is no run {self.run_id}") from None
        if 400 <= status < 500 and status not in (408, 429):
            raise InputError(f"{reason}; the run itself goes on: {self.url}") from None
        minutes = f"{PATIENCE / 60:g} minutes"
        if time.monotonic() - self._answered > PATIENCE:
            raise TrainingError(
                f"no answer for {minutes}, the run may well go on: {self.url} ({reason})"
            ) from None
        if not self._silent:
            self._silent = True
            self.line.note(f"asking again for up to {minutes}: {reason}")

    def _hint_at_pending(self) -> None:
        """Say where to look if a pod seems not to start: Kubeflow's API does not tell why.

        Nor does it tell whether: its details may have stopped before the pod started.
        """
        waiting = [task for task in task_details(self.run) if task.state == "PENDING"]
        pending = tuple(sorted(task.task_id or "" for task in waiting))
        now = time.monotonic()
        if pending != self._pending or not (pending or self.run.state == "PENDING"):
            self._pending, self._pending_since = pending, now
        elif now - self._pending_since > PENDING_SECONDS and not self._hinted:
            self._hinted = True
            names = ", ".join(self._running()) or "its first task"
            self.line.note(
                f"Kubeflow has told nothing new of {names} for {PENDING_SECONDS / 60:.0f} minutes:"
                " either a pod waits, or the run goes on and its details do not"
            )
            self._point_to_kubectl("`kubectl describe pod -n {} POD` for one that waits")

    def _point_to_kubectl(self, second: str) -> None:
        """Name the two commands that tell what Kubeflow's API does not."""
        namespace = self.observer.namespace
        self.line.note(
            f"Kubernetes tells the rest: `kubectl get workflow,pods -n {namespace} -l"
            f" {workflow.RUN_LABEL}={self.run_id}`, then {second.format(namespace)};"
            f" not read here: {self.observer.trouble}"
        )

    def _doing(self) -> str:
        """What the run does, in a few words."""
        done = len(self.succeeded())
        counted = f"{done} task{'' if done == 1 else 's'} done" if done else ""
        now = [] if self.run.state in ENDED else [", ".join(self._running()), *self._waits()]
        parts = [part for part in (*now, counted) if part]
        return describe_state(self.run) + (f": {'; '.join(parts)}" if parts else "")

    def succeeded(self) -> list[str]:
        """The tasks that have succeeded."""
        if self.observer.tasks is None:
            return names_of(self.run, self.labels or {}, "SUCCEEDED")
        return [t.name for t in self.observer.tasks if t.state == workflow.SUCCEEDED]

    def _running(self) -> list[str]:
        if self.observer.tasks is None:
            return names_of(self.run, self.labels or {}, "RUNNING")
        going_on = (workflow.RUNNING, workflow.PENDING)
        tasks = [t for t in self.observer.tasks if t.state in going_on and not t.is_round]
        return [task.name for task in tasks if task.name not in self.observer.reasons]

    def _waits(self) -> list[str]:
        """What waits for what; a pod that is about to start is not worth a word."""
        if self.observer.tasks is not None:
            return [f"{name} waits: {reason}" for name, reason in self.observer.reasons.items()]
        return ["a pod waits for its start"] if self._pending and not self._hinted else []

    def _elapsed(self) -> datetime.timedelta:
        """Time since the run was made, until now or until it ended."""
        end = datetime.datetime.now(datetime.UTC)
        finished = self.run.finished_at
        if self.run.state in ENDED and finished and finished.year > 1970:  # what KFP has for null
            end = finished
        seconds = (end - (self.run.created_at or end)).total_seconds()
        return datetime.timedelta(seconds=max(0, round(seconds)))

    def explain(self) -> str:
        """How the run ended that did not succeed, after the logs of what failed."""
        found = self.observer.workflow
        if found is None or self.observer.tasks is None:
            if not is_terminated(self.run):
                self._point_to_kubectl("`kubectl logs -n {} POD -c main --tail 20`")
            return describe_end(self.run, self.labels or {})
        if not workflow.is_terminated(found):
            failed = [task for task in self.observer.tasks if task.state == workflow.FAILED]
            for task in failed:
                if lines := ([] if task.was_killed else self.observer.log_of(task)):
                    self.line.note("\n  ".join([f"the last lines of {task.name}:", *lines]))
        return workflow.describe_end(found)
