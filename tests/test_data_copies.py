"""Copies of images are found, counted and kept on one side of the split."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from sklearn.datasets import load_digits

from vitdc import steps
from vitdc.artifacts import Dataset
from vitdc.concerns import data_concerns
from vitdc.config import DataConfig
from vitdc.data.copies import Copies, joined
from vitdc.data.sampling import split_train_test
from vitdc.typicality import thumbnails

NAMES = tuple(f"{'ab'[i % 2]}/{i:02}.png" for i in range(30))


def prepare(root: Path, **options: object) -> Dataset:
    values = {"source": "folder", "root": str(root), "image_size": 16, "num_workers": 1}
    config = DataConfig.parse({**values, **options}, where="test")
    return steps.prepare(data=config, output=root.with_name("dataset"))


def scenes(root: Path, *names: str) -> Path:
    """Smooth pictures of 64 pixels, as photos are."""
    random = np.random.default_rng(0)
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        small = random.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(small).resize((64, 64), Image.Resampling.BICUBIC).save(root / name)
    return root


def groups_of(images: np.ndarray) -> np.ndarray:
    """Of (N, H, W, C), in two arrays as of a split."""
    copies = Copies()
    copies.update(images[:3])
    copies.update(images[3:])
    return copies.groups(thumbnails(images[:3]), thumbnails(images[3:]))


def test_split_without_copies_is_the_one_drawn_by_names(tmp_path: Path) -> None:
    dataset = prepare(scenes(tmp_path / "images", *NAMES))
    assert dataset.copies == {}
    names = sorted(NAMES)
    labels = np.array(["ab".index(name[0]) for name in names])
    train, test = split_train_test(names, labels, test_fraction=0.2, seed=0)
    expected = [(names[i], "train") for i in train] + [(names[i], "test") for i in test]
    assert list(dataset.image_names()) == expected


def test_identical_images_are_on_one_side_and_counted(tmp_path: Path) -> None:
    root = scenes(tmp_path / "images", *NAMES)
    for name in NAMES:
        shutil.copy(root / name, (root / name).with_name(f"copy of {name[2:]}"))
    shutil.copy(root / NAMES[0], root / "b" / "wrong.png")
    dataset = prepare(root)
    train = {image.tobytes() for image in dataset.train.images}
    assert train.isdisjoint(image.tobytes() for image in dataset.test.images)
    assert len(dataset.test) == 12
    assert dataset.copies == {"images": 31, "tested": 0, "ambiguous": 1}
    (concern,) = data_concerns(dataset)
    assert concern.startswith("Copies of other images, identical or nearly so: 31, each on")
    assert concern.endswith("Pictures that are in more than one class: 1.")


def test_a_split_that_was_drawn_again_is_as_sound_as_another(tmp_path: Path) -> None:
    root = scenes(tmp_path / "images", *NAMES)
    for name in NAMES[:20]:
        shutil.copy(root / name, (root / name).with_name(f"copy of {name[2:]}"))
    dataset = prepare(root)
    for split in (dataset.train, dataset.test):
        np.testing.assert_array_equal(split.thumbnails, thumbnails(split.images))
    images = np.concatenate([dataset.train.images, dataset.test.images])
    labels = np.concatenate([dataset.train.labels, dataset.test.labels])
    listed = list(dataset.image_names())
    sides = ["train"] * len(dataset.train) + ["test"] * len(dataset.test)
    assert [split for _, split in listed] == sides
    for (name, _), image, label in zip(listed, images, labels, strict=True):
        small = Image.open(root / name).resize((16, 16), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(image, np.asarray(small))
        assert dataset.class_names[label] == name[0]
    pixels = dataset.train.images / 255
    assert dataset.mean == pytest.approx(pixels.mean(axis=(0, 1, 2)))
    assert not list(dataset.path.glob("before*"))
    names = [name for name, split in listed if split == "train"]
    assert names == sorted(names)


def test_pictures_saved_anew_are_copies_and_others_are_not(tmp_path: Path) -> None:
    root = scenes(tmp_path / "images", *NAMES)
    for name in NAMES[:10]:
        image, path = Image.open(root / name), str(root / name)
        image.save(path.replace(".png", "-85.jpg"), quality=85)
        image.resize((32, 32)).save(path.replace(".png", "-half.png"))
        ImageEnhance.Brightness(image).enhance(0.9).save(path.replace(".png", "-dark.png"))
    dataset = prepare(root)
    assert dataset.copies == {"images": 30, "tested": 0, "ambiguous": 0}
    sides = {(name[:4], split) for name, split in dataset.image_names()}
    assert len(sides) == len(NAMES)


@pytest.mark.parametrize("given", ["folders", "anywhere"])
def test_copies_are_not_moved_in_a_given_split_or_on_request_but_told(
    tmp_path: Path, given: str
) -> None:
    folders = ("train", "test") if given == "folders" else ("a", "b")
    root = scenes(tmp_path / "images", *(f"{folders[0]}/c/{i}.png" for i in range(8)))
    shutil.copytree(root / folders[0], root / folders[1])
    options = {} if given == "folders" else {"copies": "anywhere", "test_fraction": 0.5}
    dataset = prepare(root, **options)
    tested = dataset.copies["tested"]
    assert tested == 8 if given == "folders" else 0 < tested < 8
    said = (
        "Copies of other images, identical or nearly so: 8; test images with one among the"
        f" training images, which flatters the test scores: {tested}."
    )
    assert any(each.startswith(said) for each in data_concerns(dataset))


def test_copies_and_groups_are_kept_together_at_once(tmp_path: Path) -> None:
    root = scenes(tmp_path / "images", *(f"{i:02}.png" for i in range(20)))
    shutil.copy(root / "02.png", root / "copy.png")
    groups = [f"{i:02}.png,{i // 2}" for i in range(20)]
    (root / "labels.csv").write_text("\n".join(["file,group", *groups, "copy.png,5"]))
    for seed in range(5):
        dataset = prepare(root, labels_file="labels.csv", seed=seed, test_fraction=0.4)
        sides = dict(dataset.image_names())
        assert all(sides[f"{i:02}.png"] == sides[f"{i + 1:02}.png"] for i in range(0, 20, 2))
        assert sides["02.png"] == sides["copy.png"] == sides["10.png"]
        assert dataset.copies == {"images": 1, "tested": 0, "ambiguous": 0}


def test_digits_and_noise_have_no_copies() -> None:
    digits = np.round(load_digits().images * (255 / 16)).astype(np.uint8)[..., None]
    noise = np.random.default_rng(0).integers(0, 256, (500, 12, 12, 3), dtype=np.uint8)
    for images in (digits, noise):
        assert len(np.unique(groups_of(images))) == len(images)


def test_pictures_without_contrast_are_copies_only_if_they_are_identical() -> None:
    levels = np.array([0, 0, 7, 255, 255, 254, 0], np.uint8)
    images = np.broadcast_to(levels[:, None, None, None], (7, 9, 9, 1))
    groups = groups_of(images)
    assert [groups.tolist().index(group) for group in groups] == [0, 0, 2, 3, 3, 5, 0]


def test_groups_join_over_both_kinds() -> None:
    found = joined(np.array([0, 0, 1, 2, 3]), ["x", "y", "y", "z", "w"])
    assert [found.tolist().index(group) for group in found] == [0, 0, 0, 3, 4]


def test_a_class_of_one_picture_holds_nothing_out_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = scenes(tmp_path / "images", "a/0.png", "b/0.png")
    for name in ("a/1.png", "a/2.png", "b/1.png", "b/2.png"):
        shutil.copy(root / f"{name[0]}/0.png", root / name)
    dataset = prepare(root)
    assert len(dataset.test) == 0
    assert "copies of each other, so nothing is held out; data.copies=anywhere" in caplog.text


@pytest.mark.parametrize("keep_decoded", [True, False])
def test_limits_hold_where_copies_are_put_together(tmp_path: Path, keep_decoded: bool) -> None:
    root = scenes(tmp_path / "images", *NAMES)
    for name in NAMES[2:]:  # two pictures in all
        shutil.copyfile(root / NAMES[int(name[0] == "b")], root / name)
    shutil.copyfile(root / NAMES[0], root / "a/more.png")
    limits = {"max_train": 6, "max_test": 4}
    dataset = prepare(root, labels="none", keep_decoded=keep_decoded, **limits)
    assert len(dataset.train) <= 6
    assert len(dataset.test) <= 4
    assert len(dataset.train.images[:]) == len(dataset.train)
    assert dataset.copies.get("tested", 0) == 0
