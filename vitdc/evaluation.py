"""What a finished run is worth: scores, table of rounds, clusters of every image, report data.

Takes loaded artifacts and returns values; `steps.evaluate` loads and writes them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from vitdc import metrics
from vitdc.artifacts import (
    SPLITS,
    Clustering,
    ClusterRow,
    Dataset,
    Embeddings,
    Round,
    RoundRow,
    SplitScores,
)
from vitdc.clustering import assign, kmeans
from vitdc.concerns import data_concerns, result_concerns
from vitdc.config import ClusteringConfig, EvaluationConfig
from vitdc.convergence import effective_rank
from vitdc.prediction import unsure_limit
from vitdc.report import (
    Decoded,
    ReportData,
    Snapshot,
    choose_map_indices,
    map_coordinates,
    pictured_images,
)
from vitdc.seeding import derive_seed

PIXEL_BYTES = 512 * 2**20  # memory that the pixel baseline may take for its training points


class Findings(NamedTuple):
    """The embeddings of a round and their clusters."""

    embeddings: Embeddings
    clustering: Clustering


def complete_rows(history: Round, *, initial: Findings, last: Clustering) -> list[RoundRow]:
    """The rows of rounds.csv, with what only the end of a run knows.

    That is what round 0, which nothing checks, says of its embeddings, and the scores of the last
    round.
    """
    embeddings = initial.embeddings.train
    first = replace(
        history.rows[0],
        cross_entropy=_mean(embeddings.cross_entropy),
        effective_rank=effective_rank(embeddings.embedding),
    )
    return [first, *history.rows[1:-1], history.current.with_scores(last.scores)]


def _mean(values: np.ndarray) -> float | None:
    """Mean in float64 of what is not NaN; None where everything is."""
    known = values[~np.isnan(values)]
    return float(known.mean(dtype=np.float64)) if len(known) else None


def collect_metrics(
    dataset: Dataset,
    best: Findings,
    history: Round,
    *,
    pixels: dict[str, SplitScores] | None,
) -> dict[str, Any]:
    """The content of metrics.json: the scores of the best round and how the rounds ended.

    Args:
        dataset: With the labels.
        best: The best round.
        history: The last Round.
        pixels: Scores of the pixel baseline; None leaves them out.

    Where no label scores, the silhouette stands in for the scores.
    """
    scores = best.clustering.scores
    found: dict[str, Any] = {
        "train": scores.train._asdict(),
        "test": scores.test._asdict(),
        "head_accuracy": {
            split: _head_accuracy(dataset, best.embeddings, split) for split in SPLITS
        },
        "num_clusters": len(best.clustering.centroids),
        "rounds": history.current.round,
        "best_round": history.best_round,
        "stop_reason": history.stop_reason,
        "loss": history.rows[history.best_round].loss,
    }
    if scores.train.nmi is None and scores.test.nmi is None:
        found["silhouette"] = scores.silhouette
    if pixels is not None:
        found["pixel_kmeans"] = {split: values._asdict() for split, values in pixels.items()}
    if notes := data_concerns(dataset):  # `vitdc summary` has no data set
        found["data_notes"] = notes
    return found


def _head_accuracy(dataset: Dataset, embeddings: Embeddings, split: str) -> float | None:
    """None where no label is known, and where the head gives clusters: none was trained on."""
    if dataset.supervision == "none":
        return None
    return metrics.accuracy(dataset.scoring_labels(split), embeddings.split(split).predicted)


def score_pixels(
    dataset: Dataset, config: ClusteringConfig, *, seed: int
) -> dict[str, SplitScores]:
    """k-means on the raw pixels: the floor that embeddings must beat.

    Args:
        dataset: Its training images are clustered, on a random subset where all of them would
            not fit into `PIXEL_BYTES`; test images go to their nearest centroid.
        config: The same settings as for the embeddings.
        seed: Of the random starts.

    Returns:
        Scores per split.
    """
    num_values = math.prod(dataset.image_shape)  # -1 cannot be worked out for no images
    flat = {
        name: dataset.split(name).images.reshape(len(dataset.split(name)), num_values)
        for name in SPLITS
    }
    affordable = PIXEL_BYTES // (4 * flat["train"].shape[1] * config.resolved_num_clusters)
    limit = min(config.max_points_per_centroid or affordable, affordable)
    config = config.model_copy(update={"max_points_per_centroid": max(1, limit)})
    centroids = kmeans(flat["train"], config, seed=seed).centroids
    return {
        name: metrics.score_split(dataset.scoring_labels(name), assign(pixels, centroids)[0])
        for name, pixels in flat.items()
    }


def cluster_rows(dataset: Dataset, clustering: Clustering) -> Iterator[ClusterRow]:
    """Stream the rows of clusters.csv, in the order of the data set."""
    position = dict.fromkeys(SPLITS, 0)
    for image, split in dataset.image_names():
        index = position[split]
        position[split] += 1
        label = dataset.split(split).labels[index]
        found = clustering.split(split)
        yield ClusterRow(
            image=image,
            split=split,
            label=dataset.class_names[label] if label >= 0 else "",
            cluster=int(found.assignment[index]),
            distance=f"{found.distance[index]:.6f}",
        )


def report_data(
    dataset: Dataset,
    *,
    initial: Findings,
    best: Findings,
    history: Round,
    rows: list[RoundRow],
    found: dict[str, Any],
    parameters: dict[str, Any],
    config: EvaluationConfig,
    seed: int,
) -> ReportData:
    """Everything the report shows, with decoded pictures and the map where they are asked for.

    The held-out images are shown where labels score them, else the training images, which are more.

    Args:
        dataset: The images.
        initial: Round 0.
        best: The best round.
        history: The last Round.
        rows: Complete rows.
        found: The content of metrics.json.
        parameters: Section -> knob -> value.
        config: The `evaluation` section.
        seed: Of the run.
    """
    shown = "test" if dataset.test.has_labels else "train"
    split = dataset.split(shown)
    data = ReportData(
        title=f"Deep clustering of {_what(dataset)}",
        supervision=dataset.supervision,
        num_known=int(dataset.known.sum()),
        sizes=best.clustering.sizes,
        silhouette=best.clustering.scores.silhouette,
        concerns=result_concerns(found, best.clustering.sizes),
        unsure=_unsure(best.clustering, shown),
        class_names=dataset.class_names,
        parameters=parameters,
        metrics=found,
        rows=rows,
        verdict=history.stop_reason,
        best_round=history.best_round,
        epsilon=history.epsilon,
        gamma=history.gamma,
        num_train=len(dataset.train),
        num_test=len(dataset.test),
        num_unreadable=dataset.num_unreadable,
        images=split.images,
        labels=dataset.scoring_labels(shown),
        before=_snapshot(initial, shown),
        after=_snapshot(best, shown),
        gallery_size=config.gallery_size,
        split=shown,
    )
    data = _with_map(data, max_points=config.map_points, seed=derive_seed(seed, "map"))
    own_seed = derive_seed(seed, "decoder")  # the same one for both rounds
    decoded = [_decode(findings, dataset, data, seed=own_seed) for findings in (initial, best)]
    return replace(
        data,
        before=replace(data.before, decoded=decoded[0]),
        after=replace(data.after, decoded=decoded[1]),
    )


def _what(dataset: Dataset) -> str:
    """What a person calls the images; a folder's own name is no part of the data set."""
    num_images = len(dataset.train) + len(dataset.test)
    return f"{num_images:,} images" if dataset.name == "folder" else dataset.name


def _unsure(clustering: Clustering, split: str) -> np.ndarray:
    """Images of a split that `vitdc predict` would call unsure, the least typical first."""
    found = np.asarray(clustering.split(split).atypicality)
    order = np.argsort(-found, kind="stable")
    unsure: np.ndarray = order[found[order] > unsure_limit(clustering)]
    return unsure


def _snapshot(findings: Findings, split: str) -> Snapshot:
    clusters = findings.clustering.split(split)
    return Snapshot(
        round=findings.clustering.round,
        embedding=findings.embeddings.split(split).embedding,
        assignment=np.asarray(clusters.assignment),
        distance=np.asarray(clusters.distance),
        centroids=findings.clustering.centroids,
    )


def _with_map(data: ReportData, *, max_points: int, seed: int) -> ReportData:
    indices = choose_map_indices(len(data.labels), max_points=max_points, seed=seed)
    if not len(indices):
        return data
    before, after = map_coordinates(
        data.before.embedding[indices], data.after.embedding[indices], seed=seed
    )
    return replace(
        data,
        map_indices=indices,
        before=replace(data.before, coordinates=before),
        after=replace(data.after, coordinates=after),
    )


def _decode(
    findings: Findings,
    dataset: Dataset,
    data: ReportData,
    *,
    seed: int,
) -> Decoded:
    """Fit the decoder to the training images and decode those that the gallery shows."""
    from vitdc.decoder import decode, fit_decoder, reconstruction_error

    embeddings = findings.embeddings
    decoder = fit_decoder(embeddings.train.embedding, dataset.train.images, seed=seed)
    indices = pictured_images(data)
    measured = "test" if len(dataset.test) else "train"
    return Decoded(
        indices=indices,
        images=decode(decoder, embeddings.split(data.split).embedding[indices]),
        error=reconstruction_error(
            decoder,
            embeddings.split(measured).embedding,
            dataset.split(measured).images,
            seed=seed,
        ),
    )
