"""The artifacts that steps hand to each other, and the only code that knows their file formats.

An artifact is a directory: `artifact.json` (kind, format version, what made it, and for every
payload file its size and SHA-256) beside `.npy`, `.safetensors` and `.csv` payloads. It is
written to a temporary sibling and renamed, so a reader never sees half of one, and it holds
nothing that changes between identical runs (no time, no path, no host), so equal work gives equal
bytes. Arrays are memory-mapped on loading. Nothing is ever unpickled.

Large files are checked by size only, because hashing a data set at the start of every step would
cost more than the step; `VERIFY_BYTES` is the limit.
"""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import numpy as np

from vitdc import __version__
from vitdc.errors import InputError

if TYPE_CHECKING:
    import torch

FORMAT_VERSION = 1
VERIFY_BYTES = 256 * 2**20
SPLITS = ("train", "test")

Verdict = str
CONTINUE, CONVERGED, LOSS_ROSE, MAX_ROUNDS = "continue", "converged", "loss-rose", "max-rounds"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield an empty temporary sibling of `path` that takes its place when the block succeeds.

    Whatever ends the block early (an error, Ctrl-C) removes the sibling and leaves `path` as it
    was. What a killed process left behind is swept away by the next call.

    Raises:
        InputError: `path` cannot be written, or holds something that is not ours to delete.
    """
    path = Path(path)
    _check_replaceable(path)
    partial, old = (path.with_name(f".{path.name}.{state}") for state in ("partial", "old"))
    remove(partial)
    remove(old)
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None
    try:
        yield partial
        if path.exists():
            path.rename(old)
        partial.rename(path)
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        remove(partial)
        remove(old)


def _check_replaceable(path: Path) -> None:
    """Only artifacts, the rounds of `refine` and empty directories are ever replaced."""
    if path.name in ("", ".."):
        raise InputError(f"{path}: cannot be written: name a new directory, e.g. {path / 'output'}")
    ours = ("artifact.json", "00/checkpoint/artifact.json")
    if path.is_dir():
        replaceable = not any(path.iterdir()) or any((path / file).is_file() for file in ours)
    else:
        replaceable = not path.exists()
    if not replaceable:
        raise InputError(
            f"{path}: exists and was not written by vitdc, so it is not replaced; name another"
            " directory, or delete it yourself"
        )


def copy(source: Path, target: Path) -> None:
    """Copy an artifact; like every artifact, the copy appears whole or not at all."""
    with replacing(target) as directory:
        shutil.copytree(source, directory, dirs_exist_ok=True)


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
        return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)

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
            "format_version": FORMAT_VERSION,
            "made_by": {"vitdc": __version__, **made_by},
            "metadata": writer.metadata,
            "files": files,
        }
        write_json(directory / "artifact.json", description)


def _describe_file(file: Path) -> dict[str, Any]:
    description: dict[str, Any] = {"bytes": file.stat().st_size, "sha256": sha256(file)}
    if file.suffix == ".npy":
        array = _read_array(file)
        description |= {"shape": list(array.shape), "dtype": str(array.dtype)}
    return description


def read_metadata(path: Path, kind: str, *, verify: bool = True) -> dict[str, Any]:
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
    if version != FORMAT_VERSION:
        raise InputError(
            f"{path}: has format version {version}, this vitdc ({__version__}) reads"
            f" {FORMAT_VERSION}; run the step that wrote it again, or use the vitdc that wrote it"
        )
    if verify:
        _verify_files(path, files)
    return dict(metadata)


def _verify_files(path: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    for name, expected in files.items():
        file = path / name
        if not file.is_file():
            raise InputError(f"{file}: missing; run the step that writes {path} again")
        size = file.stat().st_size
        intact = size == expected["bytes"] and (
            size > VERIFY_BYTES or sha256(file) == expected["sha256"]
        )
        if not intact:
            raise InputError(
                f"{file}: corrupt (not the bytes that were written); run the step that writes"
                f" {path} again"
            )


def made_by(path: Path) -> dict[str, Any]:
    """What made the artifact at `path`: step, digests of its inputs, sections, seed."""
    description = json.loads((Path(path) / "artifact.json").read_text(encoding="utf-8"))
    found: dict[str, Any] = description["made_by"]
    return found


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


def write_csv(path: Path, header: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write a CSV file; `None` becomes an empty cell, floats keep all their digits."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _read_array(file: Path) -> np.ndarray:
    try:
        array: np.ndarray = np.load(file, mmap_mode="r", allow_pickle=False)
    except ValueError:  # an array without elements cannot be mapped
        try:
            array = np.load(file, allow_pickle=False)
        except ValueError as error:
            raise InputError(f"{file}: not an array that vitdc wrote: {error}") from None
    return array


# --- Dataset -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """One split of a data set.

    Attributes:
        images: (N, H, W, C) uint8, memory-mapped.
        labels: (N,) int64, -1 where the class is unknown.
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def has_labels(self) -> bool:
        return bool((self.labels >= 0).any())


@dataclass(frozen=True)
class Dataset:
    """Prepared images. Payload: {train,test}_{images,labels}.npy and index.csv.

    Attributes:
        train: The split that is trained and clustered.
        test: The held-out split; may be empty.
        name: Of the source, e.g. "digits".
        class_names: One per label value.
        mean: (C,) of the training images, in [0, 1].
        std: (C,) likewise; never 0.
        content_hash: SHA-256 over images, labels and class names, independent of the source.
        num_unreadable: Images of the source that were skipped.
        path: Where it was loaded from.
    """

    kind: ClassVar[str] = "dataset"

    train: Split
    test: Split
    name: str
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    content_hash: str
    num_unreadable: int
    path: Path

    @classmethod
    def load(cls, path: Path) -> Self:
        path = Path(path)
        metadata = read_metadata(path, cls.kind)
        splits = {
            split: Split(
                images=_read_array(path / f"{split}_images.npy"),
                labels=np.array(_read_array(path / f"{split}_labels.npy")),
            )
            for split in SPLITS
        }
        return cls(
            **splits,
            name=metadata["name"],
            class_names=tuple(metadata["class_names"]),
            mean=tuple(metadata["mean"]),
            std=tuple(metadata["std"]),
            content_hash=metadata["content_hash"],
            num_unreadable=metadata["num_unreadable"],
            path=path,
        )

    def split(self, name: str) -> Split:
        return {"train": self.train, "test": self.test}[name]

    def image_names(self) -> Iterator[tuple[str, str]]:
        """Stream (image id or relative path, split), training images first, in array order."""
        with (self.path / "index.csv").open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                yield row["image"], row["split"]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        height, width, channels = self.train.images.shape[1:]
        return height, width, channels


class DatasetWriter:
    """Streams images into a Dataset, all training images first; made by `writing_dataset`."""

    def __init__(self, directory: Path, image_shape: tuple[int, int, int]) -> None:
        self.metadata: dict[str, Any] = {}
        self._images = {
            s: _GrowingArray(directory / f"{s}_images.npy", image_shape, np.uint8) for s in SPLITS
        }
        self._labels = {
            s: _GrowingArray(directory / f"{s}_labels.npy", (), np.int64) for s in SPLITS
        }
        self._index_file = (directory / "index.csv").open("w", encoding="utf-8", newline="")
        self._index = csv.writer(self._index_file, lineterminator="\n")
        self._index.writerow(("image", "split", "label"))

    def append(
        self, split: str, *, names: Iterable[str], labels: np.ndarray, images: np.ndarray
    ) -> None:
        """Add the next images of a split.

        Args:
            split: "train" or "test".
            names: n image ids.
            labels: (n,), -1 where the class is unknown.
            images: (n, H, W, C) uint8.
        """
        assert split == "test" or self._images["test"].num_rows == 0
        self._images[split].append(images)
        self._labels[split].append(labels)
        rows = zip(names, labels.tolist(), strict=True)
        self._index.writerows((name, split, label) for name, label in rows)

    def describe(
        self,
        *,
        name: str,
        class_names: Iterable[str],
        mean: Iterable[float],
        std: Iterable[float],
        content_hash: str,
        num_unreadable: int,
    ) -> None:
        """Set the Dataset's other attributes, known when the last image has been added."""
        self.metadata = {
            "name": name,
            "class_names": list(class_names),
            "mean": list(mean),
            "std": list(std),
            "content_hash": content_hash,
            "num_unreadable": num_unreadable,
        }

    def close(self) -> None:
        """Finish all files."""
        for array in (*self._images.values(), *self._labels.values()):
            array.close()
        self._index_file.close()


class _GrowingArray:
    """An .npy file of rows whose number is known only when the last one is there.

    It is written, not mapped: what is written through a map counts as this process's memory.
    """

    def __init__(self, path: Path, row_shape: tuple[int, ...], dtype: Any) -> None:
        self.num_rows = 0
        self._row_shape, self._dtype = row_shape, np.dtype(dtype)
        self._file = path.open("wb")
        self._write_header()

    def append(self, rows: np.ndarray) -> None:
        assert rows.shape[1:] == self._row_shape, (rows.shape, self._row_shape)
        self._file.write(np.ascontiguousarray(rows, self._dtype).data)
        self.num_rows += len(rows)

    def close(self) -> None:
        """Correct the number of rows in the header; NumPy leaves room for it to grow in place."""
        self._file.seek(0)
        self._write_header()
        self._file.close()

    def _write_header(self) -> None:
        header = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self.num_rows, *self._row_shape),
        }
        np.lib.format.write_array_header_1_0(self._file, header)


@contextmanager
def writing_dataset(
    path: Path, made_by: Mapping[str, Any], *, image_shape: tuple[int, int, int]
) -> Iterator[DatasetWriter]:
    """Write a Dataset atomically: `append` to the yielded writer, then `describe` it.

    Args:
        path: The artifact's directory; replaced if it exists.
        made_by: As for `writing`.
        image_shape: (H, W, C) of every image.
    """
    with writing(path, Dataset.kind, made_by) as writer:
        with closing(DatasetWriter(writer.directory, image_shape)) as dataset:
            yield dataset
        writer.metadata = dataset.metadata


# --- Checkpoint --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Checkpoint:
    """A trained model and all that is needed to use it. Payload: model.safetensors.

    Attributes:
        round: 0 after the initial training, r after the r-th retraining.
        model: The `model` section of the configuration.
        image_shape: (H, W, C) of the prepared images.
        class_names: One per output of the head.
        mean: (C,) that images are normalised with.
        std: (C,) likewise.
        history: A row per epoch of the training that led here, e.g. {"epoch", "loss",
            "cross_entropy", "clustering_loss", "learning_rate"}.
        path: Where the weights lie.
    """

    kind: ClassVar[str] = "checkpoint"

    round: int
    model: dict[str, Any]
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    history: list[dict[str, float]]
    path: Path

    @classmethod
    def load(cls, path: Path) -> Self:
        path = Path(path)
        metadata = read_metadata(path, cls.kind)
        return cls(
            round=metadata["round"],
            model=metadata["model"],
            image_shape=tuple(metadata["image_shape"]),
            class_names=tuple(metadata["class_names"]),
            mean=tuple(metadata["mean"]),
            std=tuple(metadata["std"]),
            history=metadata["history"],
            path=path,
        )

    def weights(self) -> dict[str, torch.Tensor]:
        """The model's state dict, on the CPU."""
        from safetensors.torch import load_file

        return load_file(self.path / "model.safetensors")

    def save(
        self, path: Path, weights: Mapping[str, torch.Tensor], made_by: Mapping[str, Any]
    ) -> None:
        """Write this description with `weights` to `path` (`self.path` is not used)."""
        from safetensors.torch import save_file

        with writing(path, self.kind, made_by) as writer:
            contiguous = {name: tensor.cpu().contiguous() for name, tensor in weights.items()}
            save_file(contiguous, writer.directory / "model.safetensors")
            writer.metadata = {
                f.name: getattr(self, f.name) for f in fields(self) if f.name != "path"
            }


# --- Embeddings --------------------------------------------------------------------------------


@dataclass(frozen=True)
class SplitEmbeddings:
    """What one pass of the model says about every image of a split.

    Attributes:
        embedding: (N, D) float32: z.
        cross_entropy: (N,) float32: of the head against the label, NaN where it is unknown.
        predicted: (N,) int64: class that the head predicts.
    """

    embedding: np.ndarray
    cross_entropy: np.ndarray
    predicted: np.ndarray

    def __len__(self) -> int:
        return len(self.predicted)

    @classmethod
    def create(cls, writer: Writer, split: str, num_images: int, dim: int) -> Self:
        """Memory maps to stream the pass into."""
        return cls(
            embedding=writer.array(f"{split}_embedding", (num_images, dim), np.float32),
            cross_entropy=writer.array(f"{split}_cross_entropy", (num_images,), np.float32),
            predicted=writer.array(f"{split}_predicted", (num_images,), np.int64),
        )


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of both splits. Payload: {train,test}_{embedding,cross_entropy,predicted}.npy."""

    kind: ClassVar[str] = "embeddings"

    round: int
    train: SplitEmbeddings
    test: SplitEmbeddings

    @classmethod
    def load(cls, path: Path) -> Self:
        path = Path(path)
        metadata = read_metadata(path, cls.kind)
        names = [f.name for f in fields(SplitEmbeddings)]
        splits = {
            split: SplitEmbeddings(**{n: _read_array(path / f"{split}_{n}.npy") for n in names})
            for split in SPLITS
        }
        return cls(round=metadata["round"], **splits)

    def split(self, name: str) -> SplitEmbeddings:
        return {"train": self.train, "test": self.test}[name]


# --- Clustering --------------------------------------------------------------------------------


class SplitScores(NamedTuple):
    """Agreement of clusters with labels, each None where no label is known."""

    nmi: float | None
    ari: float | None
    acc: float | None


@dataclass(frozen=True)
class ClusteringScores:
    """How good a clustering is.

    Attributes:
        train: Scores of the training split.
        test: Scores of the test split.
        silhouette: Of the training embeddings, in [-1, 1]; estimated on a sample.
        changed: Share of training images whose cluster differs from the round before; None in
            round 0.
        inertia: Mean squared distance of the training embeddings to their centroids.
        num_empty: Clusters without a training image.
    """

    train: SplitScores
    test: SplitScores
    silhouette: float | None
    changed: float | None
    inertia: float
    num_empty: int

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        splits = {split: SplitScores(**values[split]) for split in SPLITS}
        return cls(**{**values, **splits})

    def to_dict(self) -> dict[str, Any]:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: v._asdict() if isinstance(v, SplitScores) else v for k, v in values.items()}


@dataclass(frozen=True)
class SplitClustering:
    """Clusters of one split.

    Attributes:
        assignment: (N,) int64: cluster of every image, the one with the nearest centroid.
        distance: (N,) float32: Euclidean distance of z to that centroid.
    """

    assignment: np.ndarray
    distance: np.ndarray

    def __len__(self) -> int:
        return len(self.assignment)


@dataclass(frozen=True)
class Clustering:
    """Clusters of one round. Payload: centroids.npy, {train,test}_{assignment,distance}.npy.

    Attributes:
        round: The round whose embeddings were clustered.
        centroids: (K, D) float32.
        train: Clusters of the training images.
        test: Nearest training centroids of the test images.
        scores: How good the clustering is.
        config: The `clustering` section it was made with.
    """

    kind: ClassVar[str] = "clustering"

    round: int
    centroids: np.ndarray
    train: SplitClustering
    test: SplitClustering
    scores: ClusteringScores
    config: dict[str, Any]

    @classmethod
    def load(cls, path: Path) -> Self:
        path = Path(path)
        metadata = read_metadata(path, cls.kind)
        splits = {
            split: SplitClustering(
                assignment=_read_array(path / f"{split}_assignment.npy"),
                distance=_read_array(path / f"{split}_distance.npy"),
            )
            for split in SPLITS
        }
        return cls(
            round=metadata["round"],
            centroids=np.asarray(_read_array(path / "centroids.npy")),
            **splits,
            scores=ClusteringScores.from_dict(metadata["scores"]),
            config=metadata["config"],
        )

    def save(self, path: Path, made_by: Mapping[str, Any]) -> None:
        with writing(path, self.kind, made_by) as writer:
            writer.save("centroids", self.centroids)
            for split in SPLITS:
                clusters = self.split(split)
                writer.save(f"{split}_assignment", clusters.assignment)
                writer.save(f"{split}_distance", clusters.distance)
            writer.metadata = {
                "round": self.round,
                "scores": self.scores.to_dict(),
                "config": self.config,
            }

    def split(self, name: str) -> SplitClustering:
        return {"train": self.train, "test": self.test}[name]


# --- Round -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RoundRow:
    """One row of rounds.csv; None (an empty cell) where a value does not exist or is not known yet.

    Attributes:
        round: 0 is the initial training.
        loss: l = cross_entropy + gamma * clustering_loss, over all training images; none in
            round 0, which has no clusters to be trained against.
        cross_entropy: Mean over the labelled training images, in nats.
        clustering_loss: Mean squared distance to the frozen centroids of the round before.
        nmi_train: NMI of the clustering that ends the round; likewise the next three.
        changed: Share of the training images that changed cluster in this round.
        verdict: What the round decided.
    """

    round: int
    loss: float | None = None
    cross_entropy: float | None = None
    clustering_loss: float | None = None
    nmi_train: float | None = None
    nmi_test: float | None = None
    ari_test: float | None = None
    acc_test: float | None = None
    changed: float | None = None
    verdict: Verdict | None = None

    @classmethod
    def header(cls) -> list[str]:
        return [f.name for f in fields(cls)]

    def with_scores(self, scores: ClusteringScores) -> Self:
        """The row completed with the clustering that ends the round."""
        return replace(
            self,
            nmi_train=scores.train.nmi,
            nmi_test=scores.test.nmi,
            ari_test=scores.test.ari,
            acc_test=scores.test.acc,
            changed=scores.changed,
        )


@dataclass(frozen=True)
class Round:
    """The history of all rounds so far and the verdict of the last. Payload: rounds.csv.

    A row's scores are filled in by the round after it (or by the evaluation), because the
    clustering that ends a round is made beside the check that judges it.

    Attributes:
        rows: A row per round, from 0 to the current one.
        verdict: "continue", "converged", "loss-rose" or "max-rounds".
        best_round: The round with the lowest l so far.
        gamma: Weight of the clustering loss in l.
        epsilon: The threshold of the stopping rule.
    """

    kind: ClassVar[str] = "round"

    rows: list[RoundRow] = field(default_factory=list)
    verdict: Verdict = CONTINUE
    best_round: int = 0
    gamma: float = 0.0
    epsilon: float = 0.0

    @property
    def current(self) -> RoundRow:
        return self.rows[-1]

    @classmethod
    def load(cls, path: Path) -> Self:
        metadata = read_metadata(Path(path), cls.kind)
        rows = [RoundRow(**row) for row in metadata["rows"]]
        keys = ("verdict", "best_round", "gamma", "epsilon")
        return cls(rows=rows, **{key: metadata[key] for key in keys})

    def save(self, path: Path, made_by: Mapping[str, Any]) -> None:
        with writing(path, self.kind, made_by) as writer:
            writer.metadata = asdict(self)
            write_rounds_csv(writer.directory / "rounds.csv", self.rows)


def write_rounds_csv(path: Path, rows: Iterable[RoundRow]) -> None:
    """Write rounds.csv, the table people and tools read."""
    write_csv(path, RoundRow.header(), (asdict(row).values() for row in rows))


class RoundPaths(NamedTuple):
    """Where the three artifacts of one round lie."""

    checkpoint: Path
    embeddings: Path
    clustering: Path

    @classmethod
    def in_directory(cls, directory: Path) -> Self:
        """The paths inside a round's directory, as `refine` lays it out."""
        return cls(*(directory / name for name in cls._fields))


# --- Evaluation --------------------------------------------------------------------------------


class ClusterRow(NamedTuple):
    """One row of clusters.csv: an image, its split, its class, its cluster and the distance."""

    image: str
    split: str
    label: str
    cluster: int
    distance: str


@dataclass(frozen=True)
class Evaluation:
    """The results of a run, as people read them.

    Payload: metrics.json, rounds.csv, clusters.csv, report.html, figures/*.png and
    model/{checkpoint,clustering} of the best round.

    Attributes:
        metrics: The content of metrics.json.
        rows: The content of rounds.csv.
        path: Where the files lie.
    """

    kind: ClassVar[str] = "evaluation"

    metrics: dict[str, Any]
    rows: list[RoundRow]
    path: Path

    @classmethod
    def load(cls, path: Path) -> Self:
        path = Path(path)
        metadata = read_metadata(path, cls.kind)
        metrics = json.loads((path / "metrics.json").read_text(encoding="utf-8"))
        return cls(metrics, [RoundRow(**row) for row in metadata["rows"]], path)

    def save(
        self,
        *,
        clusters: Iterable[ClusterRow],
        report: str,
        figures: Mapping[str, bytes],
        model: RoundPaths,
        made_by: Mapping[str, Any],
    ) -> None:
        """Write everything to `self.path`.

        Args:
            clusters: Streamed into clusters.csv.
            report: HTML page.
            figures: PNG file per name.
            model: The best round, whose checkpoint and clustering are copied.
            made_by: As in `writing`.
        """
        with writing(self.path, self.kind, made_by) as writer:
            writer.metadata = {"rows": [asdict(row) for row in self.rows]}
            write_json(writer.directory / "metrics.json", self.metrics)
            write_rounds_csv(writer.directory / "rounds.csv", self.rows)
            writer.rows("clusters", ClusterRow._fields, clusters)
            (writer.directory / "report.html").write_text(report, encoding="utf-8")
            (writer.directory / "figures").mkdir()
            for name, png in figures.items():
                (writer.directory / "figures" / f"{name}.png").write_bytes(png)
            copy(model.checkpoint, writer.directory / "model" / "checkpoint")
            copy(model.clustering, writer.directory / "model" / "clustering")


# --- Training state (scratch) ------------------------------------------------------------------


class TrainingState(NamedTuple):
    """The state of a training after an epoch, kept in scratch. Payload: state.safetensors.

    Attributes:
        weights: The model's state dict.
        moments: The optimizer's state: name -> tensor, per parameter index.
        history: A row per finished epoch.
    """

    weights: dict[str, torch.Tensor]
    moments: dict[int, dict[str, torch.Tensor]]
    history: list[dict[str, float]]

    def save(self, path: Path) -> None:
        from safetensors.torch import save_file

        tensors = {f"weights/{name}": tensor for name, tensor in self.weights.items()}
        for index, moments in self.moments.items():
            tensors |= {f"moments/{index}/{name}": tensor for name, tensor in moments.items()}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        with writing(path, "training-state", {}) as writer:
            save_file(tensors, writer.directory / "state.safetensors")
            writer.metadata = {"history": self.history}

    @classmethod
    def load(cls, path: Path) -> Self | None:
        """The state kept at `path`; None where there is none. A damaged one is an error."""
        from safetensors.torch import load_file

        if not (path / "artifact.json").exists():
            return None
        metadata = read_metadata(path, "training-state")
        weights: dict[str, torch.Tensor] = {}
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for key, tensor in load_file(path / "state.safetensors").items():
            kind, name = key.split("/", 1)
            if kind == "weights":
                weights[name] = tensor
            else:
                index, name = name.split("/")
                moments.setdefault(int(index), {})[name] = tensor
        return cls(weights, moments, metadata["history"])
