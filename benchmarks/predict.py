"""How fast `vitdc predict` is, what memory it takes, and when the first row comes.

    python benchmarks/predict.py --output outputs/predict-benchmark

Throughput: 10,000 PNGs in the page cache, against decoding alone on all cores and against the bare
forward pass, alternating in one process. What counts is the ratio to the slower of the two. Where
both take about equally long, the cores cannot do the work of both in the time of one; so the ratio
to what they can do is shown, too. Memory: the peak of the largest process at 1,000 and at 50,000
images. First row: one image, imports included.

The images are those of Fashion-MNIST (Debian's package `dataset-fashion-mnist`); where it is
missing, random blobs of the same size. Unless --model names a model, one is trained on a few of
them, which takes a minute: timm's ViT-tiny (12 layers of width 192, the default of `model`), or
with --size small that of params/fashion-mnist.yaml (2 layers of width 64).
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter
from tqdm import tqdm

from vitdc.config import ComputeConfig
from vitdc.data.arrays import read_idx
from vitdc.data.decoding import num_cores
from vitdc.inference import (
    default_threads,
    find_model,
    list_images,
    predict_files,
    read_batches,
    wanted_pixels,
    write_rows,
)
from vitdc.prediction import Predictor

FASHION = Path("/usr/share/datasets/fashion-mnist")
VITDC = [sys.executable, "-c", "from vitdc.cli import main; main()"]
TRAINING = [
    *("-S", "data.max_train=500", "-S", "data.max_test=200", "-S", "pretraining.epochs=1"),
    *("-S", "convergence.max_rounds=1"),
    *("-S", "tracking.enabled=false"),
]


def make_images(folder: Path, number: int) -> Path:
    """`number` PNGs of 28 x 28 pixels; those that are there are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [i for i in range(number) if not (folder / f"{i:05}.png").exists()]
    if missing:
        file = FASHION / "train-images-idx3-ubyte.gz"
        images = read_idx(file, "images-idx3") if file.exists() else None
        for index in tqdm(missing, desc=f"make {folder}", unit=" images"):
            pixels = blob(index) if images is None else Image.fromarray(images[index])
            pixels.save(folder / f"{index:05}.png")
    return folder


def blob(seed: int) -> Image.Image:
    """A blurred square in the middle of noise."""
    random = np.random.default_rng(seed)
    image = random.integers(0, 30, (28, 28), dtype=np.uint8)
    image[6:22, 6:22] += random.integers(50, 200, dtype=np.uint8)
    return Image.fromarray(image).filter(ImageFilter.GaussianBlur(1))


def train_model(output: Path, size: str) -> Path:
    if not (output / "results" / "artifact.json").exists():
        params = ["--params", "params/fashion-mnist.yaml"]
        if not FASHION.exists():
            raise SystemExit(f"{FASHION} is missing; name a model of 28 x 28 images with --model")
        tiny = ["embed_dim=null", "depth=null", "num_heads=null", "patch_size=4"]
        shape = [part for s in tiny for part in ("-S", f"model.{s}")] if size == "tiny" else []
        command = [*VITDC, "run", *params, "--output", str(output), *TRAINING, *shape]
        subprocess.run(command, check=True)
    return output / "results"


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def throughput(model: Path, folder: Path, *, repeats: int, num_threads: int) -> None:
    """Print images per second of all three, and the ratio that counts."""
    compute = ComputeConfig(num_threads=num_threads)
    predictor = Predictor.load(model, compute)
    listings = list_images([str(folder)])
    pixels = wanted_pixels(predictor.checkpoint)
    sizes: dict[str, Any] = {"batch_size": compute.embedding_batch_size, "num_workers": num_cores()}
    images = np.concatenate([b.images for b in read_batches(listings, pixels, **sizes)])

    def decode() -> None:
        for _ in read_batches(listings, pixels, **sizes):
            pass

    def predict() -> None:
        results = predict_files(listings, lambda: predictor, pixels, **sizes)
        silent: dict[str, Any] = {"on_unreadable": print, "on_progress": lambda _: None}
        write_rows(io.StringIO(), results, None, **silent)

    works = {
        "decode alone": decode,
        "forward alone": lambda: predictor.embed(images),
        "predict": predict,
    }
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in tqdm(range(repeats), desc="throughput", unit=" rounds"):
        for name, work in works.items():
            times[name].append(seconds(work))
    print(f"\n{len(images)} images, {num_cores()} cores, {num_threads} threads of the model")
    for name in works:
        print(f"  {name:14} {len(images) / statistics.median(times[name]):8.0f} images/s")
    # decoding alone keeps all cores busy, and whoever does both has the work of both
    pairs = list(zip(times["decode alone"], times["forward alone"], strict=True))
    share = num_threads / num_cores()
    for name, bounds in (
        ("the slower of the two", [max(pair) for pair in pairs]),
        ("what the cores can do", [max(d, f, d + f * share) for d, f in pairs]),
    ):
        ratios = [b / t for b, t in zip(bounds, times["predict"], strict=True)]
        print(f"  predict reaches {statistics.median(ratios):.0%} of {name}")


def peak_memory(arguments: list[str]) -> float:
    """MiB of the largest process of a command that must succeed."""
    process = subprocess.Popen([*VITDC, *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{arguments} ended with {process.returncode}")
    return usage.ru_maxrss / 1024


def first_row(arguments: list[str]) -> float:
    """Seconds until the first row of a command is there."""
    start = time.perf_counter()
    with subprocess.Popen([*VITDC, *arguments], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.readline()
        elapsed = time.perf_counter() - start
        process.stdout.read()
    return elapsed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="for images and the model")
    parser.add_argument("--model", type=Path, help="a results or model directory")
    parser.add_argument("--images", type=int, default=10_000, help="of the throughput")
    parser.add_argument("--many", type=int, default=50_000, help="of the larger memory")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--size", choices=["small", "tiny"], default="tiny", help="of the model, if none is named"
    )
    parser.add_argument("--num-threads", type=int, help="of the model; as `vitdc predict` chooses")
    options = parser.parse_args()

    model = options.model or train_model(options.output / options.size, options.size)
    folder = make_images(options.output / f"{options.images}", options.images)
    few = make_images(options.output / "1000", 1000)
    many = make_images(options.output / f"{options.many}", options.many)

    num_threads = options.num_threads or default_threads(find_model(str(model)).directory)
    throughput(model, folder, repeats=options.repeats, num_threads=num_threads)
    threads = ["--num-threads", str(num_threads)]
    peaks = [peak_memory(["predict", str(model), str(each), *threads]) for each in (few, many)]
    print(f"peak memory: {peaks[0]:.0f} MiB at 1000 images, {peaks[1]:.0f} MiB at {options.many}")
    print(f"  ratio {peaks[1] / peaks[0]:.3f}")
    one = ["predict", str(model), str(folder / "00000.png")]
    latencies = [first_row(one) for _ in range(options.repeats)]
    print(f"first row of one image: median {statistics.median(latencies):.2f} s, each", end=" ")
    print(", ".join(f"{latency:.2f}" for latency in latencies))


if __name__ == "__main__":
    main()
