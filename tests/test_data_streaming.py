"""Images that stay in their files: the same pixels, scores and errors as from a decoded copy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitdc import kubeflow
from vitdc.artifacts import Dataset
from vitdc.config import DataConfig
from vitdc.data import write_dataset
from vitdc.errors import InputError

NAMES = tuple(f"{index:02d}.png" for index in range(20))


def section(root: Path, **options: object) -> DataConfig:
    values = {"source": "folder", "root": str(root), "image_size": 12, "num_workers": 1, **options}
    return DataConfig.parse(values, where="test")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root, generator = tmp_path / "photos", np.random.default_rng(0)
    root.mkdir()
    for name in NAMES:
        pixels = generator.integers(0, 256, (15, 18, 3), np.uint8)
        Image.fromarray(pixels).save(root / name)
    return root


@pytest.fixture
def prepare(folder: Path, tmp_path: Path) -> Callable[..., Dataset]:
    def prepared(**options: object) -> Dataset:
        output = tmp_path / ("copy" if options.get("keep_decoded", True) else "streamed")
        write_dataset(section(folder, **options), output=output)
        return Dataset.load(output)

    return prepared


def test_rows_are_those_of_a_decoded_copy(prepare: Callable[..., Dataset]) -> None:
    copy, streamed = prepare(), prepare(keep_decoded=False)
    for name in ("train", "test"):
        kept, read = copy.split(name), streamed.split(name)
        assert read.images.shape == kept.images.shape
        for rows in (3, -1, slice(1, 3), np.array([2, 0]), np.arange(len(kept)) > 1, slice(0, 0)):
            np.testing.assert_array_equal(read.images[rows], kept.images[rows])
        np.testing.assert_array_equal(np.asarray(read.images), kept.images)
        np.testing.assert_array_equal(read.thumbnails, kept.thumbnails)
    assert streamed.content_hash == copy.content_hash
    assert list(streamed.image_names()) == list(copy.image_names())


def test_no_decoded_copy_lies_on_disk(prepare: Callable[..., Dataset]) -> None:
    streamed = prepare(keep_decoded=False)
    assert not list(streamed.path.glob("*_images.npy"))
    assert not streamed.keeps_images
    assert prepare().keeps_images


def test_splits_are_the_same_for_the_same_pixels_only(
    prepare: Callable[..., Dataset], folder: Path
) -> None:
    before = prepare(keep_decoded=False)
    hashes = [before.split_hash(name) for name in ("train", "test")]
    after = prepare(keep_decoded=False)
    assert [after.split_hash(name) for name in ("train", "test")] == hashes
    Image.new("RGB", (15, 15)).save(folder / dict(map(reversed, after.image_names()))["train"])
    changed = prepare(keep_decoded=False)
    assert changed.split_hash("train") != hashes[0]
    assert changed.split_hash("test") == hashes[1]


@pytest.mark.parametrize("fault", ["changed", "gone", "damaged"])
def test_a_file_that_is_not_as_it_was_is_named(
    prepare: Callable[..., Dataset], folder: Path, fault: str
) -> None:
    streamed = prepare(keep_decoded=False)
    name = next(image for image, split in streamed.image_names() if split == "test")
    if fault == "changed":
        Image.new("RGB", (15, 15)).save(folder / name)
    elif fault == "gone":
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(b"no image")
    with pytest.raises(InputError, match=rf"{name} is not as `prepare` read it .*prepare the"):
        _ = streamed.test.images[:]


def test_the_folder_is_found_from_another_working_directory(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_dataset(section(Path("photos"), keep_decoded=False), output=tmp_path / "streamed")
    expected = np.array(Dataset.load(tmp_path / "streamed").train.images[0])
    monkeypatch.chdir("/")
    np.testing.assert_array_equal(Dataset.load(tmp_path / "streamed").train.images[0], expected)


@pytest.mark.parametrize("source", ["digits", "CIFAR10", "dvc"])
def test_only_files_can_be_read_again(source: str) -> None:
    with pytest.raises(InputError, match=f"images of {source} cannot be read one by one"):
        DataConfig.parse({"source": source, "path": None, "keep_decoded": False}, where="test")


def test_a_pipeline_of_pods_refuses_it(folder: Path) -> None:
    data = section(folder, keep_decoded=False).model_dump()
    with pytest.raises(InputError, match=r"data\.keep_decoded: false is for `vitdc run`"):
        kubeflow.data_section(data)
