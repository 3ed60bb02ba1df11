"""One name in four places: steps, components, command line, dvc.yaml."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml

import components
from vitdc import cli, kubeflow, loop, steps
from vitdc.config import Params, Section

ROOT = Path(__file__).parent.parent
COMPONENTS = {component.name: component for component in components.STEPS}

# An artifact of a step that a component takes out of the state of a round.
FROM_STATE = {
    ("cluster", "previous"): "before",
    ("retrain", "checkpoint"): "before",
    ("retrain", "clustering"): "before",
    ("check", "clustering"): "before",
    ("embed", "features"): "initial",
    ("retrain", "features"): "initial",
}
# What a component takes although its step does not.
BEYOND_STEP = {
    "prepare": {"version", "code"},
    "cluster": {"checkpoint"},  # to put it into the state
    "evaluate": {"verdict"},  # by which the pipeline decides whether it runs
}
NOT_INPUTS = ("return", "output", "scratch", "on_listed", "watcher")


def step_arguments(name: str) -> dict[str, Any]:
    hints = get_type_hints(getattr(steps, name))
    return {key: hint for key, hint in hints.items() if key not in NOT_INPUTS}


def inputs(component: Any) -> dict[str, Any]:
    return component.component_spec.inputs or {}


def source(component: Any) -> ast.Module:
    return ast.parse(textwrap.dedent(inspect.getsource(component.python_func)))


def test_there_is_a_component_per_step_in_a_file_of_its_own() -> None:
    assert list(COMPONENTS) == [step.__name__ for step in steps.STEPS]
    for name in COMPONENTS:
        assert (ROOT / "components" / f"{name}.py").is_file()


def is_setting(key: str, hint: Any) -> bool:
    return key == "seed" or (isinstance(hint, type) and issubclass(hint, Section))


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_component_takes_what_its_step_takes(name: str) -> None:
    arguments = step_arguments(name)
    paths = {key for key, hint in arguments.items() if not is_setting(key, hint)}
    artifacts = {FROM_STATE.get((name, key), key) for key in paths}
    settings = {"data"} if name == "prepare" else {"settings"}
    assert set(inputs(COMPONENTS[name])) == artifacts | settings | BEYOND_STEP.get(name, set())
    for key, spec in inputs(COMPONENTS[name]).items():
        assert (spec.type == "Dict") == (key in settings), key
        assert spec.type.startswith("system.") == (key in artifacts | {"checkpoint"}), key


@pytest.mark.parametrize("name", kubeflow.SETTINGS)
def test_the_settings_of_a_task_are_those_that_its_step_takes(name: str) -> None:
    expected = {key for key, hint in step_arguments(name).items() if is_setting(key, hint)}
    assert set(kubeflow.SETTINGS[name]) == expected


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_component_says_what_its_step_and_its_command_say(name: str) -> None:
    first = inspect.getdoc(COMPONENTS[name].python_func)
    assert first == cli.COMMANDS[name]
    assert inspect.getdoc(getattr(steps, name)).startswith(first)


@pytest.mark.parametrize("name", COMPONENTS)
def test_the_body_calls_the_step_and_imports_all_it_needs_itself(name: str) -> None:
    tree = source(COMPONENTS[name])
    calls = [n.func for n in ast.walk(tree) if isinstance(n, ast.Call)]
    assert any(isinstance(f, ast.Attribute) and ast.unparse(f) == f"steps.{name}" for f in calls)
    module = ast.parse((ROOT / "components" / f"{name}.py").read_text())
    imported = {
        node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
        for node in module.body
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert imported <= {"kfp", "typing", "components.base"}


def test_every_artifact_is_typed() -> None:
    expected = {
        "prepare": {"dataset": "Dataset"},
        "pretrain": {"checkpoint": "Model", "metrics": "Metrics"},
        "embed": {"embeddings": "Dataset"},
        "cluster": {"state": "Artifact", "metrics": "Metrics"},
        "retrain": {"checkpoint": "Model", "metrics": "Metrics"},
        "check": {"round": "Artifact", "metrics": "Metrics"},
        "evaluate": {
            "results": "Artifact",
            "model": "Model",
            "metrics": "Metrics",
            "confusion": "ClassificationMetrics",
            "report": "HTML",
            "overview": "Markdown",
        },
    }
    for name, component in COMPONENTS.items():
        outputs = component.component_spec.outputs.items()
        found = {key: spec.type for key, spec in outputs if spec.type.startswith("system.")}
        assert found == {key: f"system.{t}@0.0.1" for key, t in expected[name].items()}, name


@pytest.mark.parametrize("component", components.BOOKKEEPING, ids=lambda c: c.name)
def test_the_bookkeeping_takes_every_section_it_records(component: Any) -> None:
    if component is components.find_version:
        assert set(inputs(component)) == {"data"}
        return
    assert {"seed", *Params.section_names()} - set(inputs(component)) == {"kubernetes"}


def test_dvc_stages_depend_on_the_sections_of_their_steps() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    for name, stage in stages.items():
        function = loop.refine if name == "refine" else getattr(steps, name)
        hints = {k: v for k, v in get_type_hints(function).items() if k != "return"}
        sections = {
            key
            for key, hint in hints.items()
            if key == "seed" or (isinstance(hint, type) and issubclass(hint, Section))
        }
        assert set(stage["params"]) == sections, name
        assert re.match(rf"vitdc {name}\b", stage["cmd"])


def test_the_command_line_has_the_steps() -> None:
    assert {step.__name__ for step in steps.STEPS} <= set(cli.COMMANDS)
