"""The registered models: their names, versions and aliases, and what a URI means."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vitdc import artifacts
from vitdc.errors import InputError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

LOADER_MODULE = "vitdc.tracking.pyfunc"
MODEL_PARTS = ("checkpoint", "clustering")
DIGEST_TAG = "vitdc.model_digest"

URI_FORMS = "models:/NAME@ALIAS, models:/NAME/VERSION, models:/NAME (the newest) or runs:/RUN_ID"

_VERSION_URI = re.compile(r"models:/+([^/@:]+?)(?:/(\d+|latest)|@([^/@]+))?/*")
_LOGGED_URI = re.compile(r"models:/+(m-[0-9a-f]{32})/*")
_RUN_URI = re.compile(r"runs:/+([\w-]+)(?:/.*)?")


class StoredModel(NamedTuple):
    """Where MLflow keeps a model.

    Attributes:
        location: URI of the directory with its files.
        digest: What is tagged as the digest of its content; empty if nothing is.
    """

    location: str
    digest: str


def model_digest(directory: Path) -> str:
    """SHA-256 over both parts of a model directory: equal for equal models."""
    digests = "".join(artifacts.digest(directory / part) for part in MODEL_PARTS)
    return hashlib.sha256(digests.encode()).hexdigest()


def locate(client: MlflowClient, uri: str) -> StoredModel:
    """Find the model that a URI names.

    Raises:
        InputError: It names none; the message says what there is.
    """
    if match := _LOGGED_URI.fullmatch(uri):
        return _logged_model(client, match[1])
    if _VERSION_URI.fullmatch(uri):
        version = find_version(client, uri)
        location = client.get_model_version_download_uri(version.name, version.version)
        if match := _LOGGED_URI.fullmatch(location):
            return _logged_model(client, match[1])
        return StoredModel(location, version.tags.get(DIGEST_TAG, ""))
    if match := _RUN_URI.fullmatch(uri):
        return _model_of_run(client, match[1])
    raise InputError(f"{uri}: not the address of a model in MLflow; write {URI_FORMS}")


def find_version(client: MlflowClient, uri: str) -> ModelVersion:
    """The version of a registered model that `models:/...` names; without a number the newest.

    Raises:
        InputError: There is no such model, version or alias.
    """
    match = _VERSION_URI.fullmatch(uri)
    if match is None:
        raise InputError(f"{uri}: not a registered model; write {URI_FORMS.rpartition(' or ')[0]}")
    name, number, alias = match.groups()
    model = _registered_model(client, name, uri)
    if alias:
        if alias not in model.aliases:
            raise InputError(
                f"{uri}: {name} has no alias {alias!r}; {_listed('it has', model.aliases)}"
            )
        number = model.aliases[alias]
    versions = {str(version.version): version for version in versions_of(client, name)}
    number = max(versions, key=int, default="") if number in (None, "latest") else str(number)
    if number not in versions:
        raise InputError(f"{uri}: {name} has no such version; {_listed('it has', versions)}")
    return versions[number]


def versions_of(client: MlflowClient, name: str) -> list[ModelVersion]:
    """All versions of a registered model, the oldest first."""
    found: list[ModelVersion] = []
    token: str | None = None
    while page := client.search_model_versions(f"name='{name}'", page_token=token):
        found.extend(page)
        if not (token := page.token):
            break
    return sorted(found, key=lambda version: int(version.version))


def _registered_model(client: MlflowClient, name: str, uri: str) -> RegisteredModel:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        names = [model.name for model in client.search_registered_models(max_results=20)]
        raise InputError(
            f"{uri}: no registered model is called {name!r}; {_listed('there are', names)}"
        ) from None


def _model_of_run(client: MlflowClient, run_id: str) -> StoredModel:
    """The newest model that a run has logged."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise InputError(f"{run_id}: MLflow has no run of this id") from None
    models = run.outputs.model_outputs if run.outputs else []
    found = [client.get_logged_model(model.model_id) for model in models]
    ready = [model for model in found if model.status == "READY"]
    if not ready:
        raise InputError(
            f"{run_id}: the run has no model; `vitdc evaluate` logs it at the end of a run"
        )
    return _stored(max(ready, key=lambda model: model.creation_timestamp))


def _logged_model(client: MlflowClient, model_id: str) -> StoredModel:
    from mlflow.exceptions import MlflowException

    try:
        return _stored(client.get_logged_model(model_id))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise InputError(f"{model_id}: MLflow has no model of this id") from None


def _stored(model: LoggedModel) -> StoredModel:
    return StoredModel(model.artifact_location, model.tags.get(DIGEST_TAG, ""))


def _listed(there: str, names: Iterable[str]) -> str:
    shown = ", ".join(sorted(names))
    return f"{there} {shown}" if shown else "there is none yet"
