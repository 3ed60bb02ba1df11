"""Image files in a folder."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from vitdc.data.decoding import File
from vitdc.data.layout import is_leftover
from vitdc.errors import InputError


@dataclass(frozen=True)
class Folder:
    """A folder as a `files.Store`. Links are followed, but not around in a circle."""

    chunk_size: ClassVar[int] = 64  # of paths only
    origin: ClassVar[Mapping[str, str]] = {}

    location: str

    @classmethod
    def open(cls, root: str | None) -> Self:
        """Check that `root` is a folder.

        Raises:
            InputError: No folder is named or there is none.
        """
        if root is None:
            raise InputError("data.root: needed with data.source=folder: the folder of your images")
        folder = Path(root).expanduser()
        if not folder.exists():
            raise InputError(f"data.root: {root}: no such folder")
        if not folder.is_dir():
            raise InputError(f"data.root: {root}: not a folder")
        return cls(str(folder))

    def names(self) -> list[str]:
        """All files, as paths relative to the folder."""
        return list(_walk(self.location, "", frozenset()))

    def states(self) -> dict[str, str]:
        """Of every file its size and time of change, which change with the content."""
        return {name: file_state(self.path(name)) for name in self.names()}

    def files(self, names: Sequence[str]) -> Generator[File]:
        """The files' paths."""
        yield from map(self.path, names)

    def path(self, name: str) -> str:
        """Of a file, whose name may be an absolute path already."""
        return os.path.join(self.location, name)  # noqa: PTH118 quicker


def _walk(folder: str, prefix: str, above: frozenset[str]) -> Iterator[str]:
    """Relative paths below `folder`; `above` are the real paths of the folders it lies in."""
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        with os.scandir(folder) as scanned:
            entries = list(scanned)
    except OSError as error:
        if any(map(is_leftover, prefix.split("/")[:-1])):  # lost+found is nobody's
            return
        raise InputError(f"{folder}: cannot be listed: {error.strerror}") from None
    for entry in entries:
        if entry.is_dir():
            yield from _walk(entry.path, f"{prefix}{entry.name}/", above | {real})
        elif entry.is_file() or entry.is_symlink():  # a broken link is an unreadable image
            yield prefix + entry.name


def file_state(path: str) -> str:
    """Size and time of change of a file, or why it has none."""
    try:
        status = Path(path).stat()
    except OSError as error:  # a broken link
        return str(error.strerror)
    return f"{status.st_size} {status.st_mtime_ns}"
