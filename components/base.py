"""How every component is declared.

A task's specification names the component; the program that it runs is in the image. Kubeflow keeps
every task's specification several times in one object of limited size, so a program in it would
cost rounds (`pipelines.size`).
"""

from collections.abc import Callable
from typing import Any

from kfp import dsl

from vitdc import __version__

IMAGE = f"localhost/vitdc:{__version__}"
"""What `make image` builds; `kubernetes.image` names another. It holds kfp, too."""

EXECUTOR = "kfp.dsl.executor_main"
"""KFP's own program around a component. Its local runner only runs commands that name it."""

COMMAND = ["python3", "-u", "-m", "components", EXECUTOR]


def component(function: Callable[..., Any]) -> Any:
    """Declare a component whose task runs `python3 -m components` in the image."""
    made = dsl.component(function, base_image=IMAGE, install_kfp_package=False)
    container = made.component_spec.implementation.container
    container.command = COMMAND
    container.args = ["--executor_input", "{{$}}", "--function_to_execute", function.__name__]
    return made
