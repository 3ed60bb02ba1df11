"""What a run takes: told early, refused in time, and near what it takes in the end."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from toys import WriteImages, write_toy_dataset

from vitdc import cli, estimate
from vitdc.artifacts import Dataset
from vitdc.config import DataConfig, Params
from vitdc.data import write_dataset
from vitdc.errors import InputError
from vitdc.watching import Watcher

SMALL = (
    *("model.embed_dim=32", "model.depth=1", "model.num_heads=2", "model.patch_size=4"),
    *("pretraining.batch_size=16", "tracking.enabled=false"),
)


def make_params(tmp_path: Path, *overrides: str) -> Params:
    (tmp_path / "params.yaml").write_text("seed: 0\n")
    return Params.load(tmp_path / "params.yaml", [*SMALL, *overrides])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (3599, "1 h 0 min"), (12_000, "3 h 20 min")],
)
def test_a_duration_in_words(seconds: float, text: str) -> None:
    assert estimate.duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"), [(900, "1 kB"), (1_500_000, "1.5 MB"), (2 * 10**12, "2.0 TB")]
)
def test_a_size_in_words(number: int, text: str) -> None:
    assert estimate.size(number) == text


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("per_step", "line"),
    [
        # 16 images per step: 5 x 30 images in 10 rounds are 94 steps
        (1.0, "this training takes about 89 s more; with all rounds, at most 10, up to 3 min"),
        (0.1, None),
    ],
)
def test_ten_steps_tell_how_long_a_run_that_is_no_short_one_takes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    per_step: float,
    line: str | None,
) -> None:
    clock, heard = Clock(), []
    monkeypatch.setattr(estimate, "time", clock)

    class Other(Watcher):
        def on_batch(self, *arguments: object, **_: object) -> None:
            heard.append(arguments[1])

    params = make_params(tmp_path, "joint.batch_size=16", "joint.epochs=5")
    images = Dataset.load(write_toy_dataset(tmp_path / "dataset", num_train=30))
    forecast = estimate.Forecast(Other(), params, images)
    with caplog.at_level(logging.INFO, logger="vitdc"):
        for step in (1, 11, 21):
            clock.now = 100 + (step - 1) * per_step
            forecast.on_batch(0, step, {}, num_steps=100)
    assert heard == [1, 11, 21]
    assert caplog.messages == ([line] if line else [])


# --- refused before any work -------------------------------------------------------------------


def test_images_that_do_not_fit_on_the_disk_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "free_disk", lambda output: 1_400_000_000)
    with pytest.raises(InputError) as caught:
        estimate.check_room(tmp_path / "out", (224, 224, 3), num_images=10_000)
    assert str(caught.value) == (
        f"{tmp_path}/out: 10,000 images of 224 x 224 x 3 need at least 1.5 GB on disk, and 1.4 GB"
        " are free there; write to another disk, take a smaller data.image_size or"
        " data.max_train, or data.keep_decoded=false"
    )
    estimate.check_room(tmp_path / "out", (224, 224, 3), num_images=9_000)
    large = {"num_images": 1_000_000, "keep_decoded": False}
    estimate.check_room(tmp_path / "out", (224, 224, 3), **large)


def test_embeddings_that_do_not_fit_into_the_memory_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "free_disk", lambda output: 10**15)
    (tmp_path / "memory.max").write_text(f"{4 * 10**9}\n")  # of a container
    monkeypatch.setattr(estimate, "CGROUP_LIMIT", tmp_path / "memory.max")
    with pytest.raises(InputError, match=r"need at least 9\.2 GB of memory .* has 4\.0 GB"):
        estimate.check_room(tmp_path, (32, 32, 3), num_images=10**6, embedding_dim=768)
    (tmp_path / "memory.max").write_text("max\n")
    assert estimate.total_memory() > 0


def test_what_lies_in_the_output_counts_as_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = estimate.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(estimate.shutil, "disk_usage", lambda path: usage)
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "train_images.npy").write_bytes(bytes(1000))
    assert estimate.free_disk(tmp_path) - estimate.free_disk(tmp_path / "new" / "one") >= 1000


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.patch_size=3", "3 does not divide the image side 8"),
        ("clustering.num_clusters=100", "100 clusters cannot be made of"),
    ],
)
def test_prepare_as_a_stage_of_dvc_refuses_what_cannot_follow(
    tmp_path: Path,
    write_images: WriteImages,
    monkeypatch: pytest.MonkeyPatch,
    override: str,
    message: str,
) -> None:
    root = write_images(*(f"{c}/{i}.png" for c in "ab" for i in range(5)))
    make_params(tmp_path)
    knobs = [f"data.root={root}", "data.source=folder", "data.image_size=8", "data.num_workers=1"]
    knobs += [*SMALL, "clustering.num_clusters=2", override]
    options = [part for knob in knobs for part in ("-S", knob)]
    options += ["--params", str(tmp_path / "params.yaml"), "--output", str(tmp_path / "dataset")]
    with monkeypatch.context() as patch:
        patch.setenv("DVC_STAGE", "prepare")
        done = CliRunner().invoke(cli.cli, ["prepare", *options])
    assert isinstance(done.exception, InputError)
    assert message in str(done.exception)
    assert CliRunner().invoke(cli.cli, ["prepare", *options]).exit_code == 0  # alone it may


def test_prepare_refuses_what_the_disk_does_not_hold(
    tmp_path: Path, write_images: WriteImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_images("a/0.png", "b/0.png")
    monkeypatch.setattr(estimate, "free_disk", lambda output: 1000)
    config = DataConfig(source="folder", root=str(root), image_size=64)
    with pytest.raises(InputError, match="need at least 26 kB on disk, and 1 kB are free"):
        write_dataset(config, output=tmp_path / "dataset")


# --- near the truth ----------------------------------------------------------------------------


def test_prepared_images_take_what_was_calculated(tmp_path: Path) -> None:
    path = write_toy_dataset(tmp_path / "dataset", num_train=900, num_test=100, side=16)
    found = sum(file.stat().st_size for file in path.iterdir())
    prepared, *_ = estimate.disk_needs(
        Dataset.load(path).image_shape, num_images=1000, embedding_dim=0, model_bytes=0
    )
    assert prepared == pytest.approx(found, rel=0.1)


def test_estimate_scales_with_the_number_of_images(tmp_path: Path) -> None:
    params = make_params(tmp_path, "compute.num_threads=1")
    few, many = (
        estimate.measure(
            params,
            image_shape=(8, 8, 1),
            num_train=number,
            num_test=0,
            supervision="full",
        )
        for number in (1000, 1_000_000)
    )
    assert many.prepared_disk == 1000 * few.prepared_disk
    assert many.seconds(1) > 100 * few.seconds(1)
    assert many.memory > few.memory
    assert few.disk(3) - few.disk(2) == few.round_disk


def test_the_command_says_time_disk_memory_and_what_is_left_out(tmp_path: Path) -> None:
    make_params(tmp_path)
    options = [part for knob in (*SMALL, "data.max_train=90") for part in ("-S", knob)]
    options += ["--params", str(tmp_path / "params.yaml"), "--images", "1000"]
    done = CliRunner().invoke(cli.cli, ["estimate", *options])
    first, *lines = done.output.splitlines()
    assert first.endswith("test images of 8x8x1")
    assert sum(map(int, re.findall(r"\b\d+(?= t)", first))) == 1000
    assert [line.split(":")[0].strip() for line in lines] == [
        *("time", "disk", "memory", "not counted")
    ]
    assert re.fullmatch(r" +time: about \d+ \w+ with 1 to .* with 10 rounds", lines[0])
