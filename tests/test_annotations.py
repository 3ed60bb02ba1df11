"""Names, merges and marks that a person gives to the clusters of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import toys

from vitdc import artifacts
from vitdc.artifacts import Annotations
from vitdc.errors import InputError

FULL = Annotations(
    clustering="a" * 64, names={2: "Köder", 0: "boots"}, merged={3: 1, 1: 2}, wrong=("b", "a")
)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    FULL.save(tmp_path / "a.json")
    found = Annotations.load(tmp_path / "a.json")
    assert found == FULL.model_copy(update={"wrong": ("a", "b")})
    found.save(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert "Köder" in (tmp_path / "a.json").read_text(encoding="utf-8")


def test_a_merged_cluster_has_the_name_of_the_one_it_was_merged_into() -> None:
    assert [FULL.target(cluster) for cluster in range(5)] == [0, 2, 2, 2, 4]
    assert [FULL.name_of(cluster) for cluster in range(5)] == ["boots", *3 * ["Köder"], ""]


@pytest.mark.parametrize("results", ["results", "results/", "deep/../results", "."])
def test_they_lie_beside_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, results: str
) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "deep").mkdir()
    monkeypatch.chdir(tmp_path / "results" if results == "." else tmp_path)
    found = Annotations.path_for(Path(results))
    assert found.resolve() == tmp_path.resolve() / "results.annotations.json"


def test_results_that_nobody_annotated_have_empty_ones(toy_run: toys.ToyRun) -> None:
    found = Annotations.of_results(toy_run.results)
    assert found == Annotations(
        clustering=artifacts.digest(toy_run.results / "model" / "clustering")
    )


def test_names_do_not_wander_to_other_clusters(toy_run: toys.ToyRun, tmp_path: Path) -> None:
    results = tmp_path / "results"
    artifacts.copy(toy_run.results, results)
    own = Annotations.of_results(results).model_copy(update={"names": {0: "cats"}})
    own.save(Annotations.path_for(results))
    assert Annotations.of_results(results) == own
    own.model_copy(update={"clustering": "other"}).save(Annotations.path_for(results))
    with pytest.raises(InputError, match="belongs to other clusters than those in"):
        Annotations.of_results(results)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, r"has format version 2, this vitdc \(.*\) reads 1"),
        ({"kind": "dataset"}, "kind: Input should be 'annotations'"),
        ({"names": {"x": "cats"}}, "names.x.*valid integer"),
        ({"names": {"-1": "cats"}}, "greater than or equal to 0"),
        ({"names": {"1": "  "}}, "names.1: String should have at least 1 character"),
        ({"names": {"1": "two\nlines"}}, "names.1: String should match"),
        ({"merged": {"1": 2, "2": 1}}, "cluster 1 is merged in a circle"),
        ({"merged": {"1": 1}}, "cluster 1 is merged in a circle"),
        ({"nmaes": {}}, "nmaes: Extra inputs are not permitted"),
        ({"clustering": None}, "clustering: Input should be a valid string"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "results.annotations.json"
    path.write_text(json.dumps({**FULL.model_dump(mode="json"), **change}))
    with pytest.raises(InputError, match=message) as caught:
        Annotations.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[]", b"null"])
def test_a_file_that_is_no_annotations_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file.json").write_bytes(content)
    with pytest.raises(InputError, match=r"restore (it )?or delete it"):
        Annotations.load(tmp_path / "file.json")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        Annotations.load(tmp_path / "file.json")


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    FULL.save(tmp_path / "file.json")
    with (  # noqa: PT012 the interruption comes after a write
        pytest.raises(KeyboardInterrupt),
        artifacts.replacing_file(tmp_path / "file.json") as file,
    ):
        file.write("half")
        toys.interrupt()
    assert Annotations.load(tmp_path / "file.json").names == FULL.names
    assert [path.name for path in tmp_path.iterdir()] == ["file.json"]
    with pytest.raises(InputError, match="cannot be written: Is a directory"):
        FULL.save(tmp_path)
    with pytest.raises(InputError, match="cannot be written: No such file"):
        FULL.save(tmp_path / "nowhere" / "file.json")
