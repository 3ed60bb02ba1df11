"""What the bodies of the components share."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from toys import ToyRun

from vitdc import code, kubeflow
from vitdc.artifacts import Checkpoint, Clustering, Dataset, Evaluation, Round
from vitdc.errors import InputError, TrainingError
from vitdc.metrics import majority_confusion


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


def test_sections_come_as_doubles_and_leave_as_what_they_are() -> None:
    found = kubeflow.sections(joint={"epochs": 3.0, "rotate": 10.0}, clustering={})
    assert found["joint"].epochs == 3
    assert set(found) == {"joint", "clustering"}
    with pytest.raises(InputError, match=r"the pipeline's parameters: joint\.epochs"):
        kubeflow.sections(joint={"epochs": 3.5})


def test_a_pipeline_ends_after_the_rounds_it_was_compiled_for() -> None:
    assert kubeflow.capped({"max_rounds": 10.0}, 3)["max_rounds"] == 3
    assert kubeflow.capped({"max_rounds": 2.0}, 3)["max_rounds"] == 2


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
        assert len(output.metadata["sha256"]) == 64
        assert output.metadata["summary"]
        json.dumps(output.metadata)


def test_metrics_are_shown_and_written(toy_run: ToyRun, tmp_path: Path) -> None:
    output = artifact(tmp_path / "metrics")
    kubeflow.log_metrics(output, Clustering.load(toy_run.paths(1).clustering))
    assert 0 <= output.metadata["nmi_test"] <= 1
    assert json.loads((tmp_path / "metrics").read_text()) == output.metadata


def test_a_cluster_counts_as_the_class_of_most_of_its_images() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2, -1])
    assignment = np.array([3, 3, 1, 1, 1, 0, 2])
    confusion = majority_confusion(labels, assignment, num_classes=3, num_clusters=4)
    assert confusion.tolist() == [[2, 1, 0], [0, 2, 0], [0, 0, 1]]
