"""How fast a served model answers, and whether it answers everything.

Starts `mlflow models serve` on a model directory, sends base64 PNGs of the held-out images of a
data set over several connections at once, and compares every answer with what the model says
without a server. Prints the percentiles of the time to an answer, and requests per second. Lost or
wrong answers end it with exit code 1.

    python benchmarks/serving.py --results results --dataset outputs/dataset
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import requests
from PIL import Image
from tqdm import tqdm

from vitdc.artifacts import Dataset
from vitdc.prediction import Prediction, Predictor, find_model_directory
from vitdc.tracking.packaging import write_mlflow_model


class Answer(NamedTuple):
    """One request: seconds it took, the HTTP status (0: none) and the row that came back."""

    seconds: float
    status: int
    row: dict[str, Any]


def main() -> int:
    arguments = parse_arguments()
    model = find_model_directory(arguments.results)
    images = np.asarray(Dataset.load(arguments.dataset).test.images[: arguments.requests])
    expected = Predictor.load(model).predict(images)
    bodies = [{"inputs": [as_base64(image)]} for image in images]
    with serving(model) as url:
        ask(url, bodies[0])  # loads what is loaded late
        start = time.perf_counter()
        answers = ask_all(
            url, bodies, num_requests=arguments.requests, connections=arguments.connections
        )
        seconds = time.perf_counter() - start
    return report(answers, expected, seconds=seconds, connections=arguments.connections)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--results", type=Path, default=Path("results"), metavar="DIR")
    parser.add_argument("--dataset", type=Path, default=Path("outputs/dataset"), metavar="DIR")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--connections", type=int, default=8)
    return parser.parse_args()


def as_base64(image: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(image.squeeze(axis=2) if image.shape[2] == 1 else image).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@contextmanager
def serving(model: Path) -> Iterator[str]:
    """`mlflow models serve` on the loopback interface; yields the address to ask."""
    with tempfile.TemporaryDirectory() as temporary:
        write_mlflow_model(model, Path(temporary, "model"))
        port = free_port()
        command = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local"]
        command += ["--model-uri", f"{temporary}/model", "--host", "127.0.0.1"]
        log = Path(temporary, "log")
        with log.open("w") as out:
            server = subprocess.Popen(
                [*command, "--port", str(port)], stdout=out, stderr=out, start_new_session=True
            )
        try:
            wait_for(f"http://127.0.0.1:{port}/ping", server, log)
            yield f"http://127.0.0.1:{port}/invocations"
        finally:
            os.killpg(server.pid, 15)
            server.wait()


def free_port() -> int:
    """Below the ports of outgoing connections, one of which might take it before the server."""
    while True:
        port = random.randrange(12000, 32000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port


def wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        if server.poll() is not None:
            break
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"the server did not start:\n{log.read_text()}")


_session = threading.local()


def ask(url: str, body: dict[str, Any]) -> Answer:
    """One request, over the connection of this thread."""
    if not hasattr(_session, "http"):
        _session.http = requests.Session()
    start = time.perf_counter()
    try:
        response = _session.http.post(url, json=body, timeout=120)
    except requests.RequestException:
        return Answer(time.perf_counter() - start, 0, {})
    seconds = time.perf_counter() - start
    row = response.json()["predictions"][0] if response.ok else {}
    return Answer(seconds, response.status_code, row)


def ask_all(
    url: str, bodies: list[dict[str, Any]], *, num_requests: int, connections: int
) -> list[Answer]:
    """Answers in the order of the requests, which go through the images again and again."""
    with ThreadPoolExecutor(connections) as threads:
        asked = threads.map(lambda n: ask(url, bodies[n % len(bodies)]), range(num_requests))
        return list(tqdm(asked, total=num_requests, unit="request"))


def is_right(answer: Answer, number: int, expected: Prediction) -> bool:
    at = number % len(expected.cluster)
    return (
        answer.row.get("cluster") == expected.cluster[at]
        and answer.row.get("unsure") == expected.unsure[at]
        and bool(np.isclose(answer.row["distance"], expected.distance[at], rtol=1e-4, atol=1e-6))
    )


def report(answers: list[Answer], expected: Prediction, *, seconds: float, connections: int) -> int:
    """Print the summary; 1 if an answer is lost or wrong."""
    lost = sum(answer.status != 200 for answer in answers)
    wrong = sum(
        answer.status == 200 and not is_right(answer, number, expected)
        for number, answer in enumerate(answers)
    )
    p50, p95, p99 = np.percentile([1000 * answer.seconds for answer in answers], (50, 95, 99))
    print(f"{len(answers)} requests over {connections} connections: {lost} lost, {wrong} wrong")
    print(f"p50 {p50:.0f} ms, p95 {p95:.0f} ms, p99 {p99:.0f} ms")
    print(f"{len(answers) / seconds:.0f} requests per second")
    return int(lost + wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
