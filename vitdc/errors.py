"""The two ways a run ends badly, the exit code each one stands for, and how others' errors read."""

import errno
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from vitdc.names import printable

_ADVICE = {
    errno.ENOSPC: "free some space there and run the same command again, or write to another disk",
    errno.EDQUOT: "delete files of yours there and run the same command again, or write elsewhere",
    errno.EFBIG: "raise the limit (ulimit -f) and run the same command again, or write elsewhere",
    errno.EROFS: "write elsewhere",
}
_FULL = re.compile(r"database or disk is full|\d+ requested and \d+ written")  # of SQLite, NumPy


class InputError(ValueError):
    """The user's input or configuration is wrong: exit code 2, one line, no traceback.

    The message says what is wrong, where it came from and what would be valid.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class TrainingError(RuntimeError):
    """A correct configuration failed while running, e.g. a non-finite loss: exit code 1."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


@contextmanager
def explaining_disk(path: os.PathLike[str] | None = None) -> Iterator[None]:
    """Say in one line that a disk takes no more, whichever library found out.

    Args:
        path: What is being written, where that is known; else what the error names.

    Raises:
        TrainingError: The disk is full, the quota used up, or the file system read-only.
    """
    try:
        yield
    except Exception as error:
        number = _disk_trouble(error)
        if number is None or isinstance(error, InputError | TrainingError):
            raise
        named = getattr(error, "filename2", None) or getattr(error, "filename", None)
        place = path or named or "a file"
        raise TrainingError(
            f"{place}: cannot be written: {os.strerror(number)}; {_ADVICE[number]}"
        ) from error


def _disk_trouble(error: Exception) -> int | None:
    """The system's number of what is wrong with a disk, or None where that is not the error."""
    if getattr(error, "errno", None) in _ADVICE:
        return error.errno  # type: ignore[attr-defined,no-any-return]
    text = str(error)
    if _FULL.search(text):
        return errno.ENOSPC
    said = (number for number in _ADVICE if number != errno.EFBIG and os.strerror(number) in text)
    return next(said, None)


def exit_code(error: InputError | TrainingError) -> int:
    """What a process that ends by the error exits with."""
    return 2 if isinstance(error, InputError) else 1


def end_on_sigterm() -> None:
    """Turn SIGTERM into an exception, so that half-written artifacts are removed."""
    signal.signal(signal.SIGTERM, _exit)


def _exit(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)


def is_sigterm(error: BaseException) -> bool:
    """Whether an exception is what `end_on_sigterm` made of the signal."""
    return isinstance(error, SystemExit) and error.code == 128 + signal.SIGTERM


def one_line(error: object) -> str:
    """The message of a library's error without line breaks and without anyone's password."""
    return mask_credentials(" ".join(str(error).split()))


def mask_credentials(text: str) -> str:
    """Hide the user and password of every URL."""
    return re.sub(r"://[^/@\s]*@", "://***@", text)
