"""A stage that reads images which DVC does not watch says so."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from vitdc.config import DataConfig
from vitdc.data.watching import unwatched

MINE = DataConfig(source="folder", root="data/images", image_size=8)


@pytest.fixture(autouse=True)
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What DVC lets the stage `prepare` see."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_STAGE", "prepare")


def write_dependencies(*deps: object) -> None:
    stages = {"prepare": {"cmd": "vitdc prepare", "deps": list(deps)}, "many": {"matrix": {}}}
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))


@pytest.mark.parametrize("deps", [(), ("other",), ("data/images2",), ("data/images/a",)])
def test_a_folder_that_is_no_dependency_is_named_with_the_way_out(deps: tuple[str, ...]) -> None:
    write_dependencies(*deps)
    assert "DVC does not watch data/images" in unwatched(MINE)
    assert "add `deps: [data/images]` to the stage prepare in dvc.yaml" in unwatched(MINE)


@pytest.mark.parametrize(
    "dependency", ["data/images", "./data/images/", "data", {"data/images": {}}, "${data.root}"]
)
def test_a_folder_that_is_a_dependency_is_watched(dependency: object) -> None:
    write_dependencies("other", dependency)
    assert unwatched(MINE) == ""


def test_a_bucket_is_never_watched() -> None:
    assert "dvc import-url" in unwatched(DataConfig(source="s3://photos/all", image_size=8))


def test_sets_that_never_change_need_no_watching() -> None:
    write_dependencies()
    for config in (DataConfig(), DataConfig(source="CIFAR10", root="data")):
        assert unwatched(config) == ""


def test_a_stage_of_a_matrix_and_one_in_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    write_dependencies("data/images")
    for name in ("many@a", "sub/dvc.yaml:prepare"):
        monkeypatch.setenv("DVC_STAGE", name)
        assert unwatched(MINE) == ""


def test_without_dvc_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVC_STAGE")
    assert unwatched(MINE) == ""
