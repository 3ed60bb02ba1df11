"""What a real run leaves in MLflow: live points, the machine, provenance, a description."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import toys
import yaml
from click.testing import CliRunner
from mlflow import MlflowClient
from mlflow.entities import Metric, Run
from repositories import Repository

from vitdc.artifacts import Dataset, Evaluation, RoundRow
from vitdc.cli import find_command
from vitdc.config import Params
from vitdc.tracking import IMAGE_VARIABLE, monitor, open_tracker, tracker
from vitdc.tracking.describing import dataset_fields, describe_result

MAX_TAG = 8000  # bytes of a tag's value that MLflow takes
EPOCHS = toys.SMALL_PARAMS["pretraining"]["epochs"]


class Recorded(NamedTuple):
    """Runs of the command line in a Git and DVC repository, and one without tracking."""

    repository: Repository
    commit: str
    first: Path
    other_seed: Path
    untracked: Path

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(f"sqlite:///{self.repository.path / 'mlflow.db'}")

    def runs(self) -> dict[str, Run]:
        """By seed."""
        experiment = self.client.get_experiment_by_name("vitdc")
        found = self.client.search_runs([experiment.experiment_id])
        return {run.data.params["seed"]: run for run in found}

    @property
    def run(self) -> Run:
        return self.runs()["0"]

    def points(self, run: Run, key: str) -> list[Metric]:
        found = self.client.get_metric_history(run.info.run_id, key)
        return sorted(found, key=lambda metric: (metric.step, metric.timestamp))


@pytest.fixture(scope="module")
def recorded(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorded]:
    folder = tmp_path_factory.mktemp("recorded")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GIT_CONFIG_GLOBAL", str(folder / "none"))
        patch.setenv("DVC_GLOBAL_CONFIG_DIR", str(folder / "none"))
        for name in ("MLFLOW_TRACKING_URI", "VITDC_OUTBOX", "VITDC_SCRATCH", IMAGE_VARIABLE):
            patch.delenv(name, raising=False)
        patch.setattr(tracker, "BATCH_INTERVAL", 0.0)
        patch.setattr(monitor, "FIRST", 0.01)
        repository = Repository.make(folder / "repository")
        (repository.path / "params.yaml").write_text(yaml.safe_dump(toys.SMALL_PARAMS))
        commit = repository.commit("parameters")
        (repository.path / "mlflow.db").write_bytes(empty_store.read_bytes())
        patch.chdir(repository.path)
        outputs = {
            "first": run_vitdc("first"),
            "other_seed": run_vitdc("other_seed", "seed=1"),
            "untracked": run_vitdc("untracked", "tracking.enabled=false"),
        }
        yield Recorded(repository, commit, **outputs)


def run_vitdc(name: str, *overrides: str) -> Path:
    options = [part for change in overrides for part in ("-S", change)]
    done = CliRunner().invoke(find_command("run"), ["--output", name, *options])
    assert done.exit_code == 0, done.output
    return Path(name).absolute()


def test_tracking_changes_no_byte_of_a_result(recorded: Recorded) -> None:
    for part in ("pretrained", "rounds", "results"):
        with_tracking, without = (
            toys.contents(output / part) for output in (recorded.first, recorded.untracked)
        )
        assert with_tracking == without
    results = toys.contents(recorded.first / "results")
    assert {"rounds.csv", "clusters.csv"} <= set(results)
    assert any(name.endswith(".safetensors") for name in results)
    assert set(recorded.runs()) == {"0", "1"}


# --- while it trains -----------------------------------------------------------------------------


def test_epochs_are_recorded_with_loss_learning_rate_and_speed(recorded: Recorded) -> None:
    epochs = toys.SMALL_PARAMS["joint"]["epochs"]
    rounds = toys.SMALL_PARAMS["convergence"]["max_rounds"]
    for prefix, last in (("pretraining", EPOCHS), ("joint", rounds * epochs)):
        for name in ("loss", "cross_entropy", "learning_rate", "images_per_second"):
            points = recorded.points(recorded.run, f"{prefix}/{name}")
            assert [point.step for point in points] == list(range(1, last + 1)), name
            assert all(point.value >= 0 for point in points)


def test_batches_are_recorded_by_their_step(recorded: Recorded) -> None:
    """Here all that are looked at; else at most one every `tracker.BATCH_INTERVAL` seconds."""
    images = toys.SMALL_PARAMS["data"]["max_train"]
    per_epoch = -(-images // Params().pretraining.batch_size)
    for name in ("loss", "learning_rate", "images_per_second"):
        steps = [p.step for p in recorded.points(recorded.run, f"pretraining_batches/{name}")]
        assert steps[0] == 1
        assert steps[-1] == EPOCHS * per_epoch
        assert len(steps) == len(set(steps))


def test_batches_are_told_no_more_often_than_the_interval(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracker, "BATCH_INTERVAL", 3600.0)
    with opened(experiment="interval") as told:
        for step in (1, 11, 21):
            told.on_batch(0, step, {"loss": 1 / step}, num_steps=21)
        assert not told.flush()
    run = only_run(recorded, "interval")
    assert [p.step for p in recorded.points(run, "pretraining_batches/loss")] == [1]


def test_two_runs_have_the_same_names_and_steps(recorded: Recorded) -> None:
    names, steps = {}, {}
    for seed, run in recorded.runs().items():
        keys = {key for key in run.data.metrics if not key.startswith("system/")}
        names[seed] = keys
        steps[seed] = {key: [point.step for point in recorded.points(run, key)] for key in keys}
    assert names["0"] == names["1"]
    assert steps["0"] == steps["1"]


def test_every_round_is_recorded_as_rounds_csv_has_it(recorded: Recorded) -> None:
    with (recorded.first / "results/rounds.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for name in set(RoundRow.header()) - {"round", "verdict"}:
        section = "by_round" if name in ("nmi_test", "nmi_train", "loss") else "by_round/more"
        points = recorded.points(recorded.run, f"{section}/{name}")
        told = {point.step: point.value for point in points}
        expected = {int(row["round"]): float(row[name]) for row in rows if row[name]}
        assert told == pytest.approx(expected), name
        assert len(points) == len(expected)
    silhouette = recorded.points(recorded.run, "by_round/more/silhouette")
    assert [point.step for point in silhouette] == [0, 1, 2]


def test_every_step_says_how_long_it_took(recorded: Recorded) -> None:
    steps = {"prepare": [0], "pretrain": [0], "evaluate": [0], "retrain": [1, 2], "check": [1, 2]}
    steps |= {"embed": [0, 1, 2], "cluster": [0, 1, 2]}
    for name, rounds in steps.items():
        points = recorded.points(recorded.run, f"seconds/{name}")
        assert [point.step for point in points] == rounds
        assert all(point.value > 0 for point in points)


def test_the_load_of_the_machine_is_recorded_by_mlflows_names(recorded: Recorded) -> None:
    metrics = recorded.run.data.metrics
    assert 0 <= metrics["system/cpu_utilization_percentage"] <= 100
    assert 0 < metrics["system/system_memory_usage_percentage"] < 100
    assert metrics["system/disk_usage_megabytes"] > 0
    assert {"system/network_receive_megabytes", "system/disk_available_megabytes"} <= set(metrics)


def test_the_load_of_the_machine_is_not_recorded_where_mlflow_is_told_so(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    with opened(experiment="no-load") as told:
        told.on_step("embed", 0, 1.0)
    assert set(only_run(recorded, "no-load").data.metrics) == {"seconds/embed"}


# --- what made it --------------------------------------------------------------------------------


def test_tags_say_which_code_data_and_model_a_run_is_of(recorded: Recorded) -> None:
    tags = recorded.run.data.tags
    assert tags["mlflow.source.git.commit"] == recorded.commit
    assert tags["mlflow.source.git.dirty"] == "false"
    assert tags["mlflow.source.git.branch"] == "main"
    assert tags["vitdc.seed"] == "0"
    metrics = json.loads((recorded.first / "results/metrics.json").read_text())
    assert tags["vitdc.stop_reason"] == metrics["stop_reason"]
    dataset = Dataset.load(recorded.first / "dataset")
    assert tags["vitdc.data.sha256"] == dataset.content_hash


def test_hashes_of_data_and_model_are_those_that_dvc_gives_them(recorded: Recorded) -> None:
    for name, path in (("dataset", "dataset"), ("model", "results/model")):
        directory = recorded.first / path
        with recorded.repository.dvc() as dvc:
            dvc.add(str(directory))
        written = yaml.safe_load(directory.with_name(f"{directory.name}.dvc").read_text())
        assert recorded.run.data.tags[f"vitdc.dvc.{name}"] == written["outs"][0]["md5"]


def test_uncommitted_changes_and_the_image_are_on_record(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = "sha256:" + "ab" * 32
    monkeypatch.setenv(IMAGE_VARIABLE, f"registry.example.org/vitdc@{digest}")
    params_file = recorded.repository.path / "params.yaml"
    before = params_file.read_text()
    params_file.write_text(f"{before}# changed\n")
    try:
        with opened(experiment="changed"):
            pass
    finally:
        params_file.write_text(before)
    tags = only_run(recorded, "changed").data.tags
    assert tags["mlflow.source.git.dirty"] == "true"
    assert tags["vitdc.image"] == f"registry.example.org/vitdc@{digest}"
    assert tags["vitdc.image_digest"] == digest


def test_mlflows_page_can_show_where_the_data_is_from(toy_dataset: Path) -> None:
    dataset = replace(Dataset.load(toy_dataset), origin={"commit": "c" * 40})
    fields = dataset_fields(dataset)
    assert fields["source_type"] == "dvc"
    assert json.loads(fields["profile"])["commit"] == "c" * 40
    assert json.loads(fields["source"])["sha256"] == dataset.content_hash


# --- the description -----------------------------------------------------------------------------


def test_the_description_has_the_scores_the_rounds_and_pictures_that_are_there(
    recorded: Recorded,
) -> None:
    run = recorded.run
    text = run.data.tags["mlflow.note.content"]
    evaluation = Evaluation.load(recorded.first / "results")
    assert f"{evaluation.metrics['test']['nmi']:.3f}" in text
    for row in evaluation.rows:
        assert f"| {row.round} |" in text
    pictures = [line for line in text.splitlines() if line.startswith("![")]
    assert ["nmi" in line for line in pictures] == [True, False], "NMI first, then l"
    for line in pictures:
        path = line.partition("path=")[2].rstrip(")").replace("%2F", "/")
        assert f"run_uuid={run.info.run_id}&" in line
        assert recorded.client.download_artifacts(run.info.run_id, path)
    assert len(text.encode()) <= MAX_TAG


def test_a_description_is_renewed_until_a_person_writes_another(recorded: Recorded) -> None:
    evaluation = Evaluation.load(recorded.first / "results")
    better = replace(evaluation, metrics={**evaluation.metrics, "rounds": 7})

    def describe(evaluation: Evaluation) -> str:
        with opened(experiment="described") as tracker:
            tracker.log_description(evaluation)
        return only_run(recorded, "described").data.tags["mlflow.note.content"]

    assert "7 rounds" not in describe(evaluation)
    assert "7 rounds" in describe(better)
    run_id = only_run(recorded, "described").info.run_id
    recorded.client.set_tag(run_id, "mlflow.note.content", "# Test of the new camera")
    assert describe(better) == "# Test of the new camera"


def test_a_description_of_hundreds_of_rounds_fits_into_a_tag(recorded: Recorded) -> None:
    evaluation = Evaluation.load(recorded.first / "results")
    rows = [
        RoundRow(number, *np.random.default_rng(number).random(10), "continue")
        for number in range(500)
    ]
    text = describe_result(replace(evaluation, rows=rows)).replace("RUN_ID", "0" * 32)
    assert len(text.encode()) <= MAX_TAG
    assert "cut off; all rounds are in rounds.csv" in text
    assert "![" in text
    assert text.splitlines()[0].startswith("# Test NMI")


# --- helpers -------------------------------------------------------------------------------------


def opened(*, experiment: str) -> Any:
    """A tracker of a run that nothing but the test tells about."""
    params = Params.parse({"tracking": {"experiment": experiment}}, where="test")
    return open_tracker(params, dataset_name="digits", content_hash="0" * 64)


def only_run(recorded: Recorded, experiment: str) -> Run:
    found = recorded.client.get_experiment_by_name(experiment)
    (run,) = recorded.client.search_runs([found.experiment_id])
    return run
