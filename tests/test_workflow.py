"""What is read from the Workflow of a run, and what is said of it."""

import base64
import gzip
import json
from pathlib import Path

import pytest
from kubernetes_api import make_workflow, task_nodes

from vitdc import workflow
from vitdc.workflow import describe_end, tasks

RECORDINGS = Path(__file__).parent / "recordings"
KILLED = "main: OOMKilled (exit code 137)"
NEEDED = "killed: it needed more than 64Mi"


def test_tasks_are_named_as_people_do_and_have_one_state() -> None:
    found = tasks(
        make_workflow(
            "run",
            task_nodes("prepare", "Succeeded", "Succeeded"),
            task_nodes("pretrain (round 0)", "Succeeded", "Error", "Succeeded"),
            task_nodes("embed (round 0)", "Succeeded", "Pending"),
            task_nodes("cluster (round 0)", "Running"),
            task_nodes("check (round 1)", "Succeeded"),
            task_nodes("retrain (round 1)", "Omitted"),
        )
    )
    assert [(task.name, task.state, task.attempts) for task in found] == [
        ("prepare", "SUCCEEDED", 1),
        ("pretrain (round 0)", "SUCCEEDED", 2),
        ("embed (round 0)", "PENDING", 1),
        ("cluster (round 0)", "RUNNING", 0),
        ("check (round 1)", "RUNNING", 0),
    ]


def test_compressed_nodes_are_read_as_well() -> None:
    plain = make_workflow("run", task_nodes("prepare", "Succeeded", "Succeeded"))
    nodes = plain["status"].pop("nodes")
    packed = base64.b64encode(gzip.compress(json.dumps(nodes).encode())).decode()
    plain["status"]["compressedNodes"] = packed
    assert [task.name for task in tasks(plain)] == ["prepare"]


@pytest.mark.parametrize(
    ("name", "message", "said"),
    [
        ("retrain (round 1)", KILLED, f"{NEEDED}, kubernetes.resources.retrain.memory_limit"),
        ("start the record", KILLED, f"{NEEDED}, kubernetes.resources.bookkeeping.memory_limit"),
        (
            "embed (round 0)",
            "main: Error (exit code 1): the loss is\nnot finite",
            "Error (exit code 1): the loss is not finite",
        ),
        ("embed (round 0)", "", "Argo gives no reason"),
    ],
)
def test_a_failure_names_task_and_reason(name: str, message: str, said: str) -> None:
    failed = task_nodes(name, "Succeeded", "Failed", message=message, memory="64Mi")
    found = make_workflow("run", task_nodes("prepare", "Succeeded", "Succeeded"), failed)
    assert describe_end(found) == f"failed in {name}: {said}"


def test_a_failure_of_kubeflows_driver_is_told_apart() -> None:
    failed = task_nodes("evaluate (round 1)", "Failed", message="main: Error (exit code 1)")
    assert describe_end(make_workflow("run", failed)) == (
        "failed in evaluate (round 1): Kubeflow's driver: Error (exit code 1)"
    )


def test_attempts_are_counted() -> None:
    failed = task_nodes("embed (round 0)", "Succeeded", "Error", "Error", message="pod deleted")
    assert describe_end(make_workflow("run", failed)) == (
        "failed in embed (round 0): pod deleted (2 attempts)"
    )


def test_argos_own_error_is_told() -> None:
    found = make_workflow("run", task_nodes("prepare", "Succeeded", "Running"), phase="Error")
    found["status"]["message"] = "workflow is longer than maximum allowed size. Size=1048593"
    assert describe_end(found) == (
        "failed: workflow is longer than maximum allowed size. Size=1048593"
    )


def test_a_terminated_run_and_one_out_of_time_are_no_failures_of_a_task() -> None:
    killed = task_nodes("embed (round 0)", "Succeeded", "Failed", message="Step exceeded ...")
    found = make_workflow("run", killed, phase="Failed")
    found["spec"]["activeDeadlineSeconds"] = 0
    assert describe_end(found) == "was terminated during embed (round 0)"
    assert workflow.is_terminated(found)
    found["spec"]["activeDeadlineSeconds"] = 60
    found["status"] |= {"startedAt": "2026-11-27T21:00:00Z", "finishedAt": "2026-11-27T21:01:05Z"}
    assert describe_end(found) == (
        "was stopped during embed (round 0): it took longer than kubernetes.timeout_hours allows"
    )


@pytest.mark.parametrize(
    ("name", "states", "end"),
    [
        ("waiting-gpu", {"find the data": "PENDING"}, None),
        (
            "terminated",
            {"find the data": "FAILED", "record the end": "FAILED"},
            "was terminated during find the data",
        ),
        (
            "killed",
            {"prepare": "FAILED"},
            f"failed in prepare: {NEEDED}, kubernetes.resources.prepare.memory_limit",
        ),
    ],
)
def test_workflows_of_a_real_cluster_are_read(
    name: str, states: dict[str, str], end: str | None
) -> None:
    found = json.loads((RECORDINGS / f"workflow-{name}.json").read_text(encoding="utf-8"))
    assert {task.name: task.state for task in tasks(found) if task.state != "SUCCEEDED"} == states
    assert end is None or describe_end(found) == end
