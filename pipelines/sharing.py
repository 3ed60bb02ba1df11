"""Make a compiled pipeline smaller without changing what it does.

The KFP compiler writes a component down once per task, wraps a conditional task in a group of its
own, and hands the operands of all conditions into all groups inside. Kubeflow keeps what it makes
of that in one object of limited size (`pipelines.size`), and a group costs a pod. The specification
allows one component for many tasks, and a condition on any task; the backend stores components that
way anyway (kubeflow/pipelines 2.17.0, backend/src/v2/compiler/argocompiler/{argo,dag}.go).

Not for KFP's local runner: it names a task's directory after the component, so two tasks of one
level would write to the same place.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from google.protobuf import json_format
from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineSpec, PlatformSpec

_PREFIX = "pipelinechannel--"
_RECORDS = ("start-record", "continue-record")
"""Tasks whose outputs have names like no other task's."""


def compact(pipeline: PipelineSpec, platform: PlatformSpec) -> None:
    """Apply everything that makes a compiled pipeline smaller, in place.

    Args:
        pipeline: The specification whose tasks shall share components.
        platform: What its executors ask of Kubernetes; executors are equal only if that is, too.
    """
    unwrap_conditional_tasks(pipeline)
    drop_unused_inputs(pipeline)
    share_components(pipeline, platform)
    shorten_names(pipeline)


def unwrap_conditional_tasks(pipeline: PipelineSpec) -> None:
    """Put a condition around a single task on the task itself, in place.

    The task has to take the operand of the condition as one of its own parameters.
    """
    for group in (pipeline.root, *pipeline.components.values()):
        for name, wrapper in list(group.dag.tasks.items()):
            inner = pipeline.components[wrapper.component_ref.name].dag.tasks
            if not wrapper.trigger_policy.condition or len(inner) != 1:
                continue
            ((key, task),) = inner.items()
            condition = wrapper.trigger_policy.condition
            for kind in ("parameters", "artifacts"):
                for own, value in getattr(task.inputs, kind).items():
                    if outer := getattr(value, f"component_input_{kind.removesuffix('s')}"):
                        value.CopyFrom(getattr(wrapper.inputs, kind)[outer])
                        condition = condition.replace(f"'{outer}'", f"'{own}'")
            task.trigger_policy.condition = condition
            task.dependent_tasks.extend(wrapper.dependent_tasks)
            unwrapped = type(task).FromString(task.SerializeToString())
            del pipeline.components[wrapper.component_ref.name], group.dag.tasks[name]
            group.dag.tasks[key].CopyFrom(unwrapped)


def drop_unused_inputs(pipeline: PipelineSpec) -> None:
    """Remove from every group of tasks the inputs that nothing in it uses, in place.

    The KFP compiler hands the operands of all conditions around a group into the group, so that the
    specification would grow with the square of the number of nested conditions.
    """
    for group in _inner_first(pipeline, pipeline.root):
        used = _used_channels(group)
        for kind in ("parameters", "artifacts"):
            definitions = getattr(group.input_definitions, kind)
            for name in set(definitions) - used:
                del definitions[name]


def _inner_first(pipeline: PipelineSpec, group: Any) -> Iterator[Any]:
    """All groups of tasks below a group, each after those in it; what tasks hand to them fits."""
    for task in group.dag.tasks.values():
        inner = pipeline.components[task.component_ref.name]
        if inner.HasField("dag"):
            yield from _inner_first(pipeline, inner)
            yield inner
            condition = task.trigger_policy.condition
            for kind in ("parameters", "artifacts"):
                inputs, wanted = getattr(task.inputs, kind), getattr(inner.input_definitions, kind)
                for name in set(inputs) - set(wanted):
                    if f"'{name}'" not in condition:
                        del inputs[name]


def _used_channels(group: Any) -> set[str]:
    """The inputs of a group that its tasks take."""
    used = set()
    for task in group.dag.tasks.values():
        used |= {p.component_input_parameter for p in task.inputs.parameters.values()}
        used |= {a.component_input_artifact for a in task.inputs.artifacts.values()}
    return used


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


def shorten_names(pipeline: PipelineSpec) -> None:
    """Take the KFP compiler's prefix from the inputs of all groups, in place.

    All inputs of a group have it, so that they stay different without it. So do the settings that
    every round takes from the task that makes the record.
    """
    text = json_format.MessageToJson(pipeline, indent=None)
    for prefix in (*(f"{_PREFIX}{task}-" for task in _RECORDS), _PREFIX):
        text = text.replace(prefix, "")
    pipeline.CopyFrom(json_format.Parse(text, PipelineSpec()))


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
