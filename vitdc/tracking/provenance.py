"""Who and what made a run: code, image, user, and the hashes that DVC knows data and models by."""

from __future__ import annotations

import getpass
import os
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from vitdc import __version__
from vitdc.errors import mask_credentials

IMAGE_VARIABLE = "VITDC_IMAGE"
"""The image that a task runs in, with its digest if it is referred to by one."""


def code_tags() -> dict[str, str]:
    """Tags under MLflow's own names where it has them; what cannot be found out is left out."""
    tags = {"vitdc.version": __version__, "mlflow.source.name": "vitdc"}
    with suppress(KeyError, OSError, ImportError):  # a container's user without a name
        tags["mlflow.user"] = getpass.getuser()
    if image := os.environ.get(IMAGE_VARIABLE):
        tags["vitdc.image"] = image
        if "@" in image:
            tags["vitdc.image_digest"] = image.rpartition("@")[2]
    return tags | _git_tags()


def _git_tags() -> dict[str, str]:
    commit = _git("rev-parse", "HEAD")
    if not commit:  # no git, or not a repository
        return {}
    found = {
        "commit": commit,
        "dirty": str(bool(_git("status", "--porcelain", "--untracked-files=no"))).lower(),
        "branch": _git("rev-parse", "--abbrev-ref", "HEAD"),
        "repoURL": mask_credentials(_git("config", "--get", "remote.origin.url")),
    }
    return {f"mlflow.source.git.{key}": value for key, value in found.items() if value}


def _git(*command: str) -> str:
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            ["git", *command], capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()
    return ""


def dvc_hash(directory: Path) -> str:
    """DVC's hash of a directory, as `dvc.lock` has it: `0123...cdef.dir`.

    In a DVC repository nothing is read whose hash DVC has already computed.
    """
    from dvc_data.hashfile.build import build

    database = _hash_database(directory)
    path = str(directory.absolute())
    _, _, found = build(database, path, database.fs, "md5", dry_run=True)
    return str(found.hash_info.value)


def _hash_database(directory: Path) -> Any:
    """The cache of the DVC repository that the directory is in, or one that stays empty."""
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo
    from dvc_data.hashfile.db.local import LocalHashFileDB
    from dvc_objects.fs.local import LocalFileSystem

    with suppress(NotDvcRepoError):
        return Repo(str(Repo.find_root(str(directory.parent)))).cache.local
    nowhere = str(Path(tempfile.gettempdir()) / "vitdc-no-cache")
    return LocalHashFileDB(LocalFileSystem(), nowhere)  # type: ignore[no-untyped-call]
