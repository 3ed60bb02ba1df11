"""A real Kubernetes with Kubeflow Pipelines. `make test-cluster` runs what is in this folder.

KUBECONFIG and KF_PIPELINES_ENDPOINT say where it is, VITDC_IMAGE which image (by digest, where the
cluster pulls it), VITDC_NAMESPACE where runs go. Services that are there already are used and left;
else they are made from `k8s/overlays/local` and removed at the end.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient
from real_cluster import ROOT, SERVICES, Cluster, Overlay, decoded, forwarded, objects, readme

from pipelines.cluster import connect
from vitdc import __version__
from vitdc.errors import InputError

HERE = Path(__file__).parent
TASKS = ("prepare", "pretrain", "embed", "cluster", "retrain", "check", "evaluate", "bookkeeping")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark whatever is in this folder, so that `make test` never asks for a cluster."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker("cluster")
            item.add_marker(pytest.mark.timeout(3600))


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """The cluster; without one the whole session ends."""
    folder = tmp_path_factory.mktemp("cluster")
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    session = f"test-{int(time.time())}"
    params["tracking"] = {"experiment": session}
    # a small node runs several at a time
    params["kubernetes"] = {"resources": {name: {"cpu": "50m"} for name in TASKS}}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    try:
        subprocess.run(["kubectl", "get", "namespaces"], check=True, capture_output=True, text=True)
        kubeflow = connect(None, None)
    except (OSError, subprocess.CalledProcessError, InputError) as error:
        reason = str(getattr(error, "stderr", None) or error).strip().splitlines()[-1]
        pytest.exit(
            f"no cluster, and no test was run: {reason}; set KUBECONFIG and KF_PIPELINES_ENDPOINT"
            " (k8s/README.md says how to make one)",
            returncode=2,
        )
    image = os.environ.get("VITDC_IMAGE", f"localhost/vitdc:{__version__}")
    namespace = os.environ.get("VITDC_NAMESPACE", "kubeflow")
    return Cluster(kubeflow, image, namespace, session, folder)


@pytest.fixture(scope="session")
def overlay(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Overlay:
    """The services, by the README's commands if they are not there yet."""
    folder = tmp_path_factory.mktemp("overlay")
    made = shutil.ignore_patterns("*.env", "identities.json", "database-ca.crt")
    shutil.copytree(ROOT / "k8s", folder / "k8s", ignore=made)
    there = any(each["metadata"]["name"] == SERVICES for each in objects("namespaces"))
    overlay = Overlay(folder, ours=not there)
    if overlay.ours:
        runs = folder / "k8s" / "overlays" / "local" / "runs" / "kustomization.yaml"
        text = runs.read_text()
        runs.write_text(text.replace("namespace: kubeflow", f"namespace: {cluster.namespace}"))
        overlay.set_image(cluster.image)
        overlay.run(readme("k8s/make-secrets.sh local"))
        overlay.apply()
        overlay.wait(cluster.namespace)
    return overlay


@pytest.fixture(scope="session")
def mlflow(overlay: Overlay) -> Iterator[MlflowClient]:
    """MLflow's client, as its administrator."""
    (secret,) = (
        each["data"]
        for each in objects("secrets", "-n", SERVICES)
        if re.fullmatch(r"mlflow-[a-z0-9]{10}", each["metadata"]["name"])
    )
    with forwarded(SERVICES, "mlflow", 5000) as uri, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        for name in ("USERNAME", "PASSWORD"):
            value = decoded(secret[f"MLFLOW_AUTH_ADMIN_{name}"])
            patch.setenv(f"MLFLOW_TRACKING_{name}", value)
        yield MlflowClient(uri)
