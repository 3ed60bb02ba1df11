"""Checks what `make demo` left under results/; CI runs it after the demo, by name."""

import csv
import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from vitdc.artifacts import Clustering, Dataset, Embeddings, Evaluation, Round
from vitdc.config import Params
from vitdc.loop import round_directories
from vitdc.tracking.naming import run_identity

ROOT = Path(__file__).parent.parent
RESULTS, OUTPUTS = ROOT / "results", ROOT / "outputs"


@pytest.fixture(scope="module")
def metrics() -> dict:
    return json.loads((RESULTS / "metrics.json").read_text())


def test_held_out_nmi_is_high_and_above_the_pixel_floor(metrics):
    assert metrics["test"]["nmi"] >= 0.90
    assert metrics["test"]["nmi"] > metrics["pixel_kmeans"]["test"]["nmi"] + 0.1


def test_the_rounds_were_stopped_by_the_joint_loss(metrics):
    history = Round.load(round_directories(OUTPUTS / "rounds")[-1] / "round")
    *falls, last = -np.diff([row.loss for row in history.rows[1:]])
    assert all(fall >= history.epsilon for fall in falls)
    assert last < history.epsilon
    assert metrics["stop_reason"] == ("loss-rose" if last < 0 else "converged")


def test_the_joint_loss_is_the_one_of_the_saved_artifacts():
    directories = round_directories(OUTPUTS / "rounds")
    with (RESULTS / "rounds.csv").open() as file:
        rows = list(csv.DictReader(file))
    gamma = Round.load(directories[-1] / "round").gamma
    assert len(rows) == len(directories)
    for before, here, row in zip(directories, directories[1:], rows[1:], strict=False):
        embedded = Embeddings.load(here / "embeddings").train
        frozen = Clustering.load(before / "clustering")
        z = np.asarray(embedded.embedding, dtype=np.float64)
        centroids = frozen.centroids.astype(np.float64)[frozen.train.assignment]
        clustering = ((z - centroids) ** 2).sum(axis=1).mean()
        cross_entropy = np.asarray(embedded.cross_entropy, dtype=np.float64).mean()
        assert float(row["loss"]) == pytest.approx(cross_entropy + gamma * clustering, rel=1e-5)


def test_every_image_has_a_cluster():
    dataset = Dataset.load(OUTPUTS / "dataset")
    with (RESULTS / "clusters.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(dataset.train) + len(dataset.test)
    assert {int(row["cluster"]) for row in rows} == set(range(10))
    assert len({row["image"] for row in rows}) == len(rows)


def test_the_report_is_there_and_needs_no_network():
    page = (RESULTS / "report.html").read_text()
    assert 'src="http' not in page
    assert 'href="http' not in page
    assert len(list((RESULTS / "figures").glob("*.png"))) >= 5


def test_the_results_are_whole():
    Evaluation.load(RESULTS)
    Clustering.load(RESULTS / "model" / "clustering")


def test_mlflow_has_one_finished_run_of_it():
    params = Params.load(ROOT / "params.yaml", ())
    identity = run_identity(params, content_hash=Evaluation.load(RESULTS).content_hash)
    with sqlite3.connect(ROOT / "mlflow.db") as connection:
        runs = connection.execute(
            "SELECT status FROM runs JOIN tags USING (run_uuid)"
            " WHERE lifecycle_stage = 'active' AND key = 'vitdc.identity' AND value = ?",
            (identity,),
        ).fetchall()
    assert runs == [("FINISHED",)]
