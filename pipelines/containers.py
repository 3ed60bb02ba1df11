"""Containers for KFP's local Docker runner: hardened as on a cluster, and with honest outcomes.

KFP 2.17 starts a container that removes itself, and takes one that is gone already for a success:
a task that fails at once counts as done. `run_container` does what it should: start, stream the
log, wait, remove, return the exit code.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from components.base import IMAGE
from vitdc.config import Params
from vitdc.errors import InputError, one_line
from vitdc.kubeflow import SCRATCH_VARIABLE
from vitdc.tracking import RECORD_VARIABLE

_PASSED_ON = ("MLFLOW_", "AWS_")


@contextmanager
def container_runner(params: Params, *, root: Path, network: str) -> Iterator[Any]:
    """KFP's runner for containers that may write nothing but `root` and their /tmp.

    Args:
        params: All parameters; `kubernetes.image` names the image.
        root: As in `local.run_pipeline`; it is made writable for the containers' user.
        network: Name of the containers' network, e.g. `none` or `host`.

    Raises:
        InputError: No container engine answers, the image is not there, or the tasks could not
            reach what MLFLOW_TRACKING_URI names.
    """
    import docker
    from kfp import local
    from kfp.local import docker_task_handler

    image = params.kubernetes.image or IMAGE
    _check_image(docker, image)
    root = root.absolute()
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--root {root}: cannot be written: {error.strerror}") from None
    environment = _environment(root)
    user = params.kubernetes.user
    if os.getuid() == 0:
        os.chown(root, user, user)
        owner = f"{user}:{user}"
    else:  # a user's own files are written under the user's own name
        owner = f"{os.getuid()}:{os.getgid()}"
    runner = local.DockerRunner(
        user=owner,
        network_mode=network,
        read_only=True,
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        tmpfs={"/tmp": ""},  # noqa: S108
        environment=environment,
        mounts=[
            docker.types.Mount(folder, folder, type="bind", read_only=True)
            for folder in (params.data.root, params.data.repo)
            if folder and Path(folder).is_absolute()
        ],
    )
    with (
        mock.patch.object(docker_task_handler, "run_docker_container", run_container),
        mock.patch.dict(os.environ, environment),
    ):
        yield runner


def with_absolute_paths(params: Params) -> Params:
    """The parameters with paths that mean the same in a container, where they are mounted.

    Raises:
        InputError: A path does not exist.
    """
    found = {}
    for name in ("root", "repo"):
        value = getattr(params.data, name)
        if value and ":" not in value:
            found[name] = str(Path(value).expanduser().absolute())
            if not Path(found[name]).exists():
                raise InputError(f"data.{name}: {value}: no such folder")
    data = params.data.model_copy(update=found)
    return params.model_copy(update={"data": data})


def run_container(
    client: Any, image: str, command: list[str], volumes: dict[str, Any], **arguments: Any
) -> int:
    """Run a container to its end and print its log; replaces KFP's function of this purpose.

    Its environment says what is known only now: which MLflow run the pipeline run fills.

    Returns:
        The exit code.
    """
    if record := os.environ.get(RECORD_VARIABLE):
        arguments["environment"] = {**arguments.get("environment", {}), RECORD_VARIABLE: record}
    container = client.containers.create(
        image=client.images.get(image), command=command, volumes=volumes, **arguments
    )
    try:
        container.start()
        for chunk in container.logs(stream=True, follow=True):
            print(chunk.decode(errors="replace"), end="")
        return int(container.wait()["StatusCode"])
    finally:
        container.remove(force=True)


def _check_image(docker: Any, image: str) -> None:
    """An engine answers and has the image, or can get it."""
    try:
        client = docker.from_env()
        client.ping()
    except docker.errors.DockerException as error:
        where = os.environ.get("DOCKER_HOST", "its default socket")
        raise InputError(
            f"--runner container: no container engine answers at {where} ({one_line(error)});"
            " start Docker, or `podman system service` with DOCKER_HOST set to its socket"
        ) from None
    with closing(client):
        try:
            client.images.get(image)
        except docker.errors.ImageNotFound:
            _pull(docker, client, image)


def _pull(docker: Any, client: Any, image: str) -> None:
    try:
        client.images.pull(image)
    except docker.errors.DockerException as error:
        raise InputError(
            f"kubernetes.image: there is no image {image} ({one_line(error)}); `make image`"
            f" builds {IMAGE}"
        ) from None


def _environment(root: Path) -> dict[str, str]:
    """What tasks are told: where unfinished training goes, and the stores that the user chose."""
    if os.environ.get("MLFLOW_TRACKING_URI", "").startswith("sqlite"):
        raise InputError(
            "MLFLOW_TRACKING_URI: containers do not see a database file of this machine; unset it"
            f" (they record in {root / 'mlflow.db'}), or name a server and --network host"
        )
    return {
        SCRATCH_VARIABLE: str(root / "scratch"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{root / 'mlflow.db'}",
        **{name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON)},
    }
