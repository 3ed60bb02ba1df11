"""Real servers on the loopback interface: PostgreSQL, SeaweedFS as S3 store, MLflow.

They end with the block they are started in, or with pytest, however it ends (guardian.py). Each can
be killed and started again in its place: same port, same data.
"""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn, Self

import boto3
import botocore
import pytest
import requests
from botocore.config import Config

_PATIENCE = 180  # seconds; `mlflow models serve` on a busy machine


def missing(what: str, package: str) -> NoReturn:
    """Skip the test; in CI, where everything is installed, fail it."""
    reason = f"{what} is missing: apt-get install {package}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def tool(name: str) -> str:
    """A program of the environment the tests run in, or of the system."""
    beside = Path(sys.executable).with_name(name)
    path = str(beside) if beside.exists() else shutil.which(name)
    assert path, f"{name} is missing: make setup"
    return path


def free_ports(number: int) -> list[int]:
    """Ports that stay free while a server is down.

    They are below those which the system gives to outgoing connections: one of these may take such
    a port in the moment between the end of a server and its next start.
    """
    found: list[int] = []
    while len(found) < number:
        port = random.SystemRandom().randrange(12000, 32000)
        with socket.socket() as probe:
            free = probe.connect_ex(("127.0.0.1", port)) != 0
        if free and port not in found:
            found.append(port)
    return found


def answers(url: str) -> bool:
    """Whether a server answers a GET with 200."""
    try:
        return requests.get(url, timeout=5).status_code == 200
    except requests.RequestException:
        return False


class Server:
    """A process with its children, logging into `folder`.

    Args:
        command: Its command line.
        folder: Working directory; `log` in it has the output of every start.
        ready: Whether it answers.
        options: For `subprocess.Popen`.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        folder: Path,
        ready: Callable[[], bool],
        **options: Any,
    ) -> None:
        self._command, self._ready, self._options = command, ready, options
        self._folder, self.log = folder, folder / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        with self.log.open("a") as out:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd=self._folder,
                start_new_session=True,
                **self._options,
            )
        _guard("group", self._process.pid)
        deadline = time.monotonic() + _PATIENCE
        while not self._ready():
            assert self._process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

    def kill(self) -> None:
        """End it without a chance to tidy up, as a power cut does."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Ask it to end, and wait until it has."""
        self._end(signal.SIGTERM)

    def pause(self) -> None:
        """Let it take connections and answer nothing, as a very busy one does."""
        assert self._process
        os.killpg(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it answer again."""
        assert self._process
        os.killpg(self._process.pid, signal.SIGCONT)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        os.killpg(self._process.pid, number)
        try:
            self._process.wait(_PATIENCE)
        finally:
            if number != signal.SIGKILL:
                _kill_group(self._process.pid)  # what outlived its parent
            _guard("release", self._process.pid)
            self._process = None
        while self._ready():  # what a warm program (warm.py) stood for ends a moment later
            time.sleep(0.01)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()  # its data goes with it, and a polite end takes some of them ten seconds


def _kill_group(number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(number, signal.SIGKILL)


def _guard(kind: str, name: object) -> None:
    guardian = _guardian()
    guardian.write(f"{kind} {name}\n")
    guardian.flush()


@functools.cache
def _guardian() -> IO[str]:
    """Standard input of the process that outlives this one for a moment."""
    process = subprocess.Popen(
        [sys.executable, "-S", Path(__file__).with_name("guardian.py")],
        stdin=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdin is not None
    return process.stdin


class Relay:
    """Passes connections of a loopback port on to another one, and may hold what they carry.

    So a test can make sure that a transfer is under way, however fast the machine is.

    Args:
        target: Port that connections are passed on to, whether or not anybody listens there yet.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._open = threading.Event()
        self._open.set()
        self._lock = threading.Lock()
        self._left: int | None = None  # bytes to pass until it holds
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def hold_after(self, num_bytes: int) -> None:
        """Pass about so many bytes more, in both directions together, and then none."""
        with self._lock:
            self._left = num_bytes

    def wait_until_held(self, seconds: float) -> bool:
        """Whether it holds something back before the time is over."""
        deadline = time.monotonic() + seconds
        while self._open.is_set() and time.monotonic() < deadline:
            time.sleep(0.01)
        return not self._open.is_set()

    def release(self) -> None:
        """Pass everything on again."""
        with self._lock:
            self._left = None
        self._open.set()

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *error: object) -> None:
        self.release()
        self._listener.close()

    @staticmethod
    def _start(work: Callable[..., None], *arguments: object) -> None:
        threading.Thread(target=work, args=arguments, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):  # the listener is closed
            while True:
                near, _ = self._listener.accept()
                try:
                    far = socket.create_connection(("127.0.0.1", self._target))
                except OSError:
                    near.close()
                    continue
                self._start(self._pass, near, far)
                self._start(self._pass, far, near)

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(2**16):
                self._wait(len(data))
                sink.sendall(data)
        for end in (source, sink):  # neither side waits for one that is gone
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _wait(self, num_bytes: int) -> None:
        with self._lock:
            if self._left is not None:
                self._left -= num_bytes
                if self._left < 0:
                    self._open.clear()
        self._open.wait()


# ---------------------------------------------------------------------------------- PostgreSQL


class PostgreSQL(NamedTuple):
    """A running PostgreSQL; `postgres` is its superuser, without password on its socket."""

    server: Server
    programs: Path
    socket: Path
    port: int

    @property
    def client_environment(self) -> dict[str, str]:
        """For programs of ordinary users, who need a password."""
        return {"PGHOST": "127.0.0.1", "PGPORT": str(self.port)}

    def run_script(self, script: str, env: Mapping[str, str]) -> None:
        """Run a shell script with the programs of PostgreSQL, as the superuser's client."""
        socket = {"PGHOST": str(self.socket), "PGPORT": str(self.port)}
        path = {"PATH": f"{self.programs}:/usr/bin:/bin"}
        subprocess.run(["bash", "-c", script], env={**env, **path, **socket}, check=True)


@contextmanager
def postgresql(initdb_options: Iterable[str]) -> Iterator[PostgreSQL]:
    """PostgreSQL of the system on an empty folder; started as root, it runs as `postgres`."""
    programs = _postgresql_programs()
    user: dict[str, Any] = {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}
    port = free_ports(1)[0]
    with _short_folder("vitdc-postgres-") as folder:
        if user:
            shutil.chown(folder, "postgres", "postgres")
        env = {"PATH": f"{programs}:/usr/bin:/bin", "PGHOST": str(folder), "PGPORT": str(port)}
        subprocess.run(
            [programs / "initdb", "-D", folder / "data", "-U", "postgres", "--no-sync",
             *initdb_options],
            check=True, capture_output=True, cwd=folder, env=env, **user,
        )  # fmt: skip

        def ready() -> bool:
            command = [programs / "pg_isready", "--quiet"]
            return subprocess.run(command, env=env, check=False).returncode == 0

        command = [programs / "postgres", "-D", folder / "data", "-p", str(port), "-k", folder]
        options = ["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
        with Server([*command, *options], folder=folder, ready=ready, **user) as server:
            yield PostgreSQL(server, programs, folder, port)


def _postgresql_programs() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if initdb := shutil.which("initdb") or (found[-1] if found else None):
        return Path(initdb).resolve().parent
    missing("PostgreSQL", "postgresql")


@contextmanager
def _short_folder(prefix: str) -> Iterator[Path]:
    """A folder that another user can reach, and whose name leaves room for that of a socket."""
    with tempfile.TemporaryDirectory(prefix=prefix) as name:
        _guard("folder", name)
        try:
            yield Path(name)
        finally:
            _guard("release", name)


# ----------------------------------------------------------------------------------- S3 store


class S3Identity(NamedTuple):
    """Somebody an S3 store knows, and what he may do: `Admin`, or e.g. `Read:BUCKET`."""

    access_key: str
    secret_key: str
    actions: tuple[str, ...] = ()

    def client(self, endpoint_url: str) -> Any:
        return boto3.session.Session().client(
            "s3",
            endpoint_url=endpoint_url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            config=Config(retries={"total_max_attempts": 1}),
        )


class S3Server(NamedTuple):
    """A running S3 store, and the keys of its administrator."""

    server: Server
    endpoint_url: str
    access_key: str
    secret_key: str

    def client(self) -> Any:
        return S3Identity(self.access_key, self.secret_key).client(self.endpoint_url)


@contextmanager
def s3_store(
    folder: Path,
    *,
    identities: str,
    administrator: S3Identity,
    arguments: Iterable[str] = ("server", "-s3", "-s3.iam=false"),
) -> Iterator[S3Server]:
    """SeaweedFS, which, unlike moto, refuses a wrong secret.

    Args:
        folder: For its data.
        identities: JSON text of who may do what.
        administrator: One of them.
        arguments: The first part of its command line.
    """
    (folder / "identities.json").write_text(identities)
    ports = free_ports(8)
    services = ("s3", "master", "volume", "filer")
    options = [f"-{s}.port={p}" for s, p in zip(services, ports[:4], strict=True)]
    options += [f"-{s}.port.grpc={p}" for s, p in zip(services, ports[4:], strict=True)]
    options += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3.ip.bind=127.0.0.1", f"-dir={folder}"]
    options += [f"-s3.config={folder / 'identities.json'}", "-master.telemetry=false"]
    options += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
    options += ["-volume.max=400", "-master.volumeSizeLimitMB=64"]
    url = f"http://127.0.0.1:{ports[0]}"
    ready = functools.partial(_has_bucket, administrator.client(url), "ready")
    command = [tool("weed"), *arguments, *options]
    with Server(command, folder=folder, ready=ready) as server:
        yield S3Server(server, url, administrator.access_key, administrator.secret_key)


def _has_bucket(client: Any, name: str) -> bool:
    """Whether the bucket is there or can be made, which takes longer than until a store answers."""
    try:
        client.create_bucket(Bucket=name)
    except botocore.exceptions.ClientError as error:
        return str(error.response["Error"]["Code"]).startswith("BucketAlready")
    except botocore.exceptions.BotoCoreError:
        return False
    return True


def identities_json(identities: Mapping[str, S3Identity]) -> str:
    """Who may do what, by name, in SeaweedFS' format."""
    listed = [
        {
            "name": name,
            "credentials": [{"accessKey": each.access_key, "secretKey": each.secret_key}],
            "actions": each.actions,
        }
        for name, each in identities.items()
    ]
    return json.dumps({"identities": listed})


# -------------------------------------------------------------------------------------- MLflow


class MlflowServer(NamedTuple):
    """A running MLflow."""

    server: Server
    uri: str


@contextmanager
def mlflow_server(
    folder: Path, *, arguments: Iterable[str], env: Mapping[str, str], python: str = sys.executable
) -> Iterator[MlflowServer]:
    """`mlflow server` with these arguments and nothing of our environment but the Python path."""
    port = free_ports(1)[0]
    uri = f"http://127.0.0.1:{port}"
    python_path = {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    env = {"PATH": os.environ["PATH"], "HOME": str(folder), **python_path, **env}
    command = [python, "-m", "mlflow", "server", *arguments]
    command += ["--host=127.0.0.1", f"--port={port}", "--workers=1"]
    ready = functools.partial(answers, f"{uri}/health")
    with Server(command, folder=folder, ready=ready, env=env) as server:
        yield MlflowServer(server, uri)
