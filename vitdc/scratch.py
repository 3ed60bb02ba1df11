"""Directories for unfinished work, one process each."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from vitdc.errors import InputError

if TYPE_CHECKING:
    from filelock import FileLock


@contextmanager
def claimed(directory: Path | None) -> Iterator[Path | None]:
    """Keep other processes out of a scratch directory; without one, yield None.

    Equal work may be done twice at once: two queued experiments that differ in `joint` only train
    the same round 0. The second process gets a sibling, `NAME-1`, and leaves the first in peace.
    A process that dies frees its directory, and whoever starts the work again continues there.

    Args:
        directory: Named by a hash of the work's inputs; need not exist.

    Raises:
        InputError: It cannot be written.
    """
    if directory is None:
        yield None
        return
    places = (
        directory.with_name(f"{directory.name}-{number}") if number else directory
        for number in itertools.count()
    )
    found = ((place, _lock(place, place.with_name(f".{place.name}.lock"))) for place in places)
    place, lock = next((place, lock) for place, lock in found if lock)
    try:
        yield place
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)  # still held, so nobody starts with it
        lock.release()


@contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Keep other processes out of a directory of results while the block runs.

    The system frees it when this process ends, however it does.

    Raises:
        InputError: Another process works there, or it cannot be written.
    """
    owner = directory / ".owner"
    lock = _lock(directory, directory / ".lock")
    if lock is None:
        name = owner.read_text(encoding="utf-8") if owner.exists() else "another process"
        raise InputError(
            f"{directory}: {name} is at work there; wait until it has ended, or name another"
            " directory"
        )
    try:
        owner.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        for file in (owner, Path(lock.lock_file)):
            file.unlink(missing_ok=True)  # still held, so nobody starts with it
        lock.release()
        with suppress(OSError):  # there is something in it
            directory.rmdir()


def _lock(place: Path, file: Path) -> FileLock | None:
    """The lock of a directory by this file, or None if another process holds it."""
    from filelock import FileLock, Timeout

    lock = FileLock(file, blocking=False)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        return None
    except OSError as error:
        raise InputError(f"{place}: cannot be written: {error.strerror}") from None
    return lock
