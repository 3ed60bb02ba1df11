"""How many images that are no digits a digits model calls unsure, and how many digits.

    python benchmarks/unsure.py --output outputs/unsure

Runs the default parameters on 5 splits of the digits (`data.seed`), a minute and a half each; runs
that are there are kept. False alarms are counted on one half of the held-out digits with the limit
from the other half, 50 times, because the limit that `vitdc predict` uses comes from all of them.
Fashion-MNIST is that of Debian's package `dataset-fashion-mnist`.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from vitdc.artifacts import Dataset
from vitdc.data.arrays import read_idx, resized
from vitdc.prediction import UNSURE_RATE, Predictor
from vitdc.typicality import limit

FASHION = Path("/usr/share/datasets/fashion-mnist/t10k-images-idx3-ubyte.gz")
NUM_NOISE = 1000
HALVES = 50


def run(output: Path, seed: int) -> None:
    """The whole method on one split, unless it is there."""
    if not (output / "results" / "artifact.json").exists():
        options = [f"seed={seed}", f"data.seed={seed}"]
        options += ["tracking.enabled=false"]
        command = [sys.executable, "-c", "from vitdc.cli import main; main()", "run"]
        command += ["--output", str(output)] + [part for o in options for part in ("-S", o)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def strange_images(digits: np.ndarray) -> dict[str, np.ndarray]:
    """Images unlike the digits, (N, 8, 8, 1) uint8 by name."""
    random = np.random.default_rng(0)
    fashion = read_idx(FASHION, "images-idx3")[..., None]
    shuffled = random.permuted(digits.reshape(len(digits), -1), axis=1)
    return {
        "Fashion-MNIST": resized(fashion, digits.shape[1:]),
        "Fashion-MNIST, inverted": resized(255 - fashion, digits.shape[1:]),
        "noise": random.integers(0, 256, (NUM_NOISE, *digits.shape[1:]), dtype=np.uint8),
        "digits, inverted": 255 - digits,
        "digits, pixels shuffled": shuffled.reshape(digits.shape),
        "digits, turned by 90 degrees": np.ascontiguousarray(np.rot90(digits, axes=(1, 2))),
        "black, white, grey": np.stack([np.full(digits.shape[1:], v, "u1") for v in (0, 255, 128)]),
    }


def false_alarms(predictor: Predictor) -> float:
    """Share of held-out images called unsure by a limit that comes from others."""
    values, random = np.array(predictor.clustering.test.atypicality), np.random.default_rng(0)
    shares = []
    for _ in range(HALVES):
        one, other = np.array_split(random.permutation(values), 2)
        shares.append((other > limit(one, rate=UNSURE_RATE)).mean())
    return float(np.mean(shares))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    shares: dict[str, list[float]] = {}
    for seed in tqdm(range(options.seeds), desc="runs"):
        directory = options.output / str(seed)
        run(directory, seed)
        predictor = Predictor.load(directory / "results")
        shares.setdefault("digits that were held out", []).append(false_alarms(predictor))
        for name, images in strange_images(Dataset.load(directory / "dataset").test.images).items():
            shares.setdefault(name, []).append(float(predictor.predict(images).unsure.mean()))
    print(f"\n| share called unsure | mean | lowest | highest |\n|{'---|' * 4}")
    for name, found in shares.items():
        print(f"| {name} | {np.mean(found):.1%} | {min(found):.1%} | {max(found):.1%} |")


if __name__ == "__main__":
    main()
