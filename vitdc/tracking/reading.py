"""Recorded runs, read back: by id, by the beginning of an id, by name, or the newest ones."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

from vitdc.errors import InputError, mask_credentials
from vitdc.tracking.naming import CURVES, DATA_TAG, IDENTITY_TAG, RESULT, round_key
from vitdc.tracking.store import existing_store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_WAY_OUT = "set MLFLOW_TRACKING_URI to where the runs are recorded"
_MAX_NAMED = 6  # runs that an error names


class RecordedRun(NamedTuple):
    """What MLflow knows of a run.

    Attributes:
        id: 32 hexadecimal digits.
        name: The run's name.
        started: When, in local time.
        status: MLflow's own, in lower case: running, finished, failed, killed.
        params: Flat.
        values: nmi_test, acc_train, ..., loss, rounds: the result, empty if there is none yet.
        curves: nmi_test, nmi_train and loss: round -> value; empty unless asked for.
        stop_reason: Why the rounds stopped; empty if there is no result.
        data: First 16 digits of the data set's content hash; empty if unknown.
    """

    id: str
    name: str
    started: datetime
    status: str
    params: Mapping[str, str]
    values: Mapping[str, float]
    curves: Mapping[str, Mapping[int, float]]
    stop_reason: str
    data: str


def find_runs(names: Sequence[str]) -> dict[str, RecordedRun]:
    """Look runs up in all experiments; a name that fits none is missing from the result.

    Args:
        names: Ids, beginnings of ids (four digits or more) or names of runs.

    Raises:
        InputError: A name fits several runs, or MLFLOW_TRACKING_URI cannot be used.
    """
    with existing_store(way_out=_WAY_OUT) as client:
        experiments = [each.experiment_id for each in client.search_experiments()]
        found = {name: _find(client, experiments, name) for name in names}
        return {name: _read(client, run) for name, run in found.items() if run}


def newest_runs(
    experiment: str, *, count: int, finished: bool = True, curves: bool = True
) -> list[RecordedRun]:
    """The newest runs of vitdc in an experiment, the oldest of them first.

    Args:
        experiment: Its name.
        count: How many at most.
        finished: Leave out those that run or have failed.
        curves: Read the rounds, too.

    Raises:
        InputError: There is no such experiment, or MLFLOW_TRACKING_URI cannot be used.
    """
    with existing_store(way_out=_WAY_OUT) as client:
        there = client.get_experiment_by_name(experiment)
        if there is None:
            names = ", ".join(sorted(each.name for each in client.search_experiments()))
            raise InputError(
                f"--experiment {experiment}: not in MLflow at"
                f" {mask_credentials(client.tracking_uri)}, which has {names}"
            )
        wanted = [f"tags.`{IDENTITY_TAG}` LIKE '%'"]
        wanted += ["attributes.status = 'FINISHED'"] if finished else []
        runs = client.search_runs(
            [there.experiment_id],
            filter_string=" AND ".join(wanted),
            order_by=["attributes.start_time DESC"],
            max_results=count,
        )
        return [_read(client, run, curves=curves) for run in reversed(runs)]


def _find(client: MlflowClient, experiments: Sequence[str], name: str) -> Run | None:
    """The run with that id or name, which must be the only one."""
    filters = []
    if re.fullmatch(r"[0-9a-f]{4,32}", name):
        filters.append(f"attributes.run_id LIKE '{name}%'")
    quote = "'" if '"' in name else '"'
    if quote not in name:
        filters.append(f"attributes.run_name = {quote}{name}{quote}")
    for wanted in filters:
        runs = client.search_runs(
            list(experiments), filter_string=wanted, max_results=_MAX_NAMED + 1
        )
        if len(runs) > 1:
            raise InputError(f"{name}: fits several runs in MLflow: {_some(runs)}; name one by id")
        if runs:
            return runs[0]
    return None


def _some(runs: Sequence[Run]) -> str:
    named = [f"{run.info.run_id[:8]} ({run.info.run_name})" for run in runs[:_MAX_NAMED]]
    return ", ".join(named) + (", ..." if len(runs) > _MAX_NAMED else "")


def _read(client: MlflowClient, run: Run, *, curves: bool = True) -> RecordedRun:
    metrics = run.data.metrics
    keys = {name: round_key(name) for name in CURVES if curves}
    datasets = [item.dataset for item in run.inputs.dataset_inputs] if run.inputs else []
    return RecordedRun(
        id=run.info.run_id,
        name=run.info.run_name,
        started=datetime.fromtimestamp(run.info.start_time / 1000),
        status=run.info.status.lower(),
        params=dict(run.data.params),
        values={k.removeprefix(RESULT): v for k, v in metrics.items() if k.startswith(RESULT)},
        curves={name: _curve(client, run, key) for name, key in keys.items() if key in metrics},
        stop_reason=run.data.tags.get("vitdc.stop_reason", ""),
        data=run.data.tags.get(f"{DATA_TAG}sha256", datasets[0].digest if datasets else "")[:16],
    )


def _curve(client: MlflowClient, run: Run, key: str) -> dict[int, float]:
    history = client.get_metric_history(run.info.run_id, key)
    return {point.step: point.value for point in sorted(history, key=lambda p: p.step)}
