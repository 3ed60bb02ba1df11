"""What the folders around images mean: classes, splits, wrappers, or nothing."""

from __future__ import annotations

import pytest

from vitdc.data.layout import Reading, leftovers, read_folders, role_of
from vitdc.errors import InputError


def read(*folders: str, split: str = "auto") -> Reading:
    return read_folders([f"{folder}/1.png" for folder in folders], split=split, location="here")


@pytest.mark.parametrize(
    ("role", "names"),
    [
        ("train", "train Training TRAIN trainset seg_train train_images train2017 x-train trn"),
        ("train", "TrainImages train_data my-training-set train_split trainval"),
        ("test", "test Testing seg_test test_images test1 TestSet eval holdout hold-out HeldOut"),
        ("validation", "val valid Validation val2017 dev dev_set ILSVRC_val"),
    ],
)
def test_names_of_splits_are_recognised(role: str, names: str) -> None:
    assert {name: (role_of(name) or ("",))[0] for name in names.split()} == dict.fromkeys(
        names.split(), role
    )


@pytest.mark.parametrize(
    "name",
    ["trains", "contest", "valley", "devil", "latest", "cats", "01", "", "train_test", "\u732b"],
)
def test_other_names_are_not(name: str) -> None:
    assert role_of(name) is None


@pytest.mark.parametrize(
    ("folders", "sides", "classes"),
    [
        ("train/a train/b test/a", "train train test", "a b a"),
        ("Training/a Validation/b", "train test", "a b"),
        ("train/a val/a test/a", "train train test", "a a a"),
        ("train/a dev/a dev2/b", "train test test", "a a b"),
        ("x/y/train_images/a x/y/test_images/a", "train test", "a a"),
        ("train/images/a test/images/a", "train test", "a a"),
        ("train test", "train test", "- -"),
        ("train/a train/b test", "train train test", "a b -"),
        ("train/a test/a unlabelled", "train test train", "a a -"),
        ("a/train a/test b/train b/test", "train test train test", "a a b b"),
    ],
)
def test_splits_are_used(folders: str, sides: str, classes: str) -> None:
    found = read(*folders.split())
    assert found.sides == sides.split()
    assert [name or "-" for name in found.classes] == classes.split()


@pytest.mark.parametrize(
    ("folders", "classes"),
    [
        ("cats dogs", "cats dogs"),
        ("test_tube train_station", "test_tube train_station"),
        ("train bus car", "train bus car"),
        ("cats/train cats/test cats/big dogs/train", "cats cats cats dogs"),
        ("archive/cats archive/dogs", "cats dogs"),
        ("a/b/cats a/b/dogs", "cats dogs"),
        ("train/a train/b", "a b"),
        ("train train", "- -"),
        ("images", "-"),
        ("cats", "cats"),
        ("unlabelled", "-"),
        ("cats unknown", "cats -"),
        ("train/a train/b unlabeled", "a b -"),
        ("train1/a train2/b", "a b"),
        ("cats/in cats/out dogs/in dogs/out", "cats cats dogs dogs"),
    ],
)
def test_where_there_is_no_split_one_is_drawn(folders: str, classes: str) -> None:
    found = read(*folders.split())
    assert found.sides is found.groups is None
    assert [name or "-" for name in found.classes] == classes.split()


def test_what_might_be_splits_is_told_and_used_on_request() -> None:
    folders = ("2019/cats", "2019/dogs", "2020/cats", "2020/dogs")
    (said,) = read(*folders).said
    assert "2019, 2020 hold the same sub-folders (cats, dogs)" in said
    assert "data.split=folders" in said
    found = read(*folders, split="folders")
    assert found.groups == ["2019", "2019", "2020", "2020"]
    assert found.classes == ["cats", "dogs"] * 2


def test_folds_are_kept_whole() -> None:
    found = read("fold_1/a", "fold_1/b", "fold_2/a", "fold_2/b")
    assert found.groups == ["fold_1", "fold_1", "fold_2", "fold_2"]
    assert read("fold_1/a", "fold_1/b", "fold_2/a", "fold_2/b", split="random").groups is None
    assert read("fold_1", "fold_2").classes == ["fold_1", "fold_2"]


def test_no_split_is_refused_where_one_is_asked_for() -> None:
    with pytest.raises(InputError, match=r"here: data.split: folders, but .* \(cats, dogs\)"):
        read("cats", "dogs", split="folders")


def test_images_beside_class_folders_are_found_in_every_split() -> None:
    assert read("train/a", "train", "test").stray == [1]
    assert read("a", "b").stray == []


def test_folders_of_servers_systems_and_results_are_leftovers() -> None:
    names = ["a/1.png", "a/@eaDir/1.png", "$RECYCLE.BIN/2.png", ".git/3.png", "out/r/figures/4.png"]
    names += [
        "out/r/artifact.json",
        "out/r/clusters.csv",
        "out/5.png",
        "b/artifact.json",
        "b/6.png",
    ]
    found = leftovers(names)
    assert {name: found[name] for name in names if name.endswith(".png") and name in found} == {
        "a/@eaDir/1.png": "@eaDir",
        "$RECYCLE.BIN/2.png": "$RECYCLE.BIN",
        ".git/3.png": ".git",
        "out/r/figures/4.png": "r",
    }
