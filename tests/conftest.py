"""Fixtures that several test files share; the toys themselves are in toys.py."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import repositories
import servers
import toys
import warm
from hypothesis import settings
from PIL import Image

from vitdc import cli
from vitdc.tracking.store import quiet_mlflow

# a busy machine must not fail a test
settings.register_profile("vitdc", deadline=None)
settings.load_profile("vitdc")

WARM_PROGRAMS = "VITDC_TESTS_WARM_PROGRAMS"


def pytest_sessionstart(session: pytest.Session) -> None:
    """Let all workers of pytest-xdist share their warm programs, which start meanwhile."""
    if session.config.getoption("numprocesses", None):
        programs = warm.programs()
        os.environ[WARM_PROGRAMS] = str(programs.__enter__())
        session.config.add_cleanup(lambda: programs.__exit__(None, None, None))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the files come first that start whole programs: they take longest."""
    long = {item.path for item in items if "warm_path" in getattr(item, "fixturenames", ())}
    items.sort(key=lambda item: item.path not in long)


TESTER = servers.S3Identity("tester", "open sesame", ("Admin",))
VISITOR = servers.S3Identity("visitor", "open please", ("Read:public", "List:public"))


@pytest.fixture
def write_images(tmp_path: Path) -> toys.WriteImages:
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


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.S3Server]:
    """SeaweedFS, which `TESTER` administers and `VISITOR` may hardly use."""
    folder = tmp_path_factory.mktemp("s3")
    identities = servers.identities_json({"tester": TESTER, "visitor": VISITOR})
    with servers.s3_store(folder, identities=identities, administrator=TESTER) as server:
        yield server


@pytest.fixture
def s3_credentials(
    s3_server: servers.S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    return toys.make_toy_run(toy_dataset, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def warm_programs() -> Iterator[Path]:
    """A folder with `python`, `vitdc`, `dvc` and `mlflow` that need not import the libraries."""
    if folder := os.environ.get(WARM_PROGRAMS):
        yield Path(folder)
    else:
        with warm.programs() as made:
            yield made


@pytest.fixture(scope="module")
def warm_path(warm_programs: Path) -> Iterator[None]:
    """Lets the programs of PATH be the warm ones, and then those of this environment."""
    path = (str(warm_programs), str(Path(sys.executable).parent), os.environ["PATH"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", os.pathsep.join(path))
        yield


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated MLflow store without runs; making one takes seconds, copying it nothing."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    quiet_mlflow()
    MlflowClient(f"sqlite:///{path}")
    return path


@pytest.fixture
def vitdc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """Runs the program in this process, in an empty folder; gives the exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_WAIT_POLICY", os.environ.get("OMP_WAIT_POLICY", "PASSIVE"))
    handler, level = signal.getsignal(signal.SIGTERM), logging.getLogger("vitdc").level

    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["vitdc", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return int(caught.value.code or 0)

    yield run
    signal.signal(signal.SIGTERM, handler)
    logging.getLogger("vitdc").setLevel(level)


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
