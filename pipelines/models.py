"""The model of a pipeline run, brought back under DVC: its hash and where it came from in Git."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from vitdc import artifacts, environment, tracking
from vitdc.artifacts import Checkpoint, Clustering
from vitdc.config import TrackingConfig
from vitdc.errors import InputError, one_line

_DVC_ENVIRONMENT = {"DVC_NO_ANALYTICS": "1"}


def import_model(config: TrackingConfig, run_id: str, output: Path, *, push: bool) -> Checkpoint:
    """Put the model of a run into a DVC repository.

    A model in an object store is imported by its URL (`dvc import-url`), so that `dvc update` and
    the store's ETags can tell whether it is still the same; one on this machine is copied and
    added.

    Args:
        config: Where runs are recorded; MLflow knows where the model lies.
        run_id: The id of the MLflow run, or Kubeflow's id of the pipeline run.
        output: New directory in the DVC repository, which gets `checkpoint` and `clustering`.
        push: Also upload it to the default DVC remote.

    Raises:
        InputError: There is no such run or model, `output` exists or is in no DVC repository, or
            the store or the remote cannot be used.
    """
    if output.exists():
        raise InputError(f"--output {output}: exists already; name a new directory")
    _check_repository(output)
    url = tracking.find_model(config, run_id)
    with environment.defaults(_DVC_ENVIRONMENT), _open_repository(output) as repository:
        with _one_clear_line(f"{url}: cannot be imported", "the address and your access to it"):
            try:
                _fetch(repository, url, output)
            except BaseException:
                artifacts.remove(output)
                raise
        if push:
            missing = f"{output} is imported, but not pushed (`dvc push {output}.dvc` does it)"
            with _one_clear_line(missing, "the DVC remote"):
                repository.push([str(output)])
    Clustering.load(output / "clustering")
    return Checkpoint.load(output / "checkpoint")


def _open_repository(output: Path) -> Any:
    """The DVC repository around `output`."""
    from dvc.repo import Repo

    parent = output.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output {output}: cannot be written: {error.strerror}") from None
    return Repo(str(parent))


def _check_repository(output: Path) -> None:
    """`output` will be in a DVC repository; nothing is made to find that out."""
    if not any((parent / ".dvc").is_dir() for parent in output.absolute().parents):
        raise InputError(
            f"--output {output}: not in a DVC repository; make one with `git init && dvc init`"
        )


def _fetch(repository: Any, url: str, output: Path) -> None:
    parts = urlsplit(url)
    if parts.scheme in ("", "file"):
        if not Path(parts.path).is_dir():
            raise InputError(f"{url}: the model is not there any more, or not on this machine")
        shutil.copytree(parts.path, output)
        repository.add(str(output))
        return
    endpoint = os.environ.get("AWS_ENDPOINT_URL")
    if parts.scheme == "minio":  # KFP's own name for the object store it comes with
        url = parts._replace(scheme="s3").geturl()
        if not endpoint:
            raise InputError(
                f"{url}: lies in KFP's own object store; set AWS_ENDPOINT_URL to it, e.g. to a"
                " port-forward of its service, and AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
    config = {"endpointurl": endpoint} if endpoint and url.startswith("s3:") else None
    repository.imp_url(url, out=str(output), fs_config=config)


@contextmanager
def _one_clear_line(problem: str, check: str) -> Iterator[None]:
    """Say what DVC or the store found in the user's words."""
    from dvc.config import NoRemoteError

    try:
        yield
    except InputError:
        raise
    except NoRemoteError:
        raise InputError(
            f"{problem}: there is no default DVC remote; add one with `dvc remote add --default`"
        ) from None
    except Exception as error:
        reason = one_line(error) or type(error).__name__
        raise InputError(f"{problem}: {reason}; check {check}") from error
