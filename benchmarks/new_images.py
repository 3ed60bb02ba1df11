"""How images that were not clustered find their cluster: by a centroid, neighbours, the head.

    for seed in 0 1 2 3 4; do
        vitdc run --output outputs/none-$seed -S data.labels=none -S seed=$seed
    done
    python benchmarks/new_images.py outputs/none-*

Prints the NMI of the test images with their labels for every round, the mean over the runs, beside
that of the training images, whose clusters were found on the manifold.
"""

import argparse
from pathlib import Path

import faiss
import numpy as np
from sklearn.metrics import normalized_mutual_info_score

from vitdc import loop
from vitdc.artifacts import Clustering, Dataset, Embeddings, RoundPaths
from vitdc.typicality import most_typical

VOTES = 5
WAYS = ("training images", "most typical", "nearest centroid", f"vote of {VOTES}", "head")


def vote(train: np.ndarray, clusters: np.ndarray, test: np.ndarray) -> np.ndarray:
    """(M,) the cluster that most of the nearest training images have; the nearer one of equals."""
    index = faiss.IndexFlatL2(train.shape[1])
    index.add(train)
    nearest = clusters[index.search(test, VOTES)[1]]  # (M, VOTES)
    weights = 1 - 1e-3 * np.arange(VOTES)
    counts = np.zeros((len(test), clusters.max() + 1))
    np.add.at(counts, (np.arange(len(test))[:, None], nearest), weights)
    found: np.ndarray = counts.argmax(axis=1)
    return found


def score_round(dataset: Dataset, embeddings: Embeddings, clustering: Clustering) -> list[float]:
    """NMI of every way; NaN for the head of a model that has none."""
    train, test = (
        np.ascontiguousarray(embeddings.split(name).embedding) for name in ("train", "test")
    )
    clusters = clustering.train.assignment
    distance = np.linalg.norm(test[:, None] - clustering.centroids, axis=2)
    predicted = embeddings.test.predicted
    labels = dataset.test.labels
    typical = most_typical(clustering.typicality, test, dataset.test.thumbnails)
    return [
        normalized_mutual_info_score(dataset.train.labels, clusters),
        normalized_mutual_info_score(labels, typical),
        normalized_mutual_info_score(labels, distance.argmin(axis=1)),
        normalized_mutual_info_score(labels, vote(train, clusters, test)),
        normalized_mutual_info_score(labels, predicted) if (predicted >= 0).any() else np.nan,
    ]


def score_run(run: Path) -> np.ndarray:
    """(R + 1, 5) NMI by round and way."""
    dataset = Dataset.load(run / "dataset")
    return np.array(
        [
            score_round(
                dataset, Embeddings.load(paths.embeddings), Clustering.load(paths.clustering)
            )
            for paths in map(RoundPaths.in_directory, loop.round_directories(run / "rounds"))
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="what `vitdc run --output` has written")
    runs = [score_run(run) for run in parser.parse_args().runs]
    print("| round | runs |" + "".join(f" {way} |" for way in WAYS))
    print("|---" * (2 + len(WAYS)) + "|")
    for number in range(max(map(len, runs))):
        there = np.array([run[number] for run in runs if len(run) > number])
        print(f"| {number} | {len(there)} |" + "".join(f" {m:.3f} |" for m in there.mean(axis=0)))


if __name__ == "__main__":
    main()
