"""What stands for a fresh Python behaves like one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from processes import wait_until

pytestmark = pytest.mark.usefixtures("warm_path")

PRINT = """
import os, sys, threading
print(sys.argv, os.getcwd(), os.environ["GIVEN"], sys.path[0], sys.stdin.read())
print(sorted({"torch", "mlflow", "vitdc"} & set(sys.modules)), file=sys.stderr)
threading.Timer(0.05, print, ["late"]).start()
sys.exit(7)
"""


def test_arguments_environment_streams_and_exit_code_are_those_of_a_process(tmp_path: Path) -> None:
    def call(python: str) -> Any:
        environment = {**os.environ, "GIVEN": "this one"}
        command = [python, "-c", PRINT, "a", "--b"]
        options: Any = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
        return subprocess.run(command, input="typed", check=False, **options)

    fresh, warm = call(sys.executable), call("python")
    assert (warm.returncode, warm.stdout) == (fresh.returncode, fresh.stdout)
    assert warm.returncode == 7
    assert (fresh.stderr, warm.stderr) == ("[]\n", "['mlflow', 'torch', 'vitdc']\n")


def test_an_error_is_shown_with_its_traceback() -> None:
    done = subprocess.run(["python", "-c", "1 / 0"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_signals_reach_it_and_it_dies_with_what_stands_for_it(number: int) -> None:
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    command = ["python", "-c", code]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout
        job = int(process.stdout.readline())
        assert job != process.pid
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert ("KeyboardInterrupt" in errors) == (number == signal.SIGINT)
    assert process.returncode == -number
    wait_until(lambda: not Path(f"/proc/{job}").exists())


def test_programs_and_modules_are_found_and_start_further_ones() -> None:
    inner = "import os, sys; print(sys.modules['__main__'].__name__, 'torch' in sys.modules)"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    for command in (["vitdc", "--version"], ["python", "-m", "json.tool", "-h"]):
        assert subprocess.check_output(command)
    assert subprocess.check_output(["python", "-c", outer], text=True) == "__main__ True\n"


def test_a_sitecustomize_is_loaded_and_other_options_get_a_fresh_python(tmp_path: Path) -> None:
    code = "import sys; print('torch' in sys.modules, getattr(sys, 'site', ''))"
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.site = 'mine'")
    for options, path, said in (
        ([], "", "True \n"),
        (["-I"], "", "False \n"),
        ([], str(tmp_path), "True mine\n"),
    ):
        environment = {**os.environ, "PYTHONPATH": path}
        command = ["python", *options, "-c", code]
        assert subprocess.check_output(command, env=environment, text=True) == said
