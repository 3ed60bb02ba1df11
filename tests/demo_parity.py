"""Every runner gives what `make demo` gave with DVC; CI runs this after the demo, by name.

tests/containers holds the container runner to the same.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SAME = ("clusters.csv", "rounds.csv", "metrics.json", "report.html")

pytestmark = pytest.mark.timeout(900)

RUNNERS = {
    "one process": ("vitdc.cli", ["run", "--output", "out"], "out/results"),
    "KFP's process runner": ("pipelines.cli", ["run", "--output", "out"], "out"),
}


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_runner_gives_the_bytes_that_dvc_repro_gave(runner: str, tmp_path: Path) -> None:
    module, arguments, results = RUNNERS[runner]
    options = ["--params", str(ROOT / "params.yaml"), "-S", "tracking.enabled=false"]
    done = subprocess.run(
        [sys.executable, "-c", f"from {module} import main; main()", *arguments, *options],
        cwd=tmp_path,
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for name in SAME:
        expected = (ROOT / "results" / name).read_bytes()
        assert (tmp_path / results / name).read_bytes() == expected, name
