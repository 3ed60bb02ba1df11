"""A model of MLflow as a directory on this machine.

What MLflow stores may come from anybody who can write there, so a model is fetched only if it is
one that vitdc logged, and only the files that `vitdc.artifacts` reads: safetensors, npy and JSON,
checked by their hashes. MLflow's own loaders, which unpickle and run what a model brings along, are
never called.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import yaml

from vitdc import artifacts, environment
from vitdc.artifacts import Checkpoint, Clustering
from vitdc.errors import InputError
from vitdc.tracking.packaging import LOADER_MODULE, MODEL_PARTS
from vitdc.tracking.registry import DIGEST_TAG, WHERE_REGISTERED, StoredModel, locate, model_digest
from vitdc.tracking.store import existing_store, patience

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

_DATA = re.compile(r"data/[\w-]+")  # where in an MLflow model the model directory lies
_DATA_SUFFIXES = (".json", ".npy", ".safetensors")
_DESCRIPTION_SUFFIXES = (".json", ".txt", ".yaml")  # of what MLflow itself writes beside it
_DESCRIPTIONS = ("MLmodel", "registered_model_meta")  # likewise
_MAX_DEPTH = 4
_RETRIES, _TIMEOUT = 5, 300  # a server begins to send when its own store has sent the whole file


def download_model(uri: str) -> Path:
    """Fetch a model from MLflow, or find it in the cache.

    Models are kept in `vitdc/models` of the user's cache directory, by the digest of their content;
    what is there may be deleted at any time.

    Args:
        uri: models:/NAME@ALIAS, models:/NAME/VERSION, models:/NAME or runs:/RUN_ID.

    Returns:
        A directory that `Predictor.load` reads.

    Raises:
        InputError: MLFLOW_TRACKING_URI cannot be used, has no such model, or the model is not one
            that vitdc logged, is damaged or of another format version; or the cache cannot be
            written.
    """
    with existing_store(way_out=WHERE_REGISTERED) as client:
        return fetch(client, locate(client, uri), uri)


def fetch(client: MlflowClient, stored: StoredModel, uri: str) -> Path:
    """Fetch what `locate` found, or find it in the cache; `uri` is its name in messages.

    The cache is asked by the digest that the model is tagged with: what is there has been checked,
    whatever else MLflow may hold under that tag. Without a digest the files are always fetched.
    """
    if re.fullmatch("[0-9a-f]{64}", stored.digest):
        cached = cache_directory() / stored.digest
        if _is_intact(cached, stored.digest):
            return cached
    repository = _repository(client, stored)
    with _partial() as partial, patience(retries=_RETRIES, timeout=_TIMEOUT):
        _check_files(list(_walk(repository, uri)), uri)
        data = _check_description(_download(repository, "MLmodel", partial), uri)
        fetched = _download(repository, data, partial)
        _check_model(fetched, uri)
        if stored.digest and model_digest(fetched) != stored.digest:
            raise InputError(
                f"{uri}: holds another model than the one that was registered (its tag"
                f" {DIGEST_TAG} is not the digest of its files); register the model again"
            )
        return _keep(fetched, partial)


def cache_directory() -> Path:
    """Where downloaded models are kept."""
    return environment.user_cache("models")


@contextmanager
def _partial() -> Iterator[Path]:
    """A folder in the cache for what is not complete; deleted with the block."""
    with _writing_cache():
        cache_directory().mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=cache_directory(), prefix=".partial-")
    with folder as name:
        yield Path(name)


@contextmanager
def _writing_cache() -> Iterator[None]:
    """Say of an error that it is of this machine, not of MLflow."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{cache_directory()}: models cannot be kept here: {error.strerror}; set XDG_CACHE_HOME"
            " to a directory that can be written"
        ) from error


def _repository(client: MlflowClient, stored: StoredModel) -> ArtifactRepository:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    uri = client.tracking_uri
    return get_artifact_repository(stored.location, tracking_uri=uri, registry_uri=uri)


def _download(repository: ArtifactRepository, path: str, target: Path) -> Path:
    return Path(repository.download_artifacts(path, str(target)))  # type: ignore[no-untyped-call]


def _walk(repository: ArtifactRepository, uri: str, folder: str = "") -> Iterator[PurePosixPath]:
    """The paths of all files of the model."""
    for found in repository.list_artifacts(folder or None):
        path = PurePosixPath(found.path)
        if path.is_absolute() or ".." in path.parts or len(path.parts) > _MAX_DEPTH:
            raise _foreign(uri, f"it holds {found.path}")
        if found.is_dir:
            yield from _walk(repository, uri, found.path)
        else:
            yield path


def _check_files(files: list[PurePosixPath], uri: str) -> None:
    if PurePosixPath("MLmodel") not in files:
        raise InputError(f"{uri}: there are no files of a model where MLflow says they are")
    for file in files:
        suffixes = _DATA_SUFFIXES if file.parts[0] == "data" else _DESCRIPTION_SUFFIXES
        if file.suffix not in suffixes and str(file) not in _DESCRIPTIONS:
            raise _foreign(uri, f"it holds {file}")


def _check_description(file: Path, uri: str) -> str:
    """Refuse what MLflow would not load by our own module, and say where the data is."""
    try:
        flavors: Any = yaml.safe_load(file.read_text(encoding="utf-8"))["flavors"]
        (name, flavor), *others = flavors.items()
        loader, code, data = flavor.get("loader_module"), flavor.get("code"), flavor.get("data")
    except (yaml.YAMLError, UnicodeDecodeError, LookupError, TypeError, ValueError, AttributeError):
        raise _foreign(uri, "its MLmodel cannot be read") from None
    if others or name != "python_function" or loader != LOADER_MODULE:
        raise _foreign(uri, f"it is loaded by {loader or name}")
    if code:
        raise _foreign(uri, "it brings code along")
    if not _DATA.fullmatch(str(data)):
        raise _foreign(uri, f"its data is in {data}")
    return str(data)


def _foreign(uri: str, reason: str) -> InputError:
    return InputError(
        f"{uri}: not a model that vitdc logged: {reason}; nothing of it was loaded or run"
    )


def _check_model(directory: Path, uri: str) -> None:
    try:
        Checkpoint.load(directory / "checkpoint")
        Clustering.load(directory / "clustering")
        for part in MODEL_PARTS:
            artifacts.verify(directory / part)
    except InputError as error:  # say where it really lies
        raise InputError(str(error).replace(str(directory), uri)) from None


def _is_intact(directory: Path, digest: str) -> bool:
    """Whether a model in the cache is what its name says; a damaged one is fetched again."""
    try:
        Checkpoint.load(directory / "checkpoint")
        Clustering.load(directory / "clustering")
        return model_digest(directory) == digest
    except InputError:
        return False


def _keep(fetched: Path, partial: Path) -> Path:
    """Move a checked model to its place in the cache, unless another process was faster."""
    digest = model_digest(fetched)
    cached = cache_directory() / digest
    if _is_intact(cached, digest):
        return cached
    with _writing_cache():
        if cached.exists():
            cached.rename(partial / "damaged")  # deleted with `partial`
        try:
            fetched.rename(cached)
        except OSError:
            if not _is_intact(cached, digest):
                raise
    return cached
