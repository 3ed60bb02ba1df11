"""Python processes that start at once: forks of one that has imported the libraries.

Starting Python with torch, MLflow and the like takes seconds, and the tests of the runners start
hundreds. So one process imports the libraries, and hardly anything of ours, and waits; `programs`
makes a folder of programs that stand for forks of it, with their own arguments, environment,
folder, standard streams, signals and exit code. What such a fork cannot do (other options of
Python) is done by a fresh Python.

All forks have the same hash seed, and no module of LIBRARIES is missing: where a test is about
that, it starts `sys.executable`.
"""

from __future__ import annotations

import atexit
import gc
import io
import json
import os
import runpy
import select
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

LIBRARIES = (
    "torch", "timm", "torchvision", "faiss", "sklearn.cluster", "sklearn.metrics", "scipy.optimize",
    "matplotlib.pyplot", "umap", "jinja2", "pydantic", "PIL.Image", "pandas", "psutil",
    "mlflow", "mlflow.pyfunc", "mlflow.store.tracking.sqlalchemy_store", "mlflow.server.handlers",
    "mlflow.server.fastapi_app", "uvicorn",
    "kfp", "kfp.dsl.executor_main", "kfp.local", "kfp.kubernetes", "kfp.compiler",
    "dvc.cli", "dvc.repo", "dvc.commands.repro", "dvc_s3", "s3fs", "boto3",
)  # fmt: skip
SCRIPTS = ("vitdc", "dvc", "mlflow")

# A program that stands for another one. It starts in hundredths of a second.
CLIENT = """\
#!{python} -IS
import json, os, signal, socket, sys

name, arguments = os.path.basename(sys.argv[0]), sys.argv[1:]
if name in {scripts!r}:
    arguments.insert(0, os.path.join({bin!r}, name))
first = next((each for each in arguments if each != "-u"), "-")
if first.startswith("-") and first not in ("-c", "-m"):
    os.execv({python!r}, [{python!r}, *arguments])

connection = socket.socket(socket.AF_UNIX)
connection.connect({address!r})
request = {{"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd()}}
text = json.dumps(request).encode()
socket.send_fds(connection, [len(text).to_bytes(4, "big")], [0, 1, 2])
connection.sendall(text)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, lambda number, frame: connection.sendall(bytes([number])))
answer = connection.recv(4, socket.MSG_WAITALL)
if len(answer) < 4:
    sys.exit("the process with the libraries has ended")
code = int.from_bytes(answer, "big", signed=True)
if code < 0:
    signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
    os.kill(os.getpid(), -code)
os._exit(code)
"""


@contextmanager
def programs() -> Iterator[Path]:
    """A folder of programs that start at once, for PATH; they end with the context."""
    with tempfile.TemporaryDirectory(prefix="vitdc-warm-", ignore_cleanup_errors=True) as place:
        folder, address = Path(place), f"{place}/socket"
        binaries = Path(sys.executable).parent
        text = CLIENT.format(
            python=sys.executable, scripts=SCRIPTS, bin=str(binaries), address=address
        )
        for program in ("python", "python3", *SCRIPTS):
            (folder / program).write_text(text)
            (folder / program).chmod(0o755)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(address)
        listener.listen(64)  # who connects before the libraries are there waits
        environment = {
            **os.environ,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        for name in ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE"):
            environment.pop(name, None)
        with subprocess.Popen(
            [sys.executable, __file__, str(listener.fileno()), place],
            stdin=subprocess.PIPE,  # which ends with this process, whatever ends it
            env=environment,
            pass_fds=[listener.fileno()],
            start_new_session=True,
        ):
            listener.close()
            yield folder


class Server:
    """Forks itself for every connection; the jobs end with their connections."""

    def __init__(self, listener: socket.socket, programs: Path) -> None:
        self._listener, self._programs = listener, programs
        self._selector = selectors.DefaultSelector()
        self._selector.register(sys.stdin, selectors.EVENT_READ, self._end)
        self._selector.register(listener, selectors.EVENT_READ, self._accept)
        self._jobs: dict[int, socket.socket] = {}

    def serve(self) -> NoReturn:
        while True:
            for key, _ in self._selector.select():
                key.data()

    def _end(self) -> NoReturn:
        for job in self._jobs:
            with suppress(ProcessLookupError):
                os.killpg(job, signal.SIGKILL)
        shutil.rmtree(self._programs, ignore_errors=True)  # if pytest cannot do so any more
        os._exit(0)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        size, streams, _, _ = socket.recv_fds(connection, 4, 3)
        text = connection.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL)
        job = os.fork()
        if not job:
            try:
                os.setsid()
                for number, stream in enumerate(streams):
                    os.dup2(stream, number)
                os.closerange(3, 4096)
                run(self._programs, **json.loads(text))
            except BaseException:
                sys.excepthook(*sys.exc_info())
            os._exit(1)  # it must not serve
        for stream in streams:
            os.close(stream)
        self._jobs[job] = connection
        end = os.pidfd_open(job)
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._signal(job))
        self._selector.register(end, selectors.EVENT_READ, lambda: self._ended(job, end))

    def _signal(self, job: int) -> None:
        """Pass a signal on; the end of a connection is that of a program that was killed."""
        connection = self._jobs.get(job)
        if connection is None:
            return  # it has ended at the same moment
        try:
            number = connection.recv(1)
        except ConnectionError:
            number = b""
        with suppress(ProcessLookupError):
            if number:
                os.kill(job, number[0])
            else:
                os.killpg(job, signal.SIGKILL)
        if not number:
            self._selector.unregister(connection)

    def _ended(self, job: int, end: int) -> None:
        _, status = os.waitpid(job, 0)
        self._selector.unregister(end)
        os.close(end)
        connection = self._jobs.pop(job)
        with suppress(KeyError):
            self._selector.unregister(connection)
        with suppress(OSError):
            code = os.waitstatus_to_exitcode(status)
            connection.sendall(code.to_bytes(4, "big", signed=True))
        connection.close()


def run(programs: Path, arguments: list[str], environment: dict[str, str], folder: str) -> NoReturn:
    """Be a Python with these arguments."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    unbuffered = "PYTHONUNBUFFERED" in environment
    if arguments[0] == "-u":
        del arguments[0]
        unbuffered = True
    _open_streams(unbuffered=unbuffered)
    sys.executable = str(programs / "python")
    paths = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [*paths, *sys.path[1:]]  # without the folder of this file
    sys.argv = arguments[:1] + arguments[2:] if arguments[0] in ("-c", "-m") else arguments
    code = 1
    try:
        with suppress(ModuleNotFoundError):
            import_module("sitecustomize")
        _execute(folder, *arguments)
        code = 0
    except SystemExit as error:
        code = error.code & 255 if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException as error:
        sys.excepthook(*sys.exc_info())
        if isinstance(error, KeyboardInterrupt):
            code = -signal.SIGINT
    finally:
        threading._shutdown()  # as when Python ends
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        if code < 0:
            signal.signal(-code, signal.SIG_DFL)
            os.kill(os.getpid(), -code)
        os._exit(code)


def _open_streams(*, unbuffered: bool) -> None:
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # noqa: SIM115
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = open(number, "wb", closefd=False, buffering=0 if unbuffered else -1)  # noqa: SIM115
        stream = io.TextIOWrapper(
            file,
            encoding="utf-8",
            errors="backslashreplace" if number == 2 else "strict",
            line_buffering=number == 2 or os.isatty(number),
            write_through=unbuffered,
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _execute(folder: str, kind: str, *rest: str) -> None:
    if kind == "-m":
        sys.path.insert(0, folder)
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.path.insert(0, "")
        main: Any = types.ModuleType("__main__")
        sys.modules["__main__"] = main
        exec(compile(rest[0], "<string>", "exec"), main.__dict__)  # noqa: S102
    else:
        sys.path.insert(0, str(Path(kind).parent))
        runpy.run_path(kind, run_name="__main__")


def main(descriptor: str, programs: str) -> NoReturn:
    """Import the libraries and serve."""
    show, warnings.showwarning = warnings.showwarning, lambda *_, **__: None  # their own matter
    for name in LIBRARIES:
        import_module(name)
        if select.select([sys.stdin], [], [], 0)[0]:
            sys.exit()  # nobody waits for it any more
    sys.path[0] = str(Path(__file__).parents[1])
    import_module("vitdc.config")  # reads its own source, among so many modules for long
    warnings.showwarning = show
    gc.collect()
    gc.freeze()  # else collecting garbage would copy it all to every fork
    Server(socket.socket(fileno=int(descriptor)), Path(programs)).serve()


if __name__ == "__main__":
    main(*sys.argv[1:])
