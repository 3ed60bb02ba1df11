"""The whole pipeline on the digits, a hardened container per task, as a cluster would run it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
IMAGE = "-Skubernetes.image=localhost/vitdc:test"
SAME = ("clusters.csv", "rounds.csv", "metrics.json", "report.html")


def pipelines(
    directory: Path, *arguments: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    environment |= variables
    return subprocess.run(
        [sys.executable, "-m", "pipelines", *arguments],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def project(tmp_path: Path, image: str, docker_host: str) -> Path:
    """A directory with the parameters of the demo, from which containers are started."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    for parent in (tmp_path, *tmp_path.parents[:2]):  # pytest's are for root alone
        parent.chmod(0o755)
    return tmp_path


def test_the_digits_pipeline_gives_in_containers_what_it_gives_in_one_process(
    project: Path,
) -> None:
    done = pipelines(project, "run", "--runner", "container", "--output", "inside", IMAGE)
    assert done.returncode == 0, done.stdout + done.stderr
    vitdc = Path(sys.executable).with_name("vitdc")
    outside = [vitdc, "run", "--output", "outside", "-S", "tracking.enabled=false"]
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    subprocess.run(outside, cwd=project, env=environment, check=True, capture_output=True)
    for name in SAME:
        inside = (project / "inside" / name).read_bytes()
        assert inside == (project / "outside" / "results" / name).read_bytes(), name
    assert json.loads((project / "inside" / "metrics.json").read_text())["test"]["nmi"] >= 0.9
    assert (project / ".kfp" / "containers" / "mlflow.db").stat().st_uid == 10001


def test_an_image_with_other_code_than_the_pipeline_is_refused(project: Path) -> None:
    """Its results would be cached as those of the code that the pipeline was compiled from."""
    (project / "patch").mkdir()
    patch = "from vitdc import code\ncode.code_version = lambda: 'newer'\n"
    (project / "patch" / "sitecustomize.py").write_text(patch)
    done = pipelines(
        project, "run", "--runner", "container", "--output", "out", IMAGE,
        PYTHONPATH=str(project / "patch"),
    )  # fmt: skip
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert "prepare: kubernetes.image: holds other code" in line
    assert "make image" in line


def test_a_container_that_fails_at_once_is_a_failure(project: Path) -> None:
    """KFP's own runner takes a container that is gone already for a success."""
    (project / "empty").mkdir()
    done = pipelines(
        project, "run", "--runner", "container", "--output", "out", IMAGE,
        "-S", "data={source: folder, root: empty, image_size: 8}",
    )  # fmt: skip
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert "find the data: " in line
    assert str(project / "empty") in line
    assert not (project / "out").exists()


def test_a_folder_of_images_is_seen_in_the_containers(project: Path) -> None:
    for number in range(20):
        image = project / "images" / ("cat", "dog")[number % 2] / f"{number}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(image)
    done = pipelines(
        project, "run", "--runner", "container", "--output", "out", IMAGE,
        "-S", "data={source: folder, root: images, image_size: 8}",
        "-S", "pretraining.epochs=1", "-S", "joint.epochs=1", "-S", "convergence.max_rounds=1",
        "-S", "clustering.num_clusters=2",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert (project / "out" / "clusters.csv").read_text().count(".png") == 20


def test_a_database_file_that_containers_cannot_see_is_refused(project: Path) -> None:
    environment = {"MLFLOW_TRACKING_URI": "sqlite:///mlflow.db"}
    done = pipelines(
        project, "run", "--runner", "container", "--output", "out", IMAGE, **environment
    )
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert "containers do not see a database file" in line


def test_an_image_that_does_not_exist_is_told_in_one_line(project: Path) -> None:
    image = "-Skubernetes.image=localhost/no-such-image:1"
    done = pipelines(project, "run", "--runner", "container", "--output", "out", image)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert "there is no image localhost/no-such-image:1" in line
    assert "make image" in line
