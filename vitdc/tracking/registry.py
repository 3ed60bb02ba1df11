"""The registered models: their names, versions and aliases, and what a URI means."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vitdc import artifacts, environment
from vitdc.config import TrackingConfig
from vitdc.errors import InputError, TrainingError
from vitdc.tracking.packaging import MODEL_PARTS, write_mlflow_model

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

DIGEST_TAG = "vitdc.model_digest"
TEST_DATA_TAG = "vitdc.test_data"

WHERE_REGISTERED = "set MLFLOW_TRACKING_URI to where the model is registered"  # the way out
URI_FORMS = "models:/NAME@ALIAS, models:/NAME/VERSION, models:/NAME (the newest) or runs:/RUN_ID"

_VERSION_URI = re.compile(r"models:/+([^/@:]+?)(?:/(\d+|latest)|@([^/@]+))?/*")
_LOGGED_URI = re.compile(r"models:/+(m-[0-9a-f]{32})/*")
_RUN_ID = re.compile(r"([0-9a-f]{32})")
_RUN_URI = re.compile(r"runs:/+([\w-]+)(?:/.*)?")


class StoredModel(NamedTuple):
    """Where MLflow keeps a model.

    Attributes:
        location: URI of the directory with its files.
        digest: What is tagged as the digest of its content; empty if nothing is.
    """

    location: str
    digest: str


def score_tag(metric: str) -> str:
    """The tag of a version that holds a score, e.g. of `nmi_test`."""
    return f"vitdc.{metric}"


def registered_name(config: TrackingConfig, *, dataset_name: str) -> str:
    """The chosen name, or one like `vitdc-digits`; empty if nothing is to be registered."""
    if config.registered_model is False:
        return ""
    known = re.sub(r"[^\w.-]+", "-", dataset_name)  # MLflow refuses some of the rest in names
    return config.registered_model or f"vitdc-{known}"


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


def version_of_run(client: MlflowClient, run: str) -> ModelVersion | None:
    """The version that the model of a run is registered as; None if `run` is not an id of a run.

    Raises:
        InputError: There is no such run, it has no model, or the model is not registered.
    """
    if not (match := _RUN_URI.fullmatch(run) or _RUN_ID.fullmatch(run)):
        return None
    stored = _model_of_run(client, match[1])
    found = client.search_model_versions(f"tags.`{DIGEST_TAG}` = '{stored.digest}'")
    if not found:
        raise InputError(
            f"{match[1]}: the model of this run is not registered (tracking.registered_model)"
        )
    return max(found, key=lambda version: int(version.version))


def named_model(client: MlflowClient) -> str:
    """The name of the only registered model.

    Raises:
        InputError: There is none, or several.
    """
    names = [model.name for model in client.search_registered_models(max_results=100)]
    if len(names) != 1:
        raise InputError(
            f"which model? {_listed('MLflow has', names)}; name one, e.g. `vitdc promote"
            f" {min(names)}`"
            if names
            else "no model is registered in this MLflow; `vitdc evaluate` registers one, unless"
            " tracking.registered_model is false"
        )
    return str(names[0])


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
    ready = [model for model in _logged_models(client, run) if model.status == "READY"]
    if not ready:
        raise InputError(
            f"{run_id}: the run has no model; `vitdc evaluate` logs it at the end of a run"
        )
    return _stored(max(ready, key=lambda model: model.creation_timestamp))


def _logged_models(client: MlflowClient, run: Run) -> list[LoggedModel]:
    """What a run has logged, without what was deleted since."""
    from mlflow.exceptions import MlflowException

    found = []
    for output in run.outputs.model_outputs if run.outputs else []:
        try:
            found.append(client.get_logged_model(output.model_id))
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
    return found


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


class Scores(NamedTuple):
    """How good a model is, on which images.

    Attributes:
        metrics: The content of metrics.json.
        test_data: `Dataset.split_hash` of the test split.
    """

    metrics: Mapping[str, Any]
    test_data: str

    @property
    def known(self) -> dict[str, float]:
        """NMI, ARI and ACC of the test split, as far as its labels are known."""
        values = {name: self.metrics["test"][name] for name in ("nmi", "ari", "acc")}
        return {name: value for name, value in values.items() if value is not None}


def register_model(
    client: MlflowClient, run_id: str, directory: Path, *, name: str, scores: Scores
) -> ModelVersion:
    """Log a model directory as the model of a run and register it; what is there is left alone.

    An upload that broke off is taken up again by the next call.

    Args:
        client: Of the store.
        run_id: The run that made the model.
        directory: The model directory.
        name: Of the registered model; made if there is none.
        scores: Become tags of the version.

    Returns:
        The version, which is an older one if the same model has been registered before.

    Raises:
        TrainingError: The name belongs to another user of MLflow.
    """
    digest = model_digest(directory)
    model = _log_model(client, run_id, directory, digest=digest, name=name)
    for version in versions_of(client, name):
        if version.tags.get(DIGEST_TAG) == digest:
            return version
    with _naming_a_way_out(name):
        _make_registered_model(client, name)
        # MLflow looks the source up in the store of its environment, not in that of the client
        with environment.defaults({"MLFLOW_TRACKING_URI": client.tracking_uri}):
            return client.create_model_version(
                name,
                source=f"models:/{model.model_id}",
                run_id=run_id,
                model_id=model.model_id,
                tags=_version_tags(scores, digest),
                description=_describe(scores),
            )


@contextmanager
def _naming_a_way_out(name: str) -> Iterator[None]:
    """Say what to do where a name belongs to another user of MLflow; the run itself is fine."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.get_http_status_code() != 403:  # type: ignore[no-untyped-call]
            raise
        raise TrainingError(
            f"you may not add versions to the registered model {name}; choose another name by"
            " tracking.registered_model, or ask for the permission EDIT"
        ) from error


def _log_model(
    client: MlflowClient, run_id: str, directory: Path, *, digest: str, name: str
) -> LoggedModel:
    from mlflow.entities import LoggedModelOutput

    run = client.get_run(run_id)
    known = _logged_models(client, run)
    same = [model for model in known if model.tags.get(DIGEST_TAG) == digest]
    if same:
        model = same[0]
    else:
        model = client.create_logged_model(
            run.info.experiment_id, name=name, source_run_id=run_id, tags={DIGEST_TAG: digest}
        )
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    if model.status != "READY":
        _upload(client, model, directory)
        model = client.finalize_logged_model(model.model_id, "READY")
    return model


def _upload(client: MlflowClient, model: LoggedModel, directory: Path) -> None:
    from mlflow.models import Model

    description = Model(
        artifact_path=model.artifact_location,
        model_uuid=model.model_id,
        model_id=model.model_id,
        run_id=model.source_run_id,
    )
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary, "model")
        write_mlflow_model(directory, path, description)
        client.log_model_artifacts(model.model_id, str(path))


def _make_registered_model(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _version_tags(scores: Scores, digest: str) -> dict[str, str]:
    """{"vitdc.nmi_test": "0.95", ...}: what `vitdc promote` compares, and people read."""
    tags = {score_tag(f"{name}_test"): repr(value) for name, value in scores.known.items()}
    return {**tags, DIGEST_TAG: digest, TEST_DATA_TAG: scores.test_data}


def _describe(scores: Scores) -> str:
    """What the version is, in a line of the registry's page."""
    found = ", ".join(f"{name.upper()} {value:.4f}" for name, value in scores.known.items())
    rounds = f"round {scores.metrics['best_round']}, stopped by {scores.metrics['stop_reason']}"
    return f"{found or 'No scores'} on the test images; {rounds}."
