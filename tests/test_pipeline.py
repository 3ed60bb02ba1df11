"""The runners, for real and small: DVC in a repository of its own, and one process.

One `dvc repro` serves most tests; each says what a person would do next and what must then hold.
"""

import csv
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from toys import SMALL_PARAMS

ROOT = Path(__file__).parent.parent

pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("warm_path")]


def call(directory: Path, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command of this environment in `directory`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    result = subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, check=False
    )
    assert not check or result.returncode == 0, result.stdout + result.stderr
    return result


def make_repository(directory: Path) -> Path:
    """A git and DVC repository with this project's pipeline and small parameters."""
    directory.mkdir()
    shutil.copy(ROOT / "dvc.yaml", directory)
    shutil.copy(ROOT / ".gitignore", directory)
    (directory / "params.yaml").write_text(yaml.safe_dump(SMALL_PARAMS))
    call(directory, "git", "init", "--quiet")
    call(directory, "git", "config", "user.email", "test@example.org")
    call(directory, "git", "config", "user.name", "test")
    call(directory, "dvc", "init", "--quiet")
    call(directory, "dvc", "config", "core.analytics", "false")
    shutil.copytree(ROOT / ".dvc" / "plots", directory / ".dvc" / "plots", dirs_exist_ok=True)
    call(directory, "git", "add", "--all")
    call(directory, "git", "commit", "--quiet", "--message", "start")
    return directory


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository after its first `dvc repro`, committed."""
    directory = make_repository(tmp_path_factory.mktemp("pipeline") / "project")
    call(directory, "dvc", "repro")
    call(directory, "git", "add", "--all")
    call(directory, "git", "commit", "--quiet", "--message", "first run")
    return directory


def active_runs(directory: Path) -> list[str]:
    with sqlite3.connect(directory / "mlflow.db") as connection:
        query = "SELECT status FROM runs WHERE lifecycle_stage = 'active'"
        return [status for (status,) in connection.execute(query)]


def test_repro_leaves_the_results_people_read(repository):
    results = repository / "results"
    metrics = json.loads((results / "metrics.json").read_text())
    assert set(metrics) >= {"test", "train", "head_accuracy", "rounds", "best_round", "stop_reason"}
    rows = list(csv.DictReader((results / "rounds.csv").open()))
    assert [row["round"] for row in rows] == ["0", "1", "2"][: len(rows)]
    assert len(list(csv.DictReader((results / "clusters.csv").open()))) == 400
    assert (results / "report.html").exists()
    assert active_runs(repository) == ["FINISHED"]


def test_a_second_repro_has_nothing_to_do(repository):
    assert "up to date" in call(repository, "dvc", "repro").stdout
    assert active_runs(repository) == ["FINISHED"]


def test_dvc_shows_metrics_and_plots(repository):
    shown = call(repository, "dvc", "metrics", "show", "--json").stdout
    assert "results/metrics.json" in shown
    call(repository, "dvc", "plots", "show")
    page = (repository / "dvc_plots" / "index.html").read_text()
    for column in ("nmi_test", "loss", "changed"):
        assert column in page
    assert "!== ''" in page  # the template leaves empty cells out; DVC's own would draw zeros


def test_one_process_gives_the_same_bytes_as_dvc(repository, tmp_path):
    call(repository, "vitdc", "run", "--output", str(tmp_path), "-S", "tracking.enabled=false")
    for name in ("clusters.csv", "rounds.csv", "metrics.json", "report.html"):
        assert (tmp_path / "results" / name).read_bytes() == (
            repository / "results" / name
        ).read_bytes(), name


def test_another_seed_gives_other_clusters(repository, tmp_path):
    overrides = ("-S", "seed=1", "-S", "tracking.enabled=false")
    call(repository, "vitdc", "run", "--output", str(tmp_path), *overrides)
    other = (tmp_path / "results" / "clusters.csv").read_bytes()
    assert other != (repository / "results" / "clusters.csv").read_bytes()


def test_another_gamma_reruns_only_the_rounds_and_is_a_second_mlflow_run(repository):
    first = (repository / "results" / "metrics.json").read_text()
    told = call(repository, "dvc", "exp", "run", "-S", "joint.gamma=0").stdout
    for stage, ran in {"prepare": False, "pretrain": False, "refine": True}.items():
        assert (f"Running stage '{stage}'" in told) == ran
    assert (repository / "results" / "metrics.json").read_text() != first
    assert active_runs(repository) == ["FINISHED", "FINISHED"]
    assert "loss" in call(repository, "dvc", "metrics", "diff").stdout

    call(repository, "git", "checkout", "--quiet", "--", "params.yaml", "dvc.lock")
    call(repository, "dvc", "repro")  # every stage comes from the cache
    assert (repository / "results" / "metrics.json").read_text() == first
    assert active_runs(repository) == ["FINISHED", "FINISHED"]


def test_an_interrupted_repro_leaves_nothing_half_written_and_can_be_repeated(tmp_path):
    directory = make_repository(tmp_path / "project")
    call(directory, "dvc", "repro", "pretrain")
    arguments = ("--dataset", "outputs/dataset", "--checkpoint", "outputs/pretrained")
    command = [
        "vitdc", "refine", *arguments, "--output", "outputs/rounds",
        "--scratch", ".scratch", "-S", "joint.epochs=100000",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 300
        while not list((directory / ".scratch").glob("refine-*/training/*/artifact.json")):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline, "no epoch was finished"
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in errors
    left = {path.name for path in (directory / "outputs").iterdir()} - {".gitignore"}
    assert left == {"dataset", "pretrained"}
    assert sorted(active_runs(directory)) == ["FAILED", "RUNNING"]  # refine's; that of pretrain
    call(directory, "dvc", "repro")
    assert (directory / "results" / "metrics.json").exists()
