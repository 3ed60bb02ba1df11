"""Labels, splits and groups of images from a CSV file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vitdc import steps
from vitdc.artifacts import Dataset
from vitdc.config import DataConfig
from vitdc.data.version import pin
from vitdc.errors import InputError

NAMES = ("0.png", "1.png", "deep/2.png", "deep/3.png")


@pytest.fixture
def root(write_images) -> Path:
    return write_images(*NAMES)


def config(root: Path, **options: object) -> DataConfig:
    values = {"source": "folder", "root": str(root), "image_size": 8, "num_workers": 1}
    return DataConfig.parse({**values, "labels_file": "labels.csv", **options}, where="test")


def prepare(root: Path, text: str | bytes, **options: object) -> Dataset:
    content = text.encode() if isinstance(text, str) else text
    (root / "labels.csv").write_bytes(content)
    return steps.prepare(data=config(root, **options), output=root.with_name("dataset"))


def found(dataset: Dataset) -> dict[str, tuple[str, str]]:
    """Split and class of every image, by its name."""
    labels = np.concatenate([dataset.train.labels, dataset.test.labels])
    names = [*dataset.class_names, ""]  # -1 is the last one
    return {
        image: (split, names[label])
        for (image, split), label in zip(dataset.image_names(), labels, strict=True)
    }


def test_labels_come_from_the_table_and_not_from_folders(root):
    text = 'label,file\n01,0.png\n"a, b",deep/2.png\n,./deep/3.png\n'
    dataset = prepare(root, text, test_fraction=0)
    assert found(dataset) == {
        "0.png": ("train", "01"),
        "1.png": ("train", ""),
        "deep/2.png": ("train", "a, b"),
        "deep/3.png": ("train", ""),
    }
    assert dataset.supervision == "partial"


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffFile,Label\r\n0.png,a\r\n1.png,a\r\ndeep\\2.png,b\r\n\r\ndeep\\3.png,b\r\n",
        'file, label\n 0.png ,a\n"1.png","a"\ndeep/../deep/2.png,b\ndeep/3.png, b',
    ],
)
def test_tables_as_spreadsheets_write_them_are_read(root, text):
    assert found(prepare(root, text, test_fraction=0)) == {
        name: ("train", "ab"[i // 2]) for i, name in enumerate(NAMES)
    }


def test_the_split_of_the_table_is_used_unless_one_is_to_be_drawn(write_images):
    root = write_images("0.png", "1.png", "2.png", "3.png")
    text = "file,split\n0.png,Training\n1.png,val\n2.png,test\n"
    sides = [split for _, (split, _) in sorted(found(prepare(root, text)).items())]
    assert sides == ["train", "train", "test", "train"]
    assert len(prepare(root, text, split="random", test_fraction=0.5).test) == 2
    assert len(prepare(root, text.replace("test", "val")).test) == 2


def test_the_split_of_folders_goes_with_labels_of_a_table(write_images):
    root = write_images("train/1.png", "train/2.png", "test/3.png")
    text = "file,label\ntrain/1.png,a\ntrain/2.png,b\ntest/3.png,b\n"
    assert found(prepare(root, text)) == {
        "train/1.png": ("train", "a"),
        "train/2.png": ("train", "b"),
        "test/3.png": ("test", "b"),
    }


@pytest.mark.parametrize("seed", range(4))
def test_groups_never_straddle_the_split(write_images, seed):
    root = write_images(*(f"{i}.png" for i in range(24)))
    rows = [f"{i}.png,{'ab'[i % 2]},patient {i // 4}" for i in range(20)]  # the others have none
    dataset = prepare(root, "\n".join(["file,label,group", *rows]), seed=seed, test_fraction=0.4)
    sides = {name: split for name, (split, _) in found(dataset).items()}
    groups = [{sides[f"{i}.png"] for i in range(g, g + 4)} for g in range(0, 20, 4)]
    assert all(len(group) == 1 for group in groups)
    assert 6 <= len(dataset.test) <= 12


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label,lable\n0.png,a,b\n", "line 1: unknown columns 'lable'; use file and some of"),
        ("file;label\n0.png;a\n", "line 1: unknown columns 'file;label'"),
        ("label,split\n", "line 1 has label, split, not file"),
        ("file\n0.png\n", "line 1 has file, not file and some of"),
        ("", "line 1 has nothing"),
        ("file,label\n0.png,a\nx.png,b\n", "1 of its files are no images in .* line 3: x.png;"),
        ("file,label\n0.png,a\n1.png,a\n0.png,a\n", "1 images twice: lines 2 and 4: 0.png"),
        ("file,label\n0.png\n", "line 2 has 1 cells, the first line 2"),
        ("file,label\n,a\n", "line 2 names no file"),
        ('file,label\n0.png,"a\n', "line 2: unexpected end of data"),
        ("file,label\n0.png,a\n1.png,\u00e9".encode("latin-1"), "line 3 is not UTF-8"),
        ("file,split\n0.png,train\n1.png,fourth\n", "no split is called so: line 3: fourth"),
        ("file,split\n0.png,train\n", "puts all images into the train split"),
        (
            "file,split,group\n0.png,train,A\n1.png,test,A\n",
            "group A is in both splits, in lines 2 and 3",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_line(root, text, message):
    with pytest.raises(InputError, match=f"^data.labels_file: labels.csv: (has )?{message}") as e:
        prepare(root, text)
    assert "\n" not in str(e.value)


def test_a_table_that_is_not_there_is_named(root):
    message = r"data.labels_file: x.csv: No such file .*images/x.csv; its path is relative"
    with pytest.raises(InputError, match=message):
        steps.prepare(data=config(root, labels_file="x.csv"), output=root.with_name("dataset"))


def test_a_table_may_lie_elsewhere(root, tmp_path, monkeypatch):
    table = tmp_path / "tables" / "labels.csv"
    table.parent.mkdir()
    table.write_text(f"file,label\n../images/0.png,a\n{root}/1.png,b\n")
    monkeypatch.chdir(root / "deep")
    data = config(Path(".."), labels_file=str(table), test_fraction=0)
    dataset = steps.prepare(data=data, output=tmp_path / "dataset")
    assert found(dataset)["0.png"] == ("train", "a")
    assert str(tmp_path) not in (dataset.path / "artifact.json").read_text()


def test_a_change_of_the_table_changes_the_version_of_the_data(root, tmp_path):
    for table in (root / "labels.csv", tmp_path / "other.csv"):
        data = config(root, labels_file=str(table) if table.parent == tmp_path else table.name)
        table.write_text("file,label\n")
        before = pin(data).version
        assert pin(data).version == before
        table.write_text("file,label\n0.png,a\n")
        assert pin(data).version != before


@pytest.mark.parametrize("options", [{"labels_file": "labels.csv"}, {"split": "folders"}])
def test_a_table_and_splits_are_of_image_files(tmp_path, options):
    with pytest.raises(InputError, match=r"data.(labels_file|split): .* data.source is digits"):
        steps.prepare(data=DataConfig(**options), output=tmp_path / "dataset")
