"""Progress bars: where a person watches a terminal, or where a program asks for them or for none.

A notebook is no terminal, so there the bars have to be asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from typing import Any

from tqdm import tqdm

_wanted: ContextVar[bool | None] = ContextVar("wanted", default=None)


def progress_bar(**options: Any) -> tqdm[Any]:
    """A tqdm bar with these options, visible according to `showing_progress`."""
    wanted = _wanted.get()
    if wanted and find_spec("ipywidgets"):  # without it, tqdm's notebook bars are a warning
        from tqdm.auto import tqdm as bar

        return bar(**options)
    return tqdm(**options, disable=None if wanted is None else not wanted)


@contextmanager
def showing_progress(wanted: bool | None) -> Iterator[None]:
    """Show the bars made in the block, or none; None shows them on a terminal only."""
    token = _wanted.set(wanted)
    try:
        yield
    finally:
        _wanted.reset(token)
