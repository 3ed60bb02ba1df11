"""Artifacts: whole or not at all, equal bytes for equal content, and nothing bad is ever read."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from toys import contents, write_toy_dataset

from vitdc import artifacts
from vitdc.artifacts import (
    Checkpoint,
    Clustering,
    ClusteringScores,
    Dataset,
    Embeddings,
    Round,
    RoundRow,
    SplitClustering,
    SplitScores,
    TrainingState,
    replacing,
    storage,
    writing,
)
from vitdc.artifacts.storage import read_csv, write_csv
from vitdc.errors import InputError
from vitdc.typicality import Typicality, thumbnails

MADE_BY = {"step": "test"}


def save_embeddings(path: Path, *, num_train: int = 4, num_test: int = 2, seed: int = 0) -> Path:
    generator = np.random.default_rng(seed)
    with writing(path, Embeddings.kind, MADE_BY) as writer:
        for split, count in (("train", num_train), ("test", num_test)):
            out = artifacts.SplitEmbeddings.create(writer, split, count, 3)
            out.embedding[:] = generator.normal(size=(count, 3))
            out.cross_entropy[:] = np.nan
            out.predicted[:] = np.arange(count)
        writer.metadata = {"round": 1}
    return path


def save_checkpoint(path: Path) -> Path:
    description = Checkpoint(
        round=2,
        model={"name": "toy"},
        image_shape=(8, 8, 1),
        class_names=("a", "b"),
        num_outputs=3,
        supervision="partial",
        mean=(0.5,),
        std=(0.25,),
        history=[{"epoch": 1, "loss": 0.5}],
        path=path,
        targets=np.array([0, -1, 2]),
    )
    description.save(path, {"w": torch.arange(6.0).reshape(2, 3).T}, MADE_BY)
    return path


def save_clustering(path: Path) -> Path:
    def split(count: int) -> SplitClustering:
        distance = np.linspace(0, 1, count, dtype=np.float32)
        return SplitClustering(np.arange(count) % 2, distance, distance + 1)

    Clustering(
        round=1,
        centroids=np.eye(2, 3, dtype=np.float32),
        train=split(4),
        test=split(0),
        scores=ClusteringScores(
            train=SplitScores(0.5, 0.25, 0.75, images=4),
            test=SplitScores(None, None, None),
            silhouette=None,
            changed=0.125,
            inertia=1.5,
            num_empty=0,
        ),
        config={"num_clusters": 2},
        typicality=Typicality(np.zeros((2, 5), np.float32), np.eye(5, dtype=np.float32)),
    ).save(path, MADE_BY)
    return path


def save_round(path: Path) -> Path:
    rows = [RoundRow(0, verdict="continue"), RoundRow(1, 0.1 + 0.2, 0.25, 1 / 3)]
    Round(rows=rows, best_round=1, gamma=0.5, epsilon=0.01).save(path, MADE_BY)
    return path


SAVE: dict[type[Any], Callable[[Path], Path]] = {
    Dataset: write_toy_dataset,
    Checkpoint: save_checkpoint,
    Embeddings: save_embeddings,
    Clustering: save_clustering,
    Round: save_round,
}
every_kind = pytest.mark.parametrize("kind", SAVE, ids=lambda kind: kind.__name__)


def described(path: Path) -> dict[str, Any]:
    """The payload files as artifact.json describes them."""
    files: dict[str, Any] = json.loads((path / "artifact.json").read_text())["files"]
    return files


def edit(path: Path, **changes: Any) -> None:
    file = path / "artifact.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


# --- equal bytes, equal values -----------------------------------------------------------------


@every_kind
def test_equal_content_gives_equal_bytes_wherever_it_is_written(
    tmp_path: Path, kind: type[Any]
) -> None:
    first, second = SAVE[kind](tmp_path / "one"), SAVE[kind](tmp_path / "deep" / "two")
    assert contents(first) == contents(second)
    assert artifacts.digest(first) == artifacts.digest(second)


@every_kind
def test_no_file_names_a_path_of_the_machine(tmp_path: Path, kind: type[Any]) -> None:
    path = SAVE[kind](tmp_path / "artifact")
    assert not any(str(tmp_path).encode() in data for data in contents(path).values())


def test_other_content_has_another_digest(tmp_path: Path) -> None:
    one, two = (save_embeddings(tmp_path / str(seed), seed=seed) for seed in (1, 2))
    assert artifacts.digest(one) != artifacts.digest(two)


def test_dataset_round_trip(tmp_path: Path) -> None:
    dataset = Dataset.load(write_toy_dataset(tmp_path / "d", unlabelled=2))
    assert dataset.image_shape == (8, 8, 1)
    assert (len(dataset.train), len(dataset.test)) == (42, 12)
    assert dataset.train.images.dtype == np.uint8
    assert dataset.train.labels[:4].tolist() == [-1, -1, 2, 0]
    assert dataset.train.has_labels
    assert list(dataset.image_names())[41:43] == [("train-41", "train"), ("test-0", "test")]
    assert isinstance(dataset.train.images, np.memmap)


@pytest.mark.parametrize("side", [8, 9, 40])
def test_a_dataset_keeps_thumbnails_of_images_that_are_larger(tmp_path: Path, side: int) -> None:
    found = Dataset.load(write_toy_dataset(tmp_path / "d", side=side))
    files = {file.name for file in found.path.glob("*_thumbnails.npy")}
    assert files == ({"train_thumbnails.npy", "test_thumbnails.npy"} if side > 8 else set())
    for split in (found.train, found.test):
        expected = thumbnails(np.array(split.images))
        np.testing.assert_array_equal(thumbnails(split.thumbnails), expected)
    for file in found.path.glob("*_thumbnails.npy"):  # as older data sets are
        file.unlink()
    edit(found.path, files={n: f for n, f in described(found.path).items() if "thumb" not in n})
    assert Dataset.load(found.path).train.thumbnails.dtype == np.uint8


def test_a_large_file_is_hashed_once_as_long_as_it_stays_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "REMEMBER_BYTES", 1)
    hashed: list[Path] = []
    sha256 = storage.sha256

    def counting(file: Path) -> str:
        hashed.append(file)
        return sha256(file)

    monkeypatch.setattr(storage, "sha256", counting)
    path = write_toy_dataset(tmp_path / "d")
    hashed.clear()
    Dataset.load(path)
    assert len(hashed) == len(described(path))
    Dataset.load(path)
    assert len(hashed) == len(described(path))
    file = path / "train_images.npy"
    changed = bytearray(file.read_bytes())
    changed[-1] ^= 1
    file.write_bytes(changed)
    os.utime(file, ns=(0, 0))
    with pytest.raises(InputError, match="corrupt"):
        Dataset.load(path)


@pytest.mark.parametrize("sizes", [(1,), (3, 4), (0, 5), (2,) * 7])
def test_a_dataset_grows_by_batches_of_any_size(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (sum(sizes), 2, 3, 1), dtype=np.uint8)
    labels = np.arange(sum(sizes))
    starts = np.cumsum((0, *sizes))
    with artifacts.writing_dataset(tmp_path / "d", MADE_BY, image_shape=(2, 3, 1)) as writer:
        for start, size in zip(starts, sizes, strict=False):
            rows = slice(start, start + size)
            names = map(str, labels[rows])
            writer.append("train", names=names, labels=labels[rows], images=images[rows])
        writer.describe(
            name="x", class_names=(), mean=(), std=(), content_hash="", num_unreadable=0
        )
    dataset = Dataset.load(tmp_path / "d")
    np.testing.assert_array_equal(dataset.train.images, images)
    np.testing.assert_array_equal(dataset.train.labels, labels)
    assert len(dataset.test) == 0


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    checkpoint = Checkpoint.load(save_checkpoint(tmp_path / "c"))
    assert torch.equal(checkpoint.weights()["w"], torch.arange(6.0).reshape(2, 3).T)
    assert checkpoint.image_shape == (8, 8, 1)
    assert checkpoint.class_names == ("a", "b")
    assert checkpoint.history == [{"epoch": 1, "loss": 0.5}]


@pytest.mark.parametrize("num_test", [0, 2])
def test_embeddings_keep_nan_for_unknown_labels_and_an_empty_test_split(
    tmp_path: Path, num_test: int
) -> None:
    embeddings = Embeddings.load(save_embeddings(tmp_path / "e", num_test=num_test))
    expected = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    np.testing.assert_array_equal(embeddings.train.embedding, expected)
    assert np.isnan(embeddings.train.cross_entropy).all()
    assert embeddings.split("test").embedding.shape == (num_test, 3)
    assert embeddings.test.predicted.dtype == np.int64


def test_clustering_round_trip(tmp_path: Path) -> None:
    clustering = Clustering.load(save_clustering(tmp_path / "k"))
    assert clustering.scores.train == SplitScores(0.5, 0.25, 0.75, images=4)
    assert clustering.scores.test == SplitScores(None, None, None)
    assert clustering.train.assignment.tolist() == [0, 1, 0, 1]
    assert clustering.test.assignment.shape == (0,)
    assert clustering.config == {"num_clusters": 2}


def test_round_round_trip_keeps_every_digit(tmp_path: Path) -> None:
    history = Round.load(save_round(tmp_path / "r"))
    assert history.current == RoundRow(1, 0.1 + 0.2, 0.25, 1 / 3)
    lines = (tmp_path / "r" / "rounds.csv").read_text().splitlines()
    assert lines[0].split(",") == RoundRow.header()
    assert lines[1] == "0,,,,,,,,,,,continue"
    assert float(lines[2].split(",")[1]) == 0.1 + 0.2


def test_training_state_round_trip(tmp_path: Path) -> None:
    weight = torch.randn(3, 2)
    moments = {0: {"step": torch.tensor(7.0), "exp_avg": weight * 2}, 11: {"exp_avg": weight + 1}}
    TrainingState({"a.b": weight}, moments, [{"epoch": 1, "loss": 0.1}]).save(tmp_path / "s")
    state = TrainingState.load(tmp_path / "s")
    assert state is not None
    torch.testing.assert_close(state.weights, {"a.b": weight}, atol=0, rtol=0)
    torch.testing.assert_close(state.moments, moments, atol=0, rtol=0)
    assert state.history == [{"epoch": 1, "loss": 0.1}]


def test_there_is_no_training_state_where_nothing_was_kept(tmp_path: Path) -> None:
    assert TrainingState.load(tmp_path / "nothing") is None


# --- whole or not at all -----------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("existing", [True, False])
def test_whatever_ends_the_writing_early_leaves_all_as_it_was(
    tmp_path: Path, error: type[BaseException], existing: bool
) -> None:
    path = tmp_path / "artifact"
    if existing:
        save_embeddings(path)
    before = contents(tmp_path)

    def write_half() -> None:
        with writing(path, "embeddings", MADE_BY) as writer:
            writer.save("half", np.zeros(3))
            raise error

    with pytest.raises(error):
        write_half()
    assert contents(tmp_path) == before
    assert path.exists() == existing


def test_an_interruption_while_the_old_artifact_is_removed_leaves_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = (save_embeddings(tmp_path / name, seed=seed) for seed, name in enumerate("on"))
    whole = contents(old), contents(new)

    def delete_half(directory: Path, **options: Any) -> None:
        (Path(directory) / "train_embedding.npy").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", delete_half)
        with pytest.raises(KeyboardInterrupt):
            save_embeddings(old, seed=1)
    assert contents(old) in whole
    save_embeddings(old, seed=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["n", "o"]


def test_what_a_killed_process_left_is_swept_away(tmp_path: Path) -> None:
    left = tmp_path / ".e.partial"
    left.mkdir()
    (left / "train_embedding.npy").write_bytes(b"half")
    save_embeddings(tmp_path / "e")
    assert [path.name for path in tmp_path.iterdir()] == ["e"]


def test_a_newer_artifact_replaces_the_older_one_whole(tmp_path: Path) -> None:
    save_embeddings(tmp_path / "x")
    save_round(tmp_path / "x")
    assert contents(tmp_path / "x") == contents(save_round(tmp_path / "y"))


@pytest.mark.parametrize("foreign", ["a folder", "a file"])
def test_what_is_no_artifact_is_never_replaced(tmp_path: Path, foreign: str) -> None:
    path = tmp_path / "photos"
    if foreign == "a file":
        path.write_text("precious")
    else:
        path.mkdir()
        (path / "holiday.jpg").write_text("precious")
    with pytest.raises(InputError, match="photos"):
        save_round(path)
    assert b"precious" in contents(tmp_path).values()


def test_an_empty_folder_may_be_taken(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    assert Round.load(save_round(tmp_path / "r")).best_round == 1


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="r: cannot be written"):
        save_round(tmp_path / "file" / "r")


@pytest.mark.parametrize("place", [".", "..", "/"])
def test_a_place_without_a_name_is_refused(place: str) -> None:
    with pytest.raises(InputError, match="cannot be written"), replacing(Path(place)):
        raise AssertionError("must not come here")


def test_copy_is_byte_equal(tmp_path: Path) -> None:
    source = save_checkpoint(tmp_path / "c")
    artifacts.copy(source, tmp_path / "deep" / "copy")
    assert contents(tmp_path / "deep" / "copy") == contents(source)


# --- nothing bad is read -----------------------------------------------------------------------


def missing(path: Path) -> None:
    shutil.rmtree(path)


def without_description(path: Path) -> None:
    (path / "artifact.json").unlink()


def not_json(path: Path) -> None:
    (path / "artifact.json").write_text("{half")


def json_of_another_shape(path: Path) -> None:
    (path / "artifact.json").write_text("[1, 2]")


def without_a_key(path: Path) -> None:
    (path / "artifact.json").write_text("{}")


def other_kind(path: Path) -> None:
    edit(path, kind="something-else")


def other_version(path: Path) -> None:
    edit(path, format_version=3)


def payload(path: Path) -> Path:
    return next(file for file in sorted(path.rglob("*")) if file.name != "artifact.json")


def payload_missing(path: Path) -> None:
    payload(path).unlink()


def payload_truncated(path: Path) -> None:
    data = payload(path).read_bytes()
    payload(path).write_bytes(data[: len(data) // 2])


def payload_changed(path: Path) -> None:
    data = bytearray(payload(path).read_bytes())
    data[-1] ^= 1
    payload(path).write_bytes(data)


@every_kind
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (missing, "run the step"),
        (without_description, "artifact.json is missing"),
        (not_json, "corrupt"),
        (json_of_another_shape, "corrupt"),
        (without_a_key, "corrupt"),
        (other_kind, "holds something-else"),
        (other_version, "format version 3"),
        (payload_missing, "missing"),
        (payload_truncated, "corrupt"),
        (payload_changed, "corrupt"),
    ],
)
def test_a_bad_artifact_is_refused_by_its_path(
    tmp_path: Path, kind: type[Any], damage: Callable[[Path], None], message: str
) -> None:
    path = SAVE[kind](tmp_path / "artifact")
    damage(path)
    with pytest.raises(InputError, match=message) as caught:
        kind.load(path)
    assert str(path) in str(caught.value)


def test_a_damaged_training_state_is_an_error_not_a_fresh_start(tmp_path: Path) -> None:
    TrainingState({"w": torch.ones(3)}, {}, []).save(tmp_path / "s")
    payload_changed(tmp_path / "s")
    with pytest.raises(InputError, match="corrupt"):
        TrainingState.load(tmp_path / "s")


def test_a_pickled_array_is_refused(tmp_path: Path) -> None:
    path = save_embeddings(tmp_path / "e")
    file = path / "train_embedding.npy"
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    description = {"bytes": file.stat().st_size, "sha256": artifacts.sha256(file)}
    edit(path, files={"train_embedding.npy": description})
    with pytest.raises(InputError, match=r"train_embedding\.npy"):
        Embeddings.load(path)


def test_an_object_array_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pickle"), writing(tmp_path / "x", "x", MADE_BY) as writer:
        writer.save("objects", np.array([{}], dtype=object))
    assert not list(tmp_path.iterdir())


def test_metadata_that_is_not_finite_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"), writing(tmp_path / "x", "x", MADE_BY) as writer:
        writer.metadata = {"loss": float("nan")}
    assert not list(tmp_path.iterdir())


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
TEXTS = [
    *("carriage\rreturn", "line\nfeed", "both\r\nof them", 'quo"te', '"quoted"', "com,ma", "\r"),
    *("=1+2", "+1", "-1", "@a", "\tb", " ", "'", "#", "NA", "007"),
    *("\u2028", "\x0b\x1c\x85", "caf\u00e9", "cafe\u0301"),
]


@given(st.lists(st.tuples(TEXT, TEXT), max_size=5))
@example([(text, other) for text in TEXTS for other in TEXTS])
def test_every_reader_of_a_csv_gets_what_was_written(rows: list[tuple[str, str]]) -> None:
    header = ("image", "label")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "table.csv")
        write_csv(path, header, rows)
        with path.open(encoding="utf-8", newline="") as file:
            assert list(csv.reader(file)) == [list(row) for row in (header, *rows)]
        assert list(read_csv(path)) == [dict(zip(header, row, strict=True)) for row in rows]
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        assert list(table.itertuples(index=False, name=None)) == rows


def test_a_csv_of_ordinary_names_has_the_bytes_of_the_standard_library(tmp_path: Path) -> None:
    rows = [("a/b.png", 1, 0.1, None), ("c, d.png", -1, 1e-9, ""), ('e"f', 0, 2.0, "g\nh")]
    write_csv(tmp_path / "table.csv", ("image", "label", "x", "y"), rows)
    expected = io.StringIO()
    csv.writer(expected, lineterminator="\n").writerows([("image", "label", "x", "y"), *rows])
    assert (tmp_path / "table.csv").read_bytes() == expected.getvalue().encode()


def test_digest_of_nothing_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no artifact here"):
        artifacts.digest(tmp_path)
