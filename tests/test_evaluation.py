"""What a person finds in the results: scores, tables and the model of the best round."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import toys
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from toys import ToyRun, contents

from vitdc.artifacts import Clustering, Dataset, Embeddings, Evaluation, Round
from vitdc.convergence import effective_rank
from vitdc.evaluation import score_pixels
from vitdc.summary import describe, summarize


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_metrics_json_has_the_documented_layout_and_the_best_rounds_scores(
    toy_run: ToyRun,
) -> None:
    metrics = json.loads((toy_run.results / "metrics.json").read_text())
    assert set(metrics) == {
        "test",
        "train",
        "head_accuracy",
        "num_clusters",
        "rounds",
        "best_round",
        "stop_reason",
        "loss",
        "pixel_kmeans",
    }
    history = Round.load(toy_run.round(2))
    assert metrics["num_clusters"] == 3
    assert metrics["rounds"] == 2
    assert metrics["best_round"] == history.best_round
    assert metrics["stop_reason"] == history.verdict
    assert metrics["loss"] == min(row.loss for row in history.rows if row.loss is not None)

    dataset = Dataset.load(toy_run.dataset)
    best = toy_run.paths(history.best_round)
    for split in ("train", "test"):
        labels = dataset.split(split).labels
        clusters = Clustering.load(best.clustering).split(split).assignment
        predicted = Embeddings.load(best.embeddings).split(split).predicted
        assert set(metrics[split]) == {"nmi", "ari", "acc", "images"}
        assert metrics[split]["images"] == len(labels)
        nmi = normalized_mutual_info_score(labels, clusters)
        assert metrics[split]["nmi"] == pytest.approx(nmi)
        assert metrics[split]["ari"] == pytest.approx(adjusted_rand_score(labels, clusters))
        assert metrics["head_accuracy"][split] == pytest.approx((labels == predicted).mean())


def test_rounds_csv_is_complete(toy_run: ToyRun) -> None:
    rows = read_csv(toy_run.results / "rounds.csv")
    assert ",".join(rows[0]) == (
        "round,loss,cross_entropy,clustering_loss,nmi_train,nmi_test,ari_test,acc_test,changed,"
        "silhouette,effective_rank,verdict"
    )
    assert [row["round"] for row in rows] == ["0", "1", "2"]
    empty = [(row["round"], key) for row in rows for key, value in row.items() if value == ""]
    assert empty == [("0", "loss"), ("0", "clustering_loss"), ("0", "changed")]
    embeddings = Embeddings.load(toy_run.paths(0).embeddings).train
    expected = embeddings.cross_entropy.astype(np.float64).mean()
    assert float(rows[0]["cross_entropy"]) == pytest.approx(expected)
    for row in rows:
        z = Embeddings.load(toy_run.paths(int(row["round"])).embeddings).train.embedding
        assert float(row["effective_rank"]) == pytest.approx(effective_rank(np.asarray(z)))
        scores = Clustering.load(toy_run.paths(int(row["round"])).clustering).scores
        assert float(row["silhouette"]) == scores.silhouette
        assert float(row["nmi_test"]) == scores.test.nmi


def test_clusters_csv_names_every_image_with_its_cluster_and_distance(toy_run: ToyRun) -> None:
    rows = read_csv(toy_run.results / "clusters.csv")
    assert list(rows[0]) == ["image", "split", "label", "cluster", "distance"]
    dataset = Dataset.load(toy_run.dataset)
    assert [(row["image"], row["split"]) for row in rows] == list(dataset.image_names())
    best = toy_run.paths(Round.load(toy_run.round(2)).best_round)
    for split in ("train", "test"):
        own = [row for row in rows if row["split"] == split]
        clusters = Clustering.load(best.clustering).split(split)
        labels = dataset.split(split).labels
        assert [int(row["cluster"]) for row in own] == clusters.assignment.tolist()
        assert [row["label"] for row in own] == [toys.CLASS_NAMES[label] for label in labels]
        distances = [float(row["distance"]) for row in own]
        np.testing.assert_allclose(distances, clusters.distance, atol=1e-6)


def test_the_best_rounds_model_lies_beside_the_scores(toy_run: ToyRun) -> None:
    best = toy_run.paths(Round.load(toy_run.round(2)).best_round)
    model = toy_run.results / "model"
    assert contents(model / "checkpoint") == contents(best.checkpoint)
    assert contents(model / "clustering") == contents(best.clustering)


def test_pixels_of_the_toy_are_easy_and_memory_does_not_change_that(
    toy_run: ToyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = Dataset.load(toy_run.dataset)
    everything = score_pixels(dataset, toys.CLUSTERING, seed=0)
    monkeypatch.setattr("vitdc.evaluation.PIXEL_BYTES", 5 * 4 * 64 * 3)  # 5 images per cluster
    for scores in (everything, score_pixels(dataset, toys.CLUSTERING, seed=0)):
        assert scores["train"].nmi == pytest.approx(1)
        assert scores["test"].nmi == pytest.approx(1)


def test_the_summary_shows_every_round_and_the_headline(toy_run: ToyRun) -> None:
    evaluation = Evaluation.load(toy_run.results)
    text = summarize(evaluation)
    lines = text.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["round", "0", "1", "2"]
    assert f"test NMI {evaluation.metrics['test']['nmi']:.3f}" in text
    assert "pixel k-means" in text
    assert evaluation.metrics["stop_reason"] in text


def test_every_artifact_can_be_described_in_words(toy_run: ToyRun) -> None:
    assert describe(Dataset.load(toy_run.dataset)) == (
        "toy: 42 training and 12 test images of 8x8x1, 3 classes\n"
        "classes: left 18, right 18, bottom 18"
    )
    assert "best is round" in describe(Round.load(toy_run.round(2)))
    assert describe(Round.load(toy_run.round(1))).endswith("the rounds go on")
    assert "3 clusters, NMI" in describe(Clustering.load(toy_run.paths(1).clustering))
    with pytest.raises(TypeError, match="nothing to say about a str"):
        describe("text")
