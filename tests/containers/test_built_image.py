"""The image as a strict cluster runs it: no root, no network, no capabilities, nothing to write."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
OVERRIDES = ("pretraining.epochs=1", "joint.epochs=1", "convergence.max_rounds=2")


@pytest.fixture(scope="session")
def config(image: str) -> Any:
    inspected = ["podman", "image", "inspect", image]
    return json.loads(subprocess.check_output(inspected))[0]["Config"]


@pytest.fixture(scope="session")
def image_root(image: str) -> Iterator[Path]:
    """The files of the image, as root sees them."""
    yield Path(subprocess.check_output(["podman", "image", "mount", image], text=True).strip())
    subprocess.run(["podman", "image", "unmount", image], check=True, capture_output=True)


def test_it_names_its_version_and_its_revision(config: Any) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude", "*"]
    revision = subprocess.check_output(describe, cwd=ROOT, text=True).strip()
    labels = {k.removeprefix("org.opencontainers.image."): v for k, v in config["Labels"].items()}
    assert labels["title"] == project["name"]
    assert labels["version"] == project["version"]
    assert labels["revision"] == revision
    assert labels["description"]


def test_any_command_can_follow_its_name(config: Any, container: Any) -> None:
    assert not config.get("Entrypoint")
    assert "Usage: vitdc" in container().stdout  # CMD
    assert container("echo", "hello").stdout == "hello\n"


def test_it_runs_as_a_numeric_user_without_root_or_capabilities(
    config: Any, container: Any
) -> None:
    assert config["User"] == "10001:10001"
    assert container("id", "-u").stdout == "10001\n"
    status = container("cat", "/proc/self/status").stdout
    assert re.search(r"^CapEff:\s0+$", status, re.MULTILINE)
    assert re.search(r"^NoNewPrivs:\s1$", status, re.MULTILINE)


def test_it_says_the_version(container: Any) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert container("vitdc", "--version").stdout == f"vitdc, version {version}\n"


def test_every_file_can_be_read_and_none_written(container: Any) -> None:
    writable = ("--read-only=false",)  # so that permissions alone decide
    links = ("-not", "-type", "l")
    assert container("find", "/opt", *links, "-writable", options=writable).stdout == ""
    assert container("find", "/opt", "-not", "-readable", options=writable).stdout == ""
    refused = container("touch", "/opt/venv/new", options=writable, check=False)
    assert "Permission denied" in refused.stderr


def test_the_whole_method_runs_hardened_and_gives_the_clusters_it_gives_outside(
    container: Any, tmp_path: Path
) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    os.chown(inside, 10001, 10001)
    options = [f"-S{override}" for override in OVERRIDES]
    volumes = (f"--volume={inside}:/data", f"--volume={ROOT / 'params.yaml'}:/params.yaml:ro")
    run = ["vitdc", "run", "--params", "/params.yaml", "--output", "/data", *options]
    container(*run, options=volumes)

    vitdc = Path(sys.executable).with_name("vitdc")
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    subprocess.run(
        [vitdc, "run", "--output", outside, *options], cwd=ROOT, env=environment, check=True
    )
    results = inside / "results"
    assert (results / "report.html").stat().st_uid == 10001
    assert json.loads((results / "metrics.json").read_text())["rounds"] == 2
    for name in ("clusters.csv", "rounds.csv"):
        assert (results / name).read_bytes() == (outside / "results" / name).read_bytes()


def test_a_user_that_the_image_does_not_know_will_do(container: Any) -> None:
    """OpenShift gives every namespace user ids of its own, with group 0."""
    uses_home = "import getpass, matplotlib.pyplot, mlflow, torch; print(getpass.getuser())"
    assert container("python", "-c", uses_home, options=("--user=4242:0",)).stdout == "vitdc\n"


def test_what_is_installed_is_exactly_what_is_locked(container: Any) -> None:
    asks = """if True:
        import json
        from importlib.metadata import distributions
        from packaging.markers import default_environment
        print(json.dumps([default_environment(), [[d.name, d.version] for d in distributions()]]))
    """
    environment, found = json.loads(container("python", "-c", asks).stdout)
    installed = {canonicalize_name(name): version for name, version in found}
    assert installed.pop(canonicalize_name("vitdc"))
    lock = (ROOT / "requirements-image.lock").read_text()
    lines = re.findall(r"^[a-z0-9][^\\\n]*", lock, re.MULTILINE)
    locked = {
        canonicalize_name(each.name): str(each.specifier).removeprefix("==")
        for each in map(Requirement, lines)
        if each.marker is None or each.marker.evaluate(environment)
    }
    assert installed == locked
    assert len(installed) > 100


def test_nothing_is_left_of_the_build(container: Any, image_root: Path) -> None:
    for program in ("uv", "pip", "pip3", "gcc", "cc", "make", "git"):
        found = container("sh", "-c", f"command -v {program}", check=False)
        assert found.returncode != 0, found.stdout
    for folder in ("tmp", "root/.cache", "var/tmp", "run/secrets", "source", "wheel"):
        assert not list(image_root.joinpath(folder).glob("*"))


def test_no_module_is_compiled_again_at_every_start(container: Any) -> None:
    imports = "import kfp, mlflow, vitdc.evaluation, vitdc.steps, vitdc.tracking"
    loaded = container("python", "-v", "-c", imports).stderr
    assert len(re.findall(r"^# code object from '\S+\.pyc'$", loaded, re.MULTILINE)) > 1000
    assert not re.findall(r"^# code object from \S+\.py$", loaded, re.MULTILINE)


def test_one_image_serves_cpu_and_gpu(container: Any) -> None:
    asks = "import torch; print(torch.version.cuda is not None, torch.cuda.is_available())"
    assert container("python", "-c", asks).stdout == "True False\n"


def test_the_dependencies_are_stored_once(image: str) -> None:
    size = subprocess.check_output(["podman", "image", "inspect", "--format={{.Size}}", image])
    assert int(size) < 8e9


def test_dockers_api_runs_it(image: str, docker_host: str) -> None:
    client = docker.from_env()
    assert client.images.get(image)
    hardened = {"network_mode": "none", "read_only": True, "cap_drop": ["ALL"]}
    said = client.containers.run(image, ["vitdc", "--version"], remove=True, **hardened)
    assert said.startswith(b"vitdc, version")
