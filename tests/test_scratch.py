"""Scratch directories: one process each, free again when it ends, however that is."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vitdc.errors import InputError
from vitdc.scratch import alone, claimed

HOLD = """
import sys, pathlib
from vitdc.scratch import claimed
with claimed(pathlib.Path(sys.argv[1])) as place:
    place.mkdir(exist_ok=True)
    print(place.name, flush=True)
    sys.stdin.read()
"""


@contextmanager
def other_process(
    directory: Path, *, program: str = HOLD
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that holds a claim, and the name of what it was given."""
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


def test_equal_work_at_the_same_time_gets_a_directory_of_its_own(tmp_path: Path) -> None:
    work = tmp_path / "scratch" / "refine-1"
    with (
        other_process(work) as (_, first),
        other_process(work) as (_, second),
        claimed(work) as third,
    ):
        assert (first, second, third.name) == ("refine-1", "refine-1-1", "refine-1-2")


def test_the_directory_of_a_killed_process_is_free_and_still_there(tmp_path: Path) -> None:
    work = tmp_path / "refine-1"
    with other_process(work) as (process, _):
        process.kill()
        process.wait()
    with claimed(work) as place:
        assert place == work
        assert place.is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["refine-1"]


def test_without_a_directory_nothing_is_claimed() -> None:
    with claimed(None) as place:
        assert place is None


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "scratch").write_text("")
    with (
        pytest.raises(InputError, match=r"scratch/refine-1: cannot be written: File exists"),
        claimed(tmp_path / "scratch" / "refine-1"),
    ):
        pass


OWN = """
import sys, pathlib
from vitdc.scratch import alone
with alone(pathlib.Path(sys.argv[1])):
    print("here", flush=True)
    sys.stdin.read()
"""


def test_the_second_process_in_a_directory_of_results_is_told_of_the_first(tmp_path: Path) -> None:
    with other_process(tmp_path / "out", program=OWN) as (process, _):
        with (
            pytest.raises(InputError, match=rf"out: process {process.pid} on .* is at work there"),
            alone(tmp_path / "out"),
        ):
            pass
        process.kill()
        process.wait()
        with alone(tmp_path / "out"):
            assert (tmp_path / "out" / ".owner").read_text() != ""
    assert not (tmp_path / "out").exists()


def test_a_directory_that_is_used_in_turns_is_free(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), alone(tmp_path / "out"):
            raise ZeroDivisionError
