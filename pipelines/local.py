"""The pipeline on this machine: every task in a process of its own, or in a container.

KFP's local runner does the work; the results are what `dvc repro` leaves, byte for byte. Here it
gets what a person expects of it: one line per task instead of a page, the whole log in a file, and
the results in a directory.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO
from unittest import mock

import psutil
from kfp import dsl, local
from kfp.local.orchestrator import task_executor

from pipelines.compiling import build
from pipelines.deep_clustering import CONTINUE_RECORD, CONTINUED_RUN_ID, START_RECORD, Room
from vitdc import artifacts, tracking
from vitdc.artifacts import Evaluation
from vitdc.config import Params
from vitdc.errors import InputError, TrainingError, one_line
from vitdc.kubeflow import SCRATCH_VARIABLE
from vitdc.scratch import alone

_PROGRESS = re.compile(r"\d+%\|")
_OURS = re.compile(r"^vitdc: ")
_INDENT = " " * 4


class Finished(NamedTuple):
    """A local run that ended well.

    Attributes:
        evaluation: The results.
        log: What all tasks printed.
        seconds: How long each task took, by the name it is shown with; 0 if it was cached.
    """

    evaluation: Evaluation
    log: Path
    seconds: dict[str, float]


def run_pipeline(
    params: Params,
    *,
    output: Path,
    root: Path,
    runner: Any = None,
    room: Room | None = None,
    continued_run_id: str | None = None,
) -> Finished:
    """Run the pipeline and copy its results to `output`.

    Args:
        params: All parameters.
        output: Directory for what a run leaves for people, like `results/` of `dvc repro`.
        root: Directory for the artifacts of all tasks, the cache that later runs use, unfinished
            training and the logs.
        runner: A runner of `kfp.local`; by default every task is a process of this Python.
        room: As in `compiling.build`.
        continued_run_id: KFP's id of the run that a `room` for later rounds continues.

    Raises:
        InputError: `output` or `root` cannot be written, or `output` holds something that is not
            ours to replace, or another run is using `root`.
        TrainingError: A task failed; its own error is part of the message.
    """
    root = root.absolute()
    _check_output(output, root)
    pipeline = build(params, room=room, local=True)
    log = root / "logs" / f"{time.strftime('%Y-%m-%d-%H-%M-%S')}-{os.getpid()}.txt"
    variables = {
        SCRATCH_VARIABLE: str(root / "scratch"),
        tracking.RECORD_VARIABLE: "",
        "PYTHONUNBUFFERED": "1",
    }
    with (
        alone(root),  # runs with equal parameters would write the same files
        _private_file(log) as file,
        mock.patch.dict(os.environ, variables),
        _ending_tasks(),
        _watching(file, sys.stdout) as watch,
    ):
        local.init(
            runner or local.SubprocessRunner(use_venv=False),
            pipeline_root=str(root),
            enable_caching=params.kubernetes.caching,
            cache_root=str(root / "cache"),
        )
        try:
            pipeline(**({CONTINUED_RUN_ID: continued_run_id} if continued_run_id else {}))
        except (KeyboardInterrupt, SystemExit):  # KFP's exit handler does not see these
            with tracking.resume_record(watch.record) as tracker:
                tracker.failed("interrupted")
            raise
        except Exception as error:
            reason = watch.failure or f"KFP could not run it: {one_line(error)}"
            raise TrainingError(f"the pipeline failed: {reason}; all logs are in {log}") from None
    assert watch.results is not None, "a pipeline that succeeds has evaluated"
    try:
        artifacts.copy(watch.results, output)
    except (OSError, InputError, TrainingError) as error:
        raise TrainingError(f"{one_line(error)}; the results are in {watch.results}") from None
    return Finished(Evaluation.load(output), log, watch.seconds)


def _check_output(output: Path, root: Path) -> None:
    """What can be known of `output` before hours of work."""
    artifacts.check_replaceable(output)
    here = output.absolute()
    if here == root or here in root.parents:
        raise InputError(f"--output {output}: holds --root {root}, which it would replace")


@contextlib.contextmanager
def _private_file(path: Path) -> Iterator[TextIO]:
    """A new file that only its owner may read: logs show all parameters."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        yield file


@contextlib.contextmanager
def _ending_tasks() -> Iterator[None]:
    """End the running task when this process is told to end; KFP would wait for it to finish."""

    def end(number: int, frame: object) -> None:
        children = psutil.Process().children(recursive=True)
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.send_signal(number)
        _, alive = psutil.wait_procs(children, timeout=10)
        for child in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Watch(io.TextIOBase):
    """Stands in for standard output while KFP runs: all goes to the log, little to the terminal.

    Attributes:
        results: Where the evaluation left its results.
        record: Id of the MLflow run, empty as long as there is none.
        seconds: How long each task took.
        failure: The first failed task, and its own error.
    """

    def __init__(self, log: TextIO, terminal: TextIO) -> None:
        self.results: Path | None = None
        self.record = ""
        self.failure: str | None = None
        self.seconds: dict[str, float] = {}
        self._log = log
        self._terminal = terminal
        self._line = ""
        self._error = ""

    def write(self, text: str) -> int:
        self._log.write(text)
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            if _PROGRESS.search(line):
                self._show(line.strip())
            elif line.startswith(_INDENT) and line.strip():  # KFP indents what tasks print
                self._error = line.strip()
        return len(text)

    def flush(self) -> None:
        self._log.flush()

    def started(self, name: str) -> None:
        self._error = ""
        self._show(f"{name} ...")

    def ended(self, name: str, outputs: dict[str, Any], *, succeeded: bool, seconds: float) -> None:
        """Say what a task made, or keep why it failed; no time at all means KFP's cache."""
        self.seconds[name] = seconds
        took = f"{seconds:.1f} s" if seconds else "cached"
        made = [value for value in outputs.values() if isinstance(value, dsl.Artifact)]
        said = [a.metadata["summary"].splitlines()[0] for a in made if "summary" in a.metadata]
        if not succeeded:
            error = _OURS.sub("", self._error) or "no error message"
            self.failure = self.failure or f"{name}: {error}"
            said = ["FAILED"]
        if name in (START_RECORD, CONTINUE_RECORD) and succeeded:
            self.record = str(outputs["evaluate"]["record"])
            os.environ[tracking.RECORD_VARIABLE] = self.record  # later tasks are told by this
        if "results" in outputs:
            self.results = Path(outputs["results"].path)
        self._clear()
        text = " ".join(said[0].split()) if said else ""
        print(f"{name:<19} {took:>8}  {text}".rstrip(), file=self._terminal, flush=True)

    def _show(self, text: str) -> None:
        """A passing line, where there is somebody to look at it."""
        if self._terminal.isatty():
            self._clear()
            self._terminal.write(text[: os.get_terminal_size(self._terminal.fileno()).columns - 1])
            self._terminal.flush()

    def _clear(self) -> None:
        if self._terminal.isatty():
            self._terminal.write("\r\x1b[K")


@contextlib.contextmanager
def _watching(log: TextIO, terminal: TextIO) -> Iterator[_Watch]:
    """See every task begin and end: KFP's local runner offers no hook, so its function is wrapped.

    The result of a task that KFP took from its cache lies where an earlier run left it.
    """
    watch = _Watch(log, terminal)
    execute = task_executor.execute_single_task

    def execute_and_tell(**arguments: Any) -> Any:
        name = arguments["task_spec"].task_info.name
        watch.started(name)
        start = time.monotonic()
        outputs, status = execute(**arguments)
        made = [value.uri for value in outputs.values() if isinstance(value, dsl.Artifact)]
        cached = made and not any(arguments["pipeline_resource_name"] in uri for uri in made)
        seconds = 0.0 if cached else time.monotonic() - start
        watch.ended(name, outputs, succeeded=status.name == "SUCCESS", seconds=seconds)
        return outputs, status

    with (
        mock.patch.object(task_executor, "execute_single_task", execute_and_tell),
        contextlib.redirect_stdout(watch),
        contextlib.redirect_stderr(watch),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield watch
