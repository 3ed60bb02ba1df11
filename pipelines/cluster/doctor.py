"""Whether a cluster has what the pipeline needs, before a run finds out."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pipelines.cluster.connection import OLDEST_BACKEND, connect
from pipelines.cluster.needs import Asked, Needs, find_needs
from pipelines.cluster.pods import (
    Capacity,
    describe,
    describe_unscheduled,
    describe_waiting,
    find_capacities,
    find_shortage,
    scheduler_message,
)
from pipelines.tasks import LABELS
from vitdc.config import KubernetesConfig, Params
from vitdc.errors import InputError
from vitdc.services import CHECKS
from vitdc.workflow import Kubernetes, ReadError

POD_SECONDS = 120.0
"""Longest that the pod may take that tries the services from inside."""

_APPLY = "k8s/make-secrets.sh and `kubectl apply -k` of your overlay make it"
_CLAIMS = "persistentvolumeclaims"
_LISTS = {"Secret": "secrets", "ConfigMap": "configmaps"}
_FORBIDDEN = (401, 403)


class Finding(NamedTuple):
    """The outcome of a check."""

    ok: bool | None
    """None if it could not be checked."""
    what: str
    text: str


@dataclass
class _Cluster:
    """What the checks look at."""

    config: KubernetesConfig
    needs: Needs
    kubernetes: Kubernetes
    namespace: str
    capacities: list[Capacity] = field(default_factory=list)

    def get(self, path: str) -> Any:
        """An object of the namespace; None if there is none."""
        try:
            return self.kubernetes.get(f"api/v1/namespaces/{self.namespace}/{path}")
        except ReadError as error:
            if error.status != 404:
                raise
            return None


def examine(
    params: Params,
    pipeline: Any,
    *,
    host: str | None = None,
    namespace: str | None = None,
    ca_file: Path | None = None,
    context: str | None = None,
) -> Iterator[Finding]:
    """Check a cluster for a pipeline, finding after finding.

    MLflow and S3 are tried from a pod in the namespace of the runs, which has the image, service
    account, labels and environment of the tasks, and is deleted afterwards.

    Args:
        params: Of the pipeline.
        pipeline: From `compiling.build`; what it names is looked for.
        host: See `connect`, as for `namespace` and `ca_file`.
        namespace: Of the runs.
        ca_file: Certificates to trust.
        context: Of the kubeconfig; by default its current one.
    """
    runs = namespace or "kubeflow"
    try:
        found = connect(host, namespace, ca_file=ca_file)
        runs = found.namespace or "kubeflow"
        version = found.client.get_version() or "unknown"
        if version == "unknown":
            version = f"of unknown version, {'.'.join(map(str, OLDEST_BACKEND))} is needed,"
        yield Finding(True, "Kubeflow Pipelines", f"{version} at {found.host}")
    except InputError as error:
        yield Finding(False, "Kubeflow Pipelines", str(error))
    try:
        kubernetes = Kubernetes.connect(context)
    except InputError as error:
        yield Finding(False, "kubeconfig", f"{error}; nothing else can be checked")
        return
    cluster = _Cluster(params.kubernetes, find_needs(pipeline), kubernetes, runs)
    for what, check in _checks(cluster):
        try:
            yield Finding(True, what, check())
        except InputError as error:
            yield Finding(False, what, str(error))
        except ReadError as error:
            unknown = error.status in _FORBIDDEN
            yield Finding(None if unknown else False, what, f"cannot be checked: {error}")
            if what == "kubeconfig":
                return
    yield from _try_services(cluster)


def _checks(cluster: _Cluster) -> Iterator[tuple[str, Callable[[], str]]]:
    needs, account = cluster.needs, cluster.config.service_account
    yield "kubeconfig", partial(_check_api, cluster)
    if account:
        yield f"ServiceAccount {account}", partial(_check_account, cluster, account)
    for (kind, name), keys in needs.keys.items():
        yield f"{kind} {name}", partial(_check_keys, cluster, kind, name, keys)
    for name in needs.pull_secrets:
        yield f"Secret {name}", partial(_check_keys, cluster, "Secret", name, [])
    for name in needs.claims:
        yield f"PersistentVolumeClaim {name}", partial(_check_claim, cluster, name)
    yield "nodes", partial(_check_nodes, cluster)
    for asked in needs.asked:
        if cluster.capacities:
            yield f"room for {', '.join(asked.components)}", partial(_check_room, cluster, asked)


def _check_api(cluster: _Cluster) -> str:
    version = cluster.kubernetes.get("version")["gitVersion"]
    return f"Kubernetes {version} at {cluster.kubernetes.host}"


def _check_account(cluster: _Cluster, name: str) -> str:
    if cluster.get(f"serviceaccounts/{name}") is None:
        raise InputError(
            f"missing in {cluster.namespace}: {_APPLY}; kubernetes.service_account names it"
        )
    return f"in {cluster.namespace}"


def _check_keys(cluster: _Cluster, kind: str, name: str, keys: list[str]) -> str:
    found = cluster.get(f"{_LISTS[kind]}/{name}")
    if found is None:
        raise InputError(f"missing in {cluster.namespace}: {_APPLY}{_named_by(cluster, name)}")
    if missing := [key for key in keys if key not in found.get("data", {})]:
        raise InputError(f"has no {', '.join(missing)}: {_APPLY}{_named_by(cluster, name)}")
    return f"has {', '.join(keys)}" if keys else f"in {cluster.namespace}"


def _check_claim(cluster: _Cluster, name: str) -> str:
    found = cluster.get(f"{_CLAIMS}/{name}")
    if found is None:
        raise InputError(f"missing in {cluster.namespace}: {_APPLY}{_named_by(cluster, name)}")
    phase = found["status"].get("phase")
    if phase == "Bound":
        return (
            f"{found['status']['capacity']['storage']}, {', '.join(found['spec']['accessModes'])}"
        )
    storage_class = found["spec"].get("storageClassName") or "none"
    raise InputError(
        f"is {phase}: no volume yet; its storage class is {storage_class}, `kubectl describe pvc"
        f" {name} -n {cluster.namespace}` tells more"
    )


def _named_by(cluster: _Cluster, name: str) -> str:
    """Which parameter says that the tasks need a name."""
    keys = [key for key, value in cluster.config.model_dump().items() if value == name]
    return f"; kubernetes.{keys[0]} names it" if keys else ""


def _check_nodes(cluster: _Cluster) -> str:
    cluster.capacities = find_capacities(*cluster.kubernetes.nodes_and_pods())
    gpu = cluster.config.gpu_resource
    names = ("cpu", "memory", gpu)
    free = [
        ", ".join(describe(name, node.free[name]) for name in names if name in node.free)
        for node in cluster.capacities
    ]
    return f"free: {'; '.join(free)}" if free else "none takes pods"


def _check_room(cluster: _Cluster, asked: Asked) -> str:
    if shortage := find_shortage(asked.resources, cluster.capacities, asked.selector):
        raise InputError(f"{shortage}; free some, or ask less in kubernetes.resources")
    return ", ".join(describe(*amount) for amount in asked.resources.items())


# --- from inside ---------------------------------------------------------------------------------


def _try_services(cluster: _Cluster) -> Iterator[Finding]:
    """Run `python -m vitdc.services` in a pod like those of the tasks."""
    name = f"vitdc-doctor-{uuid.uuid4().hex[:8]}"
    pods = f"api/v1/namespaces/{cluster.namespace}/pods"
    services = " and ".join(CHECKS)
    try:
        cluster.kubernetes.post(pods, _pod(cluster, name))
        _await(cluster, f"{pods}/{name}")
        for line in cluster.kubernetes.log(cluster.namespace, name, 20):
            with suppress(ValueError):  # the log of a library
                service, ok, text = json.loads(line)
                yield Finding(ok, f"{service} from inside", text)
    except InputError as error:
        yield Finding(False, f"{services} from inside", str(error))
    except ReadError as error:
        unknown = error.status in _FORBIDDEN
        yield Finding(None if unknown else False, f"{services} from inside", f"not tried: {error}")
    finally:
        with suppress(ReadError):  # it was never made
            cluster.kubernetes.delete(f"{pods}/{name}")


def _pod(cluster: _Cluster, name: str) -> dict[str, Any]:
    config, needs = cluster.config, cluster.needs
    references = {"Secret": "secretKeyRef", "ConfigMap": "configMapKeyRef"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": LABELS},
        "spec": {
            "restartPolicy": "Never",
            "activeDeadlineSeconds": round(POD_SECONDS),
            **({"serviceAccountName": config.service_account} if config.service_account else {}),
            "nodeSelector": config.node_selector,
            "imagePullSecrets": [{"name": secret} for secret in needs.pull_secrets],
            "volumes": [{"name": "tmp", "emptyDir": {}}],
            "containers": [
                {
                    "name": "main",
                    "image": needs.images[0],
                    "imagePullPolicy": config.image_pull_policy,
                    "command": ["python", "-m", "vitdc.services"],
                    "env": [
                        {"name": key, "valueFrom": {references[kind]: {"name": of, "key": key}}}
                        for (kind, of), keys in needs.keys.items()
                        for key in keys
                    ],
                    "securityContext": {
                        "runAsUser": config.user,
                        "runAsGroup": config.user,
                        "runAsNonRoot": True,
                        "allowPrivilegeEscalation": False,
                        "capabilities": {"drop": ["ALL"]},
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                    "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108
                }
            ],
        },
    }


def _await(cluster: _Cluster, path: str, *, poll: float = 1.0) -> None:
    """Wait until a pod has run.

    Raises:
        InputError: It does not start, or fails.
    """
    deadline = time.monotonic() + POD_SECONDS
    waits = None
    while time.monotonic() < deadline:
        pod = cluster.kubernetes.get(path)
        if pod["status"].get("phase") == "Succeeded":
            return
        if pod["status"].get("phase") == "Failed":
            raise InputError(f"the pod that tries them failed: {_last_words(cluster, pod)}")
        waits = describe_waiting(pod)
        if scheduler_message(pod):
            waits = describe_unscheduled(pod, cluster.capacities or None)
        if waits and time.monotonic() > deadline - POD_SECONDS * 3 / 4:
            break
        time.sleep(poll)
    raise InputError(f"the pod that tries them does not start: {waits or 'it takes too long'}")


def _last_words(cluster: _Cluster, pod: Any) -> str:
    lines = cluster.kubernetes.log(cluster.namespace, pod["metadata"]["name"], 1)
    return lines[-1] if lines else pod["status"].get("message", "it says nothing")
