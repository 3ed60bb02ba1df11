"""The cluster that the tests of this folder use: kubectl, the command line, MLflow."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from mlflow import MlflowClient
from mlflow.entities import Run

from pipelines.cluster import Cluster as Kubeflow
from vitdc.tracking.naming import PIPELINE_STATE_TAG
from vitdc.tracking.record import find_run

ROOT = Path(__file__).parents[2]
SERVICES = "vitdc"  # the namespace of MLflow, PostgreSQL and the S3 store
ENDED = ("SUCCEEDED", "FAILED", "CANCELED")

Object = dict[str, Any]


def wait_for(condition: Callable[[], Any], *, what: str, seconds: float = 600) -> Any:
    """What the condition gives as soon as it is true; asked every second."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"after {seconds:.0f} s: no {what}"
        time.sleep(1)
    return found


def kubectl(*arguments: object, stdin: str | None = None) -> str:
    """What kubectl prints, on the cluster of KUBECONFIG."""
    done = subprocess.run(
        ["kubectl", *map(str, arguments)], input=stdin, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"kubectl {' '.join(map(str, arguments))}: {done.stderr}"
    return done.stdout


def objects(kind: str, *options: str) -> list[Object]:
    return list(json.loads(kubectl("get", kind, "--output=json", *options))["items"])


@contextmanager
def forwarded(namespace: str, service: str, port: int) -> Iterator[str]:
    """The address of a service on this machine, as `kubectl port-forward` makes it."""
    command = ["kubectl", "-n", namespace, "port-forward", f"service/{service}", f":{port}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            found = re.match(r"Forwarding from 127\.0\.0\.1:(\d+)", line)
            assert found, f"{' '.join(command)}: {line}"
            yield f"http://127.0.0.1:{found[1]}"
        finally:
            process.terminate()


def decoded(value: str) -> str:
    """A value of a Secret."""
    return base64.b64decode(value).decode()


class Overlay(NamedTuple):
    """What `kubectl apply -k k8s/overlays/local` made, in a copy of k8s/."""

    folder: Path
    ours: bool

    def run(self, commands: list[str]) -> None:
        for command in commands:
            subprocess.run(["bash", "-euc", command], cwd=self.folder, check=True)

    def apply(self) -> None:
        self.run(readme("kubectl apply -k k8s/overlays/local"))

    def wait(self, runs: str) -> None:
        """Until everything is ready; `runs` is the namespace of the runs."""
        commands = readme(
            "kubectl -n vitdc wait --for=condition=available",
            "kubectl -n vitdc wait --for=condition=complete",
            "kubectl -n kubeflow wait --for=condition=complete",
        )
        self.run([command.replace("-n kubeflow", f"-n {runs}") for command in commands])

    def set_image(self, image: str) -> None:
        """Do as the README says: write the image's name into the overlay."""
        name, tag, digest = re.fullmatch(r"(.+?)(?::([^:/@]+))?(?:@(.+))?", image).groups()  # type: ignore[union-attr]
        chosen = {"digest": digest} if digest else {"newTag": tag or "latest"}
        file = self.folder / "k8s" / "overlays" / "local" / "kustomization.yaml"
        kustomization = yaml.safe_load(file.read_text())
        kustomization["images"] = [{"name": "vitdc", "newName": name, **chosen}]
        file.write_text(yaml.safe_dump(kustomization))


def readme(*starts: str) -> list[str]:
    """The commands of k8s/README.md that start with one of these, in its order."""
    lines = map(str.strip, (ROOT / "k8s" / "README.md").read_text().splitlines())
    found = [re.sub(r" +#.*", "", line) for line in lines if line.startswith(starts)]
    assert found, f"k8s/README.md has no command {' or '.join(starts)}"
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Cluster:
    """A Kubernetes with Kubeflow Pipelines.

    Attributes:
        kubeflow: The API, for what the command line has no command.
        image: The image under test.
        namespace: Where runs are.
        session: What the names of everything that is made here start with.
        folder: Where commands are started; it has the `params.yaml` of the demo.
    """

    kubeflow: Kubeflow
    image: str
    namespace: str
    session: str
    folder: Path

    def pipelines(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start `python -m pipelines`; what it says goes to one pipe."""
        return subprocess.Popen(
            [sys.executable, "-m", "pipelines", *arguments],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **options,
        )

    def start(self, name: str, *overrides: str, options: tuple[str, ...] = ()) -> Submission:
        """`submit`, in this session's experiments of Kubeflow and MLflow."""
        process = self.pipelines(
            "submit", f"--image={self.image}", f"--run-name={self.session} {name}",
            f"--experiment={self.session}", *options, *(f"-S{each}" for each in overrides),
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        return Submission(self, process, [])

    def submit(self, name: str, *overrides: str, options: tuple[str, ...] = ()) -> PipelineRun:
        """A run that was started and is not waited for."""
        submission = self.start(name, *overrides, options=options)
        run = submission.run()
        assert submission.process.wait(60) == 0, submission.text()
        return run

    def in_a_pod(
        self, name: str, script: str, *, claim: str = "", files: Path | None = None
    ) -> str:
        """What a shell script prints in a pod of the image.

        Args:
            name: Of the pod.
            script: For `sh -c`.
            claim: A volume claim that is mounted at /scratch.
            files: A file that is in /files.
        """
        name = f"{self.session}-{name}"
        in_runs = ("-n", self.namespace)
        volumes: list[Object] = [{"name": "tmp", "emptyDir": {}}]
        mounts = [{"name": "tmp", "mountPath": "/tmp"}]  # noqa: S108
        if claim:
            volumes.append({"name": "scratch", "persistentVolumeClaim": {"claimName": claim}})
            mounts.append({"name": "scratch", "mountPath": "/scratch"})
        if files:
            kubectl(*in_runs, "create", "configmap", name, f"--from-file={files}")
            volumes.append({"name": "files", "configMap": {"name": name}})
            mounts.append({"name": "files", "mountPath": "/files"})
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name},
            "spec": {
                "restartPolicy": "Never",
                "containers": [{
                    "name": "main", "image": self.image, "imagePullPolicy": "IfNotPresent",
                    "command": ["sh", "-c", script], "volumeMounts": mounts,
                }],
                "volumes": volumes,
            },
        }  # fmt: skip
        kubectl(*in_runs, "create", "-f", "-", stdin=json.dumps(pod))
        try:
            phase = wait_for(lambda: self._phase(name), what=f"end of pod {name}", seconds=1200)
            said = kubectl(*in_runs, "logs", name)
            assert phase == "Succeeded", said
            return said
        finally:
            kubectl(*in_runs, "delete", "--ignore-not-found", f"pod/{name}", f"configmap/{name}")

    def _phase(self, pod: str) -> str:
        """How a pod has ended; empty while it has not."""
        path = "--output=jsonpath={.status.phase}"
        phase = kubectl("-n", self.namespace, "get", "pod", pod, path)
        return phase if phase in ("Succeeded", "Failed") else ""


@dataclass(frozen=True)
class Submission:
    """A `submit` that goes on."""

    cluster: Cluster
    process: subprocess.Popen[str]
    lines: list[str]

    def read(self) -> str:
        """The next line it says; empty at its end."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        self.lines.append(line)
        return line

    def text(self) -> str:
        """All that it says, to its end."""
        while self.read():
            pass
        return "".join(self.lines)

    def run(self) -> PipelineRun:
        """The run that it has started."""
        while line := self.read():
            if found := re.search(r"#/runs/details/([\w-]+)", line):
                return PipelineRun(self.cluster, found[1])
        raise AssertionError("".join(self.lines))


@dataclass(frozen=True)
class PipelineRun:
    """A run of the pipeline on the cluster."""

    cluster: Cluster
    run_id: str

    def state(self) -> str:
        return str(self.cluster.kubeflow.client.get_run(self.run_id).state)

    def wait(self, *, seconds: float = 2400) -> str:
        """Wait for the end; gives the state."""
        wait_for(lambda: self.state() in ENDED, what=f"end of run {self.run_id}", seconds=seconds)
        return self.state()

    def terminate(self) -> None:
        self.cluster.kubeflow.client.terminate_run(self.run_id)

    def pods(self, component: str = "") -> list[Object]:
        """The pods of its tasks, KFP's drivers apart; all, or those of one component."""
        labels = f"pipeline/runid={self.run_id},app.kubernetes.io/part-of=vitdc"
        found = objects("pods", "-n", self.cluster.namespace, "-l", labels)
        return [pod for pod in found if component in ("", component_of(pod))]

    def running(self, component: str) -> str:
        """Wait for a pod of a component that runs; gives its name."""

        def look() -> str:
            for pod in self.pods(component):
                if (
                    pod["status"]["phase"] == "Running"
                    and "deletionTimestamp" not in pod["metadata"]
                ):
                    return str(pod["metadata"]["name"])
            assert self.state() not in ENDED, f"run {self.run_id} has ended"
            return ""

        return str(wait_for(look, what=f"running {component} in run {self.run_id}", seconds=1200))

    def record(self, mlflow: MlflowClient) -> Run:
        """The MLflow run that this pipeline run fills."""
        experiments = [str(each.experiment_id) for each in mlflow.search_experiments()]
        found = find_run(mlflow, experiments, f"{PIPELINE_STATE_TAG}{self.run_id}")
        assert found, f"MLflow knows no pipeline run {self.run_id}"
        return found


def component_of(pod: Object) -> str:
    """The component that a task's pod runs."""
    (main,) = (each for each in pod["spec"]["containers"] if each["name"] == "main")
    words = main.get("command", []) + main.get("args", [])
    return str(words[words.index("--function_to_execute") + 1])
