"""What a compiled pipeline needs of its cluster, read from what Kubeflow will read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, NamedTuple

from google.protobuf import json_format
from kubernetes.utils import parse_quantity

from pipelines.cluster.pods import Resources

Settings = Mapping[str, Any]


class Asked(NamedTuple):
    """What the pod of each of some components asks of a node."""

    components: list[str]
    resources: Resources
    selector: Mapping[str, str]


class Needs(NamedTuple):
    """What must be in the cluster.

    Attributes:
        images: Of the tasks.
        keys: Keys that tasks read, by kind (Secret or ConfigMap) and name.
        claims: Names of the PersistentVolumeClaims.
        pull_secrets: Names of Secrets for the registry.
        asked: By the tasks.
    """

    images: list[str]
    keys: dict[tuple[str, str], list[str]]
    claims: list[str]
    pull_secrets: list[str]
    asked: list[Asked]


def find_needs(pipeline: Any) -> Needs:
    """What a pipeline from `compiling.build` needs."""
    spec = json_format.MessageToDict(pipeline.pipeline_spec)["deploymentSpec"]["executors"]
    platform = json_format.MessageToDict(pipeline.platform_spec)["platforms"]["kubernetes"]
    settings: Settings = platform["deploymentSpec"]["executors"]
    keys: defaultdict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    for each in settings.values():
        for variable in each.get("secretAsEnv", ()):
            names = [key["secretKey"] for key in variable["keyToEnv"]]
            keys["Secret", variable["secretName"]].update(dict.fromkeys(names))
        for variable in each.get("configMapAsEnv", ()):
            names = [key["configMapKey"] for key in variable["keyToEnv"]]
            keys["ConfigMap", variable["configMapName"]].update(dict.fromkeys(names))
    return Needs(
        images=_unique(executor["container"]["image"] for executor in spec.values()),
        keys={reference: list(names) for reference, names in keys.items()},
        claims=_unique(c["constant"] for s in settings.values() for c in s.get("pvcMount", ())),
        pull_secrets=_unique(
            secret["secretName"]
            for s in settings.values()
            for secret in s.get("imagePullSecret", ())
        ),
        asked=_find_asked(spec, settings),
    )


def _find_asked(spec: Settings, settings: Settings) -> list[Asked]:
    """What components ask, those that ask for the same together."""
    found: list[Asked] = []
    for label, executor in sorted(spec.items()):
        resources = _resources(executor["container"].get("resources", {}))
        selector = settings.get(label, {}).get("nodeSelector", {}).get("labels", {})
        like = [each for each in found if (each.resources, each.selector) == (resources, selector)]
        if not like:
            found += (like := [Asked([], resources, selector)])
        like[0].components.append(label.removeprefix("exec-"))
    return found


def _unique(names: Any) -> list[str]:
    return list(dict.fromkeys(names))


def _resources(settings: Settings) -> Resources:
    asked = {
        "cpu": settings.get("resourceCpuRequest", "0"),
        "memory": settings.get("resourceMemoryRequest", "0"),
    }
    if accelerator := settings.get("accelerator"):
        asked[accelerator["resourceType"]] = accelerator["resourceCount"]
    return {name: Decimal(parse_quantity(quantity)) for name, quantity in asked.items()}
