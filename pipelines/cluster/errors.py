"""What goes wrong between here and a cluster, in one line that says what to do."""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import kfp_server_api as api
import urllib3

from pipelines.cluster.credentials import find_token
from vitdc.errors import InputError

TIMEOUT = (4, 5)
"""Seconds to wait for a connection and for an answer."""
UPLOAD_TIMEOUT = (4, 60)
"""Likewise where the server has more to do."""


class NotKubeflowError(Exception):
    """What answered is not the API of Kubeflow Pipelines."""


def parse_json(text: str) -> Mapping[str, Any]:
    try:
        answer = json.loads(text)
    except ValueError:
        raise NotKubeflowError from None
    if not isinstance(answer, dict):
        raise NotKubeflowError
    return answer


@contextmanager
def explained(host: str, namespace: str | None) -> Iterator[None]:
    """Turn what kfp and urllib3 raise into an InputError that says what to do."""
    try:
        yield
    except (api.ApiException, urllib3.exceptions.HTTPError, NotKubeflowError) as error:
        raise InputError(describe(error, host, namespace)) from None


def describe(error: Exception, host: str, namespace: str | None) -> str:
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
        state = "is missing" if find_token() == (None, None) else "is refused"
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
        text = f"no connection within {TIMEOUT[0]} s"
    else:
        cause = reason.__cause__ or reason.__context__
        text = getattr(cause, "strerror", None) or " ".join(str(reason).split())
    return (
        f"{host}: cannot be reached: {text}; is a port-forward running (`kubectl port-forward -n"
        " kubeflow svc/ml-pipeline-ui 8080:80`, then --host http://localhost:8080)?"
    )
