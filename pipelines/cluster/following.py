"""Watching a run until it ends."""

from __future__ import annotations

import datetime
import itertools
import shutil
import sys
import time
from collections.abc import Mapping
from typing import TextIO

import kfp_server_api as api
import urllib3

from pipelines.cluster.connection import Cluster
from pipelines.cluster.errors import TIMEOUT, NotKubeflowError, describe
from vitdc.errors import InputError, TrainingError

PATIENCE = 300.0
"""Seconds without an answer after which following a run gives up."""
PENDING_SECONDS = 120.0
"""Seconds that a pod may wait for its start before a person is told where to look."""

_CLEAR = "\r\x1b[K"
_ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")


def follow(
    cluster: Cluster,
    run_id: str,
    *,
    timeout: float | None = None,
    poll: float = 5.0,
    stream: TextIO | None = None,
) -> None:
    """Show a run's progress until it ends. Ctrl-C ends the following, not the run.

    A server that does not answer for a while is asked again, for up to five minutes.

    Args:
        cluster: From `connect`.
        run_id: The run.
        timeout: Seconds after which to stop following; by default never.
        poll: Seconds between two looks.
        stream: Where the progress goes, by default standard error; on a terminal one line that
            changes, else a line per change.

    Raises:
        InputError: There is no such run, or the token is no longer accepted.
        TrainingError: The run failed or was cancelled, or did not end in time, or the server did
            not answer for too long.
    """
    line = _ProgressLine(stream or sys.stderr)
    watch = _Watch(cluster, run_id, line)
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
        raise TrainingError(_describe_end(watch.run, watch.labels or {}, watch.url))


class _Watch:
    """Asks for a run's state, and remembers what cannot be seen at a single look."""

    def __init__(self, cluster: Cluster, run_id: str, line: _ProgressLine) -> None:
        self.cluster = cluster
        self.run_id = run_id
        self.url = cluster.run_url(run_id)
        self.line = line
        self.run = api.V2beta1Run()
        self.labels: dict[str, str] | None = None
        self._answered = time.monotonic()
        self._silent = False
        self._pending: tuple[str, ...] = ()
        self._pending_since = self._answered

    def look(self) -> bool:
        """Show what the run does; whether it has ended."""
        try:
            run = self.cluster.client.runs.run_service_get_run(
                run_id=self.run_id, _request_timeout=TIMEOUT
            )
            if run.state is None:
                raise NotKubeflowError
            if self.labels is None:
                self.labels = _task_labels(self.cluster, run)
        except (api.ApiException, urllib3.exceptions.HTTPError, NotKubeflowError) as error:
            self._bear(error)
            return False
        self.run, self._answered, self._silent = run, time.monotonic(), False
        self._hint_at_pending()
        self.line.show(self._elapsed(), self._doing())
        return run.state in _ENDED

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
        """Say where to look if a pod does not start: Kubeflow's API does not tell why."""
        waiting = [task for task in _tasks(self.run) if task.state == "PENDING"]
        pending = tuple(sorted(task.task_id or "" for task in waiting))
        now = time.monotonic()
        if pending != self._pending or not (pending or self.run.state == "PENDING"):
            self._pending, self._pending_since = pending, now
        elif now - self._pending_since > PENDING_SECONDS:
            self._pending_since = float("inf")
            self.line.note(
                "a pod does not start: its image cannot be pulled, a Secret is missing, or no node"
                " has room; which, says `kubectl get events -n"
                f" {self.cluster.namespace or 'kubeflow'}`"
            )

    def _doing(self) -> str:
        """What the run does, in a few words."""
        labels = self.labels or {}
        tasks = [task for task in _tasks(self.run) if task.display_name in labels]
        running = [labels[task.display_name] for task in tasks if task.state == "RUNNING"]
        done = sum(task.state == "SUCCEEDED" for task in tasks)
        counted = f"{done} task{'' if done == 1 else 's'} done" if done else ""
        waiting = "a pod waits for its start" if self._pending else ""
        parts = [part for part in (", ".join(running), waiting, counted) if part]
        return str(self.run.state).lower() + (f": {'; '.join(parts)}" if parts else "")

    def _elapsed(self) -> datetime.timedelta:
        """Time since the run was made, until now or until it ended."""
        end = datetime.datetime.now(datetime.UTC)
        finished = self.run.finished_at
        if self.run.state in _ENDED and finished and finished.year > 1970:  # what KFP has for null
            end = finished
        seconds = (end - (self.run.created_at or end)).total_seconds()
        return datetime.timedelta(seconds=max(0, round(seconds)))


class _ProgressLine:
    """A line that changes on a terminal; elsewhere a line whenever there is something new."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.terminal = stream.isatty()
        self._shown = ""

    def show(self, elapsed: datetime.timedelta, text: str) -> None:
        """Show the state; the time alone is nothing new."""
        if self.terminal:
            width = shutil.get_terminal_size().columns - 1
            self.stream.write(f"{_CLEAR}{f'{elapsed} {text}'[:width]}")
        elif text != self._shown:
            self.stream.write(f"{elapsed} {text}\n")
        self._shown = text
        self.stream.flush()

    def note(self, text: str) -> None:
        """Say something that stays."""
        self.stream.write(f"{_CLEAR if self.terminal else ''}{text}\n")
        self.stream.flush()

    def end(self) -> None:
        """Leave the last state standing."""
        if self.terminal and self._shown:
            self.stream.write("\n")
        self._shown = ""


def _tasks(run: api.V2beta1Run) -> list[api.V2beta1PipelineTaskDetail]:
    return (run.run_details and run.run_details.task_details) or []


def _task_labels(cluster: Cluster, run: api.V2beta1Run) -> dict[str, str]:
    """Names that people know, by the names of the tasks that run a component.

    Kubeflow reports tasks by their keys in the specification (`retrain-2`), and beside them the
    pods, drivers and branches that they consist of.
    """
    spec, reference = run.pipeline_spec or {}, run.pipeline_version_reference
    if not spec and reference:
        try:
            version = cluster.client.pipelines.pipeline_service_get_pipeline_version(
                reference.pipeline_id, reference.pipeline_version_id, _request_timeout=TIMEOUT
            )
        except api.ApiException as error:
            if error.status not in (403, 404):
                raise
            return {}  # deleted, or another user's; the state of the run is shown all the same
        spec = version.pipeline_spec or {}
    spec = spec.get("pipeline_spec", spec)  # beside a platform_spec
    components = spec.get("components", {})
    graphs = [part.get("dag", {}) for part in (spec.get("root", {}), *components.values())]
    tasks = itertools.chain.from_iterable(graph.get("tasks", {}).items() for graph in graphs)
    return {
        key: task.get("taskInfo", {}).get("name", key)
        for key, task in tasks
        if "executorLabel" in components.get(task["componentRef"]["name"], {})
    }


def _describe_end(run: api.V2beta1Run, labels: Mapping[str, str], url: str) -> str:
    """How a run ended that did not succeed: the tasks that failed, and what they said."""
    failed = [task for task in _tasks(run) if task.state == "FAILED"]
    known = [task for task in failed if task.display_name in labels]
    names = [labels.get(task.display_name, task.display_name) for task in known or failed]
    errors = [task.error or _last_error(task.state_history) for task in failed]
    errors.append(run.error or _last_error(run.state_history))
    said = list(dict.fromkeys(" ".join(e.message.split()) for e in errors if e and e.message))
    what = {"FAILED": "failed", "CANCELED": "was terminated", "SKIPPED": "was skipped"}[run.state]
    text = f"the run {what}"
    if names:
        text += f" in {', '.join(dict.fromkeys(names))}"
    if said:
        text += f": {'; '.join(said)}"
    return f"{text}; its logs: {url}"


def _last_error(history: list[api.V2beta1RuntimeStatus] | None) -> api.GoogleRpcStatus | None:
    return next((status.error for status in reversed(history or []) if status.error), None)
