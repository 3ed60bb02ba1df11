"""Let tasks that run the same component share its specification.

The KFP compiler writes a component down once per task, so ten rounds hold ten equal copies of each.
The specification allows one component for many tasks, and that is how the backend keeps them anyway
(kubeflow/pipelines, backend/src/v2/compiler/argocompiler/argo.go stores components under a hash of
their container). Sharing them makes the specification of ten rounds half as large.

Not for KFP's local runner: it names a task's directory after the component, so two tasks of one
level would write to the same place.
"""

from collections.abc import Mapping
from typing import Any

from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineSpec, PlatformSpec


def share_components(pipeline: PipelineSpec, platform: PlatformSpec) -> None:
    """Merge equal executors and equal components of a compiled pipeline, in place.

    Args:
        pipeline: The specification whose tasks shall share components.
        platform: What its executors ask of Kubernetes; executors are equal only if that is, too.
    """
    settings = platform.platforms["kubernetes"].deployment_spec.executors
    executors = pipeline.deployment_spec["executors"].fields
    kept = _merge({label: _bytes(executors[label], settings.get(label)) for label in executors})
    for label, first in kept.items():
        if label != first:
            del executors[label]
            settings.pop(label, None)
    for component in pipeline.components.values():
        if component.executor_label:
            component.executor_label = kept[component.executor_label]
    names = _merge({name: _bytes(spec) for name, spec in pipeline.components.items()})
    for spec in (pipeline.root, *pipeline.components.values()):
        for task in spec.dag.tasks.values():
            task.component_ref.name = names[task.component_ref.name]
    for name, first in names.items():
        if name != first:
            del pipeline.components[name]


def _merge(contents: Mapping[str, bytes]) -> dict[str, str]:
    """Every name with the shortest name that has the same content."""
    first: dict[bytes, str] = {}
    for name in sorted(contents, key=lambda name: (len(name), name)):
        first.setdefault(contents[name], name)
    return {name: first[content] for name, content in contents.items()}


def _bytes(*messages: Any) -> bytes:
    return b"\0".join(
        message.SerializeToString(deterministic=True) if message is not None else b""
        for message in messages
    )
