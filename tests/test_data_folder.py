"""A person's own images, from a folder to a Dataset."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import is_group_alive, wait_until

from vitdc.artifacts import Dataset
from vitdc.config import DataConfig
from vitdc.data import write_dataset
from vitdc.errors import InputError

CATS = tuple(f"cats/{index}.png" for index in range(5))
DOGS = tuple(f"dogs/{index}.png" for index in range(10))


def prepare(root: Path, **options: object) -> Dataset:
    """The Dataset of a folder, written beside it."""
    output = root.with_name("dataset")
    values = {"source": "folder", "root": str(root), "image_size": 8, "num_workers": 1, **options}
    write_dataset(DataConfig.parse(values, where="test"), output=output)
    return Dataset.load(output)


def index_of(dataset: Dataset) -> list[dict[str, str]]:
    with (dataset.path / "index.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def refusal(root: Path, **options: object) -> str:
    """The error message, after checking that it is one line and that nothing was written."""
    with pytest.raises(InputError) as caught:
        prepare(root, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert not root.with_name("dataset").exists()
    assert not root.with_name(".dataset.partial").exists()
    return message


def test_class_folders_give_labels(write_images):
    dataset = prepare(write_images(*CATS, *DOGS), test_fraction=0.2)
    assert dataset.class_names == ("cats", "dogs")
    assert np.bincount(dataset.train.labels).tolist() == [4, 8]
    assert np.bincount(dataset.test.labels).tolist() == [1, 2]


def test_arrays_index_and_files_agree(write_images):
    root = write_images(*CATS, *DOGS)
    dataset = prepare(root)
    images = np.concatenate([dataset.train.images, dataset.test.images])
    labels = np.concatenate([dataset.train.labels, dataset.test.labels])
    rows = index_of(dataset)
    assert [row["split"] for row in rows] == ["train"] * 12 + ["test"] * 3
    for row, image, label in zip(rows, images, labels, strict=True):
        np.testing.assert_array_equal(image, np.asarray(Image.open(root / row["image"])))
        assert row["image"].startswith(dataset.class_names[label])
        assert int(row["label"]) == label
    train = dataset.train.images / 255
    assert dataset.mean == pytest.approx(train.mean(axis=(0, 1, 2)))
    assert dataset.std == pytest.approx(train.std(axis=(0, 1, 2)))


def test_written_arrays_have_the_bytes_of_numpy_save(write_images, tmp_path):
    dataset = prepare(write_images(*CATS))
    np.save(tmp_path / "again.npy", dataset.train.images)
    written = (dataset.path / "train_images.npy").read_bytes()
    assert (tmp_path / "again.npy").read_bytes() == written


def test_flat_folder_has_no_labels(write_images):
    dataset = prepare(write_images("a.png", "b.png", "c.png"))
    assert dataset.class_names == ()
    assert dataset.train.labels.tolist() == [-1, -1]
    assert dataset.test.labels.tolist() == [-1]


def test_a_single_image_leaves_the_test_split_empty(write_images):
    dataset = prepare(write_images("a.png"))
    assert len(dataset.train) == 1
    assert dataset.test.images.shape == (0, 8, 8, 3)


def test_nested_files_count_and_hidden_ones_do_not(write_images):
    root = write_images(
        "cats/a.png", "cats/deep/er/b.png", "cats/.c.png", ".git/d.png", "dogs/.x/e.png"
    )
    names = {row["image"] for row in index_of(prepare(root))}
    assert names == {"cats/a.png", "cats/deep/er/b.png"}


def test_other_files_are_ignored_and_mentioned(write_images, caplog):
    root = write_images("a.png", "b.PNG")
    (root / "notes.txt").write_text("not an image")
    assert len(index_of(prepare(root))) == 2
    assert "ignored 1 files that are no images by their extension (notes.txt)" in caplog.text


def test_links_are_followed_but_not_in_circles(write_images, tmp_path):
    root = write_images("cats/a.png", "cats/b.png")
    elsewhere = write_images("c.png", folder="elsewhere")
    (root / "dogs").symlink_to(elsewhere)
    (root / "cats" / "again").symlink_to(root)
    names = {row["image"] for row in index_of(prepare(root))}
    assert names == {"cats/a.png", "cats/b.png", "dogs/c.png"}


def test_a_copy_in_another_unicode_form_is_the_same_data_set(write_images):
    names = [
        f"{folder}/{i}-\u00e4.png"
        for folder in ("caf\u00e9", "cafg", "\u00dcbung")
        for i in range(9)
    ]
    found = []
    for form in ("NFC", "NFD"):
        root = write_images(*(unicodedata.normalize(form, name) for name in names), folder=form)
        dataset = prepare(root, max_train=16, label_fraction=0.5)
        assert {row["image"] for row in index_of(dataset)} <= {  # by the names that they have
            str(path.relative_to(root)) for path in root.rglob("*.png")
        }
        rows = [unicodedata.normalize("NFC", str(row)) for row in index_of(dataset)]
        found.append((dataset.content_hash, dataset.class_names, dataset.known.tolist(), rows))
    assert found[0] == found[1]
    assert found[0][1] == ("cafg", "caf\u00e9", "\u00dcbung")


def test_class_folders_of_the_same_name_in_two_unicode_forms_are_refused(write_images):
    root = write_images("caf\u00e9/1.png", "cafe\u0301/2.png", "tea/3.png")
    message = refusal(root)
    assert r"'cafe\u0301' and 'caf\xe9'" in message


def test_greyscale_on_request(write_images):
    dataset = prepare(write_images("a.png", "b.png"), channels=1)
    assert dataset.image_shape == (8, 8, 1)


def test_result_does_not_depend_on_the_number_of_processes(write_images):
    root = write_images(*(f"c{index % 3}/{index}.png" for index in range(100)))
    digests = []
    for num_workers in (1, 3):
        dataset = prepare(root, num_workers=num_workers)
        files = sorted(dataset.path.iterdir())
        digests.append([(file.name, file.read_bytes()) for file in files])
    assert digests[0] == digests[1]


def test_result_does_not_depend_on_where_the_folder_lies(write_images, tmp_path):
    root = write_images(*CATS)
    before = (prepare(root).path / "artifact.json").read_bytes()
    moved = root.rename(tmp_path / "moved")
    assert (prepare(moved).path / "artifact.json").read_bytes() == before


def test_subset_is_chosen_before_decoding(write_images):
    root = write_images(*CATS, *DOGS)
    trial = prepare(root, max_train=3, max_test=1)
    assert np.bincount(trial.train.labels).tolist() == [1, 2]
    kept = {row["image"] for row in index_of(trial)}
    for name in {*CATS, *DOGS} - kept:
        (root / name).write_bytes(b"broken")
    assert {row["image"] for row in index_of(prepare(root, max_train=3, max_test=1))} == kept


def test_unreadable_images_are_listed_by_path(write_images):
    root = write_images(*CATS, *DOGS)
    (root / "cats/3.png").write_text("this is text")
    (root / "dogs/7.png").write_bytes((root / "dogs/7.png").read_bytes()[:100])
    message = refusal(root)
    assert f"{root}: unreadable images: 2, allowed: 0: " in message
    assert "cats/3.png (not an image of a known format)" in message
    assert "dogs/7.png (" in message
    assert "data.max_unreadable=2" in message


def test_long_lists_of_unreadable_images_are_cut(write_images):
    root = write_images("z.png")
    for index in range(200):
        (root / f"{index:03}.png").write_text("text")
    message = refusal(root)
    assert "unreadable images: at least " in message
    assert message.count("not an image") == 10
    assert "more; repair or remove them" in message


def test_allowed_unreadable_images_are_skipped_counted_and_mentioned(write_images, caplog):
    root = write_images(*CATS, *DOGS)
    intact = {row["image"]: row for row in index_of(prepare(root))}
    (root / "dogs/7.png").write_text("this is text")
    dataset = prepare(root, max_unreadable=1)
    assert dataset.num_unreadable == 1
    assert index_of(dataset) == [row for name, row in intact.items() if name != "dogs/7.png"]
    assert len(dataset.train) == len(dataset.train.images) == 11
    assert "skipped 1 unreadable images: dogs/7.png" in caplog.text


def test_a_class_or_many_files_without_a_known_extension_are_named(write_images, caplog):
    root = write_images(*CATS, *DOGS)
    (root / "birds").mkdir()
    for number in range(4):
        (root / "birds" / f"{number}.raw").write_bytes(b"of a camera")
    dataset = prepare(root)
    assert dataset.class_names == ("cats", "dogs")
    assert (
        "ignored 4 files that are no images by their extension (birds/0.raw, birds/1.raw,"
        " birds/2.raw and 1 more); that is 21 % of all: 4 .raw; no image at all is left of the"
        " folders (birds (4))" in caplog.text
    )


def test_dark_images_of_16_bits_come_with_the_range_to_set(write_images, caplog):
    root = write_images("a.png")
    for name, brightest in (("b.png", 900), ("c.tif", 3000)):
        deep = np.linspace(0, brightest, 64).astype(np.uint16).reshape(8, 8)
        Image.fromarray(deep).save(root / name)
    dataset = prepare(root, test_fraction=0)
    assert "2 of 2 images of 16 bits have no value above 3000 of 65535" in caplog.text
    assert "set data.pixel_range, e.g. to [0, 4095]" in caplog.text
    assert dataset.oddities["faint"] == {"images": 2, "names": ["b.png", "c.tif"]}
    caplog.clear()
    dataset = prepare(root, test_fraction=0, pixel_range=(0, 4095))
    assert caplog.text == ""
    assert dict(dataset.oddities) == {}


def test_pages_that_are_left_out_are_counted(write_images, caplog):
    root = write_images("a.png", "b.png")
    pages = [Image.new("L", (8, 8), level) for level in (10, 20, 30)]
    pages[0].save(root / "c.tif", save_all=True, append_images=pages[1:])
    assert len(prepare(root, test_fraction=0).train) == 3
    assert "2 further pages or frames of 1 files (c.tif) are left out; with data.pages" in (
        caplog.text
    )
    caplog.clear()
    assert len(prepare(root, test_fraction=0, pages="all").train) == 5
    assert caplog.text == ""


def test_the_background_and_the_fit_of_the_configuration_count(write_images):
    root = write_images("a.png")
    Image.new("LA", (8, 2), (255, 0)).save(root / "b.png")
    dataset = prepare(root, test_fraction=0, fit="pad", background="#ff0000")
    assert (dataset.train.images[1] == (255, 0, 0)).all()
    assert dataset.oddities["constant"] == {"images": 1, "names": ["b.png"]}


def test_bomb_is_unreadable(write_images):
    message = refusal(write_images("a.png", "b.png"), max_pixels=63)
    assert "a.png (too large: 8 x 8 pixels exceed data.max_pixels=63)" in message


def test_nothing_readable_is_refused_even_if_allowed(write_images):
    root = write_images()
    root.mkdir()
    (root / "a.png").write_text("text")
    assert "none of the 1 training images is readable" in refusal(root, max_unreadable=5)


def test_a_broken_link_is_an_unreadable_image(write_images):
    root = write_images("a.png", "b.png")
    (root / "c.png").symlink_to("gone.png")
    assert "c.png (No such file or directory)" in refusal(root)


def test_empty_folder_is_refused(tmp_path):
    (tmp_path / "images" / "cats").mkdir(parents=True)
    (tmp_path / "images" / "cats" / "notes.txt").write_text("no picture")
    message = refusal(tmp_path / "images")
    assert "images: no images here (1 other files (cats/notes.txt))" in message


def test_missing_folder_is_refused(tmp_path):
    assert refusal(tmp_path / "images") == f"data.root: {tmp_path}/images: no such folder"


def test_file_in_place_of_a_folder_is_refused(tmp_path):
    (tmp_path / "images").write_text("a file")
    assert "not a folder" in refusal(tmp_path / "images")


def test_folder_that_may_not_be_read_is_refused(write_images, monkeypatch):
    root = write_images(*CATS)
    scandir = os.scandir

    def refuse_cats(folder: str):  # the tests may run as root, whom nothing is forbidden
        if folder.endswith("cats"):
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse_cats)
    assert refusal(root) == f"{root}/cats: cannot be listed: Permission denied"


def test_images_beside_class_folders_are_ambiguous(write_images):
    message = refusal(write_images("a.png", *CATS))
    assert "ambiguous layout: 1 images at the top (a.png) beside class folders (cats)" in message
    assert "with data.labels=partial the images at the top have no label" in message


def test_images_beside_class_folders_have_no_label_where_labels_are_partial(write_images):
    root = write_images("a.png", "b.png", *CATS)
    dataset = prepare(root, labels="partial", test_fraction=0)
    assert dataset.class_names == ("cats",)
    assert dataset.supervision == "partial"
    known = dict(
        zip((name for name, _ in dataset.image_names()), dataset.train.labels, strict=True)
    )
    assert known == {"a.png": -1, "b.png": -1, **dict.fromkeys(CATS, 0)}


def sides_of(dataset: Dataset) -> dict[str, tuple[str, str]]:
    """Split and class of every image, by its name."""
    names = [*dataset.class_names, ""]  # -1 is the last one
    return {row["image"]: (row["split"], names[int(row["label"])]) for row in index_of(dataset)}


def test_folders_of_a_split_are_the_split_and_no_classes(write_images, caplog):
    caplog.set_level("INFO")
    root = write_images("seg_train/seg_train/cats/a.png", "seg_train/seg_train/dogs/b.png")
    write_images("seg_test/seg_test/cats/c.png", "seg_pred/seg_pred/d.png")
    assert sides_of(prepare(root)) == {
        "seg_train/seg_train/cats/a.png": ("train", "cats"),
        "seg_train/seg_train/dogs/b.png": ("train", "dogs"),
        "seg_test/seg_test/cats/c.png": ("test", "cats"),
    }
    assert "split by folders: seg_train for training, seg_test for testing" in caplog.text
    assert "left out 1 images to predict (seg_pred)" in caplog.text


def test_a_split_is_drawn_anew_or_left_out_on_request(write_images):
    root = write_images(*(f"train/{i % 2}/{i}.png" for i in range(8)), "val/0/8.png", "val/1/9.png")
    assert {name for name, (split, _) in sides_of(prepare(root)).items() if split == "test"} == {
        "val/0/8.png",
        "val/1/9.png",
    }
    drawn = sides_of(prepare(root, split="random", test_fraction=0.4))
    assert {each for _, each in drawn.values()} == {"0", "1"}
    assert [split for split, _ in drawn.values()].count("test") == 4
    assert len(prepare(root, test_fraction=0).train) == 10
    assert len(prepare(root, test_fraction=0, split="folders").train) == 8


def test_folders_that_are_kept_whole_do_not_straddle_the_split(write_images):
    root = write_images(*(f"room{r}/{c}/{i}.png" for r in range(5) for c in "ab" for i in range(4)))
    assert prepare(root).class_names == tuple(f"room{r}" for r in range(5))
    dataset = prepare(root, split="folders")
    assert dataset.class_names == ("a", "b")
    sides = [(name.split("/")[0], split) for name, (split, _) in sides_of(dataset).items()]
    assert len(set(sides)) == 5
    assert [split for _, split in sides].count("test") == 8


def test_folders_without_a_split_are_refused_where_one_is_asked_for(write_images):
    message = refusal(write_images(*CATS, *DOGS), split="folders")
    assert "data.split: folders, but no folders look like splits (cats, dogs)" in message


def test_unlabelled_folders_have_no_label(write_images):
    dataset = prepare(write_images("cats/a.png", "dogs/b.png", "Un-labelled/deep/c.png"))
    assert dataset.class_names == ("cats", "dogs")
    assert sides_of(dataset)["Un-labelled/deep/c.png"] == ("train", "")
    assert dataset.supervision == "partial"


def test_what_programs_leave_beside_images_is_skipped_and_counted(write_images, caplog):
    root = write_images("cats/a.png", "dogs/b.png")
    leftovers = ("cats/@eaDir/a.png/S.png", "@eaDir/c.png", ".thumbnails/c.png", "#recycle/d.png")
    write_images(*leftovers, "__MACOSX/cats/._a.png", "__MACOSX/cats/e.png")
    write_images("results/figures/nmi.png")
    for name in ("artifact.json", "clusters.csv"):
        (root / "results" / name).write_text("")
    assert set(sides_of(prepare(root))) == {"cats/a.png", "dogs/b.png"}
    assert (
        "skipped 6 images in folders that are never a class: #recycle (1), .thumbnails (1),"
        " @eaDir (2), __MACOSX (1), results (1)" in caplog.text
    )


def test_a_folder_of_the_system_that_may_not_be_read_is_skipped(write_images, monkeypatch):
    root = write_images("a.png", "lost+found/b.png")
    scandir = os.scandir

    def refuse(folder: str | int):
        if str(folder).endswith("lost+found"):
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    assert [row["image"] for row in index_of(prepare(root))] == ["a.png"]


def test_name_that_is_not_utf8_is_refused(write_images):
    root = write_images("a.png")
    (root / os.fsdecode(b"\xff.png")).write_bytes((root / "a.png").read_bytes())
    assert "'\\udcff.png' is not valid UTF-8; rename it" in refusal(root)


def test_image_size_and_root_are_needed(write_images):
    assert "data.image_size: needed" in refusal(write_images("a.png"), image_size=None)
    with pytest.raises(InputError, match=r"data\.root: needed"):
        write_dataset(DataConfig(source="folder", image_size=8), output=Path("unused"))


@pytest.mark.parametrize(
    ("ending", "delay"), [(signal.SIGINT, 0.3), (signal.SIGINT, 3), (signal.SIGKILL, 3)]
)
def test_ending_early_leaves_no_process_behind(tmp_path, ending, delay):
    root = tmp_path / "images"
    root.mkdir()
    photo = Image.effect_noise((2000, 2000), 50)
    photo.save(root / "0.png")
    for index in range(1, 5000):  # more than any machine decodes in that time
        (root / f"{index}.png").hardlink_to(root / "0.png")
    code = (
        "import sys; from pathlib import Path; from vitdc.config import DataConfig;"
        "from vitdc.data import write_dataset;"
        "config = DataConfig(source='folder', root=sys.argv[1], image_size=8, num_workers=2);"
        "write_dataset(config, output=Path(sys.argv[2]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(root), str(tmp_path / "dataset")],
        cwd=Path(__file__).parents[1],
        start_new_session=True,  # its process group is that of its workers too
        stderr=subprocess.PIPE,
    )
    index = tmp_path / ".dataset.partial" / "index.csv"
    try:
        wait_until(index.exists)
        time.sleep(delay)  # the workers are starting, or at work
        # Ctrl-C reaches the whole group, a kill only the one
        (os.killpg if ending == signal.SIGINT else os.kill)(process.pid, ending)
        _, stderr = process.communicate(timeout=60)
        wait_until(lambda: not is_group_alive(process.pid))
    finally:
        if is_group_alive(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
    assert not (tmp_path / "dataset").exists()
    if ending == signal.SIGINT:
        assert not index.parent.exists()
        assert stderr.decode().rstrip().endswith("KeyboardInterrupt")
        assert stderr.count(b"Traceback") == 1, stderr.decode()
