"""`vitdc predict`: a table of clusters for files, folders and buckets, and what it refuses."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import toys
from PIL import Image
from processes import is_group_alive, wait_until
from servers import S3Server

from vitdc import artifacts, cli, loop, steps
from vitdc.artifacts import Annotations, Checkpoint
from vitdc.config import DataConfig
from vitdc.data.decoding import num_cores
from vitdc.data.pixels import Pixels
from vitdc.data.s3 import Bucket
from vitdc.errors import InputError
from vitdc.inference import (
    Listing,
    default_threads,
    list_images,
    read_batches,
    wanted_pixels,
)
from vitdc.prediction import UNSURE_RATE, Predictor
from vitdc.read_ahead import Ahead

MAIN = "from vitdc.cli import main; main()"

Rows = list[dict[str, str]]


class FolderRun(NamedTuple):
    """A run on the images of a folder."""

    images: Path
    results: Path


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def rows(self) -> Rows:
        return list(csv.DictReader(io.StringIO(self.out)))


Predict = Callable[..., Done]


@pytest.fixture(scope="module")
def folder_run(tmp_path_factory: pytest.TempPathFactory) -> FolderRun:
    """The method on PNGs and JPEGs of several sizes in class folders; only to be read."""
    root = tmp_path_factory.mktemp("folder")
    labels = np.arange(90) % 3
    for index, image in enumerate(toys.toy_images(labels, side=16, seed=5)):
        folder = root / "images" / toys.CLASS_NAMES[labels[index]]
        folder.mkdir(parents=True, exist_ok=True)
        size = (16, 16 + index % 4)  # cropped
        picture = Image.fromarray(image[..., 0]).resize(size).convert("RGB")
        picture.save(folder / f"{index:03}.{'jpg' if index % 5 == 0 else 'png'}")
    data = DataConfig(
        source="folder", root=str(root / "images"), image_size=8, channels=1, num_workers=1
    )
    shared = {"dataset": root / "dataset", "compute": toys.COMPUTE, "seed": 0}
    steps.prepare(data=data, output=root / "dataset")
    steps.pretrain(
        **shared, model=toys.MODEL, pretraining=toys.PRETRAINING, output=root / "pretrained"
    )
    loop.refine(
        **shared,
        checkpoint=root / "pretrained",
        clustering=toys.CLUSTERING,
        joint=toys.JOINT,
        convergence=toys.CONVERGENCE,
        output=root / "rounds",
    )
    steps.evaluate(
        **shared,
        **loop.round_arguments(loop.round_directories(root / "rounds")),
        evaluation=toys.EVALUATION,
        output=root / "results",
    )
    return FolderRun(root / "images", root / "results")


@pytest.fixture
def predict(
    vitdc: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> Predict:
    """Runs the command in this process."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")

    def run(*arguments: object) -> Done:
        capsys.readouterr()
        return Done(vitdc("predict", *arguments), *capsys.readouterr())

    return run


def test_the_files_of_a_run_get_the_clusters_of_the_run(
    folder_run: FolderRun, predict: Predict
) -> None:
    with (folder_run.results / "clusters.csv").open(newline="") as file:
        expected = {row["image"]: row for row in csv.DictReader(file)}
    done = predict(folder_run.results, folder_run.images)  # 90 files: decoded in processes
    assert done.code == 0
    assert done.err == ""
    names = [row["image"].removeprefix(f"{folder_run.images}/") for row in done.rows]
    assert names == sorted(expected)
    for name, row in zip(names, done.rows, strict=True):
        assert row["cluster"] == expected[name]["cluster"]
        assert float(row["distance"]) == pytest.approx(float(expected[name]["distance"]), abs=2e-6)


def test_the_model_alone_says_the_same(folder_run: FolderRun, predict: Predict) -> None:
    model = folder_run.results / "model"
    assert predict(model, folder_run.images) == predict(folder_run.results, folder_run.images)


def test_the_table_is_what_the_predictor_says(folder_run: FolderRun, predict: Predict) -> None:
    files = sorted((folder_run.images / "left").glob("*.png"))
    done = predict(folder_run.results, *files, "--unsure-rate", "0.5")
    assert list(done.rows[0]) == ["image", "cluster", "name", "distance", "margin", "unsure"]
    assert [row["image"] for row in done.rows] == [str(file) for file in files]
    predictor = Predictor.load(folder_run.results, toys.COMPUTE, unsure_rate=0.5)
    batches = read_batches(
        list_images(map(str, files)),
        wanted_pixels(predictor.checkpoint),
        batch_size=10**6,
        num_workers=1,
    )
    found = predictor.predict(next(batches).images)
    assert [row["unsure"] == "true" for row in done.rows] == found.unsure.tolist()
    margins = [float(row["margin"]) for row in done.rows]
    np.testing.assert_allclose(margins, found.margin, atol=1e-5)


def test_files_folders_and_lists_come_in_the_order_they_are_named(
    folder_run: FolderRun,
    predict: Predict,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = folder_run.images / "right" / "001.png"
    listed = [folder_run.images / "left" / f"{index:03}.png" for index in (6, 3)]
    monkeypatch.setattr(sys, "stdin", lines(*listed))
    done = predict(folder_run.results, one, "-", f"{folder_run.images}/bottom/")
    names = [row["image"] for row in done.rows]
    assert names[:3] == [str(one), *map(str, listed)]
    assert names[3:] == sorted(map(str, (folder_run.images / "bottom").iterdir()))
    assert done.code == 0


def test_unreadable_files_are_listed_and_all_others_written(
    folder_run: FolderRun, predict: Predict, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    shutil.copytree(folder_run.images, images)
    (images / "left" / "text.png").write_text("not an image")
    (images / "left" / "broken.png").symlink_to("nowhere")
    (images / "left" / "half.jpg").write_bytes((images / "left" / "000.jpg").read_bytes()[:300])
    done = predict(folder_run.results, images)
    assert done.code == 1
    assert len(done.rows) == 90
    *listed, last = done.err.splitlines()
    assert [line.split(": ")[0] for line in listed] == [
        f"skipped {images}/left/{name}" for name in ("broken.png", "half.jpg", "text.png")
    ]
    assert listed[2].endswith("text.png: not an image of a known format")
    assert last == (
        "vitdc: 3 of 93 images cannot be read and were skipped; all others are in the table"
    )


def lines(*paths: object) -> io.TextIOWrapper:
    """Standard input with a path on every line."""
    return io.TextIOWrapper(io.BytesIO(b"".join(os.fsencode(f"{path}\n") for path in paths)))


def test_names_that_are_no_text_are_listed_and_all_others_written(
    folder_run: FolderRun, predict: Predict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.png", os.fsdecode(b"caf\xe9.png"), "caf\u00e9.png"):
        shutil.copy(folder_run.images / "left" / "003.png", tmp_path / name)
    monkeypatch.setattr(sys, "stdin", lines(*sorted(tmp_path.iterdir())))
    for images in (tmp_path, "-"):
        done = predict(folder_run.results, images)
        assert done.code == 1
        names = [Path(row["image"]).name for row in done.rows]
        assert names == ["a.png", "caf\u00e9.png"]
        assert done.err.splitlines() == [
            f"skipped {tmp_path}/caf\\xe9.png: its name is not UTF-8; rename it",
            "vitdc: 1 of 3 images cannot be read and were skipped; all others are in the table",
        ]
    alone = os.fsdecode(b"caf\xe9.png")
    error = refused(predict(folder_run.results, tmp_path / alone))
    assert "/caf\\xe9.png: its name is not UTF-8; rename it; no image is readable" in error
    monkeypatch.setattr(sys, "stdin", lines())
    assert "standard input: names no images" in refused(predict(folder_run.results, "-"))


def test_any_name_that_a_file_can_have_comes_back(
    folder_run: FolderRun, predict: Predict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["=1+2.png", "a\rb.png", "c\nd\r\n.png", 'e"f, g.png', "\x1b[31m.png", " -h.png "]
    for name in names:
        shutil.copy(folder_run.images / "left" / "003.png", tmp_path / name)
    (tmp_path / "\x1b[2J\r.png").write_text("not an image")
    found = subprocess.run(["find", tmp_path, "-print0"], capture_output=True, check=True).stdout
    paths = b"\0".join(path for path in found.split(b"\0") if b".png" in path) + b"\0"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(paths)))
    done = predict(folder_run.results, "-")
    assert sorted(row["image"] for row in done.rows) == sorted(f"{tmp_path}/{n}" for n in names)
    assert f"skipped {tmp_path}/\\x1b[2J\\r.png: not an image of a known format\n" in done.err
    assert "\x1b" not in done.err


def test_a_table_in_a_file_is_whole_although_files_were_skipped(
    folder_run: FolderRun, predict: Predict, tmp_path: Path
) -> None:
    (tmp_path / "text.png").write_text("not an image")
    table = tmp_path / "table.csv"
    table.write_text("old")
    arguments = [folder_run.results, folder_run.images, tmp_path / "text.png", "--output", table]
    assert predict(*arguments).code == 1
    assert table.read_text() == predict(folder_run.results, folder_run.images).out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table.csv", "text.png"]


def test_a_table_that_fails_leaves_the_old_one(
    folder_run: FolderRun, predict: Predict, tmp_path: Path
) -> None:
    (tmp_path / "text.png").write_text("not an image")
    table = tmp_path / "table.csv"
    table.write_text("old")
    done = predict(folder_run.results, tmp_path / "text.png", "--output", table)
    assert done.code == 2
    assert table.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table.csv", "text.png"]


@pytest.mark.usefixtures("warm_path")
def test_results_are_written_while_files_are_still_read(
    folder_run: FolderRun, tmp_path: Path
) -> None:
    """`head` takes the first rows of a large folder and ends the command, without a word."""
    many = tmp_path / "many"
    many.mkdir()
    source = (folder_run.images / "left" / "003.png").read_bytes()
    for index in range(3000):
        (many / f"{index:04}.png").write_bytes(source)
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    process = subprocess.Popen(
        ["python", "-c", MAIN, "predict", str(folder_run.results), str(many)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline().startswith("image,cluster")
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait() == 128 + signal.SIGPIPE


def test_ctrl_c_waits_for_no_file(folder_run: FolderRun, tmp_path: Path) -> None:
    """Not even for one that never comes; a terminal sends it to all processes of the command."""
    silent = tmp_path / "silent.png"
    os.mkfifo(silent)
    files = [silent, *sorted((folder_run.images / "left").iterdir()) * 5]
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, "predict", folder_run.results, *files],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])},
        text=True,
        start_new_session=True,
    )
    writer = open_for_writing(silent)  # somebody reads it now
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    os.close(writer)
    assert (process.returncode, out) == (130, "")
    assert err.strip() == "vitdc: interrupted; nothing half-written is left"
    wait_until(lambda: not is_group_alive(process.pid))


def open_for_writing(pipe: Path) -> int:
    """Wait until somebody reads a named pipe."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def in_a_process(code: str, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """`vitdc predict` in a process of its own, which runs some code before."""
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    command = ["python", "-c", f"{code}\n{MAIN}", "predict", *map(str, arguments)]
    return subprocess.run(
        command, stderr=subprocess.PIPE, env=environment, text=True, check=False, **options
    )


@pytest.mark.usefixtures("warm_path")
def test_a_full_disk_is_one_line(folder_run: FolderRun, tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = in_a_process("", folder_run.results, folder_run.images, stdout=full)
    assert done.returncode == 1
    assert done.stderr == "vitdc: standard output: cannot be written: No space left on device\n"

    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))"
    table = tmp_path / "table.csv"
    done = in_a_process(limited, folder_run.results, folder_run.images, "--output", table)
    assert done.returncode == 1
    assert done.stderr == f"vitdc: {table}: cannot be written: File too large\n"
    assert not list(tmp_path.iterdir())


# --- names of clusters ---------------------------------------------------------------------------


def test_clusters_have_the_names_that_people_gave(
    folder_run: FolderRun, predict: Predict, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    artifacts.copy(folder_run.results, results)
    own = Annotations.of_results(results)
    named = own.model_copy(update={"names": {0: "zero", 1: "one, two"}, "merged": {2: 0}})
    expected = {"0": "zero", "1": "one, two", "2": "zero"}
    named.save(tmp_path / "names.json")

    without = predict(results, folder_run.images).rows
    assert {row["name"] for row in without} == {""}
    given = predict(results / "model", folder_run.images, "--names", tmp_path / "names.json").rows
    assert {row["cluster"]: row["name"] for row in given} == expected
    assert [row["cluster"] for row in given] == [row["cluster"] for row in without]

    named.save(Annotations.path_for(results))
    assert predict(results, folder_run.images).rows == given


def test_names_of_other_clusters_are_refused(
    folder_run: FolderRun, predict: Predict, tmp_path: Path
) -> None:
    Annotations(clustering="0" * 64).save(tmp_path / "names.json")
    done = predict(folder_run.results, folder_run.images, "--names", tmp_path / "names.json")
    assert done.code == 2
    assert "names the clusters of another model than" in done.err


# --- images of another shape ---------------------------------------------------------------------


def test_other_images_are_converted_or_refused(
    folder_run: FolderRun, predict: Predict, tmp_path: Path
) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "same.png")
    Image.new("L", (9, 8)).save(tmp_path / "larger.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "colour.jpg")
    files = sorted(tmp_path.glob("*.*g"))
    assert len(predict(folder_run.results, *files).rows) == 3
    done = predict(folder_run.results, *files, "--no-convert")
    assert done.code == 1
    assert [row["image"] for row in done.rows] == [str(tmp_path / "same.png")]
    assert "colour.jpg: 8 x 8 RGB, not 8 x 8 greyscale\n" in done.err
    assert "larger.png: 9 x 8 greyscale, not 8 x 8 greyscale\n" in done.err


def test_a_model_of_images_that_are_not_square_is_refused(toy_run: toys.ToyRun) -> None:
    checkpoint = Checkpoint.load(toy_run.results / "model" / "checkpoint")
    with pytest.raises(InputError, match="images of 8 x 9 pixels, and image files are fitted to"):
        wanted_pixels(replace(checkpoint, image_shape=(8, 9, 1)))


def test_constant_images_and_pages_that_are_left_out_are_told(
    folder_run: FolderRun, predict: Predict, tmp_path: Path
) -> None:
    pages = [Image.new("L", (8, 8), 9)] * 3
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    done = predict(folder_run.results, tmp_path / "pages.tif")
    assert (done.code, len(done.rows)) == (0, 1)
    assert f"vitdc: 1 of 1 images ({tmp_path}/pages.tif) are constant" in done.err
    assert "vitdc: 2 further pages or frames of 1 files" in done.err


# --- what is unsure ------------------------------------------------------------------------------


def test_a_rate_that_the_run_cannot_keep_is_one_line(
    folder_run: FolderRun, predict: Predict
) -> None:
    error = refused(predict(folder_run.results, folder_run.images, "--unsure-rate", "0.001"))
    assert "images of the run are too few for a rate of 0.001; ask for 0.01" in error


def test_the_help_names_the_default_rate(predict: Predict) -> None:
    assert f"[default: ({UNSURE_RATE});" in predict("--help").out


# --- wrong input ---------------------------------------------------------------------------------


def refused(done: Done) -> str:
    """The one line on standard error."""
    assert done.code == 2, done
    assert done.out == ""
    assert done.err.startswith("vitdc: ")
    assert done.err.count("\n") == 1
    return done.err


def empty_folder(path: Path) -> str:
    (path / "empty").mkdir()
    return "empty: no images here (0 other files); images are files ending in"


def folder_of_texts(path: Path) -> str:
    (path / "empty").mkdir()
    (path / "empty" / "notes.txt").write_text("text")
    return "empty: no images here (1 other files (notes.txt))"


def nothing(path: Path) -> str:
    return "empty: No such file or directory; name images, folders or s3://bucket/prefix"


def text(path: Path) -> str:
    (path / "empty").write_text("text")
    return "empty: not an image of a known format; no image is readable"


@pytest.mark.parametrize("make", [empty_folder, folder_of_texts, nothing, text])
def test_wrong_images_are_one_line(
    folder_run: FolderRun, predict: Predict, tmp_path: Path, make: Callable[[Path], str]
) -> None:
    expected = make(tmp_path)
    assert expected in refused(predict(folder_run.results, tmp_path / "empty"))


def test_a_folder_without_permission_is_one_line(
    folder_run: FolderRun, predict: Predict, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(path: str) -> None:  # the tests may run as root, who may read everything
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("vitdc.data.folder.os.scandir", denied)
    assert "images: cannot be listed: Permission denied" in refused(
        predict(folder_run.results, folder_run.images)
    )


def failed_run(path: Path) -> str:
    shutil.rmtree(path)  # results appear when everything is there, or not at all
    (path.parent / ".results.partial").mkdir()
    return "results: no such directory; name a results directory of a finished run"


def incomplete_copy(path: Path) -> str:
    (path / "model" / "clustering" / "centroids.npy").unlink()
    return "centroids.npy: missing"


def without_description(path: Path) -> str:
    (path / "artifact.json").unlink()
    return "results: no model here; name a results directory of a finished run"


def newer(path: Path) -> str:
    file = path / "model" / "clustering" / "artifact.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps({**values, "format_version": 3}))
    artifacts_of_results = json.loads((path / "artifact.json").read_text())
    name = "model/clustering/artifact.json"
    artifacts_of_results["files"][name] = {
        "bytes": file.stat().st_size,
        "sha256": artifacts.sha256(file),
    }
    (path / "artifact.json").write_text(json.dumps(artifacts_of_results))
    return "clustering: has format version 3, this vitdc"


def newer_results(path: Path) -> str:
    values = json.loads((path / "artifact.json").read_text())
    (path / "artifact.json").write_text(json.dumps({**values, "format_version": 2}))
    return "results: has format version 2, this vitdc"


@pytest.mark.parametrize(
    "damage", [failed_run, incomplete_copy, without_description, newer, newer_results]
)
def test_a_wrong_model_is_one_line(
    folder_run: FolderRun, predict: Predict, tmp_path: Path, damage: Callable[[Path], str]
) -> None:
    results = tmp_path / "results"
    artifacts.copy(folder_run.results, results)
    expected = damage(results)
    assert expected in refused(predict(results, folder_run.images))


def test_the_directory_of_a_run_points_to_its_results(
    folder_run: FolderRun, predict: Predict
) -> None:
    error = refused(predict(folder_run.results.parent, folder_run.images))
    assert f"did you mean {folder_run.results}?" in error


def test_a_model_that_mlflow_does_not_have_is_one_line(
    folder_run: FolderRun, predict: Predict
) -> None:
    error = refused(predict("models:/nothing@champion", folder_run.images))
    assert "nothing" in error


def test_weights_are_never_unpickled(
    folder_run: FolderRun, predict: Predict, tmp_path: Path
) -> None:
    """Not even weights whose hash is right, as somebody who wants to harm would write it."""
    model = tmp_path / "model"
    shutil.copytree(folder_run.results / "model", model)
    weights = model / "checkpoint" / "model.safetensors"
    weights.write_bytes(pickle.dumps(Attack(tmp_path / "harm")))
    description = json.loads((model / "checkpoint" / "artifact.json").read_text())
    description["files"] = {
        weights.name: {"bytes": weights.stat().st_size, "sha256": artifacts.sha256(weights)}
    }
    (model / "checkpoint" / "artifact.json").write_text(json.dumps(description))
    error = refused(predict(model, folder_run.images))
    assert "model.safetensors: not a safetensors file" in error
    assert not (tmp_path / "harm").exists()


class Attack:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.path,)


# --- S3 ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("s3_credentials")
def test_images_in_s3(folder_run: FolderRun, predict: Predict, s3_server: S3Server) -> None:
    client = s3_server.client()
    client.create_bucket(Bucket="predict")
    files = sorted((folder_run.images / "left").iterdir())
    for file in files:
        client.upload_file(str(file), "predict", f"deep/{file.name}")
    endpoint = ["--endpoint-url", s3_server.endpoint_url]
    done = predict(folder_run.results, "s3://predict/deep", *endpoint)
    local = predict(folder_run.results, folder_run.images / "left")
    assert done.code == 0
    assert [row["image"] for row in done.rows] == [f"s3://predict/deep/{f.name}" for f in files]
    columns = [{**row, "image": ""} for row in done.rows]
    assert columns == [{**row, "image": ""} for row in local.rows]
    assert "there is no such bucket" in refused(
        predict(folder_run.results, "s3://nowhere", *endpoint)
    )


@pytest.mark.usefixtures("s3_credentials")
def test_objects_that_the_store_does_not_give_are_skipped(
    folder_run: FolderRun,
    predict: Predict,
    s3_server: S3Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = s3_server.client()
    client.create_bucket(Bucket="partly")
    for file in sorted((folder_run.images / "left").iterdir()):
        client.upload_file(str(file), "partly", file.name)
    secret = {"Effect": "Deny", "Principal": "*", "Action": "s3:GetObject",
              "Resource": "arn:aws:s3:::partly/003.png"}  # fmt: skip
    policy = {"Version": "2012-10-17", "Statement": [secret]}
    client.put_bucket_policy(Bucket="partly", Policy=json.dumps(policy))
    listed = Bucket.names  # as if one had been deleted since
    monkeypatch.setattr(Bucket, "names", lambda self: ["001.png", *listed(self)])
    endpoint = ["--endpoint-url", s3_server.endpoint_url]
    done = predict(folder_run.results, "s3://partly", *endpoint)
    assert done.code == 1
    assert len(done.rows) == 29
    assert done.err.splitlines() == [
        "skipped s3://partly/001.png: no such object any more",
        "skipped s3://partly/003.png: access denied",
        "vitdc: 2 of 31 images cannot be read and were skipped; all others are in the table",
    ]
    monkeypatch.setattr(Bucket, "names", lambda self: ["001.png"])
    error = refused(predict(folder_run.results, "s3://partly", *endpoint))
    assert "001.png: no such object any more; no image is readable" in error
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")  # of everything, not of one
    error = refused(predict(folder_run.results, "s3://partly", *endpoint))
    assert "the secret key is wrong" in error


# --- batches -------------------------------------------------------------------------------------


def test_batches_hold_what_was_asked_for(write_images: toys.WriteImages) -> None:
    root = write_images(*(f"{index:03}.png" for index in range(100)))
    (root / "050.png").write_text("no image")
    pixels = Pixels(8, 3, 100)
    batches = list(read_batches(list_images([str(root)]), pixels, batch_size=64, num_workers=1))
    assert [len(batch.images) for batch in batches] == [63, 36]
    assert [len(batch.names) for batch in batches] == [63, 36]
    assert batches[0].problems == [(f"{root}/050.png", "not an image of a known format")]


class Recorded:
    """A generator that knows how far it was drawn and whether it was closed."""

    def __init__(self, number: int) -> None:
        self.number, self.drawn, self.closed = number, 0, threading.Event()

    def __call__(self) -> Generator[int]:
        try:
            for item in range(self.number):
                self.drawn += 1
                yield item
        finally:
            self.closed.set()


def test_items_come_in_order_and_a_bounded_way_ahead() -> None:
    recorded = Recorded(50)
    with Ahead(recorded(), limit=2) as items:
        for number, item in enumerate(items):
            assert item == number
            assert recorded.drawn <= number + 1 + 2 + 1  # in use, waiting, just drawn
    assert recorded.drawn == 50
    assert recorded.closed.is_set()


def test_who_stops_early_ends_the_drawing() -> None:
    recorded = Recorded(10**9)
    with Ahead(recorded(), limit=2) as items:
        assert next(items) == 0
    assert recorded.closed.is_set()


def test_errors_are_raised_where_the_items_are_wanted() -> None:
    def broken() -> Generator[int]:
        yield 1
        raise InputError("no more")

    with pytest.raises(InputError, match="no more"), Ahead(broken(), limit=1) as items:
        assert list(items) == [1]


def test_a_listing_may_hold_names_of_several_places(write_images: toys.WriteImages) -> None:
    one, two = write_images("b.png", folder="one"), write_images("a.png", folder="two")
    found: list[Listing] = list_images([str(one), str(two / "a.png")])
    assert [[each.prefix + name for name in each.names] for each in found] == [
        [f"{one}/b.png"],
        [f"{two}/a.png"],
    ]


def test_files_in_a_row_are_one_place(write_images: toys.WriteImages) -> None:
    folder = write_images(*(f"{index:03}.png" for index in range(200)))
    files = sorted(map(str, folder.iterdir()))
    found = list_images([*files[:150], str(folder), *files[150:]])
    assert [len(each.names) for each in found] == [150, 200, 50]
    assert [*found[0].names, *found[2].names] == files


def test_only_a_large_model_takes_all_cores(tmp_path: Path) -> None:
    weights = tmp_path / "checkpoint" / "model.safetensors"
    weights.parent.mkdir()
    for size, expected in ((3 * 2**20, 1), (5 * 2**20, num_cores())):
        weights.write_bytes(b"\0" * size)
        assert default_threads(tmp_path) == expected
