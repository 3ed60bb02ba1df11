"""A connection to Kubeflow Pipelines, checked before it is used."""

from __future__ import annotations

import json
import logging
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kfp
import kfp_server_api as api
import urllib3

from pipelines.cluster.credentials import (
    NAMESPACE_VARIABLES,
    UI_VARIABLES,
    check_ca_file,
    check_host,
    find_token,
    variable,
)
from pipelines.cluster.errors import TIMEOUT, NotKubeflowError, explained, parse_json
from vitdc.errors import InputError

OLDEST_BACKEND = (2, 17)
"""The first release of Kubeflow Pipelines that gets nested conditions right."""

_HEALTH_KEYS = {"multi_user", "pipeline_store", "apiServerReady", "tag_name"}
"""What the API or its UI tell about themselves; an API that has nothing to tell says {}."""

_logger = logging.getLogger(__name__)


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
        answer = self._healthz_api.healthz_service_get_healthz(_request_timeout=TIMEOUT)
        self.health = parse_json(self._healthz_api.api_client.last_response.data)
        if self.health and not self.health.keys() & _HEALTH_KEYS:
            raise NotKubeflowError
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
                _request_timeout=TIMEOUT,
            )
        except (api.ApiException, urllib3.exceptions.HTTPError):
            return None
        answer = answer if isinstance(answer, dict) else {}
        return answer.get("apiServerTagName") or answer.get("tag_name")

    def set_user_namespace(self, namespace: str) -> None:
        """Keep the namespace in memory; kfp would write it to its file in the home directory."""
        self._context_setting["namespace"] = namespace.strip()


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
    host = check_host(host)
    token, credentials = find_token()
    with explained(host, namespace), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            client = _Client(
                host=host,
                existing_token=token,
                credentials=credentials,
                ssl_ca_cert=check_ca_file(ca_file),
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
    with explained(host, namespace):
        client.experiments.experiment_service_list_experiments(
            page_size=1, namespace=namespace, _request_timeout=TIMEOUT
        )
    _warn_of_old_version(host, client.get_version())
    return Cluster(client, host, namespace, (variable(UI_VARIABLES) or host).rstrip("/"))


def _choose_namespace(client: _Client, namespace: str | None) -> str | None:
    """The namespace to name in requests, which Kubeflow with one namespace does not want."""
    if not client.health.get("multi_user"):
        if namespace not in (None, "kubeflow"):
            _logger.warning(
                "--namespace %s has no effect: this Kubeflow runs everything in its own namespace",
                namespace,
            )
        return None
    namespace = namespace or variable(NAMESPACE_VARIABLES) or client.get_user_namespace()
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
