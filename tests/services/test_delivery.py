"""What the real stack has in the end, whatever went down in between."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import servers
import toys
from stack import Tracking, run_vitdc, start_vitdc, write_params

from vitdc import loop, steps
from vitdc.artifacts import RoundRow
from vitdc.config import Params
from vitdc.tracking import (
    download_model,
    open_tracker,
    pipeline_runs,
    start_record,
    tracker,
    watch_training,
)
from vitdc.tracking.naming import round_key
from vitdc.tracking.registry import Scores, model_digest, register_model

if TYPE_CHECKING:
    from mlflow import MlflowClient

NUM_PARALLEL = 10
BIG = 100 * 2**20  # bytes


def experiment(name: str) -> tuple[str, str]:
    """The option that records under this name."""
    return ("-S", f"tracking.experiment={name}")


def run_ids(tracking: Tracking, name: str) -> list[str]:
    found = tracking.query(
        "SELECT run_uuid FROM runs JOIN experiments USING (experiment_id)"
        " WHERE experiments.name = %s AND runs.lifecycle_stage = 'active'",
        name,
    )
    return [run_id for (run_id,) in found]


def only_run(tracking: Tracking, name: str) -> str:
    (run_id,) = run_ids(tracking, name)
    return run_id


def is_recorded(tracking: Tracking, name: str) -> bool:
    """Whether a run of the experiment has any value."""
    return any(tracking.points(run_id) for run_id in run_ids(tracking, name))


def status(tracking: Tracking, run_id: str) -> str:
    ((found,),) = tracking.query("SELECT status FROM runs WHERE run_uuid = %s", run_id)
    return str(found)


def told(tracking: Tracking, run_id: str) -> list[tuple[str, int, float]]:
    """The rows of a run's metrics, without what is measured by the clock."""
    clocked = ("system/", "seconds/")
    return [point for point in tracking.points(run_id) if not point[0].startswith(clocked)]


def rounds_of(results: Path) -> dict[tuple[str, int], float]:
    """Every value of rounds.csv by metric and step: what MLflow must have, once."""
    with (results / "rounds.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in RoundRow.header() if name not in ("round", "verdict")]
    return {
        (round_key(n), int(row["round"])): float(row[n]) for row in rows for n in names if row[n]
    }


def assert_complete(tracking: Tracking, run_id: str, results: Path) -> None:
    """Every metric of every step is there once, with its value, and the run has ended well."""
    points = [point for point in tracking.points(run_id) if not point[0].startswith("system/")]
    times = Counter((key, step) for key, step, _ in points)
    assert {place: count for place, count in times.items() if count > 1} == {}
    values = {(key, step): value for key, step, value in points}
    expected = rounds_of(results)
    assert expected == pytest.approx({place: values.get(place) for place in expected})
    params = toys.SMALL_PARAMS
    epochs = params["pretraining"]["epochs"]
    steps = [step for key, step, _ in points if key == "pretraining/loss"]
    assert steps == list(range(1, epochs + 1))
    rounds = max(step for _, step in expected)
    steps = [step for key, step, _ in points if key == "joint/loss"]
    assert steps == list(range(1, rounds * params["joint"]["epochs"] + 1))
    assert status(tracking, run_id) == "FINISHED"


def wait_until(condition: Callable[[], Any], process: Any) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_server_that_is_killed_during_a_run_and_comes_back_has_everything_once(
    tracking: Tracking, tmp_path: Path
) -> None:
    write_params(tmp_path)
    env = tracking.environment()
    options = ["-S", "convergence.max_rounds=6", *experiment("killed")]
    process = start_vitdc(
        "run", "--output", "out", *options, folder=tmp_path, env=env, start_new_session=True
    )
    said: list[str] = []
    reader = threading.Thread(target=said.extend, args=[process.stderr])
    reader.start()
    try:
        wait_until(lambda: is_recorded(tracking, "killed"), process)
        tracking.server.kill()
        wait_until(lambda: any("MLflow cannot be reached" in line for line in said), process)
        wait_until((tmp_path / "out/rounds/02/round").exists, process)
        os.killpg(process.pid, signal.SIGSTOP)  # a busy machine starts a server in minutes
        tracking.server.start()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGCONT)
    assert process.wait() == 0, said
    reader.join()
    assert_complete(tracking, only_run(tracking, "killed"), tmp_path / "out/results")


def test_what_a_server_that_stays_away_has_missed_is_delivered_by_vitdc_track(
    tracking: Tracking, client: MlflowClient, tmp_path: Path
) -> None:
    write_params(tmp_path)
    env = tracking.environment()
    process = start_vitdc("run", "--output", "out", *experiment("away"), folder=tmp_path, env=env)
    wait_until(lambda: is_recorded(tracking, "away"), process)
    tracking.server.kill()
    try:
        assert process.poll() is None, "it ended before the server did"
        _out, err = process.communicate()
        assert process.returncode == 0, err
        assert "MLflow cannot be reached" in err
        assert "vitdc track --resume" in err
        waiting = run_vitdc("track", folder=tmp_path, env=env)
        assert "waiting since" in waiting.stdout
    finally:
        tracking.server.start()
    delivered = run_vitdc("track", "--resume", folder=tmp_path, env=env)
    assert delivered.returncode == 0, delivered.stderr
    run_id = only_run(tracking, "away")
    assert_complete(tracking, run_id, tmp_path / "out/results")
    report = client.download_artifacts(run_id, "report.html", str(tmp_path))
    assert Path(report).read_bytes() == (tmp_path / "out/results/report.html").read_bytes()
    again = run_vitdc("track", "--resume", folder=tmp_path, env=env)
    assert "Nothing is waiting" in again.stdout


PARALLEL_RUN = """
import sys, time
from pathlib import Path
from vitdc.artifacts import RoundRow
from vitdc.config import Params
from vitdc.tracking import open_tracker

seed, results = int(sys.argv[1]), Path(sys.argv[2])
params = Params.parse({"seed": seed, "tracking": {"experiment": "parallel"}}, where="test")
rows = []
with open_tracker(params, dataset_name="digits", content_hash="0" * 64) as tracker:
    for round in range(20):
        rows.append(RoundRow(round, loss=seed + 1 / (round + 1), nmi_test=round / 20))
        tracker.log_rounds(rows)
        epochs = [{"epoch": epoch, "loss": seed + epoch / 7} for epoch in range(1, 6)]
        tracker.log_history(round, epochs)
        time.sleep(0.05)
    tracker.log_result(rows=rows, metrics={"rounds": 19}, results=results)
"""


def points_of_parallel_run(seed: int) -> list[tuple[str, int, float]]:
    points = [("by_round/loss", round, seed + 1 / (round + 1)) for round in range(20)]
    points += [("by_round/nmi_test", round, round / 20) for round in range(20)]
    points += [("pretraining/loss", epoch, seed + epoch / 7) for epoch in range(1, 6)]
    points += [
        ("joint/loss", 5 * round + epoch, seed + epoch / 7)
        for round in range(19)
        for epoch in range(1, 6)
    ]
    return sorted([*points, ("final/rounds", 0, 19.0)])


@pytest.fixture
def pipeline_run(client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Kubeflow's id of a run whose tasks have an outbox on one scratch volume."""
    monkeypatch.setenv("VITDC_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.delenv("VITDC_OUTBOX", raising=False)
    monkeypatch.setattr(tracker, "BATCH_INTERVAL", 0.0)
    return tmp_path.name


def test_a_training_is_sent_in_few_requests_also_where_it_is_resumed(
    tracking: Tracking, pipeline_run: str
) -> None:
    """With users every request costs a check of the password."""
    params = Params.parse({"tracking": {"experiment": "few"}}, where="test")
    record = start_record(
        params, dataset_name="digits", content_hash="2" * 64, pipeline_run_id=pipeline_run
    )
    for epochs, told_again in ((range(1, 71), 0), (range(71, 81), 0), (range(75, 81), 9)):
        before = tracking.requests()
        with watch_training(pipeline_run) as watcher:
            for epoch in epochs:
                watcher.on_batch(0, epoch, dict.fromkeys(BATCH, 1 / epoch), num_steps=80)
                watcher.on_epoch(0, {"epoch": epoch, **epoch_values(epoch)}, num_epochs=80)
        made = tracking.requests() - before
        assert made["log-batch"] <= 3, "the first ones, the others, the machine's load"
        assert made["get-history"] <= told_again
        assert made.total() <= 6 + told_again
    run_id = record.partition("/")[0]
    for key in ("pretraining/loss", "pretraining/images_per_second", "pretraining_batches/loss"):
        steps = [step for name, step, _ in tracking.points(run_id) if name == key]
        assert steps == [*range(1, 81)], key


BATCH = ("loss", "cross_entropy", "learning_rate", "images_per_second")


def epoch_values(epoch: int) -> dict[str, float]:
    values = {"loss": 1 / epoch, "cross_entropy": 0.9 / epoch, "learning_rate": 0.1 / epoch}
    return {**values, "images_per_second": 1000.0 + epoch}


def test_a_task_that_may_not_wait_leaves_the_rest_to_the_next_one(
    tracking: Tracking, pipeline_run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = Params.parse({"tracking": {"experiment": "slow"}}, where="test")
    record = start_record(
        params, dataset_name="digits", content_hash="3" * 64, pipeline_run_id=pipeline_run
    )
    monkeypatch.setattr(pipeline_runs, "LIMIT", 0.5)
    try:
        with watch_training(pipeline_run) as watcher:
            tracking.server.pause()
            watcher.on_epoch(0, {"epoch": 1, **epoch_values(1)}, num_epochs=2)
    finally:
        tracking.server.resume()
    assert watcher.left
    with watch_training(pipeline_run) as watcher:
        watcher.on_epoch(0, {"epoch": 2, **epoch_values(2)}, num_epochs=2)
        assert not watcher.flush()
    run_id = record.partition("/")[0]
    steps = [step for name, step, _ in tracking.points(run_id) if name == "pretraining/loss"]
    assert steps == [1, 2]


def test_ten_runs_that_record_at_once_lose_and_double_nothing(
    tracking: Tracking, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    results.mkdir()
    (results / "report.html").write_text("<h1>report</h1>")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PARALLEL_RUN, str(seed), results],
            cwd=tmp_path, env=os.environ | tracking.environment(),
            stderr=subprocess.PIPE, text=True,
        )
        for seed in range(NUM_PARALLEL)
    ]  # fmt: skip
    said = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * NUM_PARALLEL, said
    seeds = tracking.query(
        "SELECT value, run_uuid FROM params JOIN runs USING (run_uuid) JOIN experiments"
        " USING (experiment_id) WHERE key = 'seed' AND experiments.name = 'parallel'"
    )
    assert sorted(int(seed) for seed, _ in seeds) == list(range(NUM_PARALLEL))
    for seed, run_id in seeds:
        assert sorted(told(tracking, run_id)) == points_of_parallel_run(int(seed))
        assert status(tracking, run_id) == "FINISHED"


def test_a_large_artifact_survives_a_restart_of_the_store_on_both_ways(
    tracking: Tracking,
    s3_server: servers.S3Server,
    relay: servers.Relay,
    client: MlflowClient,
    tmp_path: Path,
) -> None:
    results, downloads = tmp_path / "results", tmp_path / "downloads"
    results.mkdir()
    downloads.mkdir()
    content = np.random.default_rng(0).bytes(BIG)
    (results / "clusters.csv").write_bytes(content)
    params = Params.parse({"tracking": {"experiment": "large"}}, where="test")

    def upload() -> None:
        with open_tracker(params, dataset_name="digits", content_hash="1" * 64) as tracker:
            tracker.log_result(rows=[RoundRow(0)], metrics={}, results=results)
        assert tracker.left is None

    def download() -> None:
        run_id = only_run(tracking, "large")
        client.download_artifacts(run_id, "clusters.csv", str(downloads))

    restart_in_the_middle(s3_server.server, relay, upload)
    restart_in_the_middle(s3_server.server, relay, download)
    assert (downloads / "clusters.csv").read_bytes() == content


def test_a_large_model_survives_a_restart_of_the_store_on_its_way_here(
    s3_server: servers.S3Server,
    relay: servers.Relay,
    client: MlflowClient,
    toy_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT")
    model = large_model(toy_dataset, tmp_path)
    run = client.create_run(client.create_experiment("large model"))
    scores = {"test": {"nmi": None, "ari": None, "acc": None}, "best_round": 0, "stop_reason": "-"}
    register_model(client, run.info.run_id, model, name="large", scores=Scores(scores, ""))
    downloaded: list[Path] = []
    restart_in_the_middle(
        s3_server.server, relay, lambda: downloaded.append(download_model("models:/large"))
    )
    assert model_digest(downloaded[0]) == model_digest(model)


def large_model(dataset: Path, folder: Path) -> Path:
    """A model of more than `BIG` bytes that has learned nothing."""
    steps.pretrain(
        dataset=dataset,
        model=toys.MODEL.model_copy(update={"embed_dim": 512, "depth": 9}),
        pretraining=toys.PRETRAINING.model_copy(update={"epochs": 0}),
        compute=toys.COMPUTE,
        seed=0,
        output=folder / "pretrained",
    )
    loop.refine(
        dataset=dataset,
        checkpoint=folder / "pretrained",
        clustering=toys.CLUSTERING,
        joint=toys.JOINT.model_copy(update={"epochs": 0}),
        convergence=toys.CONVERGENCE.model_copy(update={"max_rounds": 1}),
        compute=toys.COMPUTE,
        seed=0,
        output=folder / "rounds",
    )
    return folder / "rounds" / "00"


def restart_in_the_middle(
    server: servers.Server, relay: servers.Relay, transfer: Callable[[], None]
) -> None:
    """Kill the store when about a third of a large file has come through, and start it again."""
    relay.hold_after(BIG // 3)
    with ThreadPoolExecutor() as executor:
        running = executor.submit(transfer)
        try:
            assert relay.wait_until_held(120)
            assert not running.done()
        finally:
            server.kill()
            relay.release()
            server.start()
        running.result(240)
