"""What a person says about the clusters, changed by patches and saved at once.

A patch names the values it changes, and the answer holds the patch that undoes it. Whoever sends
one says which revision of the file it was made for; if the file has changed since (another tab,
another program), nothing is written and the present state is handed back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vitdc.artifacts.annotations import Annotations, Name
from vitdc.errors import InputError, one_line
from vitdc.explore.collection import Collection

Value = TypeVar("Value")


class Patch(BaseModel):
    """Values to change; None takes one away."""

    model_config = ConfigDict(extra="forbid")

    names: dict[int, Name | None] = {}
    merged: dict[int, int | None] = {}
    wrong: dict[int, bool] = Field(default={}, max_length=100_000)


class State(NamedTuple):
    """The annotations as the page sees them.

    Attributes:
        revision: Of the file; changes with its content.
        names: Cluster -> name.
        merged: Cluster -> cluster it was merged into.
        wrong: Numbers of the images marked wrong.
    """

    revision: str
    names: dict[int, str]
    merged: dict[int, int]
    wrong: list[int]


class OutdatedError(Exception):
    """The patch was made for another revision than the present one."""


class Corrections:
    """The annotations of a run, on disk."""

    def __init__(self, images: Collection, *, cache: Path) -> None:
        self._images = images
        self._lock_file = cache / "annotations.lock"
        self._path = Annotations.path_for(images.run.results)
        self.load()  # what is wrong with the file is to be said before the page opens

    def load(self) -> Annotations:
        """What the file says now.

        Raises:
            InputError: It is damaged, newer, or of other clusters than those shown.
        """
        self._images.run.check_unchanged()
        return Annotations.of_results(self._images.run.results)

    def state(self) -> State:
        return self._describe(self.load())

    def apply(self, patch: Patch, *, revision: str) -> tuple[State, Patch]:
        """Change the file; returns the state after, and the patch that undoes the change.

        Raises:
            OutdatedError: The file is not of that revision any more.
            InputError: The patch names clusters or images that do not exist, or merges in a circle.
        """
        self._check(patch)
        with self._alone():
            before = self.load()
            if _revision(before) != revision:
                raise OutdatedError
            after, undo = self._patched(before, patch)
            after.save(self._path)
        return self._describe(after), undo

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Wait until no other thread or program changes the file, and keep them waiting."""
        lock = FileLock(self._lock_file)  # it stays: deleting it would let two in
        try:
            lock.acquire()
        except OSError as error:
            raise InputError(f"{self._lock_file}: cannot be locked: {error.strerror}") from None
        try:
            yield
        finally:
            lock.release()

    def _check(self, patch: Patch) -> None:
        num_clusters = len(self._images.run.clustering.centroids)
        targets = [target for target in patch.merged.values() if target is not None]
        for cluster in (*patch.names, *patch.merged, *targets):
            if not 0 <= cluster < num_clusters:
                raise InputError(f"there is no cluster {cluster}; the last is {num_clusters - 1}")
        for image in patch.wrong:
            if not 0 <= image < len(self._images):
                raise InputError(f"there is no image {image}; the last is {len(self._images) - 1}")

    def _patched(self, before: Annotations, patch: Patch) -> tuple[Annotations, Patch]:
        marks = {self._images.name(image): mark for image, mark in patch.wrong.items()}
        wrong = set(before.wrong)
        undo = Patch(
            names={cluster: before.names.get(cluster) for cluster in patch.names},
            merged={cluster: before.merged.get(cluster) for cluster in patch.merged},
            wrong={image: self._images.name(image) in wrong for image in patch.wrong},
        )
        wrong |= {name for name, mark in marks.items() if mark}
        wrong -= {name for name, mark in marks.items() if not mark}
        values = before.model_dump()
        values["names"] = _changed(before.names, patch.names)
        values["merged"] = _changed(before.merged, patch.merged)
        values["wrong"] = sorted(wrong)
        try:
            return Annotations.model_validate(values), undo
        except ValidationError as error:
            raise InputError(one_line(error.errors()[0]["msg"])) from None

    def _describe(self, found: Annotations) -> State:
        numbers = self._images.numbers(found.wrong)
        return State(
            _revision(found), dict(found.names), dict(found.merged), sorted(numbers.values())
        )


def _changed(before: dict[int, Value], patch: dict[int, Value | None]) -> dict[int, Value]:
    merged = {**before, **patch}
    return {key: value for key, value in merged.items() if value is not None}


def _revision(found: Annotations) -> str:
    return hashlib.sha256(found.model_dump_json().encode()).hexdigest()[:16]
