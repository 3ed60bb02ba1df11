"""Submit the pipeline to a cluster with Kubeflow Pipelines, follow its run, schedule it.

A thin layer over `kfp.Client` and the API that it generates from Kubeflow's specification, with
bounded waiting, and with answers that say what to do. What kfp prints by itself is left out.

Environment variables, most of them kfp's own:

- KF_PIPELINES_ENDPOINT or KFP_ENDPOINT: the address, if no argument names it.
- KFP_NAMESPACE: the namespace of a Kubeflow with several users, if no argument names it.
- KF_PIPELINES_TOKEN or KFP_EXISTING_TOKEN: a bearer token.
- KF_PIPELINES_SA_TOKEN_PATH: a file with a token, read again for every request; inside a cluster
  the default is where Kubeflow mounts the token of a service account.
- KF_PIPELINES_UI_ENDPOINT: the address that a person opens, if it is another one.
- SSL_CERT_FILE: certificates to trust, if no argument names a file.
"""

from __future__ import annotations

import datetime
import hashlib
import itertools
import json
import logging
import os
import re
import shutil
import ssl
import sys
import tempfile
import time
import urllib.parse
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self, TextIO

import kfp
import kfp_server_api as api
import urllib3
from google.protobuf import json_format
from kfp.client import (
    KF_PIPELINES_SA_TOKEN_ENV,
    KF_PIPELINES_SA_TOKEN_PATH,
    ServiceAccountTokenVolumeCredentials,
)

from pipelines import compiling
from pipelines.deep_clustering import NAME, pipeline_parameters
from vitdc.config import Params
from vitdc.errors import InputError, TrainingError

ENDPOINT_VARIABLES = ("KF_PIPELINES_ENDPOINT", "KFP_ENDPOINT")
TOKEN_VARIABLES = ("KF_PIPELINES_TOKEN", "KFP_EXISTING_TOKEN")
NAMESPACE_VARIABLES = ("KFP_NAMESPACE",)
UI_VARIABLES = ("KF_PIPELINES_UI_ENDPOINT",)
CA_VARIABLES = ("SSL_CERT_FILE",)

OLDEST_BACKEND = (2, 17)
"""The first release of Kubeflow Pipelines that gets nested conditions right."""

_HEALTH_KEYS = {"multi_user", "pipeline_store", "apiServerReady", "tag_name"}
"""What the API or its UI tell about themselves; an API that has nothing to tell says {}."""
_IN_CLUSTER_HOST = "http://ml-pipeline.kubeflow.svc.cluster.local:8888"
_TIMEOUT = (4, 5)
"""Seconds to wait for a connection and for an answer."""
_UPLOAD_TIMEOUT = (4, 60)
_PATIENCE = 300.0
"""Seconds without an answer after which following a run gives up."""
_PENDING_SECONDS = 120.0
"""Seconds that a pod may wait for its start before a person is told where to look."""

_logger = logging.getLogger(__name__)


# --- the connection ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Cluster:
    """A Kubeflow Pipelines that answers.

    Attributes:
        client: kfp's client; its generated API is what the functions here call.
        host: Address of the API.
        namespace: Where runs go; None where Kubeflow serves a single namespace.
        ui: Address of the pages that a person opens.
    """

    client: kfp.Client
    host: str
    namespace: str | None
    ui: str

    def run_url(self, run_id: str) -> str:
        """The page of a run."""
        return f"{self.ui}/#/runs/details/{run_id}"

    def schedule_url(self, recurring_run_id: str) -> str:
        """The page of a schedule."""
        return f"{self.ui}/#/recurringrun/details/{recurring_run_id}"


class _Client(kfp.Client):  # type: ignore[misc]  # kfp has no types
    """kfp's client, which asks once instead of five times and writes no file of the user's."""

    health: Mapping[str, Any]

    def _load_config(self, *args: Any, **kwargs: Any) -> api.Configuration:
        config = super()._load_config(*args, **kwargs)
        config.retries = urllib3.Retry(None, connect=0, read=0, redirect=3, status=0, other=0)
        return config

    def get_kfp_healthz(self, sleep_duration: int = 5) -> api.V2beta1GetHealthzResponse:
        """Ask once whether the server answers; `health` holds all that it said.

        Raises:
            InputError: Something else answered.
        """
        answer = self._healthz_api.healthz_service_get_healthz(_request_timeout=_TIMEOUT)
        self.health = _parse_json(self._healthz_api.api_client.last_response.data)
        if self.health and not self.health.keys() & _HEALTH_KEYS:
            raise _NotKubeflowError
        return answer

    def get_version(self) -> str | None:
        """The release of the server, where it tells; the current API does not, the one before did.

        Kubeflow's UI, which passes requests on to the API, adds it to its answer.
        """
        if tag := self.health.get("apiServerTagName"):
            return str(tag)
        try:
            answer = self._healthz_api.api_client.call_api(
                "/apis/v1beta1/healthz",
                "GET",
                response_type="object",
                auth_settings=["Bearer"],
                _return_http_data_only=True,
                _request_timeout=_TIMEOUT,
            )
        except (api.ApiException, urllib3.exceptions.HTTPError):
            return None
        answer = answer if isinstance(answer, dict) else {}
        return answer.get("apiServerTagName") or answer.get("tag_name")

    def set_user_namespace(self, namespace: str) -> None:
        """Keep the namespace in memory; kfp would write it to its file in the home directory."""
        self._context_setting["namespace"] = namespace.strip()


class _NotKubeflowError(Exception):
    """What answered is not the API of Kubeflow Pipelines."""


def connect(
    host: str | None = None, namespace: str | None = None, *, ca_file: Path | None = None
) -> Cluster:
    """Connect to Kubeflow Pipelines and check that it can be used.

    Args:
        host: Address of the API or of the UI, with http:// or https://; by default from the
            environment, inside a cluster the one that Kubeflow has there.
        namespace: Namespace for the runs of a Kubeflow with several users; by default from the
            environment or where this process runs.
        ca_file: Certificates to trust instead of the public ones.

    Raises:
        InputError: It cannot be reached, is something else, or refuses the token or the namespace.
    """
    host = _check_host(host)
    token, credentials = _find_token()
    with _explained(host, namespace), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            client = _Client(
                host=host,
                existing_token=token,
                credentials=credentials,
                ssl_ca_cert=_check_ca_file(ca_file),
            )
            client.get_kfp_healthz()
        except json.JSONDecodeError:
            path = kfp.Client._LOCAL_KFP_CONTEXT
            raise InputError(f"{path}: not the JSON that kfp writes; remove or repair it") from None
    if client.health.get("apiServerReady") is False:
        raise InputError(
            f"{host}: Kubeflow's UI answers, but the API behind it does not; see why with"
            " `kubectl get pods -n kubeflow`"
        )
    namespace = _choose_namespace(client, namespace)
    with _explained(host, namespace):
        client.experiments.experiment_service_list_experiments(
            page_size=1, namespace=namespace, _request_timeout=_TIMEOUT
        )
    _warn_of_old_version(host, client.get_version())
    return Cluster(client, host, namespace, (_variable(UI_VARIABLES) or host).rstrip("/"))


def _variable(names: tuple[str, ...]) -> str | None:
    """The first of some environment variables that is set, without blanks around it."""
    return next((value for name in names if (value := os.environ.get(name, "").strip())), None)


def _check_host(host: str | None) -> str:
    host = host or _variable(ENDPOINT_VARIABLES)
    if host is None and "KUBERNETES_SERVICE_HOST" in os.environ:
        host = _IN_CLUSTER_HOST
    if host is None:
        raise InputError(
            "--host: no Kubeflow named; give its address or set KF_PIPELINES_ENDPOINT, e.g."
            " http://localhost:8080 while `kubectl port-forward -n kubeflow svc/ml-pipeline-ui"
            " 8080:80` runs"
        )
    try:
        parts = urllib.parse.urlsplit(host)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid or re.search(r"\s", host):
        raise InputError(
            f"--host {host}: not an address; write it as http://NAME:PORT or https://NAME/pipeline"
        )
    return host.partition("#")[0].rstrip("/")


def _find_token() -> tuple[str | None, ServiceAccountTokenVolumeCredentials | None]:
    """A token, or what reads it from its file again and again, or neither."""
    if token := _variable(TOKEN_VARIABLES):
        if not token.isascii() or not token.isprintable() or " " in token:
            raise InputError("KF_PIPELINES_TOKEN: not a token; it has blanks or odd characters")
        return token, None
    named = os.environ.get(KF_PIPELINES_SA_TOKEN_ENV)
    path = Path(named or KF_PIPELINES_SA_TOKEN_PATH)
    if not named and not path.exists():
        return None, None
    try:
        path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise InputError(f"{KF_PIPELINES_SA_TOKEN_ENV}={path}: no token there: {reason}") from None
    return None, ServiceAccountTokenVolumeCredentials(str(path))


def _check_ca_file(ca_file: Path | None) -> str | None:
    named = str(ca_file) if ca_file else _variable(CA_VARIABLES)
    if named is None:
        return None
    try:
        ssl.create_default_context(cafile=named)
    except (OSError, ssl.SSLError) as error:
        raise InputError(f"{named}: no certificates (PEM) can be read from it: {error}") from None
    return named


def _choose_namespace(client: _Client, namespace: str | None) -> str | None:
    """The namespace to name in requests, which Kubeflow with one namespace does not want."""
    if not client.health.get("multi_user"):
        if namespace not in (None, "kubeflow"):
            _logger.warning(
                "--namespace %s has no effect: this Kubeflow runs everything in its own namespace",
                namespace,
            )
        return None
    namespace = namespace or _variable(NAMESPACE_VARIABLES) or client.get_user_namespace()
    if not namespace:
        raise InputError(
            "--namespace: this Kubeflow has several users; give the namespace of your profile or"
            " set KFP_NAMESPACE"
        )
    return namespace


def _warn_of_old_version(host: str, version: str | None) -> None:
    found = re.match(r"v?(\d+)\.(\d+)", version or "")
    if found and (int(found[1]), int(found[2])) < OLDEST_BACKEND:
        _logger.warning(
            "%s is Kubeflow Pipelines %s; rounds are nested conditions, which need %d.%d or later",
            host,
            version,
            *OLDEST_BACKEND,
        )


def _parse_json(text: str) -> Mapping[str, Any]:
    try:
        answer = json.loads(text)
    except ValueError:
        raise _NotKubeflowError from None
    if not isinstance(answer, dict):
        raise _NotKubeflowError
    return answer


# --- what went wrong ---------------------------------------------------------------------------


@contextmanager
def _explained(host: str, namespace: str | None) -> Iterator[None]:
    """Turn what kfp and urllib3 raise into an InputError that says what to do."""
    try:
        yield
    except (api.ApiException, urllib3.exceptions.HTTPError, _NotKubeflowError) as error:
        raise InputError(_describe(error, host, namespace)) from None


def _describe(error: Exception, host: str, namespace: str | None) -> str:
    if isinstance(error, api.ApiException):
        return _describe_refusal(error, host, namespace)
    if isinstance(error, urllib3.exceptions.HTTPError):
        return _describe_failure(error, host)
    return f"{host}: what answers is no Kubeflow Pipelines API, maybe a login page; {_WHERE}"


_WHERE = (
    "name the UI's address, with /pipeline at its end on the Kubeflow platform, and set"
    " KF_PIPELINES_TOKEN where it asks for a login"
)
_LOGIN_HELP = (
    "set KF_PIPELINES_TOKEN, e.g. to what `kubectl create token default-editor -n NAMESPACE"
    " --audience pipelines.kubeflow.org` prints"
)


def _describe_refusal(error: api.ApiException, host: str, namespace: str | None) -> str:
    """An HTTP error in the user's words.

    The upload endpoints answer 400 to what the others answer 401 and 403 to.
    """
    said = _said(error)
    where = f"{host}: HTTP {error.status}"
    detail = f" ({said})" if said else ""
    if re.search(r'namespaces? "?[\w-]+"? not found', said):
        return f"{where}: the namespace {namespace} does not exist{detail}; see --namespace"
    if error.status == 401 or re.search("unauthenticated|authentication failed", said, re.I):
        state = "is missing" if _find_token() == (None, None) else "is refused"
        return f"{where}: the token {state}{detail}; {_LOGIN_HELP}"
    if error.status == 403 or re.search("denied|authorization", said, re.I):
        if namespace is None:
            return f"{where}: access is denied{detail}; {_LOGIN_HELP}"
        return (
            f"{where}: no permission in the namespace {namespace}, or there is none of this name"
            f"{detail}; name another with --namespace or ask its owner to add you as a contributor"
        )
    if error.status == 404 and not said:
        return f"{where}: no Kubeflow Pipelines API there; {_WHERE}"
    return f"{where}: {said or error.reason}"


def _said(error: api.ApiException) -> str:
    """The message in the body of an HTTP error, in one line of bearable length."""
    try:
        body = json.loads(error.body or "")
    except ValueError:
        body = error.body if "<" not in (error.body or "<") else ""
    if isinstance(body, dict):
        body = body.get("message") or body.get("error_message") or body.get("error")
    text = " ".join(str(body or "").split())
    text = re.sub(r" \(request: .*?\}\)", "", text)  # Kubernetes' ResourceAttributes, in Go
    return text if len(text) <= 300 else f"{text[:297]}..."


def _describe_failure(error: urllib3.exceptions.HTTPError, host: str) -> str:
    """A request without an answer in the user's words."""
    reason = getattr(error, "reason", None) or error
    if isinstance(reason, urllib3.exceptions.SSLError | ssl.SSLError):
        text = re.sub(r".*\] |\(_ssl.*", "", str(reason)).strip()
        return (
            f"{host}: TLS failed: {text}; name the file of the server's CA with --ca-file or"
            " SSL_CERT_FILE"
        )
    if isinstance(reason, urllib3.exceptions.ReadTimeoutError):
        text = "it takes the connection, but does not answer"
    elif isinstance(reason, urllib3.exceptions.NameResolutionError):
        text = "no such host"
    elif type(reason) is urllib3.exceptions.ConnectTimeoutError:  # others derive from it
        text = f"no connection within {_TIMEOUT[0]} s"
    else:
        cause = reason.__cause__ or reason.__context__
        text = getattr(cause, "strerror", None) or " ".join(str(reason).split())
    return (
        f"{host}: cannot be reached: {text}; is a port-forward running (`kubectl port-forward -n"
        " kubeflow svc/ml-pipeline-ui 8080:80`, then --host http://localhost:8080)?"
    )


# --- pipelines and experiments -----------------------------------------------------------------


class Submitted(NamedTuple):
    """A run that was started."""

    run_id: str
    url: str
    version: str
    """Name of the pipeline version that it runs."""


class _Version(NamedTuple):
    """A pipeline version that the cluster has."""

    pipeline_id: str
    version_id: str
    name: str

    def reference(self) -> api.V2beta1PipelineVersionReference:
        return api.V2beta1PipelineVersionReference(
            pipeline_id=self.pipeline_id, pipeline_version_id=self.version_id
        )


def submit(
    cluster: Cluster,
    pipeline: Any,
    params: Params,
    *,
    experiment: str,
    run_name: str | None = None,
) -> Submitted:
    """Start a run of the pipeline, with everything that it needs created if it is not there.

    Args:
        cluster: From `connect`.
        pipeline: From `compiling.build`, for `params`.
        params: The parameters of the run; `kubernetes.service_account` runs it.
        experiment: Kubeflow's experiment that the run belongs to.
        run_name: Name of the run; by default the pipeline's, with the time.

    Raises:
        InputError: Kubeflow refuses it, or the pipeline is too large.
    """
    with _explained(cluster.host, cluster.namespace):
        version = _upload(cluster, pipeline)
        run = cluster.client.runs.run_service_create_run(
            run=api.V2beta1Run(
                experiment_id=_find_experiment(cluster, experiment),
                display_name=run_name or f"{NAME} {datetime.datetime.now():%Y-%m-%d %H:%M:%S}",
                pipeline_version_reference=version.reference(),
                runtime_config=api.V2beta1RuntimeConfig(parameters=pipeline_parameters(params)),
                service_account=params.kubernetes.service_account,
            ),
            _request_timeout=_UPLOAD_TIMEOUT,
        )
    return Submitted(run.run_id, cluster.run_url(run.run_id), version.name)


def version_name(pipeline: Any) -> str:
    """Name of a pipeline's version: the same for the same code and the same cluster settings.

    The defaults of the parameters do not count, since a run names all of its parameters. A hash of
    the compiled file would not do: the order of its comments changes from process to process.
    """
    spec = json_format.MessageToDict(pipeline.pipeline_spec)
    for parameter in spec["root"]["inputDefinitions"]["parameters"].values():
        parameter.pop("defaultValue", None)
    platform = json_format.MessageToDict(pipeline.platform_spec)
    state = json.dumps([spec, platform], sort_keys=True).encode()
    return f"{NAME}-{hashlib.sha256(state).hexdigest()[:12]}"


def _upload(cluster: Cluster, pipeline: Any) -> _Version:
    """The version of the pipeline in the cluster, uploaded if it is not there."""
    name = version_name(pipeline)
    with tempfile.TemporaryDirectory() as directory:
        package = Path(directory) / "pipeline.yaml"
        compiling.write(pipeline, package)
        pipeline_id = _find_pipeline(cluster)
        found = cluster.client.pipelines.pipeline_service_list_pipeline_versions(
            pipeline_id, filter=_named(name), _request_timeout=_TIMEOUT
        ).pipeline_versions
        version = (
            found[0]
            if found
            else cluster.client.pipeline_uploads.upload_pipeline_version(
                str(package), name=name, pipelineid=pipeline_id, _request_timeout=_UPLOAD_TIMEOUT
            )
        )
    return _Version(pipeline_id, version.pipeline_version_id, name)


def _find_pipeline(cluster: Cluster) -> str:
    """Id of the pipeline, which is created if there is none of its name."""
    pipelines = cluster.client.pipelines
    try:
        found = pipelines.pipeline_service_get_pipeline_by_name(
            NAME, namespace=cluster.namespace, _request_timeout=_TIMEOUT
        )
    except api.ApiException as error:
        if error.status != 404:
            raise
        found = pipelines.pipeline_service_create_pipeline(
            pipeline=api.V2beta1Pipeline(name=NAME, display_name=NAME, namespace=cluster.namespace),
            _request_timeout=_TIMEOUT,
        )
    return str(found.pipeline_id)


def _find_experiment(cluster: Cluster, name: str) -> str:
    """Id of an experiment, which is created if there is none of this name."""
    experiments = cluster.client.experiments
    found = experiments.experiment_service_list_experiments(
        filter=_named(name), namespace=cluster.namespace, _request_timeout=_TIMEOUT
    ).experiments
    if not found:
        created = experiments.experiment_service_create_experiment(
            experiment=api.V2beta1Experiment(display_name=name, namespace=cluster.namespace),
            _request_timeout=_TIMEOUT,
        )
        return str(created.experiment_id)
    if found[0].storage_state == "ARCHIVED":
        raise InputError(
            f"--experiment {name}: it is archived; restore it in Kubeflow's UI or name another"
        )
    return str(found[0].experiment_id)


def _named(name: str) -> str:
    """A filter of Kubeflow's API for things of one name."""
    predicate = {"operation": "EQUALS", "key": "display_name", "string_value": name}
    return json.dumps({"predicates": [predicate]})


# --- following a run ---------------------------------------------------------------------------

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
                run_id=self.run_id, _request_timeout=_TIMEOUT
            )
            if run.state is None:
                raise _NotKubeflowError
            if self.labels is None:
                self.labels = _task_labels(self.cluster, run)
        except (api.ApiException, urllib3.exceptions.HTTPError, _NotKubeflowError) as error:
            self._bear(error)
            return False
        self.run, self._answered, self._silent = run, time.monotonic(), False
        self._hint_at_pending()
        self.line.show(self._elapsed(), self._doing())
        return run.state in _ENDED

    def _bear(self, error: Exception) -> None:
        """Let an error pass that may be gone the next time, with a note the first time."""
        reason = _describe(error, self.cluster.host, self.cluster.namespace)
        status = getattr(error, "status", None) or 0
        if status == 404:
            raise InputError(f"{self.cluster.host}: there is no run {self.run_id}") from None
        if 400 <= status < 500 and status not in (408, 429):
            raise InputError(f"{reason}; the run itself goes on: {self.url}") from None
        minutes = f"{_PATIENCE / 60:g} minutes"
        if time.monotonic() - self._answered > _PATIENCE:
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
        elif now - self._pending_since > _PENDING_SECONDS:
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
                reference.pipeline_id, reference.pipeline_version_id, _request_timeout=_TIMEOUT
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


# --- schedules ---------------------------------------------------------------------------------

_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_WEEKDAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
_FIELDS: tuple[tuple[str, int, int, tuple[str, ...]], ...] = (
    ("second", 0, 59, ()),
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of month", 1, 31, ()),
    ("month", 1, 12, _MONTHS),
    ("day of week", 0, 6, _WEEKDAYS),
)
_SHORTHANDS = {
    "@hourly": "0 0 * * * *",
    "@daily": "0 0 0 * * *",
    "@midnight": "0 0 0 * * *",
    "@weekly": "0 0 0 * * 0",
    "@monthly": "0 0 0 1 * *",
    "@yearly": "0 0 0 1 1 *",
    "@annually": "0 0 0 1 1 *",
}


@dataclass(frozen=True)
class Cron:
    """When a schedule starts runs, in the dialect of Kubeflow (Go's robfig/cron, version 1).

    It has a field for seconds in front, no day 7, and reads five fields as ones that lack the day
    of week: `30 2 * * *`, meant for half past two, would start a run every hour. Five fields are
    read as crontab reads them here, and six as Kubeflow does.

    Attributes:
        expression: The six fields.
        fields: The values that each of them allows.
    """

    expression: str
    fields: tuple[frozenset[int], ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a cron expression with five or six fields, or a shorthand such as @daily.

        Raises:
            InputError: It is none, or names a time that never comes.
        """
        fields = _SHORTHANDS.get(text.strip().lower(), text).split()
        if len(fields) == 5:
            fields = ["0", *fields]
        if len(fields) != 6:
            raise InputError(
                f"--cron {text!r}: five fields are needed (minute, hour, day of month, month, day"
                " of week), e.g. '30 2 * * 1-5', or six with seconds in front, or one of"
                f" {', '.join(_SHORTHANDS)}"
            )
        allowed = [
            _parse_field(text, field, *rule) for field, rule in zip(fields, _FIELDS, strict=True)
        ]
        cron = cls(" ".join(fields), tuple(allowed))
        if cron.next_time(datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)) is None:
            raise InputError(f"--cron {text!r}: there is no such day")
        return cron

    def next_time(self, after: datetime.datetime) -> datetime.datetime | None:
        """The first time later than `after`, in its time zone; None if there is none in 9 years."""
        seconds, minutes, hours, _, _, _ = map(sorted, self.fields)
        first = (after + datetime.timedelta(seconds=1)).replace(microsecond=0)
        for days in range(9 * 366):
            day = first.date() + datetime.timedelta(days=days)
            if not self._has(day):
                continue
            for hour, minute, second in itertools.product(hours, minutes, seconds):
                time_of_day = datetime.time(hour, minute, second, tzinfo=after.tzinfo)
                if (found := datetime.datetime.combine(day, time_of_day)) >= first:
                    return found
        return None

    def _has(self, day: datetime.date) -> bool:
        """Whether a day is one of these; of two restrictions on days, either is enough."""
        _, _, _, days, months, weekdays = self.fields
        _, _, _, days_text, _, weekdays_text = self.expression.split()
        in_month, in_week = day.day in days, day.isoweekday() % 7 in weekdays
        free = days_text[0] in "*?" or weekdays_text[0] in "*?"
        return day.month in months and (in_month and in_week if free else in_month or in_week)


def _parse_field(
    text: str, field: str, name: str, low: int, high: int, names: tuple[str, ...]
) -> frozenset[int]:
    """The values that one field of a cron expression allows."""
    values: set[int] = set()
    for part in field.upper().split(","):
        span, slash, step_text = part.partition("/")
        first, dash, last = span.partition("-")
        try:
            step = int(step_text) if slash else 1
            if span in ("*", "?"):
                start, end = low, high
            else:
                start = _parse_value(first, low, names)
                end = _parse_value(last, low, names) if dash else (high if slash else start)
        except ValueError:
            start, end, step = high, low, 0
        if not (low <= start <= end <= high and step > 0):
            raise InputError(
                f"--cron {text!r}: {part!r} is no {name}; valid are *, {low} to {high}"
                + (f" or {names[0]} to {names[-1]}" if names else "")
                + ", ranges (a-b), steps (*/n) and lists (a,b)"
            )
        values.update(range(start, end + 1, step))
    return frozenset(values)


def _parse_value(text: str, low: int, names: tuple[str, ...]) -> int:
    if text in names:
        return names.index(text) + low
    if not text.isdecimal():
        raise ValueError(text)
    return int(text)


class Scheduled(NamedTuple):
    """A schedule that was made."""

    recurring_run_id: str
    url: str
    version: str
    """Name of the pipeline version that its runs run."""
    next_time: datetime.datetime | None
    """When it starts the next run, if Kubeflow's time zone is UTC, as it is unless configured."""
    replaced: int
    """How many schedules of its name it replaced."""


def schedule(
    cluster: Cluster,
    pipeline: Any,
    params: Params,
    cron: Cron,
    *,
    name: str,
    experiment: str,
    max_concurrency: int = 1,
    catchup: bool = False,
    replace: bool = False,
) -> Scheduled:
    """Start a run again and again, each with the newest version of the data.

    Args:
        cluster: From `connect`.
        pipeline: From `compiling.build`, for `params`.
        params: The parameters of the runs; `kubernetes.service_account` runs them.
        cron: When.
        name: Name of the schedule.
        experiment: Kubeflow's experiment that the runs belong to.
        max_concurrency: Most runs at a time, 1 to 10.
        catchup: Make up for runs that were missed while the schedule was off.
        replace: Take the place of schedules of this name, which are deleted; their runs stay.

    Raises:
        InputError: There is a schedule of this name already, or Kubeflow refuses.
    """
    recurring_runs = cluster.client.recurring_runs
    with _explained(cluster.host, cluster.namespace):
        before = recurring_runs.recurring_run_service_list_recurring_runs(
            filter=_named(name),
            namespace=cluster.namespace,
            page_size=100,
            _request_timeout=_TIMEOUT,
        ).recurring_runs
        if before and not replace:
            raise InputError(
                f"--name {name}: there is such a schedule; replace it with --replace, choose"
                f" another name, or delete it: {cluster.schedule_url(before[0].recurring_run_id)}"
            )
        version = _upload(cluster, pipeline)
        made = recurring_runs.recurring_run_service_create_recurring_run(
            recurring_run=api.V2beta1RecurringRun(
                display_name=name,
                experiment_id=_find_experiment(cluster, experiment),
                namespace=cluster.namespace,
                pipeline_version_reference=version.reference(),
                runtime_config=api.V2beta1RuntimeConfig(parameters=pipeline_parameters(params)),
                service_account=params.kubernetes.service_account,
                mode=api.RecurringRunMode.ENABLE,
                trigger=api.V2beta1Trigger(
                    cron_schedule=api.V2beta1CronSchedule(cron=cron.expression)
                ),
                max_concurrency=str(max_concurrency),
                no_catchup=not catchup,
            ),
            _request_timeout=_UPLOAD_TIMEOUT,
        )
        for old in before or ():  # only now, so that a failure leaves the schedule that there was
            recurring_runs.recurring_run_service_delete_recurring_run(
                old.recurring_run_id, _request_timeout=_TIMEOUT
            )
    return Scheduled(
        recurring_run_id=made.recurring_run_id,
        url=cluster.schedule_url(made.recurring_run_id),
        version=version.name,
        next_time=cron.next_time(datetime.datetime.now(datetime.UTC)),
        replaced=len(before or ()),
    )
