"""Environment variables: what one says, and those of a library, set for as long as it is used."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


def user_cache(name: str) -> Path:
    """A directory of the user's cache, XDG_CACHE_HOME or ~/.cache; it may not be there."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "vitdc", name)


@contextmanager
def defaults(values: Mapping[str, str]) -> Iterator[None]:
    """Set the variables that are not set, and take them away again after the block."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
