"""What Kubeflow's API tells of a run: its tasks, as far as their details go, and how it ended.

The details stop for good once the run's Workflow is so large that Argo compresses it; only the
state of the run goes on. They have no reason for a failure or for waiting either.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping

import kfp_server_api as api

from pipelines.cluster.connection import Cluster
from pipelines.cluster.errors import TIMEOUT

ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")


def task_details(run: api.V2beta1Run) -> list[api.V2beta1PipelineTaskDetail]:
    """The tasks and everything else that Kubeflow counts as such: drivers, pods, branches."""
    return (run.run_details and run.run_details.task_details) or []


def names_of(run: api.V2beta1Run, labels: Mapping[str, str], *states: str) -> list[str]:
    """The tasks in some states, by the names that people know.

    Args:
        run: The run.
        labels: From `task_labels`.
        states: Kubeflow's names of the states.
    """
    tasks = [task for task in task_details(run) if task.state in states]
    return [labels[task.display_name] for task in tasks if task.display_name in labels]


def is_terminated(run: api.V2beta1Run) -> bool:
    """Whether somebody terminated the run; Kubeflow calls it failed in the end."""
    states = [run.state, *(status.state for status in run.state_history or ())]
    return run.state in ("FAILED", "CANCELED") and bool({"CANCELING", "CANCELED"} & set(states))


def describe_state(run: api.V2beta1Run) -> str:
    """The state of the run, in a word."""
    return "terminated" if is_terminated(run) else str(run.state).lower()


def task_labels(cluster: Cluster, run: api.V2beta1Run) -> dict[str, str]:
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


def describe_end(run: api.V2beta1Run, labels: Mapping[str, str]) -> str:
    """How a run ended that did not succeed, in words that go on from "the run"."""
    names = list(dict.fromkeys(names_of(run, labels, "FAILED") or names_of(run, labels, "RUNNING")))
    if is_terminated(run):
        return "was terminated" + (f" during {', '.join(names)}" if names else "")
    failed = [task for task in task_details(run) if task.state == "FAILED"]
    text = "was skipped" if run.state == "SKIPPED" else "failed"
    if names:
        text += f" in {', '.join(names)}{'' if failed else ' or later'}"
    errors = [task.error or _last_error(task.state_history) for task in failed]
    errors.append(run.error or _last_error(run.state_history))
    said = list(dict.fromkeys(" ".join(e.message.split()) for e in errors if e and e.message))
    return f"{text}: {'; '.join(said)}" if said else text


def _last_error(history: Iterable[api.V2beta1RuntimeStatus] | None) -> api.GoogleRpcStatus | None:
    return next((status.error for status in reversed(list(history or ())) if status.error), None)
