"""What a real Kubeflow hands to the tasks, replayed: KFP's executor runs every component on it.

KFP's local runner describes artifacts differently, so that components that it runs may still fail
on a cluster. The recordings are of two runs on Kubeflow Pipelines 2.17.0, the second of which
continues the first; `recordings/split_logs.py` says how they were made. They are replayed in their
order, so that every task finds what those before it have written.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import components

RECORDINGS = sorted((Path(__file__).parent / "recordings" / "executor-inputs").glob("*.json"))

# Runs in a process of its own, as a container would: no network, and other roots of artifacts.
REPLAY = """
import json, os, re, runpy, sys
from pathlib import Path

from components.base import COMMAND
from vitdc.code import code_version


def refuse_network(event, arguments):
    if event == "socket.connect" and not isinstance(arguments[1], (str, bytes)):
        raise AssertionError(f"no network here: {arguments[1]}")


sys.addaudithook(refuse_network)
root, *recordings = map(Path, sys.argv[1:])
replaced = {}
for recording in recordings:
    text = re.sub(r"minio://|/minio/", f"{root}/minio/", recording.read_text())
    text = text.replace("/tmp/kfp/outputs", f"{root}/outputs")
    text = re.sub(r'"code": "\\w+"', f'"code": "{code_version()}"', text)
    for old, new in replaced.items():
        text = text.replace(old, new)
    name = recording.stem.partition("-")[2]
    arguments = ["--executor_input", text, "--function_to_execute", name]
    sys.argv = ["components", *COMMAND[4:], *arguments]
    try:
        runpy.run_module("components", run_name="__main__", alter_sys=True)
        result = "ok"
    except BaseException as error:
        result = repr(error)
    print("REPLAYED", json.dumps([recording.stem, result]), flush=True)
    if name == "start_record":  # the MLflow run has an id of its own here
        made = json.loads(Path(json.loads(text)["outputs"]["outputFile"]).read_text())
        new = made["parameterValues"]["check"]["record"].partition("/")[0]
        (old,) = {
            match
            for each in recordings
            for match in re.findall(r'"record": "(\\w+)/', each.read_text())
        }
        replaced[old] = new
"""


def test_every_component_has_a_recording() -> None:
    recorded = {path.stem.partition("-")[2] for path in RECORDINGS}
    made = {
        component.python_func.__name__ for component in (*components.STEPS, *components.BOOKKEEPING)
    }
    assert made - recorded == set(), "record a run with the new components on a cluster"


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What came of each recording."""
    directory = tmp_path_factory.mktemp("replay")
    result = subprocess.run(
        [sys.executable, "-c", REPLAY, directory, *RECORDINGS],
        cwd=directory,
        env={
            "PATH": "/usr/bin",
            "HOME": str(directory),
            "OMP_WAIT_POLICY": "PASSIVE",
            "PYTHONPATH": str(Path(__file__).parent.parent),
            "VITDC_TRACKING_URI": f"sqlite:///{directory}/mlflow.db",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    lines = [line for line in result.stdout.splitlines() if line.startswith("REPLAYED ")]
    assert len(lines) == len(RECORDINGS), result.stdout[-2000:]
    (directory / "log.txt").write_text(result.stdout)
    return dict(json.loads(line.removeprefix("REPLAYED ")) for line in lines)


@pytest.mark.parametrize("recording", [path.stem for path in RECORDINGS])
def test_a_component_runs_on_what_a_real_kubeflow_hands_to_it(
    replayed: dict[str, str], recording: str
) -> None:
    assert replayed[recording] == "ok"
