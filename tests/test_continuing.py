"""Runs that go on where another ran out of room, submitted by the command line."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import kfp
import pytest
from kfp_api import Kubeflow, serve

from pipelines.cli import cli
from vitdc.errors import InputError

OVERRIDES = ("-S", "joint.gamma=0.3", "-S", "convergence.max_rounds=7")


@pytest.fixture
def kubeflow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Kubeflow]:
    monkeypatch.setattr(kfp.Client, "_LOCAL_KFP_CONTEXT", str(tmp_path / "context.json"))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "no-kubeconfig"))
    monkeypatch.chdir(Path(__file__).parent.parent)
    with serve() as server:
        yield server


def submit(kubeflow: Kubeflow, *arguments: str) -> None:
    cli.main(["submit", "--host", kubeflow.url, *arguments], standalone_mode=False)


def finish(kubeflow: Kubeflow, *tasks: str) -> None:
    """All runs end well, the named tasks of theirs too."""
    kubeflow.progress = [("SUCCEEDED", dict.fromkeys(tasks, "SUCCEEDED"))]
    for run in kubeflow.runs.values():
        run["state"] = "SUCCEEDED"


def names(kubeflow: Kubeflow, run: dict[str, Any]) -> set[str]:
    """What people see of a run's pipeline."""
    wanted = run["pipeline_version_reference"]["pipeline_version_id"]
    (version,) = (v for v in kubeflow.versions if v["pipeline_version_id"] == wanted)
    spec = version["pipeline_spec"]["pipeline_spec"]
    graphs = [part.get("dag", {}) for part in (spec["root"], *spec["components"].values())]
    return {task["taskInfo"]["name"] for dag in graphs for task in dag.get("tasks", {}).values()}


def test_a_run_is_continued_with_its_parameters_from_its_last_round(kubeflow: Kubeflow) -> None:
    submit(kubeflow, "--max-rounds", "2", *OVERRIDES)
    (first,) = kubeflow.runs.values()
    finish(kubeflow)
    submit(kubeflow, "--continue", first["run_id"], "--max-rounds", "3", "--image", "other:1")
    second = list(kubeflow.runs.values())[1]
    parameters = dict(second["runtime_config"]["parameters"])
    assert parameters.pop("continued_run_id") == first["run_id"]
    assert parameters == first["runtime_config"]["parameters"]
    assert parameters["joint"]["gamma"] == 0.3
    rounds = {name for name in names(kubeflow, second) if name.startswith("retrain")}
    assert rounds == {f"retrain (round {n})" for n in (3, 4, 5)}
    finish(kubeflow)
    submit(kubeflow, "--continue", second["run_id"])  # all that are left
    third = list(kubeflow.runs.values())[2]
    assert "evaluate (round 7, out of room)" in names(kubeflow, third)
    assert "retrain (round 5)" not in names(kubeflow, third)


def test_waiting_until_converged_continues_as_often_as_it_takes(
    kubeflow: Kubeflow, capsys: pytest.CaptureFixture[str]
) -> None:
    # by their keys in the specification; the first task of a name ends a run whose rounds ended
    full, ended = {"evaluate-3": "SUCCEEDED"}, {"evaluate-2": "SUCCEEDED"}
    kubeflow.progress = [("SUCCEEDED", tasks) for tasks in (full, full, ended)]
    options = ("--wait", "--until-converged", "--max-rounds", "2")
    submit(kubeflow, *options, *OVERRIDES)
    continued = [r["runtime_config"]["parameters"].get("continued_run_id") for r in runs(kubeflow)]
    assert continued == [None, *(run["run_id"] for run in runs(kubeflow)[:2])]
    assert "retrain (round 5)" in names(kubeflow, runs(kubeflow)[2])
    assert len(capsys.readouterr().out.splitlines()) == 3


def runs(kubeflow: Kubeflow) -> list[dict[str, Any]]:
    return list(kubeflow.runs.values())


def test_waiting_says_how_to_go_on(kubeflow: Kubeflow, capsys: pytest.CaptureFixture[str]) -> None:
    kubeflow.progress = [("SUCCEEDED", {"evaluate-3": "SUCCEEDED"})]
    submit(kubeflow, "--wait", "--max-rounds", "2", *OVERRIDES)
    (run,) = kubeflow.runs
    assert f"out of room after round 2; `submit --continue {run}` goes on" in (
        capsys.readouterr().err
    )


def test_a_run_that_cannot_be_continued_says_why(kubeflow: Kubeflow) -> None:
    missing = str(uuid.uuid4())
    with pytest.raises(InputError, match=f"--continue {missing}: there is no such run"):
        submit(kubeflow, "--continue", missing)
    submit(kubeflow, "--max-rounds", "2", *OVERRIDES)
    (run_id,) = kubeflow.runs
    kubeflow.progress = [("RUNNING", {})]
    with pytest.raises(InputError, match=r"only a run that succeeded .* this one is running"):
        submit(kubeflow, "--continue", run_id)
    finish(kubeflow)
    for version in kubeflow.versions:
        version["pipeline_spec"]["pipeline_spec"]["root"]["dag"]["tasks"].clear()
        version["pipeline_spec"]["pipeline_spec"]["components"].clear()
    with pytest.raises(InputError, match="its pipeline cannot be continued"):
        submit(kubeflow, "--continue", run_id)
    assert len(kubeflow.runs) == 1


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--continue", "a", "-S", "joint.gamma=1"), "keeps its parameters"),
        (("--until-converged",), "needs --wait"),
        (("--max-rounds", "0"), "at least 1 round"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    kubeflow: Kubeflow, arguments: tuple[str, ...], problem: str
) -> None:
    with pytest.raises((click.BadParameter, InputError), match=problem):
        submit(kubeflow, *arguments)
    assert not kubeflow.runs
