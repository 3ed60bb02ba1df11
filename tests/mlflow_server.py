"""A real MLflow server on the loopback interface that can be killed and brought back."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class MlflowServer:
    """`mlflow server` on an SQLite store and a folder of artifacts."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_down(self) -> bool:
        return self._process is None

    def start(self) -> None:
        """Start it, or bring it back, and wait until it answers."""
        artifacts = self.store.with_name("served-artifacts")
        options = f"--backend-store-uri sqlite:///{self.store} --artifacts-destination {artifacts}"
        options += f" --host 127.0.0.1 --port {self.port} --workers 1"
        with self.store.with_name("server.log").open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *options.split()],
                env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._wait()

    def kill(self) -> None:
        """Kill it with its workers, as a machine that loses power would."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _wait(self) -> None:
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline:
            assert self._process is not None
            assert self._process.poll() is None, self.store.with_name("server.log").read_text()
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                    return
            except OSError:
                time.sleep(0.2)
        raise AssertionError("the MLflow server did not start")
