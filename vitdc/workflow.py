"""What the Workflow of a pipeline run tells: its tasks, how they fare, and why one failed.

Argo Workflows runs the pipeline for Kubeflow. Its Workflow object holds what Kubeflow's API leaves
out: the reason of a failure, Argo's own errors, and the progress of a run whose nodes Argo has
compressed, at which Kubeflow's details stop. The tools read it from outside and the exit handler
from inside the cluster; kfp is not imported.

Kubeflow makes three nodes of a task `retrain-2`: `retrain-2-driver`, which has the task's
specification among its inputs, `retrain-2`, and in it `executor`, whose pod runs the component. A
node that may be tried again is followed by its attempts: `executor(0)`, `executor(1)`.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import gzip
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

from vitdc.config import ResourcesConfig
from vitdc.errors import InputError, one_line

TIMEOUT = (4, 10)
"""Seconds to wait for a connection and for an answer."""
RUN_LABEL = "pipeline/runid"
"""Label with Kubeflow's id of a run, on its Workflow and on all its pods."""

PENDING, RUNNING, SUCCEEDED, FAILED = "PENDING", "RUNNING", "SUCCEEDED", "FAILED"

Object = Mapping[str, Any]
"""A Kubernetes object, as its API writes it."""

_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_METADATA_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
_NODE_ID = "workflows.argoproj.io/node-id"
_STATES = {"Succeeded": SUCCEEDED, "Failed": FAILED, "Error": FAILED}
_NEVER_STARTED = ("Omitted", "Skipped")
_DRIVER = "-driver"


class Task(NamedTuple):
    """A task of the pipeline that has begun."""

    name: str
    """As people know it, e.g. `retrain (round 2)`."""
    state: str
    """PENDING while its pod waits for its start, RUNNING, SUCCEEDED or FAILED."""
    node: Object
    """Argo's node of its last pod, or its own node if it had no pod."""
    attempts: int
    """How many pods have tried to run it."""
    is_round: bool = False
    """Whether it is not a component but a part of the pipeline, which has a driver only."""

    @property
    def message(self) -> str:
        """What Argo says about it."""
        return str(self.node.get("message", "")).removeprefix("main: ")

    @property
    def was_killed(self) -> bool:
        """Whether it needed more memory than it may have; its log has nothing of that."""
        return self.message.startswith("OOMKilled")

    @property
    def in_driver(self) -> bool:
        """Whether the last pod is Kubeflow's driver, which prepares the task."""
        return _path(self.node).endswith(_DRIVER)

    @property
    def in_exit_handler(self) -> bool:
        """Whether it runs after all others, whatever became of them."""
        return ".onExit" in _path(self.node)

    def is_run_by(self, pod: Object) -> bool:
        """Whether a pod is its last one."""
        return bool(pod["metadata"].get("annotations", {}).get(_NODE_ID) == self.node.get("id"))


# --- tasks ---------------------------------------------------------------------------------------


def tasks(workflow: Object) -> list[Task]:
    """The tasks that have begun, in the order of their beginning.

    A round is a task for Kubeflow, too: it is in the list if its driver waits or has failed.
    """
    by_path = defaultdict(list)
    for node in _nodes(workflow):
        by_path[_path(node)].append(node)
    found = [_task(path, by_path) for path in list(by_path) if path.endswith(_DRIVER)]
    return [task for task in found if task]


def _nodes(workflow: Object) -> list[Object]:
    """All nodes in the order of their start, an attempt after what it is an attempt of."""
    status = workflow.get("status", {})
    nodes = status.get("nodes") or {}
    if compressed := status.get("compressedNodes"):  # as Argo keeps many nodes
        nodes = json.loads(gzip.decompress(base64.b64decode(compressed)))
    return sorted(
        nodes.values(),
        key=lambda node: (str(node.get("startedAt")), len(node["name"]), node["name"]),
    )


def _path(node: Object) -> str:
    """The name of a node, from the root on, without the numbers of the attempts."""
    return re.sub(r"\(\d+\)", "", node["name"])


def _task(driver_path: str, by_path: Mapping[str, list[Object]]) -> Task | None:
    path, drivers = driver_path.removesuffix(_DRIVER), by_path[driver_path]
    own = [node for node in by_path.get(path, ()) if node["phase"] not in _NEVER_STARTED]
    executors = _pods(by_path.get(f"{path}.executor", ()))
    whole, last = (own or drivers)[0], [*drivers[:1], *own[:1], *_pods(drivers), *executors][-1]
    passed_over = by_path.get(path) and not own and whole["phase"] == "Succeeded"  # its condition
    if passed_over or whole["phase"] in _NEVER_STARTED:
        return None
    state = _STATES.get(whole["phase"]) or (PENDING if last["phase"] == "Pending" else RUNNING)
    if not own and state == SUCCEEDED:
        state = RUNNING  # the driver has done its part
    name, is_component = _specification(path, drivers)
    if not is_component and (own or state == RUNNING):
        return None
    return Task(name, state, last, len(executors), is_round=not is_component)


def _pods(nodes: Iterable[Object]) -> list[Object]:
    return [node for node in nodes if node["type"] == "Pod"]


def _specification(path: str, drivers: Iterable[Object]) -> tuple[str, bool]:
    """The task's name for people and whether it runs a component, from the inputs of its driver."""
    inputs = _inputs(drivers)
    task = json.loads(inputs.get("task") or "{}")
    name = task.get("taskInfo", {}).get("name") or path.rpartition(".")[2]
    return name, "container" in inputs


def _inputs(nodes: Iterable[Object]) -> dict[str, str]:
    parameters = [
        parameter for node in nodes for parameter in node.get("inputs", {}).get("parameters", ())
    ]
    return {parameter["name"]: parameter.get("value", "") for parameter in parameters}


# --- the end -------------------------------------------------------------------------------------


def describe_end(workflow: Object) -> str:
    """How a run ended, or is about to end, that does not succeed: what goes on from "the run"."""
    found = tasks(workflow)
    failed = [task for task in found if task.state == FAILED]
    undone = [task for task in found if task.state != SUCCEEDED and not task.in_exit_handler]
    names = [task.name for task in undone]
    during = f" during {', '.join(names)}" if names else ""
    if is_terminated(workflow):
        return f"was terminated{during}"
    if _is_out_of_time(workflow):
        return f"was stopped{during}: it took longer than kubernetes.timeout_hours allows"
    reasons = [f"in {task.name}: {describe_failure(task)}" for task in failed]
    status = workflow.get("status", {})
    if status.get("phase") == "Error" or not failed:
        reasons.append(one_line(status.get("message") or "Argo gives no reason"))
    return f"failed {'; '.join(reasons)}" if failed else f"failed: {reasons[0]}"


def is_terminated(workflow: Object) -> bool:
    """Whether somebody terminated the run: Kubeflow takes all its time away."""
    return bool(workflow.get("spec", {}).get("activeDeadlineSeconds") == 0)


def _is_out_of_time(workflow: Object) -> bool:
    seconds = workflow.get("spec", {}).get("activeDeadlineSeconds")
    started, finished = (workflow.get("status", {}).get(key) for key in ("startedAt", "finishedAt"))
    if not (seconds and started):
        return False
    now = datetime.datetime.now(datetime.UTC)
    end = datetime.datetime.fromisoformat(finished) if finished else now
    return end - datetime.datetime.fromisoformat(started) >= datetime.timedelta(seconds=seconds)


def describe_failure(task: Task) -> str:
    """Why a task failed, in a line."""
    reason = one_line(task.message or "Argo gives no reason")
    if task.was_killed:
        reason = f"killed: it needed more than {_memory_limit(task)}"
        if not task.in_driver:
            reason += f", kubernetes.resources.{_section(task)}.memory_limit"
    if task.in_driver:
        reason = f"Kubeflow's driver: {reason}"
    return f"{reason} ({task.attempts} attempts)" if task.attempts > 1 else reason


def _memory_limit(task: Task) -> str:
    patch = json.loads(_inputs([task.node]).get("pod-spec-patch") or "{}")
    limits = [c.get("resources", {}).get("limits", {}) for c in patch.get("containers", ())]
    return next((limit["memory"] for limit in limits if "memory" in limit), "its memory limit")


def _section(task: Task) -> str:
    """The key of `kubernetes.resources` for a task."""
    component = task.name.partition(" (")[0]
    return component if component in ResourcesConfig.model_fields else "bookkeeping"


# --- reading -------------------------------------------------------------------------------------


class ReadError(Exception):
    """Kubernetes' API does not answer, or refuses."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Kubernetes:
    """The API of a Kubernetes cluster; objects are as the API writes them."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.host = str(client.configuration.host)

    @classmethod
    def connect(cls, context: str | None = None) -> Self:
        """The cluster that a kubeconfig names, or the one that this process runs in.

        Args:
            context: Of the kubeconfig; by default its current one.

        Raises:
            InputError: There is no kubeconfig that can be used, or it has no such context.
        """
        from kubernetes import client, config

        configuration = client.Configuration()
        try:
            config.load_kube_config(
                os.environ.get("KUBECONFIG"), context=context, client_configuration=configuration
            )
        except config.ConfigException as error:
            if context or "KUBERNETES_SERVICE_HOST" not in os.environ:
                raise InputError(f"kubeconfig: {one_line(error)}") from None
            config.load_incluster_config(client_configuration=configuration)
        configuration.retries = False
        return cls(client.ApiClient(configuration))

    def get(self, path: str, **query: str) -> Any:
        """An object or a list, at a path such as `api/v1/nodes`.

        Raises:
            ReadError: There is no answer, or it is an error.
        """
        return json.loads(self._request("GET", path, query))

    def log(self, namespace: str, pod: str, lines: int) -> list[str]:
        """The last lines of a pod's main container.

        Raises:
            ReadError: There is no answer, or it is an error.
        """
        query = {"container": "main", "tailLines": str(lines)}
        path = f"api/v1/namespaces/{namespace}/pods/{pod}/log"
        return self._request("GET", path, query).decode(errors="replace").splitlines()

    def workflow(self, namespace: str, run_id: str, known: Object | None = None) -> Object | None:
        """The Workflow of a pipeline run; None if there is none, or no longer.

        Args:
            namespace: Where the run is.
            run_id: Kubeflow's id of it.
            known: The Workflow as it was; what has not changed is not transferred again.

        Raises:
            ReadError: There is no answer, or it is an error.
        """
        path = f"apis/argoproj.io/v1alpha1/namespaces/{namespace}/workflows"
        query = {"labelSelector": f"{RUN_LABEL}={run_id}"}
        if known:
            found = json.loads(self._request("GET", path, query, accept=_METADATA_ONLY))["items"]
            if [_version(known)] == [_version(item) for item in found]:
                return known
        return next(iter(self.get(path, **query)["items"]), None)

    def nodes_and_pods(self) -> tuple[list[Object], list[Object]]:
        """All nodes, and the pods of all namespaces that have not ended.

        Raises:
            ReadError: There is no answer, or it is an error.
        """
        unfinished = "status.phase!=Succeeded,status.phase!=Failed"
        pods = self.get("api/v1/pods", fieldSelector=unfinished)["items"]
        return self.get("api/v1/nodes")["items"], pods

    def post(self, path: str, item: Object) -> None:
        """Make an object.

        Raises:
            ReadError: There is no answer, or it is an error.
        """
        self._request("POST", path, {}, body=item)

    def delete(self, path: str) -> None:
        """Delete an object.

        Raises:
            ReadError: There is no answer, or it is an error.
        """
        self._request("DELETE", path, {})

    def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        *,
        accept: str = "*/*",
        body: Object | None = None,
    ) -> bytes:
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        try:
            answer = self.client.call_api(
                f"/{path}",
                method,
                query_params=list(query.items()),
                header_params={"Accept": accept, "Content-Type": "application/json"},
                body=body,
                auth_settings=["BearerToken"],
                _preload_content=False,
                _return_http_data_only=True,
                _request_timeout=TIMEOUT,
            )
            return bytes(answer.data)
        except ApiException as error:
            raise ReadError(f"{path}: HTTP {error.status}: {_said(error)}", error.status) from None
        except HTTPError as error:
            raise ReadError(one_line(error)) from None


def _said(error: Any) -> str:
    """The message in an answer that is an error."""
    with contextlib.suppress(ValueError, TypeError, KeyError):
        return one_line(json.loads(error.body)["message"])
    return str(error.reason)


def own_namespace() -> str:
    """The namespace that this process runs in, inside a cluster."""
    return _NAMESPACE.read_text(encoding="ascii").strip()


def _version(item: Object) -> tuple[str, str]:
    """What changes when a Kubernetes object does."""
    return item["metadata"]["uid"], item["metadata"]["resourceVersion"]
