"""What is recorded under which name and step, and which parameters identify a run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from vitdc.artifacts import SPLITS, ClusteringScores, RoundRow
from vitdc.config import DVC, NOT_IDENTIFYING, DataConfig, Params
from vitdc.data.opening import FOLDER
from vitdc.data.s3 import SCHEME
from vitdc.errors import mask_credentials
from vitdc.names import normal_form, printable

RESULT = "final/"  # before the names of the values of a finished run
CURVES = ("nmi_test", "nmi_train", "loss")  # of a round's values, those looked at first


def round_key(name: str) -> str:
    """The name of a value that every round has, so that MLflow's page shows `CURVES` first.

    Its charts stand in sections, by what is before the last slash, in alphabetical order.
    """
    return f"by_round/{name}" if name in CURVES else f"by_round/more/{name}"


_ROUND_FIELDS = tuple(name for name in RoundRow.header() if name not in ("round", "verdict"))
ROUND_METRICS = tuple(map(round_key, _ROUND_FIELDS))

IDENTITY_TAG = "vitdc.identity"
FAILURE_TAG = "vitdc.failure"
SUPERSEDES_TAG = "vitdc.supersedes"
REGISTERED_TAG = "vitdc.registered_model"
PROVISIONAL_TAG = "vitdc.provisional"  # "true": another result may take the place of this one
MODEL_TAG = "vitdc.model_uri"
REST_TAG = "vitdc.rest"  # where the artifacts lie that a run which ran out of room continues from
DESCRIPTION_TAG = "vitdc.description"  # a hash, by which our own text is known
PIPELINE_RUN_TAG = "vitdc.kfp_run_id"  # of the newest one
PIPELINE_STATE_TAG = "vitdc.kfp_run."  # and Kubeflow's id of a pipeline run
PLUGIN_RUN_TAG = "vitdc.kfp_mlflow_run"  # what Kubeflow's MLflow plugin made for the newest one
RUN_TAG = "vitdc.run"  # at that one: the run that vitdc made
DATA_TAG = "vitdc.data."  # and name, sha256, or what is known of its origin, e.g. commit
DVC_TAG = "vitdc.dvc."  # and what DVC knows by the hash: dataset or model

_MAX_VALUE = 500  # characters that old servers take
_MAX_NAME = 60  # characters of the name of the data: MLflow takes 250 of a run's


class Point(NamedTuple):
    """Where a value stands in MLflow."""

    key: str
    step: int


Points = dict[Point, float]


class Told(NamedTuple):
    """A value and when it was told, in milliseconds since 1970."""

    value: float
    time: int


SYSTEM = "system/"  # MLflow's own name for what it shows under "System metrics"


def is_result(key: str) -> bool:
    """Whether a metric depends on nothing but the parameters; the others are merely measured."""
    measured = key.startswith((SYSTEM, "seconds/")) or key.endswith("/images_per_second")
    return not (measured or "_batches/" in key)


def round_points(rows: Iterable[RoundRow]) -> Points:
    """The metrics of rounds.csv, step = round; the end of a name is that of the column."""
    values = ((row.round, name, getattr(row, name)) for row in rows for name in _ROUND_FIELDS)
    return {Point(round_key(name), step): float(v) for step, name, v in values if v is not None}


def score_points(round: int, scores: ClusteringScores) -> Points:
    """How good a clustering is, under the names of `round_points` where that has them."""
    splits = {"train": scores.train, "test": scores.test}
    values = {f"{key}_{s}": v for s, of in splits.items() for key, v in of.scores().items()}
    values |= {
        "silhouette": scores.silhouette,
        "changed": scores.changed,
        "inertia": scores.inertia,
        "empty_clusters": scores.num_empty,
    }
    return {Point(round_key(name), round): float(v) for name, v in values.items() if v is not None}


def history_points(round: int, history: Sequence[Mapping[str, float | None]]) -> Points:
    """Epochs as `pretraining/...` (round 0) or `joint/...`, the steps of the rounds in a row.

    Every round trains for as many epochs as this one.
    """
    points: Points = {}
    for row in history:
        points |= epoch_points(round, row, num_epochs=len(history))
    return points


def epoch_points(round: int, row: Mapping[str, float | None], *, num_epochs: int) -> Points:
    """One epoch of the training that leads to `round`; `num_epochs` is that of every round."""
    step = max(round - 1, 0) * num_epochs + int(row["epoch"] or 0)
    values = {name: value for name, value in row.items() if name != "epoch"}
    prefix = _training(round)
    return {Point(f"{prefix}/{n}", step): float(v) for n, v in values.items() if v is not None}


def batch_points(round: int, step: int, values: Mapping[str, float], *, num_steps: int) -> Points:
    """Some batches as `pretraining_batches/...` or `joint_batches/...`, steps in a row as above."""
    step += max(round - 1, 0) * num_steps
    return {Point(f"{_training(round)}_batches/{n}", step): v for n, v in values.items()}


def _training(round: int) -> str:
    return "joint" if round else "pretraining"


def result_points(metrics: Mapping[str, Any]) -> tuple[Points, dict[str, str]]:
    """metrics.json as `final/...` metrics and `vitdc....` tags.

    The split goes last, as in rounds.csv: {"test": {"nmi": 0.9}} becomes `final/nmi_test`. Text
    (the stop reason) becomes a tag; what is null is left out.
    """
    points: Points = {}
    tags: dict[str, str] = {}
    for path, value in flatten(metrics):
        name = "_".join(sorted(path, key=SPLITS.__contains__))
        if isinstance(value, str):
            tags[f"vitdc.{name}"] = value
        elif isinstance(value, int | float):
            points[Point(f"{RESULT}{name}", 0)] = float(value)
    return points, tags


def run_params(params: Params) -> dict[str, str]:
    """All parameters of the method, flat: {"seed": "0", "joint.gamma": "0.1", ...}."""
    values = params.model_dump(mode="json", exclude={"tracking", "kubernetes"})
    return {".".join(path): as_text(value) for path, value in flatten(values)}


def run_identity(params: Params, *, content_hash: str) -> str:
    """Hash of all that the result depends on: runs with the same one are the same run."""
    values = {k: v for k, v in run_params(params).items() if k not in NOT_IDENTIFYING}
    text = json.dumps({"dataset": content_hash, **values}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def run_name(params: Params, *, dataset_name: str) -> str:
    """The chosen name, or one like `digits k=10 gamma=0.1 seed=0`."""
    k, gamma = params.clustering.num_clusters, params.joint.gamma
    return params.tracking.run_name or f"{dataset_name} k={k} gamma={gamma:g} seed={params.seed}"


def data_name(config: DataConfig, *, dataset_name: str) -> str:
    """The name of the data: that of the set, or one like `photos-3fa9c1` for image files.

    The digits are of the place, because two folders may have one name. A folder in a repository
    counts by its path in there, which is the same for everyone who has a clone.

    Args:
        config: The `data` section.
        dataset_name: `Dataset.name`.
    """
    if config.source == DVC:
        repo = config.repo or ""
        place = [str(Path(repo).resolve()) if repo and Path(repo).exists() else repo, config.path]
    elif config.source == FOLDER and config.root is not None:
        place = [_path_in_repository(Path(config.root).expanduser().resolve())]
    elif config.source.startswith(SCHEME):
        place = [config.endpoint_url, config.source.rstrip("/")]
    else:
        return dataset_name
    text = normal_form(json.dumps(place, ensure_ascii=False))
    last = normal_form(PurePosixPath(str(place[-1])).name or dataset_name)[:_MAX_NAME]
    digits = hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:6]
    return f"{printable(last)}-{digits}"


def _path_in_repository(folder: Path) -> str:
    """The path relative to the root of the DVC or Git repository that it lies in, else as it is."""
    for above in folder.parents:
        if (above / ".dvc").is_dir() or (above / ".git").exists():
            return folder.relative_to(above).as_posix()
    return folder.as_posix()


def flatten(
    values: Mapping[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, (*path, key))
        else:
            yield (*path, key), value


def as_text(value: Any) -> str:
    text = printable(mask_credentials(value)) if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _MAX_VALUE else text[: _MAX_VALUE - 3] + "..."
