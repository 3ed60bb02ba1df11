"""Why pods wait, from pods that a real cluster kept waiting."""

import json
from pathlib import Path
from typing import Any

from pipelines.cluster.pods import (
    describe_unscheduled,
    describe_waiting,
    find_capacities,
    find_shortage,
    requests,
    scheduler_message,
)

RECORDINGS = Path(__file__).parent / "recordings"
NODE = {
    "metadata": {"name": "node", "labels": {"zone": "a"}},
    "spec": {},
    "status": {"allocatable": {"cpu": "2", "memory": "16Gi"}},
}


def recorded(name: str) -> Any:
    return json.loads((RECORDINGS / f"{name}.json").read_text(encoding="utf-8"))


def test_a_missing_gpu_is_told() -> None:
    pod = recorded("pod-waiting-gpu")
    assert "Insufficient nvidia.com/gpu" in (scheduler_message(pod) or "")
    assert describe_unscheduled(pod, find_capacities([NODE], [pod])) == "no node has nvidia.com/gpu"
    assert describe_unscheduled(pod, None) == (
        "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
    )


def test_a_missing_secret_is_told() -> None:
    pod = recorded("pod-waiting-secret")
    assert scheduler_message(pod) is None
    assert describe_waiting(pod) == "Secret vitdc-s3 is missing"


def test_an_image_that_cannot_be_pulled_is_told() -> None:
    pod = recorded("pod-waiting-image")
    assert describe_waiting(pod) == "cannot pull localhost:5000/me/absent:1: not found"


def test_room_is_what_running_pods_leave() -> None:
    pod = recorded("pod-waiting-secret")
    asked = requests(pod["spec"])
    assert {name: float(amount) for name, amount in asked.items()} == {
        "cpu": 0.25,
        "memory": 2.0**29,
    }
    pod["spec"]["nodeName"] = "node"
    (capacity,) = find_capacities([NODE], [pod, {**pod, "status": {"phase": "Succeeded"}}])
    assert float(capacity.free["cpu"]) == 1.75
    assert find_shortage(asked, [capacity], {"zone": "a"}) is None
    assert find_shortage(asked, [capacity], {"zone": "b"}) == "no node has the labels zone=b"
    cordoned = {**NODE, "spec": {"unschedulable": True}}
    assert find_shortage(asked, find_capacities([cordoned], []), {}) == "no node takes pods"
