"""`make clean` removes what can be made again, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
MADE = (
    "results/report.html",
    "outputs/rounds/01/round/artifact.json",
    "outputs/mine/results/metrics.json",
    ".kfp/cache/entry",
    ".kfp/containers/artifacts/state",
    ".scratch/pretrain/state.pt",
)
KEPT = (
    "data/images/cat/1.png",
    "mlflow.db",
    "mlartifacts/1/report.html",
    "results.annotations.json",
    "outputs/mine/results.annotations.json",
    ".kfp/containers/mlflow.db",
    ".kfp/containers/mlartifacts/1/report.html",
    ".dvc/cache/files/md5/aa/bb",
)


def test_clean_keeps_what_people_typed_and_what_was_recorded(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in (*MADE, *KEPT):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for _ in range(2):  # the second time there is nothing to do
        subprocess.run(["make", "clean"], cwd=tmp_path, check=True, capture_output=True)
    left = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if not p.is_dir()}
    assert left == {"Makefile", *KEPT}
    assert not (tmp_path / "outputs" / "rounds").exists()
