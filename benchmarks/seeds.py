"""The README's result table: several seeds, the control without the clustering loss, the floor.

    python benchmarks/seeds.py --seeds 5 --output outputs/seeds
    python benchmarks/seeds.py --first 10 --output outputs/unlabelled -S data.labels=none

For every seed: pixel k-means, the initial training alone (round 0), the method, and the method
with gamma = 0 for the same number of rounds from the same round 0. The control has the same
number of epochs, batches and random streams, so the paired difference is what the clustering loss
itself brings. All scores are on held-out images, which are the same for all seeds.
"""

import argparse
import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np

from vitdc import loop, steps
from vitdc.artifacts import Clustering, Dataset, RoundPaths
from vitdc.config import Params
from vitdc.evaluation import score_pixels
from vitdc.seeding import derive_seed

METHODS = ("pixel k-means", "initial training (round 0)", "gamma = 0, same epochs", "vitdc")


def run_control(dataset: Path, start: Path, params: Params, *, rounds: int, work: Path) -> Path:
    """Retrain with gamma = 0 for so many rounds; returns the last Clustering."""
    joint = params.joint.model_copy(update={"gamma": 0.0})
    shared = {"dataset": dataset, "compute": params.compute, "seed": params.seed}
    before = RoundPaths.in_directory(start)
    for number in range(1, rounds + 1):
        here = RoundPaths.in_directory(work / f"{number:02d}")
        steps.retrain(
            checkpoint=before.checkpoint,
            clustering=before.clustering,
            joint=joint,
            output=here.checkpoint,
            **shared,
        )
        steps.embed(
            dataset=dataset,
            checkpoint=here.checkpoint,
            compute=params.compute,
            output=here.embeddings,
        )
        steps.cluster(
            embeddings=here.embeddings,
            previous=before.clustering,
            clustering=params.clustering,
            output=here.clustering,
            **shared,
        )
        before = here
    return before.clustering


def run_seed(dataset: Path, params: Params, work: Path) -> dict[str, Any]:
    """Scores of every method for one seed, and how the rounds ended."""
    shared = {"dataset": dataset, "compute": params.compute, "seed": params.seed}
    started = time.process_time()
    steps.pretrain(
        model=params.model, pretraining=params.pretraining, output=work / "pretrained", **shared
    )
    history = loop.refine(
        checkpoint=work / "pretrained",
        clustering=params.clustering,
        joint=params.joint,
        convergence=params.convergence,
        output=work / "rounds",
        **shared,
    )
    cpu_seconds = time.process_time() - started
    first, best = (
        RoundPaths.in_directory(work / "rounds" / f"{number:02d}").clustering
        for number in (0, history.best_round)
    )
    control = run_control(
        dataset, work / "rounds" / "00", params, rounds=history.best_round, work=work / "control"
    )
    scores = [Clustering.load(path).scores for path in (first, control, best)]
    pixels = score_pixels(
        Dataset.load(dataset), params.clustering, seed=derive_seed(params.seed, "pixels")
    )
    return {
        "seed": params.seed,
        "nmi": dict(zip(METHODS, [pixels["test"].nmi, *(s.test.nmi for s in scores)], strict=True)),
        "inertia": dict(zip(METHODS[1:], (s.inertia for s in scores), strict=True)),
        "silhouette": dict(zip(METHODS[1:], (s.silhouette for s in scores), strict=True)),
        "cpu_seconds": cpu_seconds,
        "rounds": history.current.round,
        "stop_reason": history.verdict,
    }


def print_table(rows: list[dict[str, Any]], score: str, title: str) -> None:
    """Mean, spread and extremes of a score over the seeds, as Markdown."""
    print(f"\n| {title} | mean | std | lowest | highest |\n|---|---|---|---|---|")
    for method in rows[0][score]:
        values = np.array([row[score][method] for row in rows])
        cells = (values.mean(), values.std(ddof=1), values.min(), values.max())
        print(f"| {method} | " + " | ".join(f"{cell:.3f}" for cell in cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("-S", "--set", action="append", default=[], metavar="KNOB=VALUE")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    params = Params.load(options.params, options.set)
    dataset = options.output / "dataset"
    steps.prepare(data=params.data, output=dataset)
    rows = []
    for seed in range(options.first, options.first + options.seeds):
        work = options.output / str(seed)
        rows.append(run_seed(dataset, params.model_copy(update={"seed": seed}), work))
        print(json.dumps(rows[-1]), flush=True)
    print_table(rows, "nmi", f"test NMI, {options.seeds} seeds")
    print_table(rows, "inertia", "mean squared distance to the centroid, training images")
    print_table(rows, "silhouette", "silhouette, training images")
    gain = np.array([row["nmi"][METHODS[-1]] - row["nmi"][METHODS[-2]] for row in rows])
    error = gain.std(ddof=1) / np.sqrt(len(gain))
    print(f"\npaired gain of the clustering loss in test NMI: {gain.mean():+.3f} +- {error:.3f}")
    print(f"stopped by: {[row['stop_reason'] for row in rows]}")
    print(f"CPU seconds of a run: {[round(row['cpu_seconds']) for row in rows]}")


if __name__ == "__main__":
    main()
