"""How an artifact lies on disk: atomic writing, checked reading, hashes.

Large files are checked by size only, because hashing a data set at the start of every step would
cost more than the step; `VERIFY_BYTES` is the limit.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from vitdc import __version__
from vitdc.errors import InputError, explaining_disk

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

FORMAT_VERSIONS = {"clustering": 2}  # 1 had no atypicality
FIRST_VERSION = 1  # of all other kinds
VERIFY_BYTES = 256 * 2**20
REMEMBER_BYTES = 2**20  # larger files are hashed once per process, as long as they stay the same
SPLITS = ("train", "test")
LOST_FOUND = "lost+found"  # in the root of an ext4 volume


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield an empty temporary sibling of `path` that takes its place when the block succeeds.

    Whatever ends the block early (an error, Ctrl-C) removes the sibling and leaves `path` as it
    was. What a killed process left behind is swept away by the next call. A link stays a link, and
    in a folder that cannot be renamed, e.g. the root of a volume, the content is exchanged.

    Raises:
        InputError: `path` cannot be written, or holds something that is not ours to delete.
        TrainingError: The disk is full.
    """
    path = Path(path)
    check_replaceable(path)
    path = _real(path)
    partial, old = _partial(path), path.with_name(f".{path.name}.old")
    try:
        with explaining_disk(path):
            remove(partial)
            remove(old)
            partial.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None
    try:
        with explaining_disk(path):
            yield partial
            try:
                if path.exists():
                    path.rename(old)
                partial.rename(path)
            except OSError as error:
                if error.errno not in (errno.EBUSY, errno.EXDEV):
                    raise
                _exchange(path, partial)
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        remove(partial)
        remove(old)


def _real(path: Path) -> Path:
    """Where a link leads to."""
    return path.resolve() if path.is_symlink() else path


def _partial(path: Path) -> Path:
    """Where new content of a directory grows: beside it, or in it where it is a mount point."""
    return path / ".partial" if _is_mount(path) else path.with_name(f".{path.name}.partial")


def _is_mount(path: Path) -> bool:
    """Unlike `Path.is_mount`, also for a folder that is mounted from the same file system."""
    if not path.is_dir():
        return False
    import psutil

    mounts = (partition.mountpoint for partition in psutil.disk_partitions(all=True))
    return str(path.resolve()) in mounts


def _exchange(path: Path, partial: Path) -> None:
    """Exchange what is in a directory that cannot be renamed; meanwhile it is no artifact."""
    (path / "artifact.json").unlink(missing_ok=True)
    for child in path.iterdir():
        if child != partial and child.name != LOST_FOUND:
            remove(child)
    for child in sorted(partial.iterdir(), key=lambda child: child.name == "artifact.json"):
        shutil.move(child, path / child.name)


@contextmanager
def replacing_file(path: Path) -> Iterator[TextIO]:
    """Yield a new text file that takes the place of `path` when the block succeeds.

    Whatever ends the block early leaves `path` as it was.

    Raises:
        InputError: `path` is a directory or cannot be written.
    """
    path = _real(Path(path))
    partial = path.with_name(f".{path.name}.partial")
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        file = partial.open("w", encoding="utf-8", newline="")
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None
    try:
        with explaining_disk(path):
            with file:
                yield file
            partial.replace(path)
    finally:
        remove(partial)


def check_replaceable(path: Path) -> None:
    """Only artifacts, models, the rounds of `refine` and empty directories are ever replaced.

    Raises:
        InputError: There is something else at `path`, or it cannot be written.
    """
    if path.name in ("", ".."):
        raise InputError(f"{path}: cannot be written: name a new directory, e.g. {path / 'output'}")
    ours = ("", "checkpoint/", "00/checkpoint/")
    if path.is_dir():
        left = _partial(path)  # whole, if it ended while the content was being exchanged
        replaceable = {each.name for each in path.iterdir()} <= {LOST_FOUND, left.name} or any(
            (place / part / "artifact.json").is_file() for place in (path, left) for part in ours
        )
    else:
        replaceable = not path.exists()
    if not replaceable:
        raise InputError(
            f"{path}: exists and was not written by vitdc, so it is not replaced; name another"
            " directory, or delete it yourself"
        )
    _check_writable(_partial(_real(path)).parent, path)


def _check_writable(folder: Path, path: Path) -> None:
    place = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    if not place.is_dir():
        reason = f"{place} is a file"
    elif os.statvfs(place).f_flag & os.ST_RDONLY:
        reason = os.strerror(errno.EROFS)
    elif not os.access(place, os.W_OK):
        reason = f"no permission in {place}"
    else:
        return
    raise InputError(f"{path}: cannot be written: {reason}; name another directory")


def copy(source: Path, target: Path, *, linked: bool = False) -> None:
    """Copy an artifact; like every artifact, the copy appears whole or not at all.

    Args:
        source: The artifact.
        target: Replaced if it exists.
        linked: Let the copy share the files, where both stay in our hands.
    """
    copy_function = link if linked else shutil.copy2
    with replacing(target) as directory:
        shutil.copytree(source, directory, dirs_exist_ok=True, copy_function=copy_function)


def link(source: str | Path, target: str | Path) -> None:
    """Give a file a second name, or copy it where that cannot be.

    Artifacts are replaced as a whole, never written into, so a second name is as good as a copy.
    """
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def remove(path: Path) -> None:
    """Delete a file or a directory; nothing happens where there is none."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


class Writer:
    """Collects the payload files and the metadata of one artifact; made by `writing`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.metadata: dict[str, Any] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Create `name`.npy and return it as a writable memory map, for streaming."""
        path = self.directory / f"{name}.npy"
        if 0 in shape:  # an empty file cannot be mapped
            empty = np.zeros(shape, dtype)
            np.save(path, empty)
            return empty
        return create_array(path, shape, dtype)

    def save(self, name: str, array: np.ndarray) -> None:
        """Write `array` as `name`.npy."""
        np.save(self.directory / f"{name}.npy", array, allow_pickle=False)

    def rows(self, name: str, header: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
        """Write `name`.csv, row by row."""
        write_csv(self.directory / f"{name}.csv", header, rows)


@contextmanager
def writing(path: Path, kind: str, made_by: Mapping[str, Any]) -> Iterator[Writer]:
    """Write one artifact atomically: fill the yielded `Writer`, the rest is done at the end.

    Args:
        path: The artifact's directory; replaced if it exists.
        kind: One of the kinds below, e.g. "dataset".
        made_by: What made it: step name, config sections, seed, digests of the inputs.
    """
    with replacing(path) as directory:
        writer = Writer(directory)
        yield writer
        files = {
            file.relative_to(directory).as_posix(): _describe_file(file)
            for file in sorted(directory.rglob("*"))
            if file.is_file()
        }
        description = {
            "kind": kind,
            "format_version": FORMAT_VERSIONS.get(kind, FIRST_VERSION),
            "made_by": {"vitdc": __version__, **made_by},
            "metadata": writer.metadata,
            "files": files,
        }
        write_json(directory / "artifact.json", description)


def _describe_file(file: Path) -> dict[str, Any]:
    description: dict[str, Any] = {"bytes": file.stat().st_size, "sha256": _hash(file)}
    if file.suffix == ".npy":
        array = read_array(file)
        description |= {"shape": list(array.shape), "dtype": str(array.dtype)}
    return description


def read_metadata(path: Path, kind: str) -> dict[str, Any]:
    """Check the artifact at `path` and return its metadata.

    Raises:
        InputError: There is no artifact, it is of another kind or format version, or a payload
            file is missing, truncated or changed.
    """
    path = Path(path)
    try:
        description = json.loads((path / "artifact.json").read_text(encoding="utf-8"))
        found, version = description["kind"], description["format_version"]
        metadata, files = description["metadata"], description["files"]
    except OSError:
        raise InputError(
            f"{path}: no {kind} here (artifact.json is missing); run the step that writes it"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f"{path}/artifact.json: corrupt; delete it and run its step again"
        ) from None
    if found != kind:
        raise InputError(f"{path}: holds {found}, but {kind} is needed here")
    if version != (readable := FORMAT_VERSIONS.get(kind, FIRST_VERSION)):
        raise InputError(
            f"{path}: has format version {version}, this vitdc ({__version__}) reads"
            f" {readable}; run the step that wrote it again, or use the vitdc that wrote it"
        )
    _verify_files(path, files)
    return dict(metadata)


def _verify_files(
    path: Path, files: Mapping[str, Mapping[str, Any]], max_bytes: int | None = VERIFY_BYTES
) -> None:
    for name, expected in files.items():
        file = path / name
        if not file.is_file():
            raise InputError(f"{file}: missing; run the step that writes {path} again")
        size = file.stat().st_size
        hashed = max_bytes is None or size <= max_bytes
        intact = size == expected["bytes"] and (not hashed or _hash(file) == expected["sha256"])
        if not intact:
            raise InputError(
                f"{file}: corrupt (not the bytes that were written); run the step that writes"
                f" {path} again"
            )


def _hash(file: Path) -> str:
    """SHA-256 of a file that many steps of one process may read."""
    status = file.stat()
    if status.st_size < REMEMBER_BYTES:
        return sha256(file)
    return _remembered(file, (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))


@lru_cache(maxsize=256)
def _remembered(file: Path, state: tuple[int, ...]) -> str:
    return sha256(file)


def verify(path: Path) -> None:
    """Check every payload file of an artifact by its hash, however large, e.g. after a download.

    Raises:
        InputError: One is missing, truncated or changed.
    """
    description = json.loads((Path(path) / "artifact.json").read_text(encoding="utf-8"))
    _verify_files(Path(path), description["files"], max_bytes=None)


def made_by(path: Path) -> dict[str, Any]:
    """What made the artifact at `path`: step, digests of its inputs, sections, seed."""
    description = json.loads((Path(path) / "artifact.json").read_text(encoding="utf-8"))
    found: dict[str, Any] = description["made_by"]
    return found


def payload_hashes(path: Path) -> dict[str, str]:
    """SHA-256 of every payload file of the artifact at `path`, as it was written."""
    description = json.loads((Path(path) / "artifact.json").read_text(encoding="utf-8"))
    return {name: file["sha256"] for name, file in description["files"].items()}


def digest(path: Path) -> str:
    """SHA-256 of an artifact's description, which covers the hash of every payload file."""
    file = Path(path) / "artifact.json"
    if not file.is_file():
        raise InputError(f"{path}: no artifact here (artifact.json is missing)")
    return sha256(file)


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write JSON that reads well and is the same for equal values; NaN is refused."""
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


class CsvWriter:
    """Writes every CSV of vitdc, so that every reader gets back the texts that were written.

    Lines end with a line feed. `None` becomes an empty cell, floats keep all their digits. What a
    spreadsheet takes for a formula (a leading =) is left as it is.

    Args:
        file: Has a method `write`. Open files for it with newline="".
    """

    def __init__(self, file: SupportsWrite[str]) -> None:
        self._file = file
        self._writer = csv.writer(self, lineterminator="\r\n")  # it quotes what is in here

    def write(self, line: str) -> None:
        """For the writer of the standard library, which writes a row at once."""
        self._file.write(line.removesuffix("\r\n") + "\n")

    def row(self, values: Iterable[Any]) -> None:
        """Write one row."""
        self._writer.writerow(values)

    def rows(self, rows: Iterable[Iterable[Any]]) -> None:
        """Write rows as they come."""
        self._writer.writerows(rows)


def write_csv(path: Path, header: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write a CSV file, see `CsvWriter`."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = CsvWriter(file)
        writer.row(header)
        writer.rows(rows)


def read_csv(path: Path) -> Iterator[dict[str, str]]:
    """Stream the rows of a CSV file that vitdc wrote, by the names of its columns."""
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def create_array(path: Path, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """A new `.npy` file, memory-mapped for writing, all zero at first.

    Its space is taken at once: where a page that is written finds none, the system ends the process
    (SIGBUS).
    """
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    if hasattr(os, "posix_fallocate"):  # not on macOS
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def read_array(file: Path) -> np.ndarray:
    """Memory-map a `.npy` file; one without elements is read. Pickled objects are refused."""
    try:
        array: np.ndarray = np.load(file, mmap_mode="r", allow_pickle=False)
    except ValueError:  # an array without elements cannot be mapped
        try:
            array = np.load(file, allow_pickle=False)
        except ValueError as error:
            raise InputError(f"{file}: not an array that vitdc wrote: {error}") from None
    return array
