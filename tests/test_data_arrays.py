"""Digits and torchvision sets by name; their files are written here in the original formats."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import pickle
import socket
import tarfile
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from PIL import Image
from sklearn.datasets import load_digits
from torchvision import datasets

from vitdc.artifacts import Dataset
from vitdc.config import DataConfig
from vitdc.data import write_dataset
from vitdc.data.arrays import IDX_SETS
from vitdc.errors import InputError

random = np.random.default_rng(0)


def prepare(output: Path, **options: object) -> Dataset:
    write_dataset(DataConfig.parse(options, where="test"), output=output)
    return Dataset.load(output)


def names_of(dataset: Dataset) -> list[str]:
    return [name for name, _ in dataset.image_names()]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network in this test")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def test_digits_are_scikit_learns(tmp_path):
    dataset = prepare(tmp_path / "out", source="digits")
    assert (len(dataset.train), len(dataset.test)) == (1438, 359)
    assert dataset.class_names == tuple("0123456789")
    digits = load_digits()
    rows = csv.DictReader((tmp_path / "out" / "index.csv").open(encoding="utf-8"))
    splits = {"train": iter(dataset.train.images), "test": iter(dataset.test.images)}
    seen = set()
    for row in rows:
        number = int(row["image"].removeprefix("digits/"))
        expected = digits.images[number] / 16 * 255
        assert np.abs(next(splits[row["split"]])[..., 0] - expected).max() <= 0.5
        assert int(row["label"]) == digits.target[number]
        seen.add(number)
    assert seen == set(range(1797))


def test_digits_split_is_stratified(tmp_path):
    dataset = prepare(tmp_path / "out", source="digits")
    held_out = np.bincount(dataset.test.labels) / np.bincount(load_digits().target)
    assert held_out == pytest.approx(0.2, abs=0.01)


def test_same_seed_same_bytes_another_seed_another_split(tmp_path):
    digests = [
        prepare(tmp_path / str(run), source="digits", seed=seed).content_hash
        for run, seed in enumerate([0, 0, 1])
    ]
    assert digests[0] == digests[1] != digests[2]
    first, second = (tmp_path / str(run) / "artifact.json" for run in (0, 1))
    assert first.read_bytes() == second.read_bytes()


def test_subsets_resizing_and_channels_apply_to_arrays(tmp_path):
    dataset = prepare(
        tmp_path / "out", source="digits", max_train=20, max_test=10, image_size=16, channels=3
    )
    assert dataset.train.images.shape == (20, 16, 16, 3)
    assert dataset.test.images.shape == (10, 16, 16, 3)
    assert np.bincount(dataset.train.labels).tolist() == [2] * 10
    digits = load_digits().images * (255 / 16)
    number = int(names_of(dataset)[0].removeprefix("digits/"))
    small = Image.fromarray(np.round(digits[number]).astype(np.uint8))
    expected = np.asarray(small.resize((16, 16), Image.Resampling.BICUBIC))
    for channel in range(3):
        np.testing.assert_array_equal(dataset.train.images[0, ..., channel], expected)


def states(folder: Path) -> dict[Path, tuple[int, int]]:
    """Size and time of change of every file; reading one changes its time of access only."""
    found = {file: file.stat() for file in folder.iterdir()}
    return {file: (status.st_size, status.st_mtime_ns) for file, status in found.items()}


@pytest.fixture
def cifar10(tmp_path, monkeypatch) -> tuple[Path, np.ndarray, list[int]]:
    """A tiny archive in CIFAR-10's format: its folder, the training images and labels.

    Its checksums differ from the original's, so torchvision is told the new ones; the code that
    checks and reads it is torchvision's own.
    """
    names = [f"class {index}" for index in range(10)]
    pixels = random.integers(0, 256, (12, 3, 32, 32), dtype=np.uint8)
    labels = [index % 10 for index in range(12)]

    def batch(part: slice) -> dict[str, Any]:
        return {"data": pixels[part].reshape(-1, 3072), "labels": labels[part]}

    contents = {f"data_batch_{i + 1}": batch(slice(2 * i, 2 * i + 2)) for i in range(5)}
    contents |= {"test_batch": batch(slice(10, 12)), "batches.meta": {"label_names": names}}
    pickled = {name: pickle.dumps(content) for name, content in contents.items()}
    root = tmp_path / "cifar"
    root.mkdir()
    archive = root / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in pickled.items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    sums = {name: md5(content) for name, content in pickled.items()}
    train_list = [[name, sums[name]] for name in pickled if name.startswith("data_")]
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5(archive.read_bytes()))
    monkeypatch.setattr(datasets.CIFAR10, "train_list", train_list)
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    return root, pixels.transpose(0, 2, 3, 1), labels


def test_cifar10_is_read_from_its_archive_with_its_own_split(cifar10, tmp_path):
    root, images, labels = cifar10
    dataset = prepare(tmp_path / "out", source="CIFAR10", root=str(root))
    np.testing.assert_array_equal(dataset.train.images, images[:10])
    np.testing.assert_array_equal(dataset.test.images, images[10:])
    assert dataset.train.labels.tolist() == labels[:10]
    assert dataset.test.labels.tolist() == labels[10:]
    assert dataset.class_names == tuple(f"class {index}" for index in range(10))
    assert names_of(dataset)[-3:] == ["train/00009", "test/00000", "test/00001"]


def test_an_archive_with_another_checksum_is_not_unpickled(cifar10, tmp_path):
    root, *_ = cifar10
    (root / "cifar-10-python.tar.gz").write_bytes(b"not what torchvision expects")
    with pytest.raises(InputError, match="cannot be downloaded"):
        prepare(tmp_path / "out", source="CIFAR10", root=str(root))


def test_svhn_and_its_channels_first_images(tmp_path, monkeypatch):
    images = random.integers(0, 256, (32, 32, 3, 4), dtype=np.uint8)
    labels = np.array([[1], [10], [2], [10]], np.uint8)  # 10 stands for the digit 0
    sources = {}
    for split in ("train", "test"):
        file = tmp_path / f"{split}_32x32.mat"
        scipy.io.savemat(file, {"X": images, "y": labels})
        sources[split] = ["no address", file.name, md5(file.read_bytes())]
    monkeypatch.setattr(datasets.SVHN, "split_list", sources)
    dataset = prepare(tmp_path / "out", source="SVHN", root=str(tmp_path))
    np.testing.assert_array_equal(dataset.train.images, images.transpose(3, 0, 1, 2))
    assert dataset.train.labels.tolist() == [1, 0, 2, 0]
    assert dataset.class_names == tuple("0123456789")


def test_stl10_and_its_labels_from_one(tmp_path, monkeypatch):
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    images = random.integers(0, 256, (2, 3, 96, 96), dtype=np.uint8)
    contents = {
        "X.bin": images.transpose(0, 1, 3, 2).tobytes(),  # columns first
        "y.bin": bytes([1, 10]),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    names = [f"class {index}" for index in range(10)]
    (folder / "class_names.txt").write_text("\n".join(names))
    files = [[name, md5(content)] for name, content in contents.items()]
    monkeypatch.setattr(datasets.STL10, "train_list", files)
    monkeypatch.setattr(datasets.STL10, "test_list", files)
    dataset = prepare(tmp_path / "out", source="STL10", root=str(tmp_path))
    np.testing.assert_array_equal(dataset.test.images, images.transpose(0, 2, 3, 1))
    assert dataset.test.labels.tolist() == [0, 9]
    assert dataset.class_names == tuple(names)


def write_idx_files(folder: Path, *, compress: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """The four files of MNIST's format, with six images in each split."""
    folder.mkdir(parents=True, exist_ok=True)
    images = random.integers(0, 256, (6, 28, 28), dtype=np.uint8)
    labels = np.array([3, 1, 4, 1, 5, 9], np.uint8)
    for split in ("train", "t10k"):
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            magic = bytes([0, 0, 8, array.ndim])
            content = magic + np.array(array.shape, ">u4").tobytes() + array.tobytes()
            plain = folder / f"{split}-{kind}-ubyte"
            if compress:
                plain.with_name(plain.name + ".gz").write_bytes(gzip.compress(content))
            else:
                plain.write_bytes(content)
    return images, labels


def test_fashion_mnist_is_read_from_a_folder_of_gzip_files_and_nothing_is_written(tmp_path):
    images, labels = write_idx_files(tmp_path / "idx")
    before = states(tmp_path / "idx")
    dataset = prepare(tmp_path / "out", source="FashionMNIST", root=str(tmp_path / "idx"))
    np.testing.assert_array_equal(dataset.train.images[..., 0], images)
    np.testing.assert_array_equal(dataset.test.labels, labels)
    assert dataset.class_names[9] == "Ankle boot"
    assert states(tmp_path / "idx") == before


@pytest.mark.parametrize("source", IDX_SETS)
def test_class_names_of_idx_sets_are_torchvisions(source):
    assert list(IDX_SETS[source]) == getattr(datasets, source).classes


def test_mnist_is_read_where_torchvision_keeps_it(tmp_path):
    images, _ = write_idx_files(tmp_path / "MNIST" / "raw", compress=False)
    dataset = prepare(tmp_path / "out", source="MNIST", root=str(tmp_path))
    np.testing.assert_array_equal(dataset.test.images[..., 0], images)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda content: content[:-20], "end-of-stream"),
        (lambda content: b"not gzip at all", "Not a gzipped file"),
        (lambda content: gzip.compress(b"\0\0\x0d\x03" + bytes(12)), "starts with 00000d03"),
        (lambda content: gzip.compress(gzip.decompress(content)[:-1]), "cannot reshape"),
    ],
)
def test_corrupt_idx_file_is_named(tmp_path, damage, complaint):
    write_idx_files(tmp_path)
    file = tmp_path / "train-images-idx3-ubyte.gz"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(InputError, match=complaint) as caught:
        prepare(tmp_path / "out", source="MNIST", root=str(tmp_path))
    assert str(file) in str(caught.value)


def test_labels_of_another_set_are_refused(tmp_path):
    write_idx_files(tmp_path)
    content = b"\0\0\x08\x01" + np.array([6], ">u4").tobytes() + bytes([0, 1, 2, 3, 4, 10])
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(content))
    with pytest.raises(InputError, match="6 labels up to 10 are not MNIST"):
        prepare(tmp_path / "out", source="MNIST", root=str(tmp_path))


@pytest.mark.parametrize(
    "source", ["CIFAR10", "CIFAR100", "FashionMNIST", "MNIST", "STL10", "SVHN"]
)
def test_set_that_cannot_be_had_says_what_to_put_where(tmp_path, source):
    root = tmp_path / "nothing"
    with pytest.raises(InputError, match="cannot be downloaded") as caught:
        prepare(tmp_path / "out", source=source, root=str(root))
    message = str(caught.value)
    assert "\n" not in message
    assert f"data.source={source}: not complete in {root}" in message
    assert "; put " in message
    assert not (tmp_path / "out").exists()
    assert socket.getdefaulttimeout() is None


@pytest.mark.parametrize(
    ("source", "advice"),
    [
        ("cifar10", "did you mean CIFAR10?"),
        ("fashion-mnist", "did you mean FashionMNIST?"),
        ("digit", "did you mean digits?"),
        ("imagenet", "valid are digits, folder, dvc, CIFAR10"),
    ],
)
def test_unknown_source_names_the_nearest(tmp_path, source, advice):
    with pytest.raises(InputError) as caught:
        prepare(tmp_path / "out", source=source)
    assert advice in str(caught.value)
