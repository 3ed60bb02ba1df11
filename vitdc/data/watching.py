"""Whether DVC notices that images change: it looks only at what its stage names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import yaml

from vitdc.config import DataConfig
from vitdc.data.opening import FOLDER
from vitdc.data.s3 import SCHEME


def unwatched(config: DataConfig) -> str:
    """What to do about images that the DVC stage reads and does not watch; empty if all is well.

    DVC runs a stage in the directory of its dvc.yaml, and says in DVC_STAGE which one it is.
    """
    stage = os.environ.get("DVC_STAGE", "").rpartition(":")[2]
    if not stage:
        return ""
    if config.source == FOLDER and config.root:
        table = str(Path(config.root, config.labels_file)) if config.labels_file else ""
        for name, path, what in (
            ("root", config.root, "its images change"),
            ("labels_file", table, "it changes"),
        ):
            if path and not _is_dependency(path, stage):
                return (
                    f"data.{name}: DVC does not watch {path}, so `dvc repro` will not notice that"
                    f" {what}; add `deps: [{path}]` to the stage {stage} in dvc.yaml"
                )
    if config.source.startswith(SCHEME):
        return (
            f"data.source: DVC does not watch {config.source}, so `dvc repro` will not notice that"
            " its images change; `dvc import-url` makes it a folder that it watches"
        )
    return ""


def _is_dependency(folder: str, stage: str) -> bool:
    """Whether the stage depends on the folder, or on one around it."""
    stages = yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"]
    if stage not in stages:  # one of a `matrix`, whose dependencies DVC fills in
        return True
    named = stages[stage].get("deps") or ()
    dependencies = [next(iter(d)) if isinstance(d, Mapping) else str(d) for d in named]
    path = Path(folder).absolute()
    return any("${" in d or path.is_relative_to(Path(d).absolute()) for d in dependencies)
