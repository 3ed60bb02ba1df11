"""The two ways a run ends badly, the exit code each one stands for, and how others' errors read."""

import re
import signal
import sys
from typing import NoReturn

from vitdc.names import printable


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
