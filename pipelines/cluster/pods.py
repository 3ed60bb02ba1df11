"""What a pod waits for, and what the nodes of a cluster have for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import NamedTuple

from kubernetes.utils import parse_quantity

from vitdc.errors import one_line
from vitdc.workflow import Object

_IMAGE_REASONS = ("ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName")
STARTING = ("", "ContainerCreating", "PodInitializing")
"""Reasons of a container that waits for nothing else than its start."""
_FINISHED = ("Succeeded", "Failed")

Resources = Mapping[str, Decimal]
"""Amounts by the names that Kubernetes has for resources."""


class Capacity(NamedTuple):
    """What a node has."""

    labels: Mapping[str, str]
    total: Resources
    free: Resources


# --- waiting -------------------------------------------------------------------------------------


def scheduler_message(pod: Object) -> str | None:
    """What the scheduler says about a pod that it finds no node for."""
    for condition in pod["status"].get("conditions", ()):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return one_line(condition.get("message") or condition.get("reason", ""))
    return None


def describe_unscheduled(pod: Object, capacities: Sequence[Capacity] | None) -> str:
    """Why no node takes a pod.

    Args:
        pod: A pod for which `scheduler_message` has something.
        capacities: The nodes; None where they may not be read.
    """
    message = scheduler_message(pod) or ""
    shortage = None
    if capacities is not None:
        spec = pod["spec"]
        shortage = find_shortage(requests(spec), capacities, spec.get("nodeSelector", {}))
    without_preemption = message.partition(" no new claims")[0].partition(" preemption:")[0]
    return find_missing(pod, message) or shortage or without_preemption


def describe_waiting(pod: Object) -> str | None:
    """Why the containers of a pod that has a node do not start; None if they are about to."""
    status = pod["status"]
    for container in (
        *status.get("initContainerStatuses", ()),
        *status.get("containerStatuses", ()),
    ):
        waiting = container["state"].get("waiting", {})
        reason, message = waiting.get("reason", ""), one_line(waiting.get("message", ""))
        if reason in _IMAGE_REASONS:
            cause = message.rpartition(": ")[2]
            return f"cannot pull {container['image']}: {cause}"
        if reason not in STARTING:
            return find_missing(pod, message) or f"{reason}: {message}"
    return None


def find_missing(pod: Object, message: str) -> str | None:
    """What is not there, if a message says so of something that the pod refers to."""
    for kind, name in references(pod["spec"]):
        if f'{kind.lower()} "{name}" not found' in message:
            return f"{kind} {name} is missing"
    return None


def references(spec: Object) -> Iterator[tuple[str, str]]:
    """Kind and name of what the containers of a pod cannot start without."""
    for container in (*spec.get("initContainers", ()), *spec["containers"]):
        for variable in container.get("env", ()):
            source = variable.get("valueFrom", {})
            if "secretKeyRef" in source:
                yield "Secret", source["secretKeyRef"]["name"]
            if "configMapKeyRef" in source:
                yield "ConfigMap", source["configMapKeyRef"]["name"]
    for volume in spec.get("volumes", ()):
        if "persistentVolumeClaim" in volume:
            yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]


# --- capacity ------------------------------------------------------------------------------------


def requests(spec: Object) -> Resources:
    """What a pod asks of a node: its containers together, or an init container that asks more."""
    asked: dict[str, Decimal] = {}
    for container in spec["containers"]:
        for name, amount in _amounts(container.get("resources", {}).get("requests", {})).items():
            asked[name] = asked.get(name, Decimal(0)) + amount
    for container in spec.get("initContainers", ()):
        for name, amount in _amounts(container.get("resources", {}).get("requests", {})).items():
            asked[name] = max(asked.get(name, Decimal(0)), amount)
    return asked


def find_capacities(nodes: Iterable[Object], pods: Iterable[Object]) -> list[Capacity]:
    """Of all nodes that take pods, beside the pods that they have."""
    taken: dict[str, dict[str, Decimal]] = {}
    for pod in pods:
        if pod["status"].get("phase") not in _FINISHED:
            on_node = taken.setdefault(pod["spec"].get("nodeName", ""), {})
            for name, amount in requests(pod["spec"]).items():
                on_node[name] = on_node.get(name, Decimal(0)) + amount
    capacities = []
    for node in nodes:
        if not node["spec"].get("unschedulable"):
            total = _amounts(node["status"]["allocatable"])
            used = taken.get(node["metadata"]["name"], {})
            free = {name: amount - used.get(name, Decimal(0)) for name, amount in total.items()}
            capacities.append(Capacity(node["metadata"].get("labels", {}), total, free))
    return capacities


def find_shortage(
    asked: Resources, capacities: Iterable[Capacity], selector: Mapping[str, str]
) -> str | None:
    """What none of the nodes has enough of; None if there is no such resource.

    Args:
        asked: By one pod.
        capacities: The nodes.
        selector: Labels that the node must have.
    """
    nodes = [node for node in capacities if node.labels.items() >= selector.items()]
    if not nodes:
        labels = ", ".join(f"{key}={value}" for key, value in selector.items())
        return f"no node has the labels {labels}" if labels else "no node takes pods"
    for name, amount in asked.items():
        largest, left = (
            max(part.get(name, Decimal(0)) for part in parts)
            for parts in ([node.total for node in nodes], [node.free for node in nodes])
        )
        if not largest and amount:
            return f"no node has {name}"
        if largest < amount:
            return (
                f"no node has {describe(name, amount)}, the largest has {describe(name, largest)}"
            )
        if left < amount:
            title = _TITLES.get(name, name)
            asked_for, rest = (_number(name, value) for value in (amount, max(left, Decimal(0))))
            return f"no {title} free: {asked_for} asked, {rest} left"
    return None


_TITLES = {"cpu": "CPU"}


def describe(name: str, amount: Decimal) -> str:
    """An amount of a resource, e.g. `0.5 CPU` or `4Gi memory`."""
    return f"{_number(name, amount)} {_TITLES.get(name, name)}"


def _number(name: str, amount: Decimal) -> str:
    if name in ("memory", "ephemeral-storage"):
        return f"{amount / 2**30:.3g}Gi"
    return f"{amount.normalize():f}"


def _amounts(quantities: Mapping[str, str]) -> dict[str, Decimal]:
    return {name: parse_quantity(quantity) for name, quantity in quantities.items()}
