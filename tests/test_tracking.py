"""Recording runs in a real SQLite store: complete, once, and honest about how a run ended."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import servers
from click.testing import CliRunner
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_TIMEOUT
from processes import wait_until

from vitdc import tracking
from vitdc.artifacts import ClusteringScores, Dataset, RoundRow, SplitScores
from vitdc.cli import find_command
from vitdc.config import DataConfig, Params
from vitdc.errors import InputError, TrainingError, end_on_sigterm
from vitdc.tracking import MlflowTracker, NullTracker, Point, naming, open_tracker, outbox
from vitdc.tracking import record as record_module
from vitdc.tracking import store as store_module
from vitdc.tracking.naming import data_name, round_key
from vitdc.tracking.store import patience

HASH = "0123456789abcdef" * 4
ROWS = [
    RoundRow(round=0, cross_entropy=0.5, nmi_train=0.7, nmi_test=0.6, verdict="continue"),
    RoundRow(1, 0.4, 0.39, 0.1, 0.8, 0.75, 0.7, 0.85, 0.2, verdict="continue"),
    RoundRow(2, 0.395, 0.386, 0.09, 0.82, 0.8, 0.75, 0.9, 0.05, verdict="converged"),
]
SCORES = ClusteringScores(
    train=SplitScores(0.82, None, None),
    test=SplitScores(0.8, 0.75, 0.9),
    silhouette=0.3,
    changed=0.05,
    inertia=2.0,
    num_empty=0,
)
HISTORY = [{"epoch": e, "loss": 1.0 / e, "cross_entropy": 0.9 / e} for e in (1, 2)]
METRICS = {
    "test": {"nmi": 0.8, "ari": 0.75, "acc": 0.9},
    "train": {"nmi": 0.82, "ari": 0.77, "acc": None},
    "head_accuracy": {"train": 0.99, "test": 0.93},
    "rounds": 2,
    "best_round": 2,
    "stop_reason": "converged",
    "loss": 0.395,
}


@pytest.fixture
def store(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The default store, in an empty working directory."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(outbox, "INTERVAL", 0.0)
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copy(empty_store, tmp_path / "mlflow.db"))


def make_params(**sections: Any) -> Params:
    return Params.parse({"joint": {"epochs": 2}} | sections, where="test")


def record(params: Params, *, content_hash: str = HASH) -> Any:
    return open_tracker(params, dataset_name="digits", content_hash=content_hash)


def refine(params: Params, rows: list[RoundRow] = ROWS) -> None:
    """Tell what `refine` tells: every round's scores are known one round later."""
    with record(params) as tracker:
        for last in range(len(rows)):
            now = RoundRow(last, rows[last].loss, rows[last].cross_entropy)
            tracker.log_rounds([*rows[:last], now])


def die(params: Params, rows: list[RoundRow], error: BaseException) -> None:
    """Tell `rows`, then end with `error`."""

    def work() -> None:
        with record(params) as tracker:
            tracker.log_rounds(rows)
            raise error

    with pytest.raises(type(error)):
        work()


def evaluate(params: Params, results: Path, rows: list[RoundRow] = ROWS) -> None:
    with record(params) as tracker:
        for round in range(len(rows)):
            tracker.log_history(round, HISTORY)
        tracker.log_result(rows=rows, metrics=METRICS, results=results)


def client(store: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{store}")


def runs(store: Path, experiment: str = "vitdc", view: int = ViewType.ACTIVE_ONLY) -> list[Run]:
    found = client(store).get_experiment_by_name(experiment)
    return list(client(store).search_runs([found.experiment_id], run_view_type=view))


def only_run(store: Path) -> Run:
    (run,) = runs(store)
    return run


def history(store: Path, run: Run, key: str) -> list[tuple[int, float]]:
    points = client(store).get_metric_history(run.info.run_id, key)
    return sorted((point.step, point.value) for point in points)


def rows_of(store: Path, key: str) -> list[tuple[int, float]]:
    """Every row of the only run, in the order of being taken: MLflow's client may hide doubles."""
    with sqlite3.connect(store) as connection:
        query = "SELECT step, value FROM metrics WHERE run_uuid = ? AND key = ? ORDER BY rowid"
        return list(connection.execute(query, (only_run(store).info.run_id, key)))


def column(name: str, rows: list[RoundRow] = ROWS) -> list[tuple[int, float]]:
    values = [(row.round, getattr(row, name)) for row in rows]
    return [(step, value) for step, value in values if value is not None]


def assert_complete(store: Path, run: Run, rows: list[RoundRow] = ROWS) -> None:
    """Every value of `rows` is there exactly once, and so are the other parts."""
    assert run.info.status == "FINISHED"
    for name in set(RoundRow.header()) - {"round", "verdict"}:
        assert history(store, run, round_key(name)) == column(name, rows)
    assert history(store, run, "pretraining/loss") == [(1, 1.0), (2, 0.5)]
    assert history(store, run, "final/nmi_test") == [(0, 0.8)]


# --- one run per set of parameters -------------------------------------------------------------


def test_evaluate_alone_makes_a_complete_run(store: Path, results: Path) -> None:
    evaluate(make_params(), results)
    run = only_run(store)
    assert_complete(store, run)
    assert run.info.run_name == "digits k=10 gamma=0.1 seed=0"
    assert run.data.params["joint.gamma"] == "0.1"
    assert run.data.params["model.pretrained"] == "false"
    assert run.data.params["data.root"] == "null"
    assert run.data.params["seed"] == "0"
    assert not [name for name in run.data.params if name.startswith("tracking")]
    assert run.data.tags["vitdc.stop_reason"] == "converged"
    assert run.data.tags["vitdc.data.name"] == "digits"
    assert run.data.tags["vitdc.data.sha256"] == HASH
    assert run.data.tags["vitdc.seed"] == "0"


def test_refine_is_seen_while_it_runs_and_evaluate_completes_it(store: Path, results: Path) -> None:
    with record(make_params()) as tracker:
        tracker.log_history(0, HISTORY)
        tracker.log_rounds([RoundRow(0, cross_entropy=0.5)])
        assert not tracker.flush()
        assert history(store, only_run(store), "by_round/more/cross_entropy") == [(0, 0.5)]
        tracker.log_rounds(ROWS[:2])
        assert not tracker.flush()
        run = only_run(store)
        assert run.info.status == "RUNNING"
        assert run.data.params["joint.gamma"] == "0.1"
        assert history(store, run, "by_round/nmi_test") == [(0, 0.6), (1, 0.75)]
    assert only_run(store).info.status == "RUNNING"
    evaluate(make_params(), results)
    assert only_run(store).info.run_id == run.info.run_id
    assert_complete(store, only_run(store))


def test_repeating_a_stage_doubles_nothing(store: Path, results: Path) -> None:
    evaluate(make_params(), results)
    first = only_run(store)
    evaluate(make_params(), results)
    refine(make_params())
    again = only_run(store)
    assert again.info.run_id == first.info.run_id
    assert again.info.end_time == first.info.end_time
    assert_complete(store, again)


@pytest.mark.parametrize(
    ("change", "other_run"),
    [
        ({"joint": {"epochs": 2, "gamma": 0.0}}, True),
        ({"seed": 1}, True),
        ({"compute": {"num_threads": 1}}, True),
        ({"data": {"num_workers": 7, "root": "elsewhere"}}, False),
        ({"tracking": {"run_name": "other"}}, False),
    ],
)
def test_a_run_is_what_determines_its_result(
    store: Path, results: Path, change: dict[str, Any], other_run: bool
) -> None:
    evaluate(make_params(), results)
    evaluate(make_params(**change), results)
    assert len(runs(store)) == 1 + other_run


def test_a_run_on_equal_images_of_another_commit_is_the_same_run(store: Path) -> None:
    places = [
        {"repo": "https://tester:secret@example.com/images.git", "rev": "main", "path": "images"},
        {"repo": None, "rev": "v1", "path": "moved/images"},
    ]
    for commit, place in zip(("a" * 40, "b" * 40), places, strict=True):
        params = make_params(data={"source": "dvc", **place})
        origin = {"commit": commit, "content_hash": "0.dir"}
        with open_tracker(params, dataset_name="dvc", content_hash=HASH, origin=origin) as tracker:
            tracker.log_rounds(ROWS)
    run = only_run(store)
    assert run.data.params["data.rev"] == "main"
    assert run.data.params["data.repo"] == "https://***@example.com/images.git"
    assert run.data.tags["vitdc.data.commit"] == "a" * 40
    assert run.data.tags["vitdc.data.content_hash"] == "0.dir"


def test_two_folders_of_one_name_are_two_names(store: Path, tmp_path: Path) -> None:
    roots = [tmp_path / parent / "photos \u00fc" for parent in ("a", "b")]
    for content, root in zip((HASH, "1" * 64), roots, strict=True):
        params = make_params(data={"source": "folder", "root": str(root), "image_size": 8})
        with open_tracker(params, dataset_name="folder", content_hash=content):
            pass
    first, second = runs(store)
    for run in (first, second):
        name = run.data.tags["vitdc.data.name"]
        assert re.fullmatch("photos \u00fc-[0-9a-f]{6}", name)
        assert run.info.run_name == f"{name} k=10 gamma=0.1 seed=0"
        assert run.data.tags["vitdc.registered_model"] == f"vitdc-{name.replace(' ', '-')}"
    assert first.data.tags["vitdc.data.name"] != second.data.tags["vitdc.data.name"]


def test_the_name_of_the_data_stands_for_the_place(tmp_path: Path) -> None:
    def name(**values: Any) -> str:
        return data_name(DataConfig.parse(values, where="test"), dataset_name="the set")

    places = [
        {"source": "folder", "root": "/a/photos"},
        {"source": "folder", "root": "/b/photos"},
        {"source": "s3://a/b-photos"},
        {"source": "s3://a-b/photos"},
        {"source": "s3://a-b/photos", "endpoint_url": "https://s3.example.org"},
        {"source": "dvc", "path": "photos"},
        {"source": "dvc", "path": "photos", "repo": "https://example.com/images.git"},
    ]
    names = [name(**place) for place in places]
    assert len(set(names)) == len(places)
    assert all(re.fullmatch("(b-)?photos-[0-9a-f]{6}", each) for each in names)
    assert name(source="folder", root="/a/../a/photos/") == names[0]
    assert name(source="folder", root="/") != name(source="folder", root="/the set")
    assert re.fullmatch(r"a\\xe9\\x1b-\w{6}", name(source="folder", root="/a\udce9\x1b"))
    assert name(source="MNIST", root="/a/photos") == "the set"
    for clone in ("mine", "yours"):
        (tmp_path / clone / ".dvc").mkdir(parents=True)
    mine, yours, other = (
        name(source="folder", root=str(tmp_path / path))
        for path in ("mine/data/photos", "yours/data/photos", "yours/more/photos")
    )
    assert mine == yours != other


def test_data_is_recorded_as_mlflow_shows_it_also_when_superseded(
    store: Path, toy_dataset: Path
) -> None:
    for rows in (ROWS, [RoundRow(0, cross_entropy=0.7)]):
        with record(make_params()) as tracker:
            tracker.log_dataset(Dataset.load(toy_dataset))
            tracker.log_rounds(rows)
    ((used,),) = [run.inputs.dataset_inputs for run in runs(store)]
    assert (used.dataset.name, used.dataset.digest) == ("digits", "0" * 16)
    assert json.loads(used.dataset.source)["sha256"] == "0" * 64
    profile = json.loads(used.dataset.profile)
    assert (profile["num_rows"], profile["bytes"]) == (54, 54 * 64)
    assert "mlflow_tensorspec" in json.loads(used.dataset.schema)


def test_other_data_is_another_run(store: Path) -> None:
    for content_hash in (HASH, HASH[::-1]):
        with record(make_params(), content_hash=content_hash) as tracker:
            tracker.log_rounds(ROWS)
    assert len(runs(store)) == 2


def test_experiments_do_not_share_runs(store: Path, results: Path) -> None:
    for experiment in ("one", "two"):
        evaluate(make_params(tracking={"experiment": experiment}), results)
        assert len(runs(store, experiment)) == 1


# --- another result of the same parameters -----------------------------------------------------


def test_another_result_takes_the_place_of_the_old_one_and_says_so(
    store: Path, results: Path, caplog: pytest.LogCaptureFixture
) -> None:
    evaluate(make_params(), results)
    old = only_run(store)
    rows = [*ROWS[:2], RoundRow(2, 0.3, 0.29, 0.1, 0.9, 0.88, 0.8, 0.95, 0.05, verdict="converged")]
    evaluate(make_params(), results, rows)
    new = only_run(store)
    assert new.data.tags["vitdc.supersedes"] == old.info.run_id
    assert_complete(store, new, rows)
    (trashed,) = runs(store, view=ViewType.DELETED_ONLY)
    assert trashed.info.run_id == old.info.run_id
    (said,) = [record.getMessage() for record in caplog.records if "trash" in record.getMessage()]
    assert f"mlflow runs restore --run-id {old.info.run_id}" in said
    assert f"{new.info.run_id} takes its place" in said


def test_an_empty_run_id_is_none(
    store: Path, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a shell or a manifest leaves it; another result is not lost by it."""
    monkeypatch.setenv("MLFLOW_RUN_ID", "")
    evaluate(make_params(), results)
    evaluate(make_params(), results, ROWS[:2])
    assert_complete(store, only_run(store), ROWS[:2])


def test_another_result_that_is_delivered_later_is_of_the_code_that_made_it(
    store: Path, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "mlflow.source.git.commit"
    monkeypatch.setattr(outbox, "PATIENCE", 0.0)
    evaluate(make_params(), results)

    def be_away(*args: Any) -> None:
        raise ConnectionError("away")

    with monkeypatch.context() as away:
        away.setattr(record_module, "code_tags", lambda: {commit: "a" * 40})
        away.setattr(MlflowClient, "get_metric_history", be_away)
        evaluate(make_params(), results, ROWS[:2])
    monkeypatch.setattr(record_module, "code_tags", lambda: {commit: "b" * 40})
    done = CliRunner().invoke(find_command("track"), ["--resume"])
    assert done.exit_code == 0, done.output
    assert_complete(store, only_run(store), ROWS[:2])
    assert only_run(store).data.tags[commit] == "a" * 40


def test_a_shorter_result_leaves_no_rounds_of_the_old_one(store: Path, results: Path) -> None:
    evaluate(make_params(), results)
    old = only_run(store)
    evaluate(make_params(), results, ROWS[:2])
    assert only_run(store).info.run_id != old.info.run_id
    assert_complete(store, only_run(store), ROWS[:2])


def test_a_provisional_result_is_replaced_and_one_that_is_not_is_superseded(
    store: Path, results: Path
) -> None:
    """As of a pipeline that ran out of room for rounds, and goes on with more of it."""
    early = METRICS | {"rounds": 1, "stop_reason": "out-of-room", "test": {"nmi": 0.75}}
    with record(make_params()) as tracker:
        tracker.log_history(0, HISTORY)
        tracker.log_result(rows=ROWS[:2], metrics=early, results=results, provisional=True)
    first = only_run(store)
    assert first.info.status == "FINISHED"
    assert first.data.tags["vitdc.provisional"] == "true"
    assert first.data.metrics["final/nmi_test"] == 0.75
    evaluate(make_params(), results)
    evaluate(make_params(), results)
    final = only_run(store)
    assert final.info.run_id == first.info.run_id
    assert final.info.end_time > first.info.end_time
    assert final.data.tags["vitdc.provisional"] == "false"
    assert final.data.tags["vitdc.stop_reason"] == "converged"
    assert (final.data.metrics["final/nmi_test"], final.data.metrics["final/rounds"]) == (0.8, 2)
    assert rows_of(store, "final/nmi_test") == [(0, 0.75), (0, 0.8)]
    assert rows_of(store, "by_round/nmi_test") == [(0, 0.6), (1, 0.75), (2, 0.8)]
    with record(make_params()) as tracker:
        tracker.log_result(rows=ROWS, metrics=METRICS | {"rounds": 3}, results=results)
    assert only_run(store).info.run_id != final.info.run_id


def test_other_rounds_than_those_of_a_provisional_result_supersede_it(
    store: Path, results: Path
) -> None:
    with record(make_params()) as tracker:
        tracker.log_result(rows=ROWS[:2], metrics=METRICS, results=results, provisional=True)
    first = only_run(store)
    evaluate(make_params(), results, [RoundRow(0, cross_entropy=0.7), *ROWS[1:]])
    assert only_run(store).data.tags["vitdc.supersedes"] == first.info.run_id
    assert "vitdc.provisional" not in only_run(store).data.tags


def test_only_what_may_be_there_already_is_looked_up(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run knows the last step of every metric; each history costs a request."""
    looked_up: list[str] = []
    get_metric_history = MlflowClient.get_metric_history

    def look_up(mlflow: MlflowClient, run_id: str, key: str) -> Any:
        looked_up.append(key)
        return get_metric_history(mlflow, run_id, key)

    monkeypatch.setattr(MlflowClient, "get_metric_history", look_up)
    epochs = [{"epoch": e, "loss": 1 / e, "cross_entropy": 0.9 / e} for e in range(1, 7)]
    for told in (epochs[:4], epochs[3:5], epochs[5:]):  # resumed once in the middle of an epoch
        with record(make_params()) as tracker:
            tracker.log_history(0, told)
    assert looked_up == []
    with record(make_params()) as tracker:
        tracker.log_history(0, epochs)
        assert not tracker.flush()
        tracker.log_history(0, epochs)
    assert sorted(looked_up) == ["pretraining/cross_entropy", "pretraining/loss"]
    assert rows_of(store, "pretraining/loss") == [(e, 1 / e) for e in range(1, 7)]


def test_a_run_in_the_trash_stays_there(store: Path, results: Path) -> None:
    evaluate(make_params(), results)
    old = only_run(store)
    client(store).delete_run(old.info.run_id)
    evaluate(make_params(), results)
    assert only_run(store).info.run_id != old.info.run_id
    assert_complete(store, only_run(store))


# --- runs that end badly -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (TrainingError("loss is not finite"), "TrainingError: loss is not finite"),
        (KeyboardInterrupt(), "interrupted"),
    ],
)
def test_a_run_that_dies_fails_and_one_that_resumes_goes_on(
    store: Path, results: Path, error: BaseException, reason: str
) -> None:
    die(make_params(), ROWS[:2], error)
    failed = only_run(store)
    assert failed.info.status == "FAILED"
    assert failed.data.tags["vitdc.failure"] == reason
    refine(make_params())
    resumed = only_run(store)
    assert resumed.info.run_id == failed.info.run_id
    assert resumed.info.status == "RUNNING"
    assert "vitdc.failure" not in resumed.data.tags
    evaluate(make_params(), results)
    assert_complete(store, only_run(store))


def test_a_finished_run_survives_a_repetition_that_dies(store: Path, results: Path) -> None:
    evaluate(make_params(), results)
    die(make_params(), ROWS[:1], KeyboardInterrupt())
    assert_complete(store, only_run(store))


def test_a_store_that_is_lost_does_not_stop_the_training(
    store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow.exceptions import MlflowException

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise MlflowException("no\nconnection")

    with record(make_params()) as tracker:
        with monkeypatch.context() as lost:
            lost.setattr(MlflowClient, "log_batch", refuse)
            tracker.log_rounds(ROWS[:1])
            assert tracker.flush(patience=0)
        assert "MLflow cannot be reached: no connection; going on" in caplog.text
        tracker.log_history(0, HISTORY)
    assert history(store, only_run(store), "by_round/nmi_test") == [(0, 0.6)]  # delivered later


def test_an_answer_that_is_lost_doubles_nothing(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scores of a round are told when it is clustered, and again with its row."""
    log_batch = MlflowClient.log_batch
    taken, told_again = threading.Event(), threading.Event()

    def take_and_say_nothing(mlflow: MlflowClient, *args: Any, **kwargs: Any) -> None:
        log_batch(mlflow, *args, **kwargs)
        monkeypatch.setattr(MlflowClient, "log_batch", log_batch)
        taken.set()
        told_again.wait(60)
        raise ConnectionError("no answer")

    with record(make_params()) as tracker:
        monkeypatch.setattr(MlflowClient, "log_batch", take_and_say_nothing)
        tracker.log_scores(2, SCORES)
        assert taken.wait(60)
        time.sleep(0.01)  # MLflow's times are milliseconds
        tracker.log_rounds(ROWS)
        told_again.set()
    assert rows_of(store, "by_round/nmi_test") == [(2, 0.8), (0, 0.6), (1, 0.75)]


def test_a_value_that_mlflow_refuses_takes_no_other_along(
    store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with record(make_params()) as tracker:
        assert isinstance(tracker, MlflowTracker)
        for name in ("first", "not/../a/name", "second"):
            tracker.on_step(name, 0, 1.5)
        assert not tracker.flush()
        tracker.on_step("third", 0, 1.5)
    names = {key for key in only_run(store).data.metrics if key.startswith("seconds/")}
    assert names == {"seconds/first", "seconds/second", "seconds/third"}
    assert caplog.text.count("MLflow does not take 1 value") == 1


# --- artifacts ---------------------------------------------------------------------------------


def test_files_people_read_are_artifacts_beside_the_store(store: Path, results: Path) -> None:
    evaluate(make_params(), results)
    folder = store.parent / "mlartifacts" / only_run(store).info.run_id / "artifacts"
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {"report.html", "rounds.csv", "metrics.json", "figures/nmi.png"}
    assert not (store.parent / "mlruns").exists()


def test_artifacts_follow_a_store_that_moves(
    store: Path, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(make_params(), results)
    old = only_run(store)
    moved = tmp_path / "new place"
    moved.mkdir()
    for name in ("mlflow.db", "mlartifacts"):
        shutil.move(tmp_path / name, moved / name)
    monkeypatch.chdir(moved)
    evaluate(make_params(seed=1), results)
    assert not (tmp_path / "mlartifacts").exists()
    for run in runs(moved / "mlflow.db"):
        assert Path(run.info.artifact_uri).is_relative_to(moved)
        assert (Path(run.info.artifact_uri) / "report.html").read_text() == "<h1>report</h1>"
    assert old.info.run_id in {run.info.run_id for run in runs(moved / "mlflow.db")}


# --- names -------------------------------------------------------------------------------------


def test_what_is_looked_at_first_stands_first_in_mlflows_charts() -> None:
    """Its page sorts charts into sections, by what is before the last slash; see tests/services."""
    points = naming.round_points(ROWS) | naming.history_points(0, HISTORY)
    points |= naming.history_points(1, HISTORY) | naming.result_points(METRICS)[0]
    sections: dict[str, list[str]] = {}
    for key in sorted({point.key for point in points}):
        section, _, name = key.rpartition("/")
        sections.setdefault(section, []).append(name)
    assert sections[min(sections)] == ["loss", "nmi_test", "nmi_train"]
    assert "" not in sections, "would stand last"


def test_epochs_of_later_rounds_continue_the_step() -> None:
    points = naming.history_points(3, HISTORY)
    assert set(points) == {
        Point(f"joint/{n}", s) for n in ("loss", "cross_entropy") for s in (5, 6)
    }


def test_result_names_put_the_split_last() -> None:
    baseline = {"pixel_baseline": {"test": {"nmi": 0.74}}}
    points, tags = naming.result_points(METRICS | baseline)
    assert {point.key: value for point, value in points.items()} == {
        "final/nmi_test": 0.8,
        "final/ari_test": 0.75,
        "final/acc_test": 0.9,
        "final/nmi_train": 0.82,
        "final/ari_train": 0.77,
        "final/head_accuracy_train": 0.99,
        "final/head_accuracy_test": 0.93,
        "final/rounds": 2.0,
        "final/best_round": 2.0,
        "final/loss": 0.395,
        "final/pixel_baseline_nmi_test": 0.74,
    }
    assert tags == {"vitdc.stop_reason": "converged"}


def test_long_values_are_cut_to_what_mlflow_takes(store: Path) -> None:
    root = "/" + "x" * 600
    with record(make_params(data={"root": root})):
        pass
    assert only_run(store).data.params["data.root"] == root[:497] + "..."


# --- bad input ---------------------------------------------------------------------------------


def refused(match: str, params: Params | None = None) -> str:
    started = time.monotonic()
    with pytest.raises(InputError, match=match) as raised, record(params or make_params()):
        pass
    assert time.monotonic() - started < 30
    message = str(raised.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("uri", "match"),
    [
        ("file:///somewhere/mlruns", "no longer records in folders.*valid are sqlite:///"),
        ("mlruns", "no longer records in folders"),
        ("gopher://host", "unknown scheme.*valid are"),
        ("http://user:secret@127.0.0.1:9", "127.0.0.1:9.*refused.*MLFLOW_TRACKING_URI"),
        ("postgresql://user:secret@127.0.0.1:9/db", "MLFLOW_TRACKING_URI to a store that works"),
        ("sqlite:////proc/none/mlflow.db", "MLFLOW_TRACKING_URI to a store that works"),
    ],
)
def test_a_store_that_cannot_be_used_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, uri: str, match: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert "secret" not in refused(match)


def test_patience_with_a_server_leaves_the_environment_alone_and_counts_the_most_patient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A delivery goes on beside a training, whose libraries read the environment at any time."""
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT", raising=False)
    before, own = dict(os.environ), MLFLOW_HTTP_REQUEST_TIMEOUT.get()
    delivery = patience(retries=0, timeout=15)
    download = patience(retries=5, timeout=300)
    with delivery:
        assert MLFLOW_HTTP_REQUEST_TIMEOUT.get() == 15
        download.__enter__()
        assert MLFLOW_HTTP_REQUEST_TIMEOUT.get() == 300
        assert dict(os.environ) == before
    assert MLFLOW_HTTP_REQUEST_TIMEOUT.get() == 300, "what began later lasts longer"
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "7")
    assert MLFLOW_HTTP_REQUEST_TIMEOUT.get() == 7, "the user's own"
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT")
    download.__exit__(None, None, None)
    assert MLFLOW_HTTP_REQUEST_TIMEOUT.get() == own


def test_a_corrupt_store_is_refused(store: Path) -> None:
    store.write_bytes(b"not a database" * 1000)
    refused("mlflow.db.*not a database")


def test_a_truncated_store_is_refused(store: Path) -> None:
    store.write_bytes(store.read_bytes()[:8192])
    refused("mlflow.db.*malformed")


def test_a_store_of_another_mlflow_is_refused(store: Path) -> None:
    with sqlite3.connect(store) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
    connection.close()
    refused("mlflow db upgrade")


def test_an_experiment_in_the_trash_is_refused(store: Path) -> None:
    experiment_id = client(store).create_experiment("vitdc")
    client(store).delete_experiment(experiment_id)
    refused(f"'vitdc' is in MLflow's trash.*experiments restore -x {experiment_id}")


def test_an_experiment_of_a_server_is_refused_without_the_server(store: Path) -> None:
    client(store).create_experiment("vitdc", artifact_location="mlflow-artifacts:/1")
    refused("'vitdc' was made by a server")


# --- being quiet and light ---------------------------------------------------------------------


def test_tracking_that_is_off_records_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense")
    with record(make_params(tracking={"enabled": False})) as tracker:
        assert isinstance(tracker, NullTracker)
        tracker.log_rounds(ROWS)
        tracker.log_result(rows=ROWS, metrics=METRICS, results=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_store_whose_making_was_killed_does_not_block_the_next_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    script = "from vitdc.tracking.store import open_store\nwith open_store(): pass"
    partial = tmp_path / ".mlflow.db.partial"
    making = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path)
    try:
        wait_until(lambda: partial.exists() and partial.stat().st_size > 100_000)
    finally:
        making.kill()
        making.wait()
    assert not (tmp_path / "mlflow.db").exists()
    with store_module.open_store() as client:
        assert client.search_experiments()
    assert {file.name for file in tmp_path.iterdir()} == {"mlflow.db"}


def test_what_an_interrupted_mlflow_left_is_put_aside(store: Path) -> None:
    """MLflow would end with: table already exists."""
    with sqlite3.connect(store) as connection:
        connection.execute("DELETE FROM experiments")
        connection.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
    with store_module.open_store() as client:
        assert client.search_experiments()
    assert store.with_name("mlflow.db.half-made").exists()


def test_a_database_with_other_tables_is_not_put_aside(store: Path) -> None:
    store.unlink()
    with sqlite3.connect(store) as connection:
        connection.execute("CREATE TABLE mine (value)")
        connection.execute("INSERT INTO mine VALUES (7)")
    with store_module.open_store() as client:
        assert client.search_experiments()
    with sqlite3.connect(store) as connection:
        assert connection.execute("SELECT value FROM mine").fetchone() == (7,)


def test_a_fresh_store_is_made_without_a_word(tmp_path: Path) -> None:
    script = (
        "import sys; from vitdc.config import Params; from vitdc.tracking import open_tracker\n"
        "assert 'mlflow' not in sys.modules\n"
        "with open_tracker(Params(), dataset_name='digits', content_hash='0') as tracker:\n"
        "    tracker.log_history(0, [{'epoch': 0, 'loss': 1.0}])\n"
    )
    env = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    env["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert only_run(tmp_path / "mlflow.db").info.status == "RUNNING"


# --- the page that `make ui` opens -------------------------------------------------------------


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=60) as response:
        return response.read().decode()


@pytest.mark.usefixtures("warm_path")
def test_the_ui_serves_a_run_and_takes_one(
    store: Path, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(make_params(), results)
    folder = store.parent / "server"
    folder.mkdir()
    arguments = [f"--backend-store-uri=sqlite:///{store}"]
    arguments += [f"--artifacts-destination={folder / 'artifacts'}"]
    env = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # nine processes less
    with servers.mlflow_server(folder, arguments=arguments, env=env, python="python") as mlflow:
        host = mlflow.uri
        run_id = only_run(store).info.run_id
        api = f"{host}/api/2.0/mlflow"
        run = json.loads(get(f"{api}/runs/get?run_id={run_id}"))["run"]
        assert run["info"]["status"] == "FINISHED"
        wanted = f"run_id={run_id}&metric_key=by_round/nmi_test"
        points = json.loads(get(f"{api}/metrics/get-history?{wanted}"))
        assert [point["value"] for point in points["metrics"]] == [0.6, 0.75, 0.8]
        report = get(f"{host}/get-artifact?run_id={run_id}&path=report.html")
        assert report == "<h1>report</h1>"

        monkeypatch.setenv("MLFLOW_TRACKING_URI", host)  # the same calls over HTTP
        monkeypatch.setattr(store_module, "DEFAULT_URI", "nonsense")
        evaluate(make_params(), results)
        assert len(runs(store)) == 1
        over_http = make_params(tracking={"experiment": "http"})
        evaluate(over_http, results)
        with record(over_http) as tracker:
            assert isinstance(tracker, MlflowTracker)
            served = get(f"{host}/get-artifact?run_id={tracker.run_id}&path=report.html")
        assert served == "<h1>report</h1>"
        (run_over_http,) = runs(store, "http")
        assert_complete(store, run_over_http)


# --- a process per step: Kubeflow ---------------------------------------------------------------


def start(params: Params, pipeline_run_id: str = "job-1") -> str:
    return tracking.start_record(
        params, dataset_name="digits", content_hash=HASH, pipeline_run_id=pipeline_run_id
    )


def end(params: Params, pipeline_run_id: str = "job-1", *, state: str = "SUCCEEDED") -> str:
    return tracking.end_record(
        params, pipeline_run_id=pipeline_run_id, state=state, reason="embed failed"
    )


def run_of(store: Path, started: str) -> Run:
    return client(store).get_run(started.partition("/")[0])


def test_the_steps_of_a_pipeline_run_fill_one_mlflow_run(store: Path, results: Path) -> None:
    params = make_params()
    started = start(params)
    for last in (1, 2):
        with tracking.resume_record(started) as tracker:
            tracker.log_rounds(ROWS[: last + 1])
        with tracking.resume_record(started) as tracker:
            tracker.log_history(last, HISTORY)
    with tracking.resume_record(started) as tracker:
        tracker.log_result(rows=ROWS, metrics=METRICS, results=results)
    assert end(params) == "SUCCEEDED"
    run = run_of(store, started)
    assert run.info.run_id == only_run(store).info.run_id
    assert run.info.status == "FINISHED"
    assert run.data.tags["vitdc.kfp_run_id"] == "job-1"
    assert run.data.tags["vitdc.kfp_run.job-1"] == "SUCCEEDED"
    assert run.data.metrics["final/nmi_test"] == 0.8
    assert [step for step, _ in history(store, run, "joint/loss")] == [1, 2, 3, 4]


def test_a_pipeline_run_and_a_dvc_run_of_the_same_parameters_are_one(store: Path) -> None:
    params = make_params()
    refine(params)
    start(params)
    only_run(store)


def test_two_pipeline_runs_of_the_same_parameters_are_told_apart(store: Path) -> None:
    params = make_params()
    first = start(params, "job-1")
    tracking.record_evaluated(first, model_uri="s3://bucket/model")
    start(params, "job-2")
    assert end(params, "job-1", state="SUCCEEDED") == "SUCCEEDED"
    assert end(params, "job-2", state="FAILED") == "FAILED"
    tags = only_run(store).data.tags
    assert (tags["vitdc.kfp_run.job-1"], tags["vitdc.kfp_run.job-2"]) == ("SUCCEEDED", "FAILED")
    assert tracking.find_model(params.tracking, "job-1") == "s3://bucket/model"


@pytest.mark.parametrize("state", ["SUCCEEDED", "COMPLETE", "CACHED"])
def test_kubeflows_names_of_success_are_known(store: Path, state: str) -> None:
    params = make_params()
    started = start(params)
    assert end(params, state=state) == "SUCCEEDED"
    assert run_of(store, started).info.status == "RUNNING"  # it is the evaluation that ends it


@pytest.mark.parametrize("state", ["RUNNING", "CANCELED"])
def test_a_pipeline_run_that_is_terminated_is_recorded_as_killed_and_can_go_on(
    store: Path, state: str
) -> None:
    """Kubeflow tells an exit handler RUNNING then, and no reason."""
    params = make_params()
    started = start(params)
    assert end(params, state=state) == "TERMINATED"
    run = run_of(store, started)
    assert run.info.status == "KILLED"
    assert run.data.tags["vitdc.failure"] == "terminated"
    assert run.data.tags["vitdc.kfp_run.job-1"] == "TERMINATED"
    with tracking.resume_record(start(params, "job-2")) as tracker:
        tracker.log_rounds(ROWS[:2])
    assert run_of(store, started).info.status == "RUNNING"
    assert "vitdc.failure" not in run_of(store, started).data.tags


@pytest.mark.parametrize("state", ["RUNNING", "FAILED"])
def test_a_task_that_is_terminated_says_so_itself(store: Path, state: str) -> None:
    """What tells of it at the end may be terminated, too; a task that is tried again goes on."""
    params = make_params()
    started = start(params)
    terminate_task(started)
    killed = run_of(store, started)
    assert killed.info.status == "KILLED"
    assert killed.data.tags["vitdc.failure"] == "terminated"
    with tracking.resume_record(started) as tracker:
        tracker.log_rounds(ROWS[:2])
    assert run_of(store, started).info.status == "RUNNING"
    terminate_task(started)
    end(params, state=state)
    ended = run_of(store, started)
    assert ended.info.status == ("KILLED" if state == "RUNNING" else "FAILED")
    assert (ended.data.tags["vitdc.failure"] == "terminated") == (state == "RUNNING")


def terminate_task(record: str) -> None:
    """Send SIGTERM to a task that records."""
    before = signal.getsignal(signal.SIGTERM)
    end_on_sigterm()
    try:
        with pytest.raises(SystemExit), tracking.resume_record(record):
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("state", ["RUNNING", "FAILED"])
def test_the_end_of_a_pipeline_run_leaves_the_record_to_another_one_that_goes_on(
    store: Path, state: str
) -> None:
    params = make_params()
    started = start(params, "job-1")
    start(params, "job-2")
    assert end(params, "job-2", state=state) != "SUCCEEDED"
    run = run_of(store, started)
    assert (run.info.status, run.data.tags["vitdc.kfp_run.job-1"]) == ("RUNNING", "RUNNING")
    assert "vitdc.failure" not in run.data.tags
    assert end(params, "job-1", state="FAILED") == "FAILED"
    assert run_of(store, started).info.status == "FAILED"


@pytest.mark.parametrize("state", ["FAILED", "ERROR", ""])
def test_a_pipeline_run_that_fails_is_recorded_as_failed(store: Path, state: str) -> None:
    params = make_params()
    started = start(params)
    with tracking.resume_record(started) as tracker:
        tracker.log_rounds(ROWS[:2])
    assert end(params, state=state) == "FAILED"
    run = run_of(store, started)
    assert run.info.status == "FAILED"
    assert run.data.tags["vitdc.failure"] == "embed failed"
    assert run.data.tags["vitdc.kfp_run.job-1"] == "FAILED"


@pytest.mark.parametrize("state", ["RUNNING", "FAILED"])
def test_what_was_evaluated_has_succeeded_whatever_kubeflow_says(
    store: Path, results: Path, state: str
) -> None:
    params = make_params()
    started = start(params)
    with tracking.resume_record(started) as tracker:
        tracker.log_result(rows=ROWS, metrics=METRICS, results=results)
    tracking.record_evaluated(started, model_uri="s3://bucket/model")
    assert end(params, state=state) == "SUCCEEDED"
    assert run_of(store, started).info.status == "FINISHED"


def test_a_pipeline_run_that_fails_before_it_could_record_leaves_a_failed_run(store: Path) -> None:
    params = make_params()
    for job in ("job-1", "job-2"):
        assert end(params, job, state="FAILED") == "FAILED"
    assert [run.info.status for run in runs(store)] == ["FAILED", "FAILED"]
    started = start(params)  # the next try is a run of its own
    assert len(runs(store)) == 3
    assert run_of(store, started).info.status == "RUNNING"


def test_a_step_finds_the_run_that_superseded_its_own(store: Path, results: Path) -> None:
    params = make_params()
    evaluate(params, results)
    started = start(params)
    other = [RoundRow(round=0, cross_entropy=0.7), RoundRow(1, 0.6, 0.59, 0.1)]
    with tracking.resume_record(started) as tracker:  # the code has changed: a fresh run
        tracker.log_rounds(other)
    with tracking.resume_record(started) as newer:
        assert isinstance(newer, MlflowTracker)
    assert newer.run_id != started.partition("/")[0]
    run = client(store).get_run(newer.run_id)
    assert run.data.metrics["by_round/more/cross_entropy"] in (0.7, 0.59)
    assert run.data.params["joint.gamma"] == "0.1"
    assert run.data.tags["vitdc.data.name"] == "digits"
    assert run.data.tags["vitdc.kfp_run_id"] == "job-1"
    assert end(params, state="FAILED") == "FAILED"
    failed = only_run(store)
    assert (failed.info.run_id, failed.info.status) == (newer.run_id, "FAILED")


def test_a_run_that_supersedes_another_has_no_part_in_what_pipeline_runs_made_before(
    store: Path, results: Path
) -> None:
    params = make_params()
    evaluate(params, results)
    tracking.record_evaluated(start(params, "job-1"), model_uri="s3://bucket/model")
    with tracking.resume_record(start(params, "job-2")) as tracker:
        tracker.log_rounds([RoundRow(round=0, cross_entropy=0.7)])
    tags = only_run(store).data.tags
    assert {key for key in tags if key.startswith("vitdc.kfp_run.")} == {"vitdc.kfp_run.job-2"}


def test_a_run_in_the_trash_is_not_recorded_into(store: Path) -> None:
    started = start(make_params())
    client(store).delete_run(started.partition("/")[0])
    with (
        pytest.raises(InputError, match="in MLflow's trash; restore it"),
        tracking.resume_record(started),
    ):
        pass


def test_our_run_and_the_one_that_kubeflow_made_name_each_other(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its plugin gives every task a run of its own, nested in that of the pipeline run."""
    mlflow = client(store)
    experiment = mlflow.create_experiment("kubeflow")
    parent = mlflow.create_run(experiment).info.run_id
    params = make_params()

    def begin_task() -> None:
        nested = mlflow.create_run(experiment, tags={"mlflow.parentRunId": parent})
        monkeypatch.setenv("MLFLOW_RUN_ID", nested.info.run_id)

    begin_task()
    started = start(params)
    for rows in (ROWS, [RoundRow(0, cross_entropy=0.7)]):  # the second supersedes the first
        begin_task()
        with tracking.resume_record(started) as tracker:
            tracker.log_rounds(rows)
    first = run_of(store, started)
    assert first.data.tags["vitdc.kfp_mlflow_run"] == parent
    begin_task()
    assert end(params) == "SUCCEEDED"
    ours, theirs = only_run(store), mlflow.get_run(parent)
    assert ours.info.run_id != first.info.run_id
    assert ours.data.tags["vitdc.kfp_mlflow_run"] == parent
    assert theirs.data.tags["vitdc.run"] == ours.info.run_id
    assert theirs.info.lifecycle_stage == "active", "never superseded"
    assert (theirs.info.status, theirs.data.params) == ("RUNNING", {}), "Kubeflow's, not ours"


def test_a_run_of_kubeflow_that_cannot_be_read_stops_nothing(
    store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    started = start(make_params())
    assert run_of(store, started).data.tags["vitdc.kfp_run_id"] == "job-1"
    assert f"MLFLOW_RUN_ID={'0' * 32} cannot name each other" in caplog.text


def test_without_tracking_nothing_is_recorded(store: Path) -> None:
    params = make_params(tracking={"enabled": False})
    assert start(params) == ""
    with tracking.resume_record("") as tracker:
        assert isinstance(tracker, NullTracker)
    tracking.record_evaluated("", model_uri="s3://bucket/model")
    assert end(params) == "SUCCEEDED"


def test_the_model_of_a_run_is_found_by_either_id(store: Path) -> None:
    params = make_params()
    started = start(params)
    run_id = started.partition("/")[0]
    with pytest.raises(InputError, match="has left no model"):
        tracking.find_model(params.tracking, run_id)
    tracking.record_evaluated(started, model_uri="s3://bucket/model")
    for known in (run_id, "job-1"):
        assert tracking.find_model(params.tracking, known) == "s3://bucket/model"
    with pytest.raises(InputError, match="neither an MLflow run nor a pipeline run"):
        tracking.find_model(params.tracking, "job-9")
    with pytest.raises(InputError, match="not the id of a run"):
        tracking.find_model(params.tracking, "x' or 1=1")
