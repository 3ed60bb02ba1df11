"""What recording costs: the same training with and without MLflow, alternating.

    python benchmarks/tracking_overhead.py --repeats 5 --epochs 40

A local MLflow server (SQLite) takes the records, so its own work counts, too. Seconds are those of
the training alone; opening the run and delivering the rest at the end are shown beside them.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from vitdc import steps, tracking
from vitdc.artifacts import Dataset
from vitdc.config import Params


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """A server on the loopback interface; yields its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = f"--backend-store-uri sqlite:///{folder}/mlflow.db --artifacts-destination {folder}/a"
    options += f" --host 127.0.0.1 --port {port} --workers 1"
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", *options.split()],
        env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(f"http://127.0.0.1:{port}", process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def wait_for(uri: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        if process.poll() is not None:
            sys.exit("the MLflow server did not start")
        try:
            urllib.request.urlopen(f"{uri}/health", timeout=5).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    sys.exit("the MLflow server does not answer")


def train(params: Params, dataset: Path, output: Path) -> tuple[float, float]:
    """Seconds of the training, and of everything else that recording needs."""
    images = Dataset.load(dataset)
    start = time.perf_counter()
    with tracking.open_tracker(
        params, dataset_name=images.name, content_hash=images.content_hash
    ) as tracker:
        begun = time.perf_counter()
        steps.pretrain(
            dataset=dataset,
            model=params.model,
            pretraining=params.pretraining,
            compute=params.compute,
            seed=params.seed,
            output=output,
            watcher=tracker,
        )
        trained = time.perf_counter() - begun
    return trained, time.perf_counter() - start - trained


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=40)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        params = Params.parse({"pretraining": {"epochs": options.epochs}}, where="benchmark")
        steps.prepare(data=params.data, output=folder / "dataset")
        seconds: dict[bool, list[float]] = {True: [], False: []}
        beside: list[float] = []
        with mlflow_server(folder) as uri:
            os.environ |= {"MLFLOW_TRACKING_URI": uri, "VITDC_OUTBOX": str(folder / "outbox")}
            train(params, folder / "dataset", folder / "warm")  # imports, caches
            for number in tqdm(range(options.repeats), desc="pairs", unit="pair"):
                for tracked in (True, False) if number % 2 else (False, True):
                    values = {"enabled": tracked, "experiment": f"run-{number}"}
                    run = params.model_copy(
                        update={"tracking": params.tracking.model_copy(update=values)}
                    )
                    trained, other = train(run, folder / "dataset", folder / "out")
                    seconds[tracked].append(trained)
                    beside += [other] if tracked else []
    report(seconds, beside)


def report(seconds: dict[bool, list[float]], beside: list[float]) -> None:
    pairs = zip(seconds[True], seconds[False], strict=True)
    ratios = sorted(tracked / plain - 1 for tracked, plain in pairs)
    print("| training | median s | lowest | highest |\n|---|---|---|---|")
    for name, tracked in (("not recorded", False), ("recorded", True)):
        found = seconds[tracked]
        print(f"| {name} | {statistics.median(found):.2f} | {min(found):.2f} | {max(found):.2f} |")
    print(
        f"\noverhead, per pair: median {statistics.median(ratios):+.2%}, from {ratios[0]:+.2%} to"
        f" {ratios[-1]:+.2%}; beside the training: {statistics.median(beside):.2f} s to open the"
        " run and to deliver the rest"
    )


if __name__ == "__main__":
    main()
