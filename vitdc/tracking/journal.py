"""What is waiting for MLflow, on disk: one journal per MLflow run and process.

A folder holds a folder per MLflow run:

    RUN_ID/
      about.json           which run of which store, for people and for processes that come later;
                           of a run that is not finished it may be all there is
      TIME-PID.jsonl       a journal: a line per entry, in the order of being told
      TIME-PID.files/      the files that its entries name
      refused.jsonl        entries that MLflow will never take, with its reason
      refused.files/       their files

A line is written by one call, so that a process killed in the middle leaves a readable journal
without its last entry. Lines `{"delivered": [n, ...]}` say what MLflow has taken; what it takes a
second time changes nothing, so they may be a little behind. A journal belongs to the process that
holds its lock; when that is gone, any other may take it over. A journal that is delivered is
deleted.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

from vitdc.artifacts.storage import link

Entry = dict[str, Any]

ABOUT, REFUSED = "about.json", "refused.jsonl"


class Numbered(NamedTuple):
    """An entry and its place in its journal."""

    number: int
    entry: Entry


class Journal:
    """One file of entries, held by this process until `close` or its end."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        self._torn = False  # the last line may lack its end

    @classmethod
    def create(cls, folder: Path) -> Self:
        """A new one in the folder of an MLflow run, after all that are there."""
        while True:
            path = folder / f"{time.time_ns():020d}-{os.getpid()}.jsonl"
            with suppress(FileNotFoundError):  # another process has just cleared the folder
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                if journal := cls.hold(path, flags=os.O_CREAT | os.O_EXCL):
                    return journal

    @classmethod
    def hold(cls, path: Path, *, flags: int = 0) -> Self | None:
        """Take over a journal; None if a process that lives has it, or it is gone.

        Raises:
            OSError: It cannot be locked, e.g. because the file system has no locks.
        """
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | flags, 0o600)
        except FileNotFoundError:
            if flags:
                raise
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if isinstance(error, BlockingIOError):
                return None
            if flags:
                path.unlink()
            raise
        if os.fstat(descriptor).st_nlink == 0:  # deleted since it was opened
            os.close(descriptor)
            return None
        journal = cls(path, descriptor)
        journal._torn = not flags
        return journal

    @property
    def files(self) -> Path:
        """Folder of the files that entries name."""
        return self.path.with_suffix(".files")

    def append(self, numbered: Numbered) -> None:
        """Write an entry; when this returns, it survives the end of the process."""
        self._write({"n": numbered.number, **numbered.entry})

    def delivered(self, numbers: Iterable[int]) -> None:
        """Write that these entries have been taken."""
        self._write({"delivered": list(numbers)})

    def waiting(self) -> list[Numbered]:
        """The entries that are not delivered yet."""
        return read(self.path)

    def delete(self) -> None:
        """Delete the journal with its files, and a folder that holds nothing else."""
        shutil.rmtree(self.files, ignore_errors=True)
        self.path.unlink(missing_ok=True)
        self.close()
        remove_if_done(self.path.parent)

    def close(self) -> None:
        """Let others take it over; nothing can be written to it any more."""
        os.close(self._descriptor)
        self._descriptor = -1  # the system gives the number to the next file

    def _write(self, line: Mapping[str, Any]) -> None:
        text = json.dumps(line) + "\n"
        data = (("\n" if self._torn else "") + text).encode()
        self._torn = True  # as long as it is not known to be whole
        if os.write(self._descriptor, data) != len(data):
            raise OSError(f"{self.path}: the disk is full")
        self._torn = False


def read(path: Path) -> list[Numbered]:
    """The entries of a journal that are not delivered; a line that was cut off is no entry."""
    entries: list[Numbered] = []
    delivered: set[int] = set()
    with suppress(FileNotFoundError), path.open("rb") as file:
        for line in file:
            values = _parse(line)
            if "delivered" in values:
                delivered.update(values["delivered"])
            elif "n" in values:
                entries.append(Numbered(values.pop("n"), values))
    return [each for each in entries if each.number not in delivered]


def _parse(line: bytes) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}  # an object that was cut off is no JSON


def journals(folder: Path) -> list[Path]:
    """The journals in the folder of an MLflow run, the oldest first."""
    return sorted(folder.glob("[0-9]*.jsonl"))


def take_over(folder: Path) -> Iterator[Journal]:
    """Hold the journals that ended processes left in the folder of a run, the oldest first."""
    for path in journals(folder):
        if journal := Journal.hold(path):
            yield journal


def keep(source: Path, target: Path) -> None:
    """Keep a file or a directory as it is now."""
    remove(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, copy_function=link)
    else:
        link(source, target)


def remove(path: Path) -> None:
    """Delete a file or a directory, if there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def refuse(folder: Path, entry: Entry, reason: str) -> None:
    """Set an entry aside that MLflow will never take, with its file."""
    if (file := folder / entry.get("file", ABOUT)).name != ABOUT and file.exists():
        target = folder / "refused.files" / f"{time.time_ns()}-{file.name}"
        keep(file, target)
        entry = {**entry, "file": target.relative_to(folder).as_posix()}
    with (folder / REFUSED).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"reason": reason, **entry}) + "\n")


def refused(folder: Path) -> list[Entry]:
    """The entries that were set aside, each with its `reason`."""
    with suppress(FileNotFoundError):
        lines = (folder / REFUSED).read_bytes().splitlines(keepends=True)
        return [entry for line in lines if (entry := _parse(line))]
    return []


def remove_if_done(folder: Path) -> None:
    """Delete the folder of a run in which nothing waits and nothing was refused."""
    if not folder.is_dir():
        return
    left = list(folder.iterdir())
    if all(path.name.startswith(ABOUT) for path in left):
        with suppress(OSError):  # another process has just begun a journal
            for path in left:
                path.unlink(missing_ok=True)
            folder.rmdir()


def write_about(folder: Path, about: Mapping[str, Any]) -> None:
    """Say which run of which store a folder is for; whoever reads it finds all of it or none."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    text = json.dumps(dict(about), indent=2)
    partial = folder / f"{ABOUT}.{os.getpid()}"
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(folder / ABOUT)


def read_about(folder: Path) -> dict[str, Any]:
    """What `write_about` wrote; empty if there is nothing readable."""
    try:
        found = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
