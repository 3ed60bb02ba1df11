"""Does a run that is killed at any moment end in the same bytes when it is started again?

A command runs on toys once undisturbed, then again and again in fresh directories: each time it is
killed (SIGKILL), ended (SIGTERM) or interrupted (SIGINT) at a random moment of its length, started
again until it ends well, and its artifacts are compared byte by byte.

    python benchmarks/interrupts.py run first dvc pipeline --moments 25

run         `vitdc run` without a record in MLflow
first       `vitdc run` that makes its mlflow.db, too
dvc         `dvc repro` in a fresh repository
pipeline    `python -m pipelines run`, the Kubeflow pipeline on this machine
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from vitdc.config import Params

ROOT = Path(__file__).resolve().parents[1]
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
PATIENCE = 30  # seconds that a command gets to end after SIGTERM or SIGINT
MOST_STARTS = 3  # after the interruption; the first is expected to do
TOYS = (
    *("data.max_train=200", "data.max_test=50", "model.embed_dim=32", "model.depth=1"),
    *("model.num_heads=2", "pretraining.epochs=3", "joint.epochs=2", "convergence.epsilon=0"),
    *("convergence.max_rounds=2", "clustering.num_restarts=2", "evaluation.map_points=0"),
)
SMALL = [part for knob in TOYS for part in ("-S", knob)]
UNRECORDED = ["-S", "tracking.enabled=false"]
PYTHON = sys.executable


class Case(NamedTuple):
    """A command and what it leaves.

    Attributes:
        command: Run in a fresh directory.
        compared: Folders in it whose files are compared.
    """

    command: Sequence[str]
    compared: Sequence[str]


CASES: Mapping[str, Case] = {
    "run": Case(["vitdc", "run", "--output", "o", *SMALL, *UNRECORDED], ["o"]),
    "first": Case(["vitdc", "run", "--output", "o", *SMALL], ["o"]),
    "dvc": Case(["dvc", "repro", "--quiet"], ["outputs", "results"]),
    "pipeline": Case(
        [PYTHON, "-m", "pipelines", "run", "--output", "results", *SMALL, *UNRECORDED], ["results"]
    ),
}


class Outcome(NamedTuple):
    """What became of one interruption."""

    moment: float
    number: signal.Signals
    ended: int
    starts: int
    problem: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("cases", nargs="*", choices=CASES, default=[], help="default: all")
    parser.add_argument("--moments", type=int, default=10, help="interruptions per case")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    failed = 0
    for name in arguments.cases or CASES:
        failed += _campaign(name, arguments.moments, random.Random(arguments.seed))
    sys.exit(1 if failed else 0)


def _campaign(name: str, num_moments: int, source: random.Random) -> int:
    """Interrupt a case so many times, print a line for each, and return how many failed."""
    with tempfile.TemporaryDirectory(prefix="vitdc-interrupts-") as place:
        undisturbed = _fresh(Path(place) / "undisturbed", name)
        started = time.perf_counter()
        done = _start(name, undisturbed)
        if done.wait():
            sys.exit(f"{name}: fails undisturbed:\n{_log(undisturbed)}")
        seconds = time.perf_counter() - started
        expected = _hashes(undisturbed, name)
        print(f"\n{name}: {seconds:.1f} s undisturbed, {len(expected)} files", flush=True)
        print(f"{'moment':>8}  {'signal':<8}  {'exit':>5}  {'starts':>6}  outcome", flush=True)
        failed = 0
        for index in range(num_moments):
            directory = _fresh(Path(place) / str(index), name)
            number = SIGNALS[index % len(SIGNALS)]
            outcome = _interrupt(name, directory, source.uniform(0, seconds), number, expected)
            failed += bool(outcome.problem)
            print(
                f"{outcome.moment:>7.2f}s  {outcome.number.name:<8}  {outcome.ended:>5}"
                f"  {outcome.starts:>6}  {outcome.problem or 'same bytes'}",
                flush=True,
            )
            shutil.rmtree(directory)
        good = num_moments - failed
        print(f"{name}: {good} of {num_moments} ended in the same bytes", flush=True)
    return failed


def _interrupt(
    name: str, directory: Path, moment: float, number: signal.Signals, expected: Mapping[str, str]
) -> Outcome:
    process = _start(name, directory)
    time.sleep(moment)
    if process.poll() is None:
        if number == signal.SIGINT:  # as a terminal does, to all that the command has started
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
    try:
        ended = process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return Outcome(moment, number, process.wait(), 0, f"lives on {PATIENCE} s after the signal")
    if number == signal.SIGKILL:  # what a killed command has started may still be at work
        _kill_group(process.pid)
    for start in range(1, MOST_STARTS + 1):
        if _start(name, directory).wait() == 0:
            found = _hashes(directory, name)
            other = sorted(k for k in expected | found if expected.get(k) != found.get(k))
            problem = f"other bytes: {' '.join(other[:5])}" if other else ""
            if start > 1 and not problem:
                problem = f"needed {start} starts:\n{_log(directory)}"
            return Outcome(moment, number, ended, start, problem)
    return Outcome(moment, number, ended, MOST_STARTS, f"never ends well:\n{_log(directory)}")


def _kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return
    time.sleep(0.2)


def _fresh(directory: Path, name: str) -> Path:
    """A directory in which the command can run."""
    directory.mkdir()
    shutil.copy(ROOT / "params.yaml", directory)
    if name == "dvc":
        shutil.copy(ROOT / "dvc.yaml", directory)
        _set_toys(directory / "params.yaml")
        for command in (["git", "init", "--quiet"], ["dvc", "init", "--quiet"]):
            subprocess.run(command, cwd=directory, check=True, env=_environment())
    return directory


def _set_toys(file: Path) -> None:
    params = Params.load(file, [*TOYS, "tracking.enabled=false"])
    file.write_text(yaml.safe_dump(params.model_dump(mode="json", exclude_unset=True)))


def _environment() -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(PYTHON).parent}:{os.environ['PATH']}",
        "MLFLOW_TRACKING_URI": "",
    }


def _start(name: str, directory: Path) -> subprocess.Popen[bytes]:
    with (directory / "log.txt").open("ab") as log:
        return subprocess.Popen(
            CASES[name].command,
            cwd=directory,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _log(directory: Path) -> str:
    return (directory / "log.txt").read_text(errors="replace")[-2000:]


def _hashes(directory: Path, name: str) -> dict[str, str]:
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in CASES[name].compared
        for path in sorted((directory / folder).rglob("*"))
        if path.is_file() and path.name != ".gitignore"
    }


if __name__ == "__main__":
    main()
