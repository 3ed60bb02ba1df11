"""Directories for unfinished work, one process each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
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
    place, lock = next((place, lock) for place in places if (lock := _lock(place)))
    try:
        yield place
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)  # still held, so nobody starts with it
        lock.release()


def _lock(place: Path) -> FileLock | None:
    """The lock of a directory, or None if another process holds it."""
    from filelock import FileLock, Timeout

    lock = FileLock(place.with_name(f".{place.name}.lock"), blocking=False)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        return None
    except OSError as error:
        raise InputError(f"{place}: cannot be written: {error.strerror}") from None
    return lock
