"""What the bodies of the components share."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kubernetes_api
import numpy as np
import pytest
from kubernetes_api import WORKFLOWS, make_workflow, task_nodes
from toys import ToyRun

from vitdc import code, kubeflow, workflow
from vitdc.artifacts import Checkpoint, Clustering, Dataset, Evaluation, Round
from vitdc.code import code_version
from vitdc.config import Params
from vitdc.errors import InputError, TrainingError
from vitdc.metrics import majority_confusion

KILLED = "main: OOMKilled (exit code 137)"


def artifact(path: Path) -> Any:
    return SimpleNamespace(path=str(path), metadata={})


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `reporting` sets for the life of a task ends with the test."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")


@pytest.mark.parametrize(
    ("error", "exit_code"), [(InputError("bad"), 2), (TrainingError("bad"), 1)]
)
def test_the_last_line_of_a_failed_task_is_its_own_error(
    error: Exception, exit_code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught, kubeflow.reporting():
        raise error
    assert caught.value.code == exit_code
    assert capsys.readouterr().err.splitlines()[-1] == "vitdc: bad"


def test_other_code_than_the_pipeline_was_compiled_from_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with kubeflow.reporting(code.code_version()):
        pass
    with pytest.raises(SystemExit) as caught, kubeflow.reporting("0123456789abcdef"):
        raise AssertionError("the body must not run")
    assert caught.value.code == 2
    assert "holds other code" in capsys.readouterr().err


@pytest.mark.parametrize("plugin", ["", "http://plugin"])
def test_the_store_is_the_plugins_or_else_the_clusters(
    plugin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("URI", "USERNAME", "PASSWORD"):
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", "")  # so that it is as before afterwards
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}")
        monkeypatch.setenv(f"VITDC_TRACKING_{name}", f"our {name}")
    if plugin:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", plugin)
    with kubeflow.reporting():
        assert os.environ["MLFLOW_TRACKING_URI"] == (plugin or "our URI")
        assert os.environ.get("MLFLOW_TRACKING_USERNAME") == (None if plugin else "our USERNAME")
        assert os.environ.get("MLFLOW_TRACKING_PASSWORD") == (None if plugin else "our PASSWORD")


def test_settings_come_as_doubles_and_leave_as_what_they_are() -> None:
    settings = {"code": code_version(), "seed": 7.0, "joint": {"epochs": 3.0, "rotate": 10.0}}
    with kubeflow.configured({**settings, "record": "1/2"}) as config:
        assert config["joint"].epochs == 3
        assert (config["seed"], set(config)) == (7, {"seed", "joint"})


def test_wrong_settings_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"code": code_version(), "joint": {"epochs": 3.5}}
    with pytest.raises(SystemExit) as caught, kubeflow.configured(settings):
        pass
    assert caught.value.code == 2
    assert "the pipeline's parameters: joint.epochs" in capsys.readouterr().err


def test_a_task_is_given_the_settings_that_it_uses_and_no_others() -> None:
    changed = kubeflow.task_settings({"joint": {"gamma": 7.0}}, code="1", record="a/b")
    default = kubeflow.task_settings({}, code="1", record="a/b")
    assert {task for task in default if changed[task] != default[task]} == {"retrain", "check"}
    others = kubeflow.task_settings({}, code="1", record="c/d")
    assert {task for task in default if others[task] != default[task]} == {"check", "evaluate"}
    assert all(settings["code"] == "1" for settings in default.values())


def test_scratch_is_apart_for_every_run_of_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(kubeflow.SCRATCH_VARIABLE, raising=False)
    assert kubeflow.scratch() is None
    monkeypatch.setenv(kubeflow.SCRATCH_VARIABLE, "/scratch")
    assert kubeflow.scratch() == Path("/scratch")
    monkeypatch.setenv(kubeflow.RUN_VARIABLE, "run-1")
    assert kubeflow.scratch() == Path("/scratch/run-1")


def test_a_run_that_has_ended_leaves_no_scratch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for run in ("run-1", "run-2"):
        (tmp_path / run / "pretrain-0123").mkdir(parents=True)
    status = SimpleNamespace(state="FAILED", error_message="")
    parameters = {"tracking": {"enabled": False}}
    for volume in (None, tmp_path, tmp_path):  # the task may be tried again
        if volume:
            monkeypatch.setenv(kubeflow.SCRATCH_VARIABLE, str(volume))
        kubeflow.end_record(parameters, pipeline_run_id="run-1", status=status)
    assert [path.name for path in tmp_path.iterdir()] == ["run-2"]


def test_the_scratch_is_cleared_where_the_end_cannot_be_recorded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "run-1").mkdir()
    monkeypatch.setenv(kubeflow.SCRATCH_VARIABLE, str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense")
    with pytest.raises(InputError):
        kubeflow.end_record(
            {}, pipeline_run_id="run-1", status=SimpleNamespace(state="FAILED", error_message="")
        )
    assert not any(tmp_path.iterdir())


def test_artifacts_tell_the_ui_what_they_are(toy_run: ToyRun) -> None:
    paths = toy_run.paths(1)
    for made, path, expected in (
        (Dataset.load(toy_run.dataset), toy_run.dataset, {"training_images": 42, "classes": 3}),
        (Checkpoint.load(paths.checkpoint), paths.checkpoint, {"round": 1}),
        (Clustering.load(paths.clustering), paths.clustering, {"round": 1, "clusters": 3}),
        (Round.load(toy_run.round(2)), toy_run.round(2), {"verdict": "max-rounds"}),
        (Evaluation.load(toy_run.results), toy_run.results, {"stop_reason": "max-rounds"}),
    ):
        output = artifact(path)
        kubeflow.describe(output, made)
        assert output.metadata.items() >= expected.items()
        assert len(output.metadata["sha256"]) == 16
        assert output.metadata["summary"]
        json.dumps(output.metadata)


def test_metrics_are_shown_and_written(toy_run: ToyRun, tmp_path: Path) -> None:
    output = artifact(tmp_path / "metrics")
    kubeflow.log_metrics(output, Clustering.load(toy_run.paths(1).clustering))
    assert 0 <= output.metadata["nmi_test"] <= 1
    assert json.loads((tmp_path / "metrics").read_text()) == output.metadata


def test_a_result_without_labels_shows_its_silhouette_and_nothing_empty(toy_run: ToyRun) -> None:
    evaluation = Evaluation.load(toy_run.results)
    nothing = dict.fromkeys(("nmi", "ari", "acc"))
    metrics = {"rounds": 2, "best_round": 2, "stop_reason": "max-rounds", "loss": 0.5}
    metrics |= {"test": nothing, "train": nothing, "silhouette": 0.25}
    rows = [replace(row, nmi_train=None, nmi_test=None, acc_test=None) for row in evaluation.rows]
    output = artifact(toy_run.results)
    kubeflow.describe(output, replace(evaluation, metrics=metrics, rows=rows))
    assert output.metadata["silhouette"] == 0.25
    assert None not in output.metadata.values()
    assert "training images, silhouette" in output.metadata["summary"]
    assert "NMI" not in output.metadata["summary"]


def test_a_cluster_counts_as_the_class_of_most_of_its_images() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2, -1])
    assignment = np.array([3, 3, 1, 1, 1, 0, 2])
    confusion = majority_confusion(labels, assignment, num_classes=3, num_clusters=4)
    assert confusion.tolist() == [[2, 1, 0], [0, 2, 0], [0, 0, 1]]


def ended(run_id: str, state: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The reason that the exit handler records."""
    recorded: dict[str, str] = {}

    def record(params: Params, **said: str) -> str:
        recorded.update(said)
        return "FAILED"

    monkeypatch.setattr(kubeflow.tracking, "end_record", record)
    status = SimpleNamespace(state=state, error_message="")
    kubeflow.end_record({"seed": 0}, pipeline_run_id=run_id, status=status)
    return recorded["reason"]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[kubernetes_api.Kubernetes]:
    """The cluster that this process runs in."""
    (tmp_path / "namespace").write_text("kubeflow")
    with kubernetes_api.serve(kubernetes_api.Kubernetes()) as server:
        server.write_kubeconfig(tmp_path / "kubeconfig", "here")
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
        monkeypatch.setattr(workflow, "_NAMESPACE", tmp_path / "namespace")
        yield server


def test_the_record_of_a_failed_run_names_task_and_reason(
    cluster: kubernetes_api.Kubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = task_nodes("retrain (round 1)", "Succeeded", "Failed", message=KILLED, memory="256Mi")
    ending = task_nodes("record the end", "Succeeded", "Running")
    cluster.put(WORKFLOWS, make_workflow("run", killed, ending))
    assert ended("run", "FAILED", monkeypatch) == (
        "the run failed in retrain (round 1): killed: it needed more than 256Mi,"
        " kubernetes.resources.retrain.memory_limit"
    )
    cluster.requests.clear()
    ended("run", "COMPLETE", monkeypatch)
    assert not cluster.requests


def test_the_end_is_recorded_where_the_workflow_may_not_be_read(
    cluster: kubernetes_api.Kubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.forbidden = ("/workflows",)
    assert ended("run", "FAILED", monkeypatch) == "the pipeline ended as FAILED"
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST")
    assert ended("run", "FAILED", monkeypatch) == "the pipeline ended as FAILED"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (InputError("data.root: no\nimages"), r"data.root: no\nimages"),
        (ZeroDivisionError("x\ny"), "ZeroDivisionError: x y"),
    ],
)
def test_a_failed_task_leaves_its_reason_to_kubernetes(
    error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log = tmp_path / "termination-log"
    log.touch()
    monkeypatch.setattr(kubeflow, "TERMINATION_LOG", log)
    with pytest.raises((SystemExit, ZeroDivisionError)), kubeflow.reporting():
        raise error
    assert log.read_text() == reason
