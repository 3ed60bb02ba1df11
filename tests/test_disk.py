"""Disks that are full, read-only, or mounted where results go."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from toys import contents

from vitdc import cli
from vitdc.artifacts import (
    DatasetWriter,
    TrainingState,
    copy,
    create_array,
    read_metadata,
    replacing,
    replacing_file,
    writing,
)
from vitdc.errors import InputError, TrainingError, explaining_disk

Mount = Callable[..., Path]
BIG = np.zeros(10**6, np.float32)


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """A function that mounts a file system of half a megabyte at a path."""
    mounted: list[Path] = []

    def at(path: Path = tmp_path / "disk", options: str = "size=512k") -> Path:
        path.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"mounting needs the rights of root: {done.stderr.strip()}")
        mounted.append(path)
        return path

    yield at
    for path in mounted:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def save(path: Path, value: int = 0) -> Path:
    with writing(path, "toy", {}) as writer:
        writer.save("numbers", np.full(3, value))
        writer.rows("table", ["a"], [["b"]])
    return path


def write_csv(path: Path) -> None:
    with writing(path, "toy", {}) as writer:
        writer.rows("table", ["a"], [["b" * 100]] * 10**4)


def write_images(path: Path) -> None:
    with replacing(path) as directory, closing(DatasetWriter(directory, (32, 32, 3))) as dataset:
        images = np.zeros((1000, 32, 32, 3), np.uint8)
        dataset.append("train", names="abc", labels=np.zeros(3), images=images)


def write_database(path: Path) -> None:
    with replacing(path) as directory, closing(sqlite3.connect(directory / "a.db")) as database:
        database.execute("CREATE TABLE t (a)")
        database.execute("INSERT INTO t VALUES (?)", (bytes(10**6),))
        database.commit()


def write_array(path: Path, *, mapped: bool) -> None:
    with writing(path, "toy", {}) as writer:
        if mapped:  # a page without space would end this process
            writer.array("numbers", BIG.shape, BIG.dtype)[:] = 1
        else:
            writer.save("numbers", BIG)


WRITE: dict[str, Callable[[Path], object]] = {
    "an array": lambda path: write_array(path, mapped=False),
    "a mapped array": lambda path: write_array(path, mapped=True),
    "a training state": lambda path: TrainingState({"w": torch.tensor(BIG)}, {}, []).save(path),
    "a table": write_csv,
    "images": write_images,
    "a database": write_database,
    "a copy": lambda path: copy(path.parents[1] / "big", path),
}


@pytest.mark.parametrize("what", WRITE)
def test_a_full_disk_is_one_line_and_the_older_artifact_stays(
    tmp_path: Path, mount: Mount, what: str
) -> None:
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "file").write_bytes(bytes(10**6))
    path = save(mount() / "artifact")
    before = contents(path.parent)
    with pytest.raises(TrainingError) as caught:
        WRITE[what](path)
    assert str(caught.value) == (
        f"{path}: cannot be written: No space left on device; free some space there and run the"
        " same command again, or write to another disk"
    )
    assert contents(path.parent) == before


def test_a_file_on_a_full_disk_is_one_line(mount: Mount) -> None:
    file = mount() / "table.csv"
    with (
        pytest.raises(TrainingError, match=r"table\.csv: .*No space left"),
        replacing_file(file) as f,
    ):
        f.write("x" * 10**6)
    assert not [*file.parent.iterdir()]


def test_a_mapped_array_has_its_space_before_it_is_written(tmp_path: Path) -> None:
    create_array(tmp_path / "a.npy", (1000, 1000), np.float32)
    assert (tmp_path / "a.npy").stat().st_blocks * 512 >= 4 * 10**6


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "delete files of yours"),
        (errno.EROFS, "write elsewhere"),
        (errno.EFBIG, "raise the limit (ulimit -f)"),
    ],
)
def test_any_command_says_what_the_disk_lacks(
    number: int,
    advice: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @click.group()
    def group() -> None: ...

    @group.command()
    def write() -> None:
        raise OSError(number, os.strerror(number), "here.db")

    monkeypatch.setattr("sys.argv", ["toy", "write"])
    with pytest.raises(SystemExit) as ended:
        cli.run_group(group, prog_name="toy")
    assert ended.value.code == 1
    line = capsys.readouterr().err
    assert line.startswith(f"vitdc: here.db: cannot be written: {os.strerror(number)}; {advice}")
    assert line.count("\n") == 1


def test_other_errors_pass_as_they_are() -> None:
    with pytest.raises(PermissionError), explaining_disk():
        raise PermissionError(errno.EACCES, "no")
    with pytest.raises(InputError, match=r"^No space left on device$"), explaining_disk():
        raise InputError("No space left on device")  # somebody has said it already


# --- where nothing can be written, or renamed --------------------------------------------------


def test_a_read_only_disk_is_told_before_any_work(tmp_path: Path, mount: Mount) -> None:
    disk = mount(options="ro")
    with pytest.raises(InputError, match="Read-only file system; name another directory"):
        save(disk / "new" / "artifact")
    inputs = ["--dataset", "none", "--embeddings", "none"]
    params = tmp_path / "params.yaml"
    params.write_text("seed: 0")
    done = CliRunner().invoke(
        cli.cli, ["cluster", *inputs, "--output", f"{disk}/c", "--params", str(params)]
    )
    assert isinstance(done.exception, InputError)
    assert str(done.exception).startswith(f"{disk}/c: cannot be written: Read-only file system")


def test_a_volume_of_its_own_holds_results_like_any_folder(tmp_path: Path, mount: Mount) -> None:
    results = mount(tmp_path / "results")
    (results / "lost+found").mkdir()
    for value in (1, 2):
        save(results, value)
        assert contents(results) == contents(save(tmp_path / "elsewhere", value))
    assert sorted(path.name for path in results.iterdir()) == [
        *("artifact.json", "lost+found", "numbers.npy", "table.csv")
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "results"]


def test_a_volume_with_something_else_is_not_cleared(mount: Mount) -> None:
    disk = mount()
    (disk / "holiday.jpg").write_text("precious")
    with pytest.raises(InputError, match="was not written by vitdc"):
        save(disk)
    assert (disk / "holiday.jpg").read_text() == "precious"


@pytest.mark.parametrize("moved", [0, 1, 2])
def test_an_exchange_that_is_interrupted_is_no_artifact_and_is_renewed(
    tmp_path: Path, mount: Mount, moved: int
) -> None:
    results = save(mount(tmp_path / "results"), 1)
    left = moved

    def move(*paths: Any, original: Callable[..., Any] = shutil.move) -> None:
        nonlocal left
        if not left:
            os._exit(9)
        left -= 1
        original(*paths)

    if (child := os.fork()) == 0:
        try:
            shutil.move = move
            save(results, 2)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    with pytest.raises(InputError, match="no toy here"):
        read_metadata(results, "toy")
    assert contents(save(results, 3)) == contents(save(tmp_path / "elsewhere", 3))


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EBUSY])
def test_a_folder_that_cannot_be_renamed_gets_other_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """As those of an image's lower layers, which overlayfs does not rename."""
    path = save(tmp_path / "artifact", 1)

    def refuse(self: Path, target: Path) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuse)
        save(path, 2)
    assert contents(path) == contents(save(tmp_path / "other", 2))
    assert sorted(each.name for each in tmp_path.iterdir()) == ["artifact", "other"]


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_stays_a_link(tmp_path: Path, exists: bool) -> None:
    target, link = tmp_path / "large disk" / "results", tmp_path / "results"
    target.parent.mkdir()
    if exists:
        save(target, 1)
    link.symlink_to(target)
    save(link, 2)
    assert link.is_symlink()
    assert contents(target) == contents(save(tmp_path / "other", 2))
    with replacing_file(tmp_path / "table.csv") as file:
        file.write("old")
    (tmp_path / "table").symlink_to("table.csv")
    with replacing_file(tmp_path / "table") as file:
        file.write("new")
    assert (tmp_path / "table").is_symlink()
    assert (tmp_path / "table.csv").read_text() == "new"
