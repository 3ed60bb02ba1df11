"""What Kubernetes tells of a run beyond Kubeflow's API, while the run goes on and at its end."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence

from pipelines.cluster.pods import (
    STARTING,
    Capacity,
    describe_unscheduled,
    describe_waiting,
    find_capacities,
    find_missing,
    scheduler_message,
)
from vitdc import workflow
from vitdc.errors import InputError, one_line
from vitdc.workflow import RUN_LABEL, Kubernetes, Object, ReadError, Task

GRACE = 8.0
"""Seconds that a pod may wait before it is asked for what; most start sooner."""
LOG_LINES = 12
"""Last lines of a failed task's log to show."""

_READ_LINES = 200
_CHATTER = re.compile(r"I\d{4} |time=\S+ level=INFO .*argo=true|Error: exit status \d+$")
"""Lines of Kubeflow's launcher and of Argo's executor around those of the task."""

_FORBIDDEN = (401, 403)


class Observer:
    """Reads a run's Workflow and its pods, as far as they can be read.

    Attributes:
        tasks: The tasks of the run; None while Kubernetes does not tell.
        reasons: What the pods of tasks wait for, by the names of the tasks.
        workflow: The Workflow as it was last read; None if it was never read.
        trouble: Why Kubernetes does not tell; empty while it does.
    """

    def __init__(self, namespace: str, run_id: str, context: str | None = None) -> None:
        self.namespace = namespace
        self.run_id = run_id
        self.tasks: list[Task] | None = None
        self.reasons: dict[str, str] = {}
        self.workflow: Object | None = None
        self.trouble = ""
        self._kubernetes: Kubernetes | None = None
        self._first_seen: dict[str, float] = {}
        self._unscheduled: dict[str, tuple[str, str]] = {}
        try:
            self._kubernetes = Kubernetes.connect(context)
        except InputError as error:
            if context:
                raise
            self.trouble = str(error)

    def look(self) -> None:
        """Read everything again."""
        if self._kubernetes is None:
            return
        self.tasks = None
        try:
            found = self._kubernetes.workflow(self.namespace, self.run_id, self.workflow)
            if found is None:
                self.trouble = f"{self._kubernetes.host} has no Workflow of this run (any more)"
                return
            self.workflow, self.trouble = found, ""
            self.tasks = workflow.tasks(found)
            self.reasons = dict(self._find_reasons(self.tasks))
        except ReadError as error:
            self.trouble = str(error)
            if error.status in _FORBIDDEN:
                self._kubernetes = None

    def log_of(self, task: Task) -> list[str]:
        """The last lines of the log of a task that failed, as far as its pod is still there."""
        try:
            for pod in self._pods("Failed"):
                if self._kubernetes and task.is_run_by(pod):
                    name = pod["metadata"]["name"]
                    return tell_last(self._kubernetes.log(self.namespace, name, _READ_LINES))
        except ReadError as error:
            return [f"(its log cannot be read: {error})"]
        return []

    def _pods(self, phase: str) -> list[Object]:
        if self._kubernetes is None:
            return []
        found: list[Object] = self._kubernetes.get(
            f"api/v1/namespaces/{self.namespace}/pods",
            labelSelector=f"{RUN_LABEL}={self.run_id}",
            fieldSelector=f"status.phase={phase}",
        )["items"]
        return found

    def _find_reasons(self, tasks: list[Task]) -> Iterator[tuple[str, str]]:
        pending = [task for task in tasks if task.state == workflow.PENDING]
        pods = self._pods("Pending") if pending else []
        for task in pending:
            pod = next((pod for pod in pods if task.is_run_by(pod)), None)
            reason = self._reason(pod) if pod else one_line(task.message)
            if reason and reason not in STARTING:
                yield task.name, reason

    def _reason(self, pod: Object) -> str | None:
        """What a pod waits for, once it has waited for a while."""
        uid, now = pod["metadata"]["uid"], time.monotonic()
        if now - self._first_seen.setdefault(uid, now) < GRACE:
            return None
        if message := scheduler_message(pod):
            if self._unscheduled.get(uid, ("", ""))[0] != message:  # asks much of a large cluster
                self._unscheduled[uid] = message, describe_unscheduled(pod, self._capacities())
            return self._unscheduled[uid][1]
        if waits := describe_waiting(pod):
            return waits
        news = self._last_news(uid)
        return find_missing(pod, news) or news

    def _capacities(self) -> list[Capacity] | None:
        assert self._kubernetes
        try:
            return find_capacities(*self._kubernetes.nodes_and_pods())
        except ReadError:
            return None  # most users may read their own namespace only

    def _last_news(self, uid: str) -> str:
        """The last event of a pod, if it is a warning or an image that is being pulled."""
        assert self._kubernetes
        found = self._kubernetes.get(
            f"api/v1/namespaces/{self.namespace}/events",
            fieldSelector=f"involvedObject.uid={uid}",
        )["items"]
        last: Object = max(found, key=_time_of, default={})
        telling = last.get("type") == "Warning" or last.get("reason") == "Pulling"
        return one_line(last["message"]) if telling else ""


def _time_of(event: Object) -> str:
    return str(
        event.get("lastTimestamp") or event.get("eventTime") or ""
    )  # the scheduler's: latter


def tell_last(log: Sequence[str]) -> list[str]:
    """The last lines of a log that are the task's own.

    KFP's executor begins with its whole input in JSON, whose last line is a brace.
    """
    own = [line for line in log if not _CHATTER.match(line)]
    begin = max((number for number, line in enumerate(own) if line == "}"), default=-1) + 1
    return own[begin:][-LOG_LINES:]
