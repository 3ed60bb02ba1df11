"""Which code runs: a hash that is the same wherever the same vitdc is installed."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from pathlib import Path

PACKAGE = Path(__file__).parent
SUFFIXES = (".py", ".j2", ".css")
LIBRARIES = ("faiss-cpu", "numpy", "scikit-learn", "timm", "torch", "torchvision")


def code_version() -> str:
    """Hash of the files of vitdc and components, and of the libraries that results depend on.

    What only shows results (`explore`) is left out: none depends on it.
    """
    state = hashlib.sha256()
    components = PACKAGE.parent / "components"
    for path in sorted([*PACKAGE.rglob("*"), *components.rglob("*")]):
        if path.suffix in SUFFIXES and PACKAGE / "explore" not in path.parents:
            state.update(f"{path.relative_to(PACKAGE.parent).as_posix()}\0".encode())
            state.update(hashlib.sha256(path.read_bytes()).digest())
    for name in LIBRARIES:
        state.update(f"{name}=={version(name)}\0".encode())
    return state.hexdigest()[:16]
