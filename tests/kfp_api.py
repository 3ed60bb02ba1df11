"""A stand-in for the API server of Kubeflow Pipelines, for tests without a cluster.

The real server is a pod that starts others; it cannot run in a test. What answers here is a real
HTTP server on the loopback interface that speaks the part of the v2beta1 REST API that the
submission uses, in the shapes that Kubeflow's own server gives them (the models of kfp_server_api
and kubeflow/pipelines, backend/src/apiserver). `kfp.Client` talks to it unchanged. It refuses what
the real one refuses: names that exist, packages that are no pipeline, parameters that the pipeline
does not have, cron expressions with five fields, namespaces in the wrong mode.
"""

from __future__ import annotations

import datetime
import email
import email.policy
import json
import re
import threading
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml
from google.protobuf import json_format
from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineSpec, PlatformSpec

EPOCH = "1970-01-01T00:00:00Z"
"""What Kubeflow answers for a time that has not come."""

PERMISSION_DENIED = (
    "Failed to authorize with API: PermissionDenied: User 'ann@example.org' is not authorized with"
    " reason:  (request: &ResourceAttributes{Namespace:team-b,Verb:list,Group:pipelines.kubeflow"
    ".org,Version:v1beta1,Resource:experiments,Subresource:,Name:,}): Unauthorized access"
)


class Refusal(Exception):  # noqa: N818
    """An HTTP error, with gRPC's code of it."""

    def __init__(self, status: int, code: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.body = json.dumps({"code": code, "message": message, "details": []})


class Kubeflow:
    """What the server holds, and how it behaves.

    Attributes:
        multi_user: Whether it has namespaces with users.
        namespaces: The namespaces that the user may use.
        token: The only token that it accepts; None accepts every request.
        version: What its older health endpoint says.
        answers: Called with method and path before anything else; what it returns (status, content
            type, body) is the answer.
        progress: States of a run and of its tasks (by key), the next at every look.
        recorded: A run as a real Kubeflow told of it, which takes the place of `progress`.
        requests: Method and path of all requests.
    """

    def __init__(self) -> None:
        self.url = ""
        self.multi_user = False
        self.namespaces: set[str] = set()
        self.token: str | None = None
        self.version: str | None = "2.17.0"
        self.answers: Callable[[str, str], tuple[int, str, str] | None] = lambda *_: None
        self.progress: list[tuple[str, dict[str, str]]] = [("SUCCEEDED", {})]
        self.recorded: dict[str, Any] = {}
        self.run_error: str | None = None
        self.task_errors: dict[str, str] = {}
        self.requests: list[tuple[str, str]] = []
        self.experiments: list[dict[str, Any]] = []
        self.pipelines: list[dict[str, Any]] = []
        self.versions: list[dict[str, Any]] = []
        self.runs: dict[str, dict[str, Any]] = {}
        self.recurring_runs: list[dict[str, Any]] = []

    # --- endpoints, by method and path ---------------------------------------------------------

    def route(self, method: str, path: str, query: dict[str, str], body: Any) -> Any:
        """The answer to a request, as JSON."""
        for pattern, function in self._routes().items():
            if match := re.fullmatch(pattern, f"{method} {path}"):
                return function(*match.groups(), query=query, body=body)
        raise Refusal(404, 5, "")

    def _routes(self) -> dict[str, Callable[..., Any]]:
        v1, v2 = "/apis/v1beta1", "/apis/v2beta1"
        return {
            f"GET {v1}/healthz": self._old_health,
            f"GET {v2}/healthz": lambda **_: {"multi_user": self.multi_user},
            f"GET {v2}/experiments": self._list_experiments,
            f"POST {v2}/experiments": self._create_experiment,
            f"GET {v2}/pipelines/names/([^/]+)": self._get_pipeline,
            f"POST {v2}/pipelines": self._create_pipeline,
            f"POST {v2}/pipelines/upload_version": self._upload_version,
            f"GET {v2}/pipelines/([^/]+)/versions": self._list_versions,
            f"GET {v2}/pipelines/([^/]+)/versions/([^/]+)": self._get_version,
            f"POST {v2}/runs": self._create_run,
            f"GET {v2}/runs/([^/]+)": self._get_run,
            f"GET {v2}/recurringruns": self._list_recurring_runs,
            f"POST {v2}/recurringruns": self._create_recurring_run,
            f"DELETE {v2}/recurringruns/([^/]+)": self._delete_recurring_run,
        }

    def _old_health(self, **_: Any) -> Any:
        if self.version is None:
            raise Refusal(404, 5, "Not Found")
        return {"commit_sha": "c0ffee", "tag_name": self.version, "multi_user": self.multi_user}

    def _list_experiments(self, *, query: dict[str, str], **_: Any) -> Any:
        namespace = self._authorize(query.get("namespace", ""))
        found = [e for e in self.experiments if e.get("namespace", "") == namespace]
        return {"experiments": _filter(found, query)} if found else {}

    def _create_experiment(self, *, body: Any, **_: Any) -> Any:
        namespace = self._authorize(body.get("namespace", ""))
        self.experiments.append(
            {
                "experiment_id": str(uuid.uuid4()),
                "display_name": body["display_name"],
                "created_at": _now(),
                "last_run_created_at": EPOCH,
                "namespace": namespace,
                "storage_state": "AVAILABLE",
            }
        )
        return self.experiments[-1]

    def _get_pipeline(self, name: str, *, query: dict[str, str], **_: Any) -> Any:
        namespace = self._authorize(query.get("namespace", ""))
        for pipeline in self.pipelines:
            if (pipeline["name"], pipeline["namespace"]) == (name, namespace):
                return pipeline
        raise Refusal(404, 5, f"Failed to get a pipeline: ResourceNotFoundError: Pipeline {name}")

    def _create_pipeline(self, *, body: Any, **_: Any) -> Any:
        namespace = self._authorize(body.get("namespace", ""))
        if any((p["name"], p["namespace"]) == (body["name"], namespace) for p in self.pipelines):
            raise Refusal(409, 6, f"Already exist error: the name {body['name']} already exists")
        self.pipelines.append(
            {
                "pipeline_id": str(uuid.uuid4()),
                "name": body["name"],
                "display_name": body["display_name"],
                "created_at": _now(),
                "namespace": namespace,
            }
        )
        return self.pipelines[-1]

    def _upload_version(self, *, query: dict[str, str], body: str, **_: Any) -> Any:
        documents = yaml.load_all(body, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        spec, platform = [*documents, {}][:2]
        try:
            json_format.ParseDict(spec, PipelineSpec())
            json_format.ParseDict(platform, PlatformSpec())
            assert spec["pipelineInfo"]["name"]
        except (KeyError, json_format.ParseError) as error:
            raise Refusal(400, 3, f"Failed to create a pipeline version: {error}") from None
        key = (query["pipelineid"], query["name"])
        if any((v["pipeline_id"], v["name"]) == key for v in self.versions):
            raise Refusal(409, 6, "Failed to create a pipeline version")
        both = {"pipeline_spec": spec, "platform_spec": platform}
        self.versions.append(
            {
                "pipeline_id": query["pipelineid"],
                "pipeline_version_id": str(uuid.uuid4()),
                "name": query["name"],
                "display_name": query.get("display_name", query["name"]),
                "created_at": _now(),
                "pipeline_spec": both if platform else spec,
            }
        )
        return self.versions[-1]

    def _list_versions(self, pipeline_id: str, *, query: dict[str, str], **_: Any) -> Any:
        found = [v for v in self.versions if v["pipeline_id"] == pipeline_id]
        return {"pipeline_versions": _filter(found, query)}

    def _get_version(self, pipeline_id: str, version_id: str, **_: Any) -> Any:
        for version in self.versions:
            if (version["pipeline_id"], version["pipeline_version_id"]) == (
                pipeline_id,
                version_id,
            ):
                return version
        raise Refusal(404, 5, "ResourceNotFoundError: PipelineVersion not found")

    def _create_run(self, *, body: Any, **_: Any) -> Any:
        self._check_parameters(body)
        run = {
            **body,
            "run_id": str(uuid.uuid4()),
            "state": "PENDING",
            "created_at": _now(),
            "finished_at": EPOCH,
        }
        self.runs[run["run_id"]] = run
        return run

    def _get_run(self, run_id: str, **_: Any) -> Any:
        if run_id not in self.runs:
            raise Refusal(404, 5, f"Failed to get a run: ResourceNotFoundError: Run {run_id}")
        if self.recorded:
            return {**self.runs[run_id], **self.recorded}
        state, tasks = self.progress.pop(0) if len(self.progress) > 1 else self.progress[0]
        run = {**self.runs[run_id], "state": state or None}
        run["run_details"] = {"task_details": [self._task(run_id, *t) for t in tasks.items()]}
        if state in ("SUCCEEDED", "FAILED", "CANCELED"):
            created = datetime.datetime.fromisoformat(run["created_at"])
            run["finished_at"] = str(created + datetime.timedelta(hours=1, minutes=2, seconds=3))
        if self.run_error and state == "FAILED":
            run["state_history"] = [{"state": state, "error": {"message": self.run_error}}]
        return run

    def _task(self, run_id: str, name: str, state: str) -> dict[str, Any]:
        error = self.task_errors.get(name) if state == "FAILED" else None
        return {
            "run_id": run_id,
            "task_id": f"id of {name}",
            "display_name": name,
            "create_time": _now(),
            "start_time": _now(),
            "end_time": EPOCH,
            "state": state,
            "child_tasks": [{"pod_name": f"deep-clustering-{name}"}],
            **({"error": {"code": 13, "message": error}} if error else {}),
        }

    def _list_recurring_runs(self, *, query: dict[str, str], **_: Any) -> Any:
        self._authorize(query.get("namespace", ""))
        return {"recurringRuns": _filter(self.recurring_runs, query)} | {"total_size": 1}

    def _create_recurring_run(self, *, body: Any, **_: Any) -> Any:
        self._check_parameters(body)
        assert len(body["trigger"]["cron_schedule"]["cron"].split()) == 6
        if not 1 <= int(body["max_concurrency"]) <= 10:
            raise Refusal(400, 3, "Max concurrency must be at least 1 and at most 10")
        self.recurring_runs.append(
            {**body, "recurring_run_id": str(uuid.uuid4()), "status": "ENABLED"}
        )
        return self.recurring_runs[-1]

    def _delete_recurring_run(self, recurring_run_id: str, **_: Any) -> Any:
        self.recurring_runs = [
            run for run in self.recurring_runs if run["recurring_run_id"] != recurring_run_id
        ]
        return {}

    # --- what the endpoints share --------------------------------------------------------------

    def _authorize(self, namespace: str) -> str:
        if not self.multi_user:
            assert not namespace, "a single-user Kubeflow is not asked for a namespace"
            return ""
        if not namespace:
            raise Refusal(400, 3, "Invalid input error: empty namespace in multi-user mode")
        if namespace not in self.namespaces:
            raise Refusal(403, 7, PERMISSION_DENIED)
        return namespace

    def _check_parameters(self, body: Any) -> None:
        """Kubeflow refuses a run with parameters that its pipeline does not have."""
        reference = body["pipeline_version_reference"]
        version = self._get_version(reference["pipeline_id"], reference["pipeline_version_id"])
        spec = version["pipeline_spec"].get("pipeline_spec", version["pipeline_spec"])
        known = spec["root"]["inputDefinitions"]["parameters"]
        if unknown := set(body["runtime_config"]["parameters"]) - set(known):
            raise Refusal(400, 3, f"Invalid input error: unknown parameters {unknown}")
        assert any(e["experiment_id"] == body["experiment_id"] for e in self.experiments)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat()


def _filter(items: list[dict[str, Any]], query: dict[str, str]) -> list[dict[str, Any]]:
    for predicate in json.loads(query.get("filter") or '{"predicates": []}')["predicates"]:
        assert predicate["operation"] == "EQUALS"
        items = [i for i in items if i[predicate["key"]] == predicate["string_value"]]
    return items


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    kubeflow: Kubeflow

    def _serve(self) -> None:
        path, _, query = self.path.partition("?")
        self.kubeflow.requests.append((self.command, path))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if answer := self.kubeflow.answers(self.command, path):
            self._answer(*answer)
            return
        try:
            token = self.headers.get("authorization", "").removeprefix("Bearer ")
            if self.kubeflow.token not in (None, token):
                raise Refusal(401, 16, "Unauthenticated: Failed to authenticate token")
            content = self._content(body)
            parameters = {k: v[0] for k, v in urllib.parse.parse_qs(query).items()}
            answer = self.kubeflow.route(self.command, path, parameters, content)
            self._answer(200, "application/json", json.dumps(answer))
        except Refusal as refusal:
            self._answer(refusal.status, "application/json", refusal.body)

    do_GET = do_POST = do_DELETE = _serve  # noqa: N815

    def _content(self, body: bytes) -> Any:
        kind = self.headers.get("Content-Type", "")
        if not kind.startswith("multipart/form-data"):
            return json.loads(body) if body else None
        head = f"Content-Type: {kind}\r\n\r\n".encode()
        message = email.message_from_bytes(head + body, policy=email.policy.HTTP)
        (part,) = message.iter_parts()
        assert part.get_param("name", header="content-disposition") == "uploadfile"
        return part.get_content()

    def _answer(self, status: int, content_type: str, text: str) -> None:
        self.send_response(status)
        if status == 302:
            self.send_header("Location", text)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serve(tls: Any = None) -> Iterator[Kubeflow]:
    """Run a server on a free port of the loopback interface, with TLS if a context is given."""
    kubeflow = Kubeflow()
    handler = type("Handler", (_Handler,), {"kubeflow": kubeflow})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.block_on_close = False
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    kubeflow.url = f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield kubeflow
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def failing(status: int, times: int, path: str = "") -> Callable[[str, str], Any]:
    """Answers with an error to the first requests whose path has `path` in it."""
    left = [times]

    def answer(method: str, asked: str) -> tuple[int, str, str] | None:
        if path not in asked or not left[0]:
            return None
        left[0] -= 1
        return status, "text/plain", "upstream connect error"

    return answer


def hanging(seconds: float) -> Callable[[str, str], Any]:
    """Takes its time."""

    def answer(method: str, asked: str) -> None:
        time.sleep(seconds)

    return answer
