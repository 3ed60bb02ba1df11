"""Real containers without Docker or an image registry: podman, a base image made from Debian
packages, and our image on it. `make test-containers` runs what is in this folder; it takes root.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import pytest
import requests

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BASE_IMAGE = "localhost/vitdc-base:bookworm"
IMAGE = "localhost/vitdc:test"
PROGRAMS = ("podman", "runc", "mmdebstrap", "iptables")
ADMIN_PATH = "/usr/sbin:/sbin"  # not everybody's PATH has it
# what a strict cluster allows; /tmp is the only place to write to, unless a volume is mounted
HARDENED = (
    *("--read-only", "--read-only-tmpfs=false", "--tmpfs=/tmp", "--network=none"),
    *("--cap-drop=all", "--security-opt=no-new-privileges"),
)

BUILD = pytest.StashKey[str]()
Container = Callable[..., subprocess.CompletedProcess[str]]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark whatever is in this folder, so that `make test` never starts a container."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker("containers")
            item.add_marker(pytest.mark.timeout(1800))  # the first one builds the image


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if build := config.stash.get(BUILD, None):
        terminalreporter.write_line(build)


@pytest.fixture(scope="session")
def podman() -> Iterator[None]:
    """podman, configured by our containers.conf; without it the whole session ends."""
    path = f"{os.environ['PATH']}:{ADMIN_PATH}"
    missing = [program for program in PROGRAMS if shutil.which(program, path=path) is None]
    if missing:
        pytest.exit(
            f"the container tests need {', '.join(missing)}: "
            f"apt-get install --no-install-recommends {' '.join(PROGRAMS)}",
            returncode=2,
        )
    if os.geteuid() != 0:
        pytest.exit("the container tests need root: start them as root", returncode=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONTAINERS_CONF", str(HERE / "containers.conf"))
        patch.setenv("PATH", path)
        yield


@pytest.fixture(scope="session")
def base_image(podman: None) -> str:
    """The name of an image of Debian packages that ours is built on."""
    _must([HERE / "make-base-image", BASE_IMAGE])
    return BASE_IMAGE


@pytest.fixture(scope="session")
def image(base_image: str, pytestconfig: pytest.Config) -> str:
    """The name of our image, built from this checkout."""
    start = time.monotonic()
    _must(["make", "image", f"IMAGE={IMAGE}", f"BASE_IMAGE={base_image}", "ENGINE=podman"])
    size = int(_must(["podman", "image", "inspect", "--format={{.Size}}", IMAGE]).stdout)
    pytestconfig.stash[BUILD] = (
        f"{IMAGE}: {size / 1e9:.2f} GB, ready after {time.monotonic() - start:.0f} s"
    )
    return IMAGE


@pytest.fixture(scope="session")
def docker_host(podman: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of podman's Docker API; DOCKER_HOST holds it as long as the tests run."""
    folder = tmp_path_factory.mktemp("podman")
    address = f"unix://{folder / 'podman.sock'}"
    with (folder / "log").open("w") as log:
        service = subprocess.Popen(
            ["podman", "system", "service", "--time=0", address], stdout=log, stderr=log
        )
    try:
        _wait_until_ready(address, service, folder / "log")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DOCKER_HOST", address)
            yield address
    finally:
        service.terminate()
        service.wait()


@pytest.fixture(scope="session")
def container(image: str) -> Container:
    """A function that runs a command in a hardened container of our image.

    `options` are further options of `podman run`; the last of two wins. It must succeed, unless
    `check` is false.
    """

    def run(
        *command: str, options: tuple[str, ...] = (), check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        line = ["podman", "run", "--rm", *HARDENED, *options, image, *command]
        return _must(line) if check else subprocess.run(line, capture_output=True, text=True)

    return run


def _must(command: list[str | Path]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    said = "\n".join([*map(str, command), *done.stdout.splitlines()[-20:], done.stderr[-4000:]])
    assert done.returncode == 0, said
    return done


def _wait_until_ready(address: str, service: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert service.poll() is None, log.read_text()
        try:
            docker.DockerClient(address).ping()
        except (docker.errors.DockerException, requests.RequestException):
            time.sleep(0.2)
        else:
            return
    raise AssertionError(f"podman's service did not answer within 60 s:\n{log.read_text()}")
