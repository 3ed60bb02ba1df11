"""`make push` to a real registry, Debian's docker-registry on the loopback interface."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
import servers

ROOT = Path(__file__).parents[2]
MANIFESTS = "application/vnd.oci.image.manifest.v1+json"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its host and port."""
    program = shutil.which("docker-registry") or servers.missing("a registry", "docker-registry")
    folder = tmp_path_factory.mktemp("registry")
    (port,) = servers.free_ports(1)
    (folder / "config.yml").write_text(
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {folder / 'images'}}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n"
    )
    address = f"127.0.0.1:{port}"
    with servers.Server(
        [program, "serve", "config.yml"],
        folder=folder,
        ready=lambda: servers.answers(f"http://{address}/v2/"),
    ):
        yield address


@pytest.fixture
def pushed(base_image: str, registry: str) -> Iterator[str]:
    """A name of the small base image, whose bytes are compressed on their way to the registry."""
    name = f"{registry}/me/vitdc:1.0"
    podman("tag", base_image, name)
    yield name
    podman("untag", base_image, name)


def podman(*arguments: str) -> str:
    return subprocess.check_output(["podman", *arguments], text=True)


def test_push_prints_the_name_that_the_registry_knows_the_image_by(
    registry: str, pushed: str
) -> None:
    line = ["make", "--no-print-directory", "push", f"IMAGE={pushed}", "ENGINE=podman"]
    line += ["PUSH_OPTIONS=--tls-verify=false"]
    printed = subprocess.check_output(line, cwd=ROOT, text=True).splitlines()[-1]
    manifest = requests.get(
        f"http://{registry}/v2/me/vitdc/manifests/1.0", headers={"Accept": MANIFESTS}, timeout=60
    )
    assert printed == f"{registry}/me/vitdc@{manifest.headers['Docker-Content-Digest']}"
    podman("pull", "--quiet", "--tls-verify=false", printed)
