"""The manifests under k8s/: rendered by kubectl, checked by schema, and their services run."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import botocore
import kubernetes_validate
import numpy as np
import pandas as pd
import pytest
import requests
import servers
import toys
import yaml
from mlflow import MlflowClient

from vitdc.artifacts import Dataset
from vitdc.prediction import Predictor
from vitdc.tracking.registry import Scores, register_model

ROOT = Path(__file__).parents[1]
VERSIONS = ("1.30", "1.31", "1.32", "1.33", "1.34")
RESTRICTED_VOLUMES = {"configMap", "emptyDir", "persistentVolumeClaim", "secret"}
SERVED = "/tmp/model"  # noqa: S108 (in a container)

# those of KServe's v1beta1 PredictorSpec and ComponentExtensionSpec that make sense here
PREDICTOR_FIELDS = {
    "minReplicas": int,
    "maxReplicas": int,
    "scaleMetric": str,
    "scaleTarget": int,
    "timeout": int,
}

Object = dict[str, Any]


def copy(directory: Path) -> Path:
    """k8s/ as a clean clone has it: without the secrets someone may have made here."""
    made = shutil.ignore_patterns("*.env", "identities.json", "database-ca.crt")
    return Path(shutil.copytree(ROOT / "k8s", directory / "k8s", ignore=made))


def make_secrets(k8s: Path, overlay: str) -> subprocess.CompletedProcess[str]:
    command = [k8s / "make-secrets.sh", overlay]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def render(overlay: Path) -> list[Object]:
    command = [servers.tool("kubectl"), "kustomize", overlay]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def uncomment_components(kustomization: Path) -> None:
    """What the manifests ask of a person who wants an optional component: to remove a `#`."""
    text = kustomization.read_text()
    assert "#  - ../../../components/" in text
    kustomization.write_text(text.replace("#  - ../../../components/", "  - ../../../components/"))


@pytest.fixture(scope="session")
def overlays(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Object]]:
    """Both overlays as they are, and with every optional component.

    `profile` is `local` in a profile's namespace with the components of the runs, `serving` is
    `local` with those of the services, `everything` is `production` with both.
    """
    k8s = copy(tmp_path_factory.mktemp("manifests"))
    local, production = k8s / "overlays" / "local", k8s / "overlays" / "production"
    for overlay in (local, production):
        done = make_secrets(k8s, overlay.name)
        assert done.returncode == 0, done.stderr
    rendered = {"local": render(local), "production": render(production)}

    runs = local / "runs" / "kustomization.yaml"
    as_it_was = runs.read_text()
    runs.write_text(as_it_was.replace("namespace: kubeflow", "namespace: team-a"))
    uncomment_components(runs)
    rendered["profile"] = render(local)

    runs.write_text(as_it_was)
    uncomment_components(local / "services" / "kustomization.yaml")
    rendered["serving"] = render(local)

    for part in ("runs", "services"):
        uncomment_components(production / part / "kustomization.yaml")
    rendered["everything"] = render(production)
    return rendered


@pytest.fixture(params=["local", "production", "profile", "serving", "everything"])
def objects(request: pytest.FixtureRequest, overlays: dict[str, list[Object]]) -> list[Object]:
    return overlays[request.param]


class Workload(NamedTuple):
    """What makes pods."""

    name: str  # Kind/name
    namespace: str
    labels: dict[str, str]
    pod: Object
    claims: set[str]  # volumes a StatefulSet makes itself

    @property
    def containers(self) -> list[Object]:
        return self.pod.get("initContainers", []) + self.pod["containers"]


def of_kind(objects: list[Object], *kinds: str) -> list[Object]:
    return [each for each in objects if each["kind"] in kinds]


def named(objects: list[Object], kind: str, name: str) -> Object:
    """The object, by its name without the hash that kustomize adds."""
    found = [
        each
        for each in of_kind(objects, kind)
        if re.fullmatch(rf"{re.escape(name)}(-[a-z0-9]{{10}})?", each["metadata"]["name"])
    ]
    assert len(found) == 1, f"{len(found)} of {kind} {name}"
    return found[0]


def workloads(objects: list[Object]) -> list[Workload]:
    found = []
    for each in map(as_deployment, objects):
        if "template" not in each.get("spec", {}):
            continue
        template, meta = each["spec"]["template"], each["metadata"]
        claims = {c["metadata"]["name"] for c in each["spec"].get("volumeClaimTemplates", [])}
        name = f"{each['kind']}/{meta['name']}"
        labels = template["metadata"]["labels"]
        found.append(Workload(name, meta["namespace"], labels, template["spec"], claims))
    return found


def as_deployment(each: Object) -> Object:
    """An InferenceService as the Deployment that KServe makes of it; anything else as it is.

    A predictor is the specification of a pod, with a few fields of KServe's in between.
    """
    if each["kind"] != "InferenceService":
        return each
    pod = {k: v for k, v in each["spec"]["predictor"].items() if k not in PREDICTOR_FIELDS}
    labels = {**each["metadata"]["labels"], "serving.kserve.io/inferenceservice": "model"}
    template = {"metadata": {"labels": labels}, "spec": pod}
    spec = {"selector": {"matchLabels": labels}, "template": template}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": each["metadata"],
        "spec": spec,
    }


def decoded(secret: Object) -> dict[str, str]:
    return {key: base64.b64decode(value).decode() for key, value in secret["data"].items()}


# ---------------------------------------------------------------------------------- manifests


@pytest.mark.parametrize("version", VERSIONS)
def test_every_manifest_is_valid_by_the_strict_schema(objects: list[Object], version: str) -> None:
    for each in map(as_deployment, objects):
        kubernetes_validate.validate(each, version, strict=True)


def test_no_container_runs_as_root_or_can_become_it(objects: list[Object]) -> None:
    for workload in workloads(objects):
        for container in workload.containers:
            security = workload.pod["securityContext"] | container["securityContext"]
            assert security["runAsNonRoot"] is True, workload.name
            assert security["runAsUser"] > 0, workload.name
            assert security["runAsGroup"] > 0, workload.name
            assert security["allowPrivilegeEscalation"] is False, workload.name
            assert not security.get("privileged"), workload.name


def test_every_container_meets_pod_security_restricted(objects: list[Object]) -> None:
    for workload in workloads(objects):
        assert workload.pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & workload.pod.keys(), workload.name
        for volume in workload.pod.get("volumes", []):
            assert volume.keys() - {"name"} <= RESTRICTED_VOLUMES, workload.name
        for container in workload.containers:
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}, workload.name
            assert not any("hostPort" in port for port in container.get("ports", []))


def test_every_container_has_a_read_only_root(objects: list[Object]) -> None:
    for workload in workloads(objects):
        for container in workload.containers:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True, workload.name


def test_every_container_has_requests_and_limits(objects: list[Object]) -> None:
    for workload in workloads(objects):
        for container in workload.containers:
            for kind in ("requests", "limits"):
                assert {"cpu", "memory"} <= container["resources"][kind].keys(), workload.name


def test_every_container_that_serves_has_probes_of_its_own_ports(objects: list[Object]) -> None:
    served = 0
    for workload in workloads(objects):
        for container in workload.containers:
            ports = {port["name"] for port in container.get("ports", [])}
            probes = [
                container.get(f"{kind}Probe") for kind in ("startup", "readiness", "liveness")
            ]
            served += bool(ports)
            assert all(probes) if ports else not any(probes), workload.name
            for probe in filter(None, probes):
                assert "exec" in probe or probe["httpGet"]["port"] in ports, workload.name
    assert served


def test_every_image_has_the_tag_of_a_version(objects: list[Object]) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for workload in workloads(objects):
        for container in workload.containers:
            assert re.fullmatch(r"[^:@]+/[^:@]+:\d+\.\d+(\.\d+)?", container["image"])
            if "/vitdc" in container["image"]:
                assert container["image"].endswith(f"/vitdc:{version}")


def test_only_the_pods_of_runs_get_a_token_of_the_kubernetes_api(objects: list[Object]) -> None:
    for workload in workloads(objects):
        assert workload.pod["automountServiceAccountToken"] is False, workload.name
    for account in of_kind(objects, "ServiceAccount"):
        mounted = account.get("automountServiceAccountToken", True)
        assert mounted == (account["metadata"]["name"] == "vitdc-runner")


def test_everything_a_workload_refers_to_exists(objects: list[Object]) -> None:
    keys = {  # (kind, namespace, name) -> its keys
        (each["kind"], each["metadata"]["namespace"], each["metadata"]["name"]): set(
            each.get("data", {})
        )
        for each in objects
        if "namespace" in each["metadata"]
    }
    for workload in workloads(objects):
        account = ("ServiceAccount", workload.namespace, workload.pod["serviceAccountName"])
        assert account in keys, workload.name
        for kind, name, wanted in references(workload.pod):
            identity = (kind, workload.namespace, name)
            assert identity in keys, f"{workload.name}: {kind} {name}"
            assert wanted is None or wanted in keys[identity], f"{workload.name}: {name}.{wanted}"
        volumes = {volume["name"] for volume in workload.pod.get("volumes", [])}
        for container in workload.containers:
            mounts = {mount["name"] for mount in container.get("volumeMounts", [])}
            assert mounts <= volumes | workload.claims, workload.name


def references(pod: Object) -> Iterator[tuple[str, str, str | None]]:
    """Kind, name and key (None: all of them) of what a pod takes from outside of it."""
    for volume in pod.get("volumes", []):
        if "configMap" in volume:
            yield "ConfigMap", volume["configMap"]["name"], None
        if "secret" in volume:
            yield "Secret", volume["secret"]["secretName"], None
        if "persistentVolumeClaim" in volume:
            yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"], None
    for container in pod.get("initContainers", []) + pod["containers"]:
        for source in container.get("envFrom", []):
            for field, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
                if field in source:
                    yield kind, source[field]["name"], None
        for variable in container.get("env", []):
            if reference := variable.get("valueFrom", {}).get("secretKeyRef"):
                yield "Secret", reference["name"], reference["key"]


def test_services_budgets_and_ingresses_select_pods_that_exist(objects: list[Object]) -> None:
    pods = workloads(objects)
    for each in of_kind(objects, "Service", "PodDisruptionBudget"):
        selector = each["spec"]["selector"]
        selector = selector.get("matchLabels", selector)
        found = [
            workload
            for workload in pods
            if workload.namespace == each["metadata"]["namespace"]
            and selector.items() <= workload.labels.items()
        ]
        assert len(found) == 1, f"{each['metadata']['name']} selects {[w.name for w in found]}"
        ports = {port["name"] for c in found[0].containers for port in c.get("ports", [])}
        assert {port["targetPort"] for port in each["spec"].get("ports", [])} <= ports
    for ingress in of_kind(objects, "Ingress"):
        for rule in ingress["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                backend = path["backend"]["service"]
                service = named(objects, "Service", backend["name"])
                assert backend["port"]["name"] in {p["name"] for p in service["spec"]["ports"]}
            assert rule["host"] in {h for tls in ingress["spec"]["tls"] for h in tls["hosts"]}


def test_one_mlflow_may_be_evicted_at_a_time(overlays: dict[str, list[Object]]) -> None:
    for objects, replicas in ((overlays["local"], None), (overlays["production"], 2)):
        assert named(objects, "Deployment", "mlflow")["spec"].get("replicas") == replicas
        assert named(objects, "PodDisruptionBudget", "mlflow")["spec"]["maxUnavailable"] == 1


# ------------------------------------------------------------------------------------- serving


def test_the_champion_is_served_where_kserve_is_installed(
    overlays: dict[str, list[Object]],
) -> None:
    (service,) = of_kind(overlays["serving"], "InferenceService")
    for overlay in ("local", "production"):
        assert not of_kind(overlays[overlay], "InferenceService")
    assert service["apiVersion"] == "serving.kserve.io/v1beta1"
    assert service["spec"].keys() == {"predictor"}
    annotations = service["metadata"]["annotations"]
    assert annotations["serving.kserve.io/deploymentMode"] == "RawDeployment"
    predictor = service["spec"]["predictor"]
    for field, kind in PREDICTOR_FIELDS.items():
        assert isinstance(predictor.get(field, kind()), kind), field
    assert 1 <= predictor["minReplicas"] <= predictor["maxReplicas"]
    (container,) = predictor["containers"]
    assert container["name"] == "kserve-container"  # the name KServe looks for
    (port,) = container["ports"]
    assert f"--port={port['containerPort']}" in container["args"]


def test_nothing_is_served_that_has_not_been_checked(overlays: dict[str, list[Object]]) -> None:
    (service,) = of_kind(overlays["serving"], "InferenceService")
    (check,) = service["spec"]["predictor"]["initContainers"]
    (server,) = service["spec"]["predictor"]["containers"]
    assert f'Path("{SERVED}")' in check["args"][0]
    assert [each for each in server["args"] if "model-uri" in each] == [f"--model-uri={SERVED}"]
    assert check["image"] == server["image"]
    assert check["volumeMounts"] == server["volumeMounts"]
    # the registry may name another model by now, so the server neither knows where it is nor may
    assert not {"MODEL", "MLFLOW_TRACKING_URI"} & environment(overlays["serving"], server).keys()
    assert "envFrom" not in server


def test_what_the_check_has_read_is_served_whatever_the_registry_names_then(
    overlays: dict[str, list[Object]], toy_run: toys.ToyRun, empty_store: Path, tmp_path: Path
) -> None:
    import mlflow.pyfunc

    (service,) = of_kind(overlays["serving"], "InferenceService")
    (check,) = service["spec"]["predictor"]["initContainers"]
    uri = f"sqlite:///{shutil.copy(empty_store, tmp_path / 'mlflow.db')}"
    env = environment(overlays["serving"], check)
    name = env["MODEL"].removeprefix("models:/").removesuffix("@champion")
    client = MlflowClient(uri)
    experiment = client.create_experiment("vitdc", artifact_location=str(tmp_path / "mlartifacts"))
    scores = Scores({"test": dict.fromkeys(("nmi", "ari", "acc")), "best_round": 2,
                     "stop_reason": "converged"}, "a" * 64)  # fmt: skip
    run = client.create_run(experiment).info.run_id
    version = register_model(client, run, toy_run.results / "model", name=name, scores=scores)
    client.set_registered_model_alias(name, "champion", version.version)
    served = tmp_path / "model"
    for _ in range(2):  # the volume keeps what is in it when the pod is started again
        done = run_check(check, env | {"MLFLOW_TRACKING_URI": uri}, served)
        assert done.returncode == 0, done.stderr
    client.delete_registered_model(name)
    shutil.rmtree(tmp_path / "mlartifacts")
    images = np.asarray(Dataset.load(toy_run.dataset).test.images)
    answer = mlflow.pyfunc.load_model(str(served)).predict(pd.DataFrame({"image": list(images)}))
    assert (
        answer["cluster"].tolist()
        == Predictor.load(toy_run.results).predict(images).cluster.tolist()
    )


def run_check(check: Object, env: dict[str, str], served: Path) -> subprocess.CompletedProcess[str]:
    """What the init container does, except that it writes to `served`."""
    script = check["args"][0].replace(SERVED, str(served))
    return subprocess.run(
        [sys.executable, *check["command"][1:], script],
        env=os.environ | env | {"HOME": str(served.parent)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_check_ends_with_one_line_where_there_is_no_model(
    overlays: dict[str, list[Object]], tmp_path: Path
) -> None:
    (service,) = of_kind(overlays["serving"], "InferenceService")
    (check,) = service["spec"]["predictor"]["initContainers"]
    uri = "http://127.0.0.1:9"
    env = environment(overlays["serving"], check) | {"MLFLOW_TRACKING_URI": uri}
    done = run_check(check, env, tmp_path / "model")
    assert done.returncode == 1
    assert done.stderr.startswith(f"vitdc: MLflow at {uri} cannot be used")
    assert len(done.stderr.splitlines()) == 1


def test_the_model_is_reached_by_those_who_use_it_and_reaches_mlflow(
    overlays: dict[str, list[Object]],
) -> None:
    objects, model, mlflow = overlays["serving"], *map(Pod.called, ("model", "mlflow"))
    user = Pod("elsewhere", {"vitdc/uses-model": "true"})
    for call in (
        (model, mlflow, 5000),
        (Pod("istio-system", {}), model, 8080),
        (user, model, 8080),
        (model, Pod("kube-system", {"k8s-app": "kube-dns"}), 53),
    ):
        assert allowed(objects, *call), call
    for call in (
        (Pod("elsewhere", {}), model, 8080),
        (Pod("istio-system", {}), mlflow, 5000),
        (user, mlflow, 5000),
        (model, Pod.called("postgres"), 5432),
        (model, Pod.called("s3"), 8333),
        (model, user, 443),
    ):
        assert not allowed(objects, *call), call


# ------------------------------------------------------------------------ namespaces and rights


def test_the_services_get_a_restricted_namespace_and_the_runs_none(objects: list[Object]) -> None:
    (namespace,) = of_kind(objects, "Namespace")
    assert namespace["metadata"]["name"] == "vitdc"
    for mode in ("enforce", "audit", "warn"):
        key = f"pod-security.kubernetes.io/{mode}"
        assert namespace["metadata"]["labels"][key] == "restricted"
        assert namespace["metadata"]["labels"][f"{key}-version"] == f"v{VERSIONS[0]}"


def test_the_quota_has_room_for_all_pods_of_the_services(objects: list[Object]) -> None:
    (hard,) = (
        each["spec"]["hard"]
        for each in of_kind(objects, "ResourceQuota")
        if each["metadata"]["namespace"] == "vitdc"
    )
    totals = {"requests.cpu": 0.0, "requests.memory": 0.0, "limits.cpu": 0.0, "limits.memory": 0.0}
    for workload in workloads(objects):
        if workload.namespace == "vitdc":
            for key in totals:
                kind, resource = key.split(".")
                # twice: while a new pod replaces an old one, and for two replicas
                totals[key] += 2 * sum(
                    quantity(container["resources"][kind][resource])
                    for container in workload.containers
                )
    for key, total in totals.items():
        assert total <= quantity(hard[key]), key


def quantity(text: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(m|Mi|Gi|)", str(text)).groups()  # type: ignore[union-attr]
    return float(number) * {"m": 1e-3, "": 1.0, "Mi": 2.0**20, "Gi": 2.0**30}[unit]


def test_the_run_namespace_has_what_the_tasks_know_by_name(objects: list[Object]) -> None:
    account = named(objects, "ServiceAccount", "vitdc-runner")
    runs = account["metadata"]["namespace"]
    wanted = {
        "vitdc-endpoints": {"MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION"},
        "vitdc-s3": {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"},
        "vitdc-mlflow": {"MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"},
    }
    found = {
        each["metadata"]["name"]: set(each["data"])
        for each in of_kind(objects, "ConfigMap", "Secret")
        if each["metadata"]["namespace"] == runs and "data" in each
    }
    assert found == wanted
    (claim,) = of_kind(objects, "PersistentVolumeClaim")
    assert (claim["metadata"]["namespace"], claim["metadata"]["name"]) == (runs, "vitdc-scratch")


def test_the_scratch_volume_is_given_to_the_group_of_the_tasks(objects: list[Object]) -> None:
    pod = named(objects, "Job", "vitdc-scratch")["spec"]["template"]["spec"]
    security = pod["securityContext"]
    assert (security["runAsUser"], security["runAsGroup"], security["fsGroup"]) == (10001,) * 3


def test_the_runs_namespace_is_set_in_one_place(overlays: dict[str, list[Object]]) -> None:
    namespaces = {each["metadata"].get("namespace") for each in overlays["profile"]}
    assert namespaces == {None, "vitdc", "team-a"}  # None: the Namespace itself
    for binding in of_kind(overlays["profile"], "RoleBinding"):
        assert {subject["namespace"] for subject in binding["subjects"]} == {"team-a"}


def test_every_role_names_what_it_grants(objects: list[Object]) -> None:
    for role in of_kind(objects, "Role", "ClusterRole"):
        for rule in role["rules"]:
            granted = set(rule["apiGroups"] + rule["resources"] + rule["verbs"])
            assert "*" not in granted
            if granted & {"secrets", "configmaps"}:
                assert rule["resourceNames"], role["metadata"]["name"]
                assert rule["verbs"] == ["get"]
            assert not granted & {"pods", "pods/exec", "pods/log"}
    roles = {(r["metadata"]["namespace"], r["metadata"]["name"]) for r in of_kind(objects, "Role")}
    for binding in of_kind(objects, "RoleBinding"):
        role = (binding["metadata"]["namespace"], binding["roleRef"]["name"])
        assert role in roles or binding["roleRef"]["name"] == "kubeflow-pipelines-edit"
    assert not of_kind(objects, "ClusterRole", "ClusterRoleBinding")


def test_the_tasks_are_no_administrators(overlays: dict[str, list[Object]]) -> None:
    objects = overlays["local"]
    administrator = decoded(named(objects, "Secret", "mlflow"))
    runner = decoded(named(objects, "Secret", "vitdc-mlflow"))
    assert runner["MLFLOW_TRACKING_USERNAME"] != administrator["MLFLOW_AUTH_ADMIN_USERNAME"]
    s3 = json.loads(decoded(named(objects, "Secret", "s3-identities"))["identities.json"])
    key = decoded(named(objects, "Secret", "vitdc-s3"))["AWS_ACCESS_KEY_ID"]
    (identity,) = (i for i in s3["identities"] if i["credentials"][0]["accessKey"] == key)
    assert all(action.endswith(":vitdc") for action in identity["actions"])


# ------------------------------------------------------------------------------------- network


class Pod(NamedTuple):
    namespace: str
    labels: dict[str, str]

    @classmethod
    def called(cls, name: str, namespace: str = "vitdc") -> Pod:
        return cls(namespace, {"app.kubernetes.io/name": name})


def task(objects: list[Object]) -> Pod:
    """A pod of a run, as the pipeline labels it."""
    namespace = named(objects, "ServiceAccount", "vitdc-runner")["metadata"]["namespace"]
    return Pod(namespace, {"app.kubernetes.io/part-of": "vitdc"})


def matches(selector: Object, labels: dict[str, str]) -> bool:
    return all(labels.get(k) == v for k, v in selector.get("matchLabels", {}).items()) and all(
        each["key"] in labels
        if each["operator"] == "Exists"
        else labels.get(each["key"]) in each["values"]
        for each in selector.get("matchExpressions", [])
    )


def one_way(policies: list[Object], direction: str, pod: Pod, peer: Pod, port: int) -> bool:
    """Whether the policies that select a pod let it talk to (egress) or hear (ingress) a peer."""
    selecting = [
        policy
        for policy in policies
        if policy["metadata"]["namespace"] == pod.namespace
        and matches(policy["spec"]["podSelector"], pod.labels)
        and direction.capitalize() in policy["spec"]["policyTypes"]
    ]
    if not selecting:
        return True
    side = {"ingress": "from", "egress": "to"}[direction]
    return any(
        port in {each["port"] for each in rule["ports"]}
        and any(peer_matches(each, policy, peer) for each in rule[side])
        for policy in selecting
        for rule in policy["spec"].get(direction, [])
    )


def peer_matches(selector: Object, policy: Object, peer: Pod) -> bool:
    if "ipBlock" in selector:
        return False  # addresses outside of the cluster, and of the Kubernetes API
    if "namespaceSelector" in selector:
        labels = {"kubernetes.io/metadata.name": peer.namespace}
        if not matches(selector["namespaceSelector"], labels):
            return False
    elif peer.namespace != policy["metadata"]["namespace"]:
        return False
    return matches(selector.get("podSelector", {}), peer.labels)


def allowed(objects: list[Object], source: Pod, target: Pod, port: int) -> bool:
    policies = of_kind(objects, "NetworkPolicy")
    return one_way(policies, "egress", source, target, port) and one_way(
        policies, "ingress", target, source, port
    )


def test_the_services_namespace_denies_by_default(objects: list[Object]) -> None:
    spec = named(objects, "NetworkPolicy", "default-deny")["spec"]
    assert spec == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_the_run_namespaces_policies_select_only_the_pods_of_vitdc(objects: list[Object]) -> None:
    policies = of_kind(objects, "NetworkPolicy")
    runs = task(objects)
    ours = [p for p in policies if p["metadata"]["namespace"] == runs.namespace]
    assert ours
    for policy in ours:
        assert policy["spec"]["podSelector"] == {"matchLabels": runs.labels}
    stranger, anybody = Pod(runs.namespace, {"app": "ml-pipeline"}), Pod("elsewhere", {})
    assert allowed(objects, stranger, anybody, 443)
    assert not allowed(objects, runs, anybody, 443)
    assert not allowed(objects, stranger, runs, 8080)


def test_every_call_that_is_made_is_let_through(objects: list[Object]) -> None:
    runs, mlflow = task(objects), Pod.called("mlflow")
    calls = [
        (runs, mlflow, 5000),
        (Pod.called("mlflow-user"), mlflow, 5000),
        (runs, Pod("kubeflow", {"app": "ml-pipeline"}), 8887),
        (runs, Pod("kubeflow", {"app": "ml-pipeline"}), 8888),
        (runs, Pod("kubeflow", {"component": "metadata-grpc-server"}), 8080),
        (runs, Pod("kubeflow", {"app": "seaweedfs"}), 8333),
    ]
    if any(service["metadata"]["name"] == "s3" for service in of_kind(objects, "Service")):
        calls += [
            (mlflow, Pod.called("postgres"), 5432),
            (mlflow, Pod.called("s3"), 8333),
            (Pod.called("s3-buckets"), Pod.called("s3"), 8333),
            (runs, Pod.called("s3"), 8333),
        ]
    else:
        calls += [(Pod("ingress-nginx", {}), mlflow, 5000)]
    dns = Pod("kube-system", {"k8s-app": "kube-dns"})
    calls += [(source, dns, 53) for source, _, _ in calls if source.namespace != "ingress-nginx"]
    assert not [call for call in calls if not allowed(objects, *call)]


def test_no_other_call_is_let_through(objects: list[Object]) -> None:
    runs, mlflow, postgres, s3 = task(objects), *map(Pod.called, ("mlflow", "postgres", "s3"))
    stranger = Pod("default", {})
    calls = [
        (runs, postgres, 5432),
        (runs, mlflow, 22),
        (runs, Pod("kubeflow", {"app": "mysql"}), 3306),
        (stranger, mlflow, 5000),
        (stranger, s3, 8333),
        (Pod(runs.namespace, {}), mlflow, 5000),
        (Pod("elsewhere", runs.labels), mlflow, 5000),
        (Pod("elsewhere", runs.labels), s3, 8333),
        (s3, postgres, 5432),
        (mlflow, s3, 9333),
        (mlflow, stranger, 443),
        (Pod.called("mlflow-user"), postgres, 5432),
    ]
    assert not [call for call in calls if allowed(objects, *call)]


def test_kfps_own_plugin_reaches_mlflow_where_it_is_switched_on(
    overlays: dict[str, list[Object]],
) -> None:
    api, mlflow = Pod("kubeflow", {"app": "ml-pipeline"}), Pod.called("mlflow")
    driver = Pod("kubeflow", {"pipeline/runid": "8a3f"})
    for objects, reached in ((overlays["local"], False), (overlays["serving"], True)):
        for pod in (api, driver):
            assert allowed(objects, pod, mlflow, 5000) is reached
            assert not allowed(objects, pod, Pod.called("postgres"), 5432)


def test_addresses_outside_are_reached_on_the_ports_of_s3_and_postgresql_only(
    overlays: dict[str, list[Object]],
) -> None:
    def open_to_all(objects: list[Object]) -> dict[str, set[int]]:
        return {
            policy["metadata"]["name"]: {port["port"] for port in rule["ports"]}
            for policy in of_kind(objects, "NetworkPolicy")
            for rule in policy["spec"].get("egress", [])
            if any(peer.get("ipBlock", {}).get("cidr") == "0.0.0.0/0" for peer in rule["to"])
        }

    assert open_to_all(overlays["local"]) == {}
    assert open_to_all(overlays["profile"]) == {"vitdc-tasks-downloads": {443}}
    assert open_to_all(overlays["production"]) == {
        "mlflow-to-outside": {5432, 443},
        "vitdc-tasks-to-outside": {443},
    }


def test_the_endpoints_of_the_tasks_are_services_mlflow_answers_for(objects: list[Object]) -> None:
    endpoints = named(objects, "ConfigMap", "vitdc-endpoints")["data"]
    hosts = named(objects, "ConfigMap", "mlflow")["data"]["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    assert endpoints["MLFLOW_TRACKING_URI"].removeprefix("http://") in hosts
    assert not any(host.startswith("*") for host in hosts)
    for url in endpoints.values():
        if match := re.fullmatch(r"http://([a-z0-9]+)\.vitdc\.svc:(\d+)", url):
            ports = named(objects, "Service", match[1])["spec"]["ports"]
            assert int(match[2]) in {port["port"] for port in ports}


# ------------------------------------------------------------------------------------- secrets


def test_no_secret_is_in_git(tmp_path: Path) -> None:
    k8s = copy(tmp_path)
    before = set(k8s.rglob("*"))
    for overlay in ("local", "production"):
        make_secrets(k8s, overlay)
    made = [str(path.relative_to(tmp_path)) for path in set(k8s.rglob("*")) - before]
    assert len(made) > 10
    git = ["git", "-C", str(ROOT)]
    ignored = subprocess.run(
        [*git, "check-ignore", "--no-index", *made], capture_output=True, text=True, check=False
    )
    assert sorted(ignored.stdout.split()) == sorted(made)
    tracked = subprocess.run(
        [*git, "ls-files", "k8s"], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not set(tracked) & set(made)


def test_the_templates_of_secrets_hold_no_secret() -> None:
    templates = list((ROOT / "k8s").rglob("*.example"))
    for template in templates:
        for line in template.read_text().splitlines():
            if match := re.search(r'(?i)(?:password|secret_?\w*key)"?\s*[=:]\s*"?([^",}]+)', line):
                assert re.fullmatch(r"@[a-z0-9-]+@|<.*>", match[1]), f"{template}: {line}"
    assert templates


def test_make_secrets_gives_the_same_secret_everywhere_and_another_one_to_everybody(
    tmp_path: Path, overlays: dict[str, list[Object]]
) -> None:
    passwords = set()
    for objects in (overlays["local"], overlays["production"]):
        runner = decoded(named(objects, "Secret", "runner"))
        assert decoded(named(objects, "Secret", "vitdc-mlflow")) == runner
        passwords.add(runner["MLFLOW_TRACKING_PASSWORD"])
        passwords.add(decoded(named(objects, "Secret", "mlflow"))["MLFLOW_AUTH_ADMIN_PASSWORD"])
    assert len(passwords) == 4
    assert all(re.fullmatch("[0-9a-f]{48}", password) for password in passwords)

    local = overlays["local"]
    identities = json.loads(decoded(named(local, "Secret", "s3-identities"))["identities.json"])
    keys = {tuple(i["credentials"][0].values()) for i in identities["identities"]}
    files = [decoded(named(local, "Secret", name)) for name in ("s3", "s3-admin", "vitdc-s3")]
    assert keys == {(file["AWS_ACCESS_KEY_ID"], file["AWS_SECRET_ACCESS_KEY"]) for file in files}
    assert len({secret for _, secret in keys}) == 3


def test_make_secrets_overwrites_nothing(tmp_path: Path) -> None:
    k8s = copy(tmp_path)
    kept = k8s / "overlays" / "local" / "services" / "s3.env"
    kept.write_text("mine")
    done = make_secrets(k8s, "local")
    assert done.returncode == 2
    assert "k8s/overlays/local/services/s3.env is there already" in done.stderr
    assert [path.name for path in k8s.rglob("*.env")] == ["s3.env"]
    assert kept.read_text() == "mine"


def test_make_secrets_says_what_is_left_to_fill_in_and_keeps_others_out(tmp_path: Path) -> None:
    k8s = copy(tmp_path)
    assert "<" not in make_secrets(k8s, "local").stdout
    assert "production/services/database.env" in make_secrets(k8s, "production").stdout
    assert all(path.stat().st_mode & 0o077 == 0 for path in k8s.rglob("*.env"))
    assert make_secrets(k8s, "nonsense").returncode == 2


def test_without_the_secrets_kustomize_names_the_missing_file(tmp_path: Path) -> None:
    overlay = copy(tmp_path) / "overlays" / "local"
    command = [servers.tool("kubectl"), "kustomize", overlay]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert ".env" in done.stderr


# ---------------------------------------------------------------------- the services themselves


def environment(objects: list[Object], container: Object) -> dict[str, str]:
    """What the kubelet would give to a container."""
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        if "configMapRef" in source:
            found |= named(objects, "ConfigMap", source["configMapRef"]["name"])["data"]
        else:
            found |= decoded(named(objects, "Secret", source["secretRef"]["name"]))
    for variable in container.get("env", []):
        if "value" in variable:
            found[variable["name"]] = variable["value"]
        else:
            reference = variable["valueFrom"]["secretKeyRef"]
            secret = decoded(named(objects, "Secret", reference["name"]))
            found[variable["name"]] = secret[reference["key"]]
    return found


def container_of(objects: list[Object], kind: str, name: str) -> Object:
    (container,) = named(objects, kind, name)["spec"]["template"]["spec"]["containers"]
    return container


@pytest.fixture(scope="module")
def postgresql(overlays: dict[str, list[Object]]) -> Iterator[dict[str, str]]:
    """PostgreSQL, initialised by the manifests' script. Yields PGHOST and PGPORT."""
    objects = overlays["local"]
    env = environment(objects, container_of(objects, "StatefulSet", "postgres"))
    script = named(objects, "ConfigMap", "postgres-init")["data"]["make_database.sh"]
    with servers.postgresql(env["POSTGRES_INITDB_ARGS"].split()) as database:
        database.run_script(script, env)
        yield database.client_environment


@pytest.fixture(scope="module")
def s3(
    overlays: dict[str, list[Object]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The S3 store with the manifests' arguments and buckets. Yields its address."""
    objects = overlays["local"]
    (identities,) = decoded(named(objects, "Secret", "s3-identities")).values()
    arguments = container_of(objects, "StatefulSet", "s3")["args"]
    folder = tmp_path_factory.mktemp("s3")
    admin = s3_identity(named(objects, "Secret", "s3-admin"))
    with servers.s3_store(
        folder, identities=identities, administrator=admin, arguments=arguments
    ) as store:
        make_buckets(objects, store.endpoint_url)
        make_buckets(objects, store.endpoint_url)  # which a Job may do twice
        yield store.endpoint_url


def make_buckets(objects: list[Object], url: str) -> None:
    container = container_of(objects, "Job", "s3-buckets")
    script = named(objects, "ConfigMap", "s3-files")["data"]["make_buckets.py"]
    command = [sys.executable, "-c", script, *container["command"][2:]]
    env = os.environ | environment(objects, container) | {"AWS_ENDPOINT_URL": url}
    for _ in range(20):  # the Job's backoffLimit
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
        time.sleep(0.5)
    raise AssertionError(done.stderr)


def s3_identity(secret: Object) -> servers.S3Identity:
    values = decoded(secret)
    return servers.S3Identity(values["AWS_ACCESS_KEY_ID"], values["AWS_SECRET_ACCESS_KEY"])


@pytest.fixture(scope="module")
def mlflow_server(
    overlays: dict[str, list[Object]],
    postgresql: dict[str, str],
    s3: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    """MLflow by the manifests' command line and environment. Yields its address."""
    folder, objects = tmp_path_factory.mktemp("mlflow"), overlays["local"]
    container = container_of(objects, "Deployment", "mlflow")
    for name, content in named(objects, "ConfigMap", "mlflow-files")["data"].items():
        (folder / name).write_text(content)
    env = {**environment(objects, container), **postgresql, "HOME": str(folder)}
    env |= {"AWS_ENDPOINT_URL": s3, "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini")}
    assert container["command"] == ["mlflow", "server"]
    with servers.mlflow_server(folder, arguments=container["args"], env=env) as mlflow:
        yield mlflow.uri


def make_user(objects: list[Object], url: str) -> None:
    env = os.environ | environment(objects, container_of(objects, "Job", "mlflow-user"))
    script = named(objects, "ConfigMap", "mlflow-files")["data"]["make_user.py"]
    command = [sys.executable, "-W", "ignore", "-c", script]
    subprocess.run(command, env=env | {"MLFLOW_TRACKING_URI": url}, check=True)


def test_a_task_records_a_run_and_an_artifact_and_may_do_no_more(
    overlays: dict[str, list[Object]],
    mlflow_server: str,
    s3: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    objects = overlays["local"]
    search = f"{mlflow_server}/api/2.0/mlflow/experiments/search?max_results=9"
    administrator = decoded(named(objects, "Secret", "mlflow"))
    admin = tuple(administrator[f"MLFLOW_AUTH_ADMIN_{x}"] for x in ("USERNAME", "PASSWORD"))
    assert requests.get(search, timeout=60).status_code == 401
    assert requests.get(search, auth=(admin[0], "wrong"), timeout=60).status_code == 401
    assert requests.get(search, auth=admin, timeout=60).status_code == 200
    evil = {"Host": "evil.example.org"}
    assert requests.get(search, auth=admin, headers=evil, timeout=60).status_code == 403
    for host in ("mlflow.vitdc.svc:5000", "mlflow.vitdc.svc.cluster.local:5000"):
        inside = {"Host": host}
        assert requests.get(search, auth=admin, headers=inside, timeout=60).status_code == 200
    assert requests.get(f"{mlflow_server}/health", headers=evil, timeout=60).status_code == 200

    make_user(objects, mlflow_server)
    make_user(objects, mlflow_server)  # which a Job may do twice
    user = decoded(named(objects, "Secret", "vitdc-mlflow"))
    for name, value in user.items():
        monkeypatch.setenv(name, value)
    from mlflow import MlflowClient  # seconds, which the other tests need not wait

    client = MlflowClient(tracking_uri=mlflow_server)
    run = client.create_run(client.create_experiment("test"))
    client.log_metric(run.info.run_id, "nmi", 0.5)
    client.log_text(run.info.run_id, "text", "report/text.txt")
    assert client.get_run(run.info.run_id).data.metrics == {"nmi": 0.5}
    assert [a.path for a in client.list_artifacts(run.info.run_id)] == ["report"]

    users = f"{mlflow_server}/api/2.0/mlflow/users/create"
    eve = {"username": "eve", "password": "long enough it is"}
    login = (user["MLFLOW_TRACKING_USERNAME"], user["MLFLOW_TRACKING_PASSWORD"])
    assert requests.post(users, json=eve, auth=login, timeout=60).status_code == 403

    stored = s3_identity(named(objects, "Secret", "s3")).client(s3).list_objects_v2(Bucket="mlflow")
    (artifact,) = stored["Contents"]
    assert artifact["Key"].endswith(f"{run.info.run_id}/artifacts/report/text.txt")
    tasks = s3_identity(named(objects, "Secret", "vitdc-s3")).client(s3)
    tasks.put_object(Bucket="vitdc", Key="data", Body=b"image")
    for refused in (
        lambda: tasks.get_object(Bucket="mlflow", Key=artifact["Key"]),
        lambda: tasks.create_bucket(Bucket="another"),
    ):
        with pytest.raises(botocore.exceptions.ClientError, match="AccessDenied"):
            refused()
