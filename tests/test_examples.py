"""The notebooks run from top to bottom, and are kept without what they printed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


class ThisPython(AsyncKernelManager):  # type: ignore[misc]
    """Starts the interpreter of the tests; no kernel has to be installed anywhere."""

    @property
    def kernel_spec(self) -> KernelSpec:
        command = ["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=command, language="python", display_name="tests")


def text(notebook: Any) -> str:
    """All that the cells printed and showed."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            assert output.output_type != "error"
            found.append(output.get("text") or output.get("data", {}).get("text/plain", ""))
    return "".join(found)


def test_there_are_notebooks() -> None:
    assert [path.name for path in NOTEBOOKS] == ["digits.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_kept_without_outputs(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert all(cell.metadata == {} for cell in notebook.cells)


@pytest.mark.slow
@pytest.mark.usefixtures("warm_path")
def test_the_digits_are_clustered_as_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("OMP_WAIT_POLICY", os.environ.get("OMP_WAIT_POLICY", "PASSIVE"))
    work = tmp_path / "work"
    work.mkdir()
    notebook = read(ROOT / "examples" / "digits.ipynb")
    client = NotebookClient(
        notebook,
        timeout=500,
        kernel_manager_class=ThisPython,
        resources={"metadata": {"path": str(work)}},
    )
    client.execute()
    if place := os.environ.get("VITDC_KEEP_NOTEBOOKS"):
        nbformat.write(notebook, Path(place) / "digits.ipynb")
    shown = text(notebook)
    assert "stopped: " in shown
    table = next(
        output.data["text/plain"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "k-means on pixels" in output.get("data", {}).get("text/plain", "")
    )
    scores = {line.rsplit(maxsplit=1)[0].strip(): line.split()[-1] for line in table.splitlines()}
    assert float(scores["DeepClustering"]) > float(scores["k-means on pixels"])
    assert list(work.iterdir()) == []
