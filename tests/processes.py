"""Waiting for what other threads and processes do, however busy the machine is."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

_PATIENCE = 60  # seconds


def wait_until(condition: Callable[[], object]) -> None:
    """Wait until something holds, for so long that it never will if it does not by then."""
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_group_alive(group: int) -> bool:
    """Whether a process of the group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
