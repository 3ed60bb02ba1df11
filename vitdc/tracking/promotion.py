"""Who is the champion: an alias of a registered model that only a better version takes over.

Scores are compared only if they are of the same test images, which their hash tells. What was
decided is recorded with both scores on the version that was judged and on the run that made it.
"""

from __future__ import annotations

import getpass
import json
import os
import re
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vitdc.artifacts import Dataset
from vitdc.errors import InputError
from vitdc.tracking.download import fetch
from vitdc.tracking.registry import (
    TEST_DATA_TAG,
    WHERE_REGISTERED,
    find_version,
    locate,
    named_model,
    score_tag,
    version_of_run,
    versions_of,
)
from vitdc.tracking.store import existing_store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

_ALIAS = re.compile(r"(?!(?i:latest|v\d+)$)[\w-]+")


@dataclass(frozen=True)
class Decision:
    """Whether a version takes over an alias, and by what.

    Attributes:
        model: Name of the registered model.
        alias: Which alias it is about.
        version: The version that was judged.
        score: Its score; None if it has none, which only a first champion may.
        champion: The version that had the alias; None if none had it.
        champion_score: The score of that version.
        metric: Which score.
        margin: By how much more than this the score has to be better.
        test_data: Hash of the test images that both scores are of.
        promoted: Whether the alias moves.
        time: When it was decided, UTC.
        by: Who decided.
    """

    model: str
    alias: str
    version: str
    score: float | None
    champion: str | None
    champion_score: float | None
    metric: str
    margin: float
    test_data: str
    promoted: bool
    time: str
    by: str

    @property
    def difference(self) -> float | None:
        """How much better than the champion the version is."""
        if self.score is None or self.champion_score is None:
            return None
        return self.score - self.champion_score


def promote(
    model: str | None,
    *,
    alias: str = "champion",
    metric: str = "nmi_test",
    margin: float = 0.0,
    dataset: Path | None = None,
    dry_run: bool = False,
) -> Decision:
    """Let a version take over an alias if it is better than the one that has it.

    Args:
        model: NAME, NAME/VERSION, models:/NAME/VERSION or the id of a run; None means the only
            registered model. Without a version the newest one, and where no version has the alias
            yet, the best that was scored on the same test images as the newest.
        alias: The alias.
        metric: nmi_test, ari_test or acc_test.
        margin: The score has to be better by more than this.
        dataset: Directory of a Dataset on whose test split both versions are scored anew; None
            compares the scores that their runs had.
        dry_run: Decide only; nothing is changed or recorded.

    Raises:
        InputError: There is no such model, it is not one that vitdc logged, or the scores cannot be
            compared.
    """
    if not _ALIAS.fullmatch(alias):
        raise InputError(
            f"--alias {alias}: MLflow takes letters, digits, - and _, and neither `latest` nor v1,"
            " v2, ..."
        )
    with existing_store(way_out=WHERE_REGISTERED) as client:
        version, is_named = _chosen_version(client, model)
        if not is_named and _holder(client, version.name, alias) is None:
            version = _best_like(client, version, metric)
    while True:
        with existing_store(way_out=WHERE_REGISTERED) as client:
            contest = _contest(client, version, alias)
        decision = _decide(contest, alias=alias, metric=metric, margin=margin, dataset=dataset)
        if dry_run or decision.version == decision.champion:
            return decision
        with existing_store(way_out=WHERE_REGISTERED) as client:
            if _holder(client, version.name, alias) == decision.champion:  # still
                _record(client, version, decision)
                if decision.promoted:
                    client.set_registered_model_alias(version.name, alias, version.version)
                return decision


def _chosen_version(client: MlflowClient, model: str | None) -> tuple[ModelVersion, bool]:
    """The version that `model` means, and whether it names that very one."""
    if model is None:
        model = named_model(client)
    elif version := version_of_run(client, model):
        return version, True
    uri = model if model.startswith("models:") else f"models:/{model}"
    return find_version(client, uri), bool(re.search(r"[/@]", uri.removeprefix("models:/")))


def _best_like(client: MlflowClient, version: ModelVersion, metric: str) -> ModelVersion:
    """The best version that was scored on the same test images, the newest of equals."""
    same = version.tags.get(TEST_DATA_TAG)
    versions = [v for v in versions_of(client, version.name) if v.tags.get(TEST_DATA_TAG) == same]
    scored = [(s, int(v.version), v) for v in versions if (s := _recorded(v, metric)) is not None]
    return max(scored)[2] if same and scored else version


def _holder(client: MlflowClient, name: str, alias: str) -> str | None:
    """The number of the version that has the alias."""
    number = client.get_registered_model(name).aliases.get(alias)
    return str(number) if number else None


class _Contest(NamedTuple):
    """The version to be judged and the one that has the alias, if any has.

    Attributes:
        versions: The one to be judged, and the champion if that is another one.
        files: Of each of them: what cannot be read is no champion.
        champion: Number of the version that has the alias.
    """

    versions: list[ModelVersion]
    files: list[Path]
    champion: str | None


def _contest(client: MlflowClient, version: ModelVersion, alias: str) -> _Contest:
    champion = _holder(client, version.name, alias)
    versions = [version]
    if champion not in (None, str(version.version)):
        versions.append(client.get_model_version(version.name, champion))
    return _Contest(versions, [_fetch(client, each) for each in versions], champion)


def _decide(
    contest: _Contest, *, alias: str, metric: str, margin: float, dataset: Path | None
) -> Decision:
    models = contest.versions
    if dataset:
        images = Dataset.load(dataset)
        scores = [_measure(model, images, metric) for model in contest.files]
        test_data = images.split_hash("test")
    else:
        scores = [_recorded(each, metric) for each in models]
        test_data = _common_test_data(models)
    if len(models) > 1 and None in scores:
        unscored = models[scores.index(None)]
        raise InputError(
            f"{_uri(unscored)}: has no {metric}, because its test images had no labels, and without"
            " labels nothing says which of two models is better (silhouette and l are measured in"
            " a model's own embedding). Label some images, `vitdc prepare` them and give --dataset"
            f" DIR to score both on it; or look at both reports and set the alias {alias} on"
            " MLflow's page of the model"
        )
    score, champion_score = scores[0], scores[-1] if contest.champion else None
    better = score is not None and champion_score is not None and score > champion_score + margin
    return Decision(
        model=models[0].name,
        alias=alias,
        version=str(models[0].version),
        score=score,
        champion=contest.champion,
        champion_score=champion_score,
        metric=metric,
        margin=margin,
        test_data=test_data,
        promoted=contest.champion is None or better,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        by=_user(),
    )


def _fetch(client: MlflowClient, version: ModelVersion) -> Path:
    """The files that MLflow really holds, not those of the cache: others will load them."""
    uri = _uri(version)
    return fetch(client, locate(client, uri)._replace(digest=""), uri)


def _uri(version: ModelVersion) -> str:
    return f"models:/{version.name}/{version.version}"


def _recorded(version: ModelVersion, metric: str) -> float | None:
    value = version.tags.get(score_tag(metric))
    try:
        return None if value is None else float(value)
    except ValueError:
        raise InputError(
            f"{_uri(version)}: its tag {score_tag(metric)} is {value!r}, not a score"
        ) from None


def _common_test_data(versions: list[ModelVersion]) -> str:
    """The hash of the test images that all the versions were scored on."""
    known = {_uri(version): version.tags.get(TEST_DATA_TAG, "") for version in versions}
    if len(versions) > 1 and (len(set(known.values())) > 1 or "" in known.values()):
        shown = " and ".join(f"{uri} ({data[:12] or 'unknown'})" for uri, data in known.items())
        raise InputError(
            f"{shown} were not scored on the same test images, so their scores say nothing about"
            " each other; give --dataset DIR, a prepared data set, to score both on it"
        )
    return known[_uri(versions[0])]


def _measure(model: Path, images: Dataset, metric: str) -> float | None:
    """The score of a model on the test split."""
    from vitdc.metrics import score_split
    from vitdc.prediction import Predictor

    if not images.test.has_labels:
        raise InputError(
            f"--dataset {images.path}: no image of its test split has a label to score against"
        )
    found = Predictor.load(model).predict(images.test.images)
    scores = score_split(images.test.labels, found.cluster)
    value: float | None = getattr(scores, metric.removesuffix("_test"))
    return value


def _user() -> str:
    if name := os.environ.get("MLFLOW_TRACKING_USERNAME"):
        return name
    with suppress(KeyError, OSError, ImportError):  # a container's user without a name
        return getpass.getuser()
    return "unknown"


def _record(client: MlflowClient, version: ModelVersion, decision: Decision) -> None:
    """Write the decision down before it is carried out: nothing moves without a reason."""
    tag = f"vitdc.promotion.{decision.alias}"
    text = json.dumps(asdict(decision))
    client.set_model_version_tag(version.name, version.version, tag, text)
    if version.run_id and _is_active(client, version.run_id):
        client.set_tag(version.run_id, tag, text)
    if decision.promoted:
        lines = filter(None, (version.description, in_words(decision)))
        client.update_model_version(version.name, version.version, "\n\n".join(lines))


def _is_active(client: MlflowClient, run_id: str) -> bool:
    """Whether a run is neither in the trash nor gone for good (`mlflow gc`)."""
    from mlflow.exceptions import MlflowException

    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False


def in_words(decision: Decision) -> str:
    """The decision as a sentence, e.g. for the description of the version."""
    verdict = "took over" if decision.promoted else "did not take over"
    reason = (
        f"{decision.metric} {decision.score:.4f} against {decision.champion_score:.4f} of version"
        f" {decision.champion}, margin {decision.margin:g}, test data {decision.test_data[:12]}"
        if decision.score is not None and decision.champion_score is not None
        else "it is the first"
    )
    return f"{decision.time} {decision.by}: {verdict} `{decision.alias}`: {reason}."
