"""A stand-in for the API server of Kubernetes, for the official client in tests without a cluster.

A real HTTP server on the loopback interface that holds objects as the real one writes them, and
answers the requests that vitdc makes: one object, lists with label and field selectors, metadata
only, the log of a pod, and a pod that is made and deleted.
"""

from __future__ import annotations

import json
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

import yaml

Object = dict[str, Any]


class Kubernetes:
    """What the server holds.

    Attributes:
        objects: By the path of their list and their name.
        logs: Of pods, by their name.
        forbidden: What must be in the path of a request for it to be refused.
        requests: Method, path and kind of answer of all requests.
    """

    def __init__(self) -> None:
        self.url = ""
        self.objects: dict[tuple[str, str], Object] = {}
        self.logs: dict[str, str] = {}
        self.forbidden: tuple[str, ...] = ()
        self.requests: list[tuple[str, str, str]] = []
        self._version = 0

    def put(self, path: str, *objects: Object) -> None:
        """Add objects to the list at a path, or replace those of the same names."""
        for each in objects:
            self._version += 1
            each["metadata"].setdefault("uid", each["metadata"]["name"])
            each["metadata"]["resourceVersion"] = str(self._version)
            self.objects[f"/{path}", each["metadata"]["name"]] = each

    def write_kubeconfig(self, path: Path, *contexts: str) -> None:
        """A kubeconfig whose contexts name this server."""
        config = {
            "current-context": contexts[0],
            "clusters": [{"name": "c", "cluster": {"server": self.url}}],
            "users": [{"name": "u", "user": {"token": "open-sesame"}}],
            "contexts": [
                {"name": name, "context": {"cluster": "c", "user": "u"}} for name in contexts
            ],
        }
        path.write_text(yaml.safe_dump(config), encoding="utf-8")

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> Any:
        """An object, a list, the text of a log, or None."""
        if method == "POST":
            self.put(path.removeprefix("/"), body)
            return body
        listed, _, name = path.rpartition("/")
        if method == "DELETE":
            return self.objects.pop((listed, name), None)
        if name == "log":
            return self.logs.get(listed.rpartition("/")[2])
        if (listed, name) in self.objects:
            return self.objects[listed, name]
        if not any(of == path for of, _ in self.objects) and name not in _LISTS:
            return None
        found = [each for (of, _), each in self.objects.items() if of == path]
        return {"items": [each for each in found if _selected(each, query)]}


_LISTS = ("workflows", "pods", "nodes", "events")


def _selected(each: Object, query: dict[str, str]) -> bool:
    labels = each["metadata"].get("labels", {})
    for term in filter(None, query.get("labelSelector", "").split(",")):
        key, _, value = term.partition("=")
        if labels.get(key) != value:
            return False
    for term in filter(None, query.get("fieldSelector", "").split(",")):
        path, unequal, value = term.partition("!=")
        if not unequal:
            path, _, value = term.partition("=")
        found: Any = each
        for key in path.split("."):
            found = found.get(key, {})
        if (found == value) == bool(unequal):
            return False
    return True


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    kubernetes: Kubernetes

    def _serve(self) -> None:
        path, _, query = self.path.partition("?")
        accept = self.headers.get("Accept", "")
        self.kubernetes.requests.append((self.command, path, accept))
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if any(part in path for part in self.kubernetes.forbidden):
            self._answer(403, json.dumps({"kind": "Status", "message": "forbidden"}))
            return
        parameters = {k: v[0] for k, v in urllib.parse.parse_qs(query).items()}
        body = json.loads(content) if content else None
        answer = self.kubernetes.answer(self.command, path, parameters, body)
        if answer is None:
            self._answer(404, json.dumps({"kind": "Status", "message": "not found"}))
        elif isinstance(answer, str):
            self._answer(200, answer)
        else:
            if "as=PartialObjectMetadataList" in accept:
                answer = {"items": [{"metadata": each["metadata"]} for each in answer["items"]]}
            self._answer(200, json.dumps(answer))

    do_GET = do_POST = do_DELETE = _serve  # noqa: N815

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        pass


_Server = TypeVar("_Server", bound=Kubernetes)


@contextmanager
def serve(kubernetes: _Server) -> Iterator[_Server]:
    """Run a server on a free port of the loopback interface."""
    handler = type("Handler", (_Handler,), {"kubernetes": kubernetes})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.block_on_close = False
    kubernetes.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield kubernetes
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# --- objects -------------------------------------------------------------------------------------

WORKFLOWS = "apis/argoproj.io/v1alpha1/namespaces/kubeflow/workflows"
PODS = "api/v1/namespaces/kubeflow/pods"

_ROOT = "deep-clustering-abcde(0).root(0).exit-handler-1(0)"


def task_nodes(name: str, *phases: str, message: str = "", memory: str = "4Gi") -> list[Object]:
    """The nodes of a task, as Kubeflow makes them.

    Args:
        name: As people know it; `retrain (round 2)` becomes the key `retrain-2`.
        phases: Argo's phases of the driver's pod and of the pods that try to run the task.
        message: Of the last pod.
        memory: Limit of the task's memory.
    """
    key = name.replace(" (round ", "-").rstrip(")")
    driver, *attempts = phases
    inputs = {"task": json.dumps({"taskInfo": {"name": name}}), "container": "{}"}
    nodes = [
        _node(f"{_ROOT}.{key}-driver", "Retry", driver.replace("Pending", "Running")),
        _node(f"{_ROOT}.{key}-driver(0)", "Pod", driver, inputs, "" if attempts else message),
    ]
    if attempts:
        inputs = {"pod-spec-patch": json.dumps({"containers": [_container(memory)]})}
        whole = attempts[-1].replace("Pending", "Running").replace("Error", "Failed")
        nodes += [
            _node(f"{_ROOT}.{key}", "Retry", whole),
            _node(f"{_ROOT}.{key}(0)", "DAG", whole),
            _node(f"{_ROOT}.{key}(0).executor", "Retry", whole),
        ]
        for number, phase in enumerate(attempts):
            said = message if number == len(attempts) - 1 else ""
            executor = f"{_ROOT}.{key}(0).executor({number})"
            nodes.append(_node(executor, "Pod", phase, inputs, said))
    return nodes


def make_workflow(run_id: str, *nodes: list[Object], phase: str = "Running") -> Object:
    """A Workflow with the nodes of some tasks."""
    by_id = {node["id"]: node for each in nodes for node in each}
    for number, node in enumerate(by_id.values()):
        node["startedAt"] = f"2026-11-27T21:{number // 60:02}:{number % 60:02}Z"
    return {
        "metadata": {"name": "deep-clustering-abcde", "labels": {"pipeline/runid": run_id}},
        "spec": {"activeDeadlineSeconds": 259200},
        "status": {"phase": phase, "nodes": by_id},
    }


def make_pod(run_id: str, node: Object, phase: str, **status: Any) -> Object:
    """The pod of a node."""
    return {
        "metadata": {
            "name": f"pod-of-{node['id']}",
            "labels": {"pipeline/runid": run_id},
            "annotations": {"workflows.argoproj.io/node-id": node["id"]},
        },
        "spec": {"containers": [_container("4Gi")]},
        "status": {"phase": phase, **status},
    }


def _node(name: str, kind: str, phase: str, inputs: Object | None = None, message: str = "") -> Any:
    parameters = [{"name": key, "value": value} for key, value in (inputs or {}).items()]
    return {
        "id": f"deep-clustering-abcde-{sum(map(ord, name)) * len(name)}",
        "name": name,
        "type": kind,
        "phase": phase,
        **({"inputs": {"parameters": parameters}} if parameters else {}),
        **({"message": message} if message else {}),
    }


def _container(memory: str) -> Object:
    return {
        "name": "main",
        "image": "localhost/vitdc:0.1.0",
        "resources": {"limits": {"memory": memory}, "requests": {"cpu": "1", "memory": "1Gi"}},
    }
