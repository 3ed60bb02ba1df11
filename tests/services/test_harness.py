"""The services come back with their data, stay on this machine, and end with pytest."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import servers
from stack import ROOT, Tracking

if TYPE_CHECKING:
    from mlflow import MlflowClient

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h

HOLD = """
import pathlib, time

def test_hold(tracking, postgresql, page):
    page.goto(tracking.uri)
    pathlib.Path("ready").write_text(str(postgresql.socket))
    time.sleep(3600)
"""


def test_services_come_back_with_their_data(
    tracking: Tracking,
    postgresql: servers.PostgreSQL,
    s3_server: servers.S3Server,
    client: MlflowClient,
) -> None:
    run = client.create_run(client.create_experiment("harness")).info.run_id
    client.log_metric(run, "nmi", 0.5, step=1)
    client.log_text(run, "text", "folder/text.txt")
    for server in (tracking.server, postgresql.server, s3_server.server):
        server.kill()
    assert not servers.answers(f"{tracking.uri}/health")
    for server in (postgresql.server, s3_server.server, tracking.server):
        server.start()
    assert tracking.points(run) == [("nmi", 1, 0.5)]
    client.log_metric(run, "nmi", 0.6, step=2)
    assert client.list_artifacts(run, "folder")[0].path == "folder/text.txt"


def test_everything_listens_on_loopback_only(tracking: Tracking, page: Any) -> None:
    page.goto(tracking.uri)
    listening = [
        connection.laddr.ip
        for process in psutil.Process().children(recursive=True)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) >= 6  # MLflow, PostgreSQL, and the parts of SeaweedFS
    assert set(listening) <= {"127.0.0.1", "::1"}


@contextmanager
def orphans_are_ours() -> Iterator[None]:
    """Whatever loses its parent becomes a child of this process, however it was started."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    try:
        yield
    finally:
        libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_of_an_interrupted_pytest(number: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "test_hold.py").write_text(HOLD)
    path = [str(ROOT / "tests"), str(ROOT / "tests" / "services"), str(ROOT)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(path)}
    options = ["-p", "conftest", "-p", "services.conftest", "-p", "no:cacheprovider"]
    me = psutil.Process()
    before = set(me.children(recursive=True))
    with orphans_are_ours(), (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *options, "test_hold.py"],
            cwd=tmp_path, env=env, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        wait_for((tmp_path / "ready").exists, process, tmp_path / "log")
        started = set(me.children(recursive=True)) - before
        names = {each.name() for each in started}
        assert {"weed", "postgres", "chromium"} <= names
        os.killpg(process.pid, number)
        process.wait(60)
        deadline = time.monotonic() + 30
        while left := set(me.children(recursive=True)) - before:
            assert time.monotonic() < deadline, left
            psutil.wait_procs(left, timeout=1)
    assert not Path((tmp_path / "ready").read_text()).exists()


def wait_for(condition: Any, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 600  # four servers start one after the other
    while not condition():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)
