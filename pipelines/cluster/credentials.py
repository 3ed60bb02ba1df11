"""Address and credentials of a cluster, from arguments and the environment.

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

import os
import re
import ssl
import urllib.parse
from pathlib import Path

from kfp.client import (
    KF_PIPELINES_SA_TOKEN_ENV,
    KF_PIPELINES_SA_TOKEN_PATH,
    ServiceAccountTokenVolumeCredentials,
)

from vitdc.errors import InputError

ENDPOINT_VARIABLES = ("KF_PIPELINES_ENDPOINT", "KFP_ENDPOINT")
TOKEN_VARIABLES = ("KF_PIPELINES_TOKEN", "KFP_EXISTING_TOKEN")
NAMESPACE_VARIABLES = ("KFP_NAMESPACE",)
UI_VARIABLES = ("KF_PIPELINES_UI_ENDPOINT",)
CA_VARIABLES = ("SSL_CERT_FILE",)

_IN_CLUSTER_HOST = "http://ml-pipeline.kubeflow.svc.cluster.local:8888"


def variable(names: tuple[str, ...]) -> str | None:
    """The first of some environment variables that is set, without blanks around it."""
    return next((value for name in names if (value := os.environ.get(name, "").strip())), None)


def check_host(host: str | None) -> str:
    host = host or variable(ENDPOINT_VARIABLES)
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


def find_token() -> tuple[str | None, ServiceAccountTokenVolumeCredentials | None]:
    """A token, or what reads it from its file again and again, or neither."""
    if token := variable(TOKEN_VARIABLES):
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


def check_ca_file(ca_file: Path | None) -> str | None:
    named = str(ca_file) if ca_file else variable(CA_VARIABLES)
    if named is None:
        return None
    try:
        ssl.create_default_context(cafile=named)
    except (OSError, ssl.SSLError) as error:
        raise InputError(f"{named}: no certificates (PEM) can be read from it: {error}") from None
    return named
