"""What a person says about the clusters of a run: names, merges, images marked wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    NonNegativeInt,
    StringConstraints,
    ValidationError,
    model_validator,
)

from vitdc import __version__
from vitdc.artifacts.storage import digest, replacing_file
from vitdc.errors import InputError, one_line

ANNOTATIONS_VERSION: Literal[1] = 1

Name = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200, pattern=r"^.+$")
]


class Annotations(BaseModel):
    """Names and corrections of the clusters of one run.

    They lie in a file beside the results directory (`path_for`), because every evaluation replaces
    the directory as a whole. They belong to the clusters, not to the pictures: drawing the report
    anew keeps them, and `clustering` says whose they are, so that a name never wanders to another
    cluster with the same number.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["annotations"] = "annotations"
    format_version: Literal[1] = ANNOTATIONS_VERSION
    clustering: str
    """Digest of the Clustering artifact, `model/clustering` of the results."""
    names: dict[NonNegativeInt, Name] = {}
    """Name of a cluster, for those that have one."""
    merged: dict[NonNegativeInt, NonNegativeInt] = {}
    """Cluster -> the cluster it was merged into, for those that were; see `target`."""
    wrong: tuple[str, ...] = ()
    """Images that do not belong to their cluster, by their ids of clusters.csv."""

    @model_validator(mode="after")
    def _no_circles(self) -> Self:
        for start in self.merged:
            cluster, passed = start, set[int]()
            while cluster in self.merged:
                if cluster in passed:
                    raise ValueError(f"cluster {start} is merged in a circle")
                passed.add(cluster)
                cluster = self.merged[cluster]
        return self

    def target(self, cluster: int) -> int:
        """The cluster that `cluster` was merged into, over several merges if need be, or itself."""
        while cluster in self.merged:
            cluster = self.merged[cluster]
        return cluster

    def name_of(self, cluster: int) -> str:
        """The name of the cluster that `cluster` counts as; empty if it has none."""
        return self.names.get(self.target(cluster), "")

    @staticmethod
    def path_for(results: Path) -> Path:
        """Where the annotations of a results directory lie: RESULTS.annotations.json beside it."""
        directory = Path(results).absolute()
        directory = directory.resolve() if directory.name in ("", "..") else directory
        return directory.with_name(f"{directory.name}.annotations.json")

    @classmethod
    def of_results(cls, results: Path) -> Self:
        """The annotations beside a results directory; empty ones where there are none.

        Raises:
            InputError: The file is corrupt, newer, or of another clustering than the results hold.
        """
        clustering = digest(Path(results) / "model" / "clustering")
        path = cls.path_for(results)
        if not path.exists():
            return cls(clustering=clustering)
        found = cls.load(path)
        if found.clustering != clustering:
            raise InputError(
                f"{path}: belongs to other clusters than those in {results}, which were made anew"
                " since; move the file away to begin again, or get those results back"
            )
        return found

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file that `save` wrote.

        Raises:
            InputError: It is not there, not such a file, or of a newer format version.
        """
        path = Path(path)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from None
        except ValueError:
            raise InputError(f"{path}: corrupt, it is not JSON; restore it or delete it") from None
        version = values.get("format_version") if isinstance(values, dict) else None
        if isinstance(version, int) and version > ANNOTATIONS_VERSION:
            raise InputError(
                f"{path}: has format version {version}, this vitdc ({__version__}) reads"
                f" {ANNOTATIONS_VERSION}; use the vitdc that wrote it"
            )
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise InputError(f"{path}: {_first_problem(error)}; restore or delete it") from None

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all; equal annotations give equal bytes."""
        values = self.model_dump(mode="json")
        values["wrong"] = sorted(set(self.wrong))
        text = json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False)
        with replacing_file(path) as file:
            file.write(text + "\n")


def _first_problem(error: ValidationError) -> str:
    problem: Any = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"]) or "annotations"
    return f"{where}: {one_line(problem['msg'])}"
