"""What `python -m pipelines doctor` finds, against stand-ins for Kubeflow and Kubernetes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kfp
import kfp_api
import kubernetes_api
import pytest
from kubernetes_api import PODS

from pipelines import compiling
from pipelines.cluster import doctor
from vitdc import services
from vitdc.config import Params
from vitdc.errors import InputError

CORE = "api/v1/namespaces/kubeflow"
PARAMS = Params.parse({"convergence": {"max_rounds": 1}}, where="test")


class Cluster(kubernetes_api.Kubernetes):
    """One that runs a pod at once."""

    phase = "Succeeded"
    log = ""

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> Any:
        if method == "POST":
            self.made = body
            self.logs[body["metadata"]["name"]] = self.log
            body = {**body, "status": {"phase": self.phase}}
        return super().answer(method, path, query, body)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Cluster]:
    """A cluster that has everything."""
    with kubernetes_api.serve(Cluster()) as server, kfp_api.serve() as kubeflow:
        server.write_kubeconfig(tmp_path / "kubeconfig", "here")
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        monkeypatch.setenv("KF_PIPELINES_ENDPOINT", kubeflow.url)
        monkeypatch.setattr(kfp.Client, "_LOCAL_KFP_CONTEXT", str(tmp_path / "context.json"))
        server.objects["", "version"] = {"gitVersion": "v1.34.4"}
        server.put(f"{CORE}/serviceaccounts", named("vitdc-runner"))
        keys = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
        server.put(f"{CORE}/secrets", named("vitdc-s3", data=keys))
        keys = {"MLFLOW_TRACKING_USERNAME": "", "MLFLOW_TRACKING_PASSWORD": ""}
        server.put(f"{CORE}/secrets", named("vitdc-mlflow", data=keys))
        keys = {"MLFLOW_TRACKING_URI": "", "AWS_ENDPOINT_URL": "", "AWS_DEFAULT_REGION": ""}
        server.put(f"{CORE}/configmaps", named("vitdc-endpoints", data=keys))
        claim = named(
            "vitdc-scratch",
            spec={"accessModes": ["ReadWriteOnce"]},
            status={"phase": "Bound", "capacity": {"storage": "20Gi"}},
        )
        server.put(f"{CORE}/persistentvolumeclaims", claim)
        allocatable = {"cpu": "2", "memory": "16Gi"}
        server.put("api/v1/nodes", named("node", spec={}, status={"allocatable": allocatable}))
        server.log = "".join(
            json.dumps([service, True, "answers"]) + "\n" for service in services.CHECKS
        )
        yield server


def named(name: str, **fields: Any) -> dict[str, Any]:
    return {"metadata": {"name": name}, **fields}


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return compiling.build(PARAMS)


def findings(pipeline: Any, params: Params = PARAMS) -> dict[str, doctor.Finding]:
    found = list(doctor.examine(params, pipeline))
    assert len({finding.what for finding in found}) == len(found)
    assert all("\n" not in finding.text for finding in found)
    return {finding.what: finding for finding in found}


def test_a_cluster_with_everything_passes(cluster: Cluster, pipeline: Any) -> None:
    found = findings(pipeline)
    assert {finding.ok for finding in found.values()} == {True}
    assert found["kubeconfig"].text == f"Kubernetes v1.34.4 at {cluster.url}"
    assert found["Kubeflow Pipelines"].text.startswith("2.17.0 at http")
    assert found["nodes"].text == "free: 2 CPU, 16Gi memory"
    assert (
        found["room for cluster, embed, evaluate, prepare, pretrain, retrain"].text
        == "1 CPU, 1Gi memory"
    )
    assert found["MLflow from inside"].text == "answers"


def test_the_pod_is_set_up_as_the_tasks_are_and_deleted(cluster: Cluster, pipeline: Any) -> None:
    findings(pipeline)
    spec = cluster.made["spec"]
    assert spec["serviceAccountName"] == "vitdc-runner"
    assert cluster.made["metadata"]["labels"] == {"app.kubernetes.io/part-of": "vitdc"}
    assert spec["containers"][0]["image"] == "localhost/vitdc:0.1.0"
    assert {variable["name"] for variable in spec["containers"][0]["env"]} >= {
        "MLFLOW_TRACKING_URI",
        "MLFLOW_TRACKING_PASSWORD",
        "AWS_SECRET_ACCESS_KEY",
    }
    assert not [name for path, name in cluster.objects if path == f"/{PODS}"]


@pytest.mark.parametrize(
    ("path", "name", "remedy"),
    [
        ("serviceaccounts", "vitdc-runner", "kubernetes.service_account names it"),
        ("secrets", "vitdc-s3", "kubernetes.s3_secret names it"),
        ("configmaps", "vitdc-endpoints", "kubernetes.endpoints names it"),
        ("persistentvolumeclaims", "vitdc-scratch", "kubernetes.scratch_claim names it"),
    ],
)
def test_what_is_missing_is_told_with_its_remedy(
    cluster: Cluster, pipeline: Any, path: str, name: str, remedy: str
) -> None:
    del cluster.objects[f"/{CORE}/{path}", name]
    (wrong,) = [finding for finding in findings(pipeline).values() if finding.ok is False]
    assert wrong.what.endswith(f" {name}")
    assert wrong.text.startswith("missing in kubeflow: ")
    assert "kubectl apply -k" in wrong.text
    assert wrong.text.endswith(remedy)


def test_a_key_that_is_missing_is_told(cluster: Cluster, pipeline: Any) -> None:
    cluster.put(f"{CORE}/secrets", named("vitdc-s3", data={"AWS_ACCESS_KEY_ID": ""}))
    assert findings(pipeline)["Secret vitdc-s3"].text.startswith("has no AWS_SECRET_ACCESS_KEY: ")


def test_a_claim_without_a_volume_is_told(cluster: Cluster, pipeline: Any) -> None:
    claim = named("vitdc-scratch", spec={}, status={"phase": "Pending"})
    cluster.put(f"{CORE}/persistentvolumeclaims", claim)
    finding = findings(pipeline)["PersistentVolumeClaim vitdc-scratch"]
    assert not finding.ok
    assert "is Pending: no volume yet; its storage class is none" in finding.text


def test_room_is_compared_with_what_every_component_asks(cluster: Cluster) -> None:
    wanted = {"retrain": {"gpus": 1}, "embed": {"cpu": "4", "cpu_limit": "4"}}
    rounds = {"max_rounds": 1}
    params = Params.parse(
        {"convergence": rounds, "kubernetes": {"resources": wanted}}, where="test"
    )
    found = findings(compiling.build(params), params)
    assert {what: finding.text for what, finding in found.items() if not finding.ok} == {
        "room for retrain": (
            "no node has nvidia.com/gpu; free some, or ask less in kubernetes.resources"
        ),
        "room for embed": (
            "no node has 4 CPU, the largest has 2 CPU; free some, or ask less in"
            " kubernetes.resources"
        ),
    }


def test_what_may_not_be_seen_is_neither_right_nor_wrong(cluster: Cluster, pipeline: Any) -> None:
    cluster.forbidden = ("/secrets", "/nodes", "/pods")
    found = findings(pipeline)
    unknown = {what for what, finding in found.items() if finding.ok is None}
    assert unknown == {
        "Secret vitdc-s3",
        "Secret vitdc-mlflow",
        "nodes",
        "MLflow and S3 from inside",
    }
    assert all(finding.ok is not False for finding in found.values())


def test_services_that_fail_inside_are_told(cluster: Cluster, pipeline: Any) -> None:
    cluster.log = '["MLflow", false, "cannot be used"]\n["S3", true, "answers"]\n'
    found = findings(pipeline)
    assert found["MLflow from inside"].ok is False
    assert found["S3 from inside"].ok
    cluster.phase, cluster.log = "Failed", "No module named vitdc.services\n"
    assert findings(pipeline)["MLflow and S3 from inside"].text == (
        "the pod that tries them failed: No module named vitdc.services"
    )


def test_without_a_kubeconfig_only_kubeflow_is_checked(
    cluster: Cluster, pipeline: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "absent"))
    found = findings(pipeline)
    assert [(what, finding.ok) for what, finding in found.items()] == [
        ("Kubeflow Pipelines", True),
        ("kubeconfig", False),
    ]


def test_services_are_tried_where_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    services.main()
    mlflow, s3 = map(json.loads, capsys.readouterr().out.splitlines())
    assert mlflow == ["MLflow", True, f"sqlite:///{tmp_path}/mlflow.db answers"]
    assert s3[:2] == ["S3", False]
    assert "http://127.0.0.1:9" in s3[2]
    assert "check AWS_ENDPOINT_URL, the keys and the network policy" in s3[2]
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(InputError, match="MLFLOW_TRACKING_URI is not set"):
        services.check_mlflow()
