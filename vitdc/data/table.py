"""Labels, splits and groups of images from a table: a CSV file `file,label[,split][,group]`.

Paths in it are relative to the file itself, which lies beside the images or, for a folder, anywhere
on the machine. Values are text: `01` is no number. An empty label, and an image that is not in the
table, means that the class is unknown; an empty group is a group of its own.
"""

from __future__ import annotations

import csv
import io
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from vitdc.data.decoding import File, Unreadable
from vitdc.data.layout import Side, role_of
from vitdc.errors import InputError
from vitdc.names import listed, normal_form

COLUMNS = ("file", "label", "split", "group")
MAX_LISTED = 5  # lines in a message


class Row(NamedTuple):
    """What a table says about an image; None where it says nothing.

    Attributes:
        line: Where it stands.
        label: Name of its class.
        split: As it is written.
        group: Of images that stay on one side of the split.
    """

    line: int
    label: str | None = None
    split: str | None = None
    group: str | None = None


class Table(NamedTuple):
    """A table that fits its images.

    Attributes:
        name: For messages.
        columns: Those that it has.
        rows: Row of every image, in the order of the images; None where it is not listed.
    """

    name: str
    columns: frozenset[str]
    rows: list[Row | None]

    def values(self, column: str) -> list[str | None]:
        """A column, in the order of the images."""
        return [row and getattr(row, column) for row in self.rows]

    def sides(self) -> list[Side]:
        """The split that it gives; an image without one is trained on.

        Raises:
            InputError: A split has a name that says nothing, or all images are on one side.
        """
        roles = {value: role_of(value) for value in set(self.values("split")) - {None} if value}
        wrong = [
            f"line {row.line}: {row.split}"
            for row in self.rows
            if row and row.split and (roles[row.split] or ("",))[0] not in SIDES
        ]
        if wrong:
            raise InputError(
                f"{self.name}: no split is called so: {_listed(wrong)}; use train,"
                " test and validation"
            )
        found = [roles[row.split] if row and row.split else None for row in self.rows]
        names = [role[0] if role else "train" for role in found]
        if "test" not in names:  # as for folders
            names = ["test" if name == "validation" else name for name in names]
        sides: list[Side] = ["test" if name == "test" else "train" for name in names]
        if len(set(sides)) == 1:
            raise InputError(
                f"{self.name}: puts all images into the {sides[0]} split; give some another one,"
                " or leave the column out, then a split is drawn"
            )
        return sides

    def check_groups(self, sides: Sequence[Side]) -> None:
        """Refuse a split that is given and separates a group.

        Raises:
            InputError: It does.
        """
        first: dict[str, tuple[Side, int]] = {}
        for row, side in zip(self.rows, sides, strict=True):
            if row and row.group is not None:
                before = first.setdefault(row.group, (side, row.line))
                if before[0] != side:
                    raise InputError(
                        f"{self.name}: group {row.group} is in both splits, in lines {before[1]}"
                        f" and {row.line}; put it into one, or let data.split=random draw them"
                    )


SIDES = ("train", "validation", "test")


class Place(Protocol):
    """The part of a `files.Store` that is needed here."""

    @property
    def location(self) -> str: ...

    def files(self, names: Sequence[str]) -> Iterator[File]: ...


def read_table(place: Place, labels_file: str, images: Sequence[str]) -> Table:
    """Read the table of a store's images.

    Args:
        place: The store.
        labels_file: Its path, relative to the store's location.
        images: N names of the images.

    Raises:
        InputError: It is not there, is no such table, or names what is no image of the store.
    """
    where = f"data.labels_file: {labels_file}"
    text = _read(place, labels_file, where)
    columns, found = _parse(text, where)
    is_folder = Path(place.location).is_dir()  # whose table may lie elsewhere
    absolute = posixpath.normpath(Path(place.location).absolute().as_posix())
    root = posixpath.join(absolute, "") if is_folder else ""
    folder = posixpath.join(root, posixpath.dirname(labels_file))
    positions = {_key(name): position for position, name in enumerate(images)}
    rows: list[Row | None] = [None] * len(images)
    missing, twice = [], []
    for file, row in found:
        position = _find(file, folder, root, positions)
        if position is None:
            missing.append(f"line {row.line}: {file}")
        elif before := rows[position]:
            twice.append(f"lines {before.line} and {row.line}: {file}")
        else:
            rows[position] = row
    if missing:
        raise InputError(
            f"{where}: {len(missing)} of its files are no images in {place.location}:"
            f" {_listed(missing)}; paths are relative to the table"
        )
    if twice:
        raise InputError(f"{where}: has {len(twice)} images twice: {_listed(twice)}")
    return Table(where, columns, rows)


def _read(place: Place, labels_file: str, where: str) -> str:
    (content,) = place.files([labels_file])
    if isinstance(content, Unreadable):
        raise InputError(f"{where}: {content.reason} in {place.location}")
    try:
        raw = content if isinstance(content, bytes) else Path(content).read_bytes()
        return raw.decode("utf-8-sig")
    except OSError as error:
        raise InputError(
            f"{where}: {error.strerror}: {error.filename}; its path is relative to {place.location}"
        ) from None
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise InputError(f"{where}: line {line} is not UTF-8; save it as CSV in UTF-8") from None


def _parse(text: str, where: str) -> tuple[frozenset[str], list[tuple[str, Row]]]:
    """Columns, and file and row of every line."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows = []
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        _check_header(header, where)
        line = reader.line_num + 1
        for cells in reader:
            if len(cells) not in (0, len(header)):
                raise InputError(
                    f"{where}: line {line} has {len(cells)} cells, the first line {len(header)}"
                )
            values = dict(zip(header, (cell.strip() or None for cell in cells), strict=False))
            if any(values.values()):
                file = values.pop("file")
                if not file:
                    raise InputError(f"{where}: line {line} names no file")
                rows.append((file, Row(line, **values)))
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{where}: line {reader.line_num}: {error}") from None
    return frozenset(header), rows


def _check_header(header: Sequence[str], where: str) -> None:
    valid = "file and some of label, split and group, separated by commas"
    if unknown := [repr(name) for name in header if name not in COLUMNS]:
        raise InputError(f"{where}: line 1: unknown columns {', '.join(unknown)}; use {valid}")
    if "file" not in header or not 2 <= len(header) == len(set(header)):
        raise InputError(f"{where}: line 1 has {', '.join(header) or 'nothing'}, not {valid}")


def _find(file: str, folder: str, root: str, positions: Mapping[str, int]) -> int | None:
    """Position of the image that a cell names; also as Windows writes paths."""
    for path in (file, file.replace("\\", "/")):
        name = _key(posixpath.normpath(posixpath.join(folder, path)).removeprefix(root))
        if name in positions:
            return positions[name]
    return None


def _key(name: str) -> str:
    return normal_form(name)


def _listed(texts: Sequence[str]) -> str:
    return listed(texts, MAX_LISTED, separator="; ")
