"""What a person calls a run, turned into its result: a directory, a revision or an MLflow run."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn

from vitdc.artifacts import Evaluation
from vitdc.comparison import revisions
from vitdc.comparison.runs import RunResult, from_evaluation
from vitdc.errors import InputError
from vitdc.tracking import reading
from vitdc.tracking.reading import RecordedRun
from vitdc.tracking.store import has_store

_logger = logging.getLogger(__name__)

MLFLOW, DVC = "mlflow:", "dvc:"  # before a name, to say where it belongs


def find_results(names: Iterable[str]) -> dict[str, RunResult]:
    """The result of every run, by what the person called it.

    Args:
        names: Each a directory of results (or one with `results` in it), "workspace", a DVC
            experiment, a Git revision, or an MLflow run by id, beginning of an id or name. What
            DVC has is taken, with a warning, where MLflow cannot say that it has the name, too.

    Raises:
        InputError: A run is unknown, fits several, or has no round to compare; or MLflow or the
            DVC remote cannot be read.
    """
    names = list(dict.fromkeys(names))
    found: dict[str, RunResult | None] = {name: _in_directory(name) for name in names}
    elsewhere = [name for name in names if found[name] is None]
    for_dvc = [n for n in elsewhere if not n.startswith(MLFLOW)]
    for_mlflow = [n for n in elsewhere if not n.startswith(DVC) and n != revisions.WORKSPACE]
    in_dvc = _in_dvc(for_dvc)
    try:
        in_mlflow = _in_mlflow(for_mlflow)
    except InputError as error:
        if error.__cause__ is None or any(name not in in_dvc for name in for_mlflow):
            raise  # MLflow could be read, or is needed
        _logger.warning("%s; going on with what DVC has by these names", error)
        in_mlflow = {}
    for name in elsewhere:
        candidates = [source[name] for source in (in_dvc, in_mlflow) if name in source]
        if len(candidates) > 1:
            raise InputError(
                f"{name}: both a revision here and the MLflow run {candidates[1].id[:8]}; write"
                f" {DVC}{name} or {MLFLOW}{candidates[1].id[:8]}"
            )
        found[name] = candidates[0] if candidates else None
    return {name: result or _unknown(name) for name, result in found.items()}


def newest_results(experiment: str, count: int) -> list[RunResult]:
    """The newest finished runs of an MLflow experiment, the oldest of them first.

    Raises:
        InputError: There is no such experiment, it has no finished run, or MLflow cannot be read.
    """
    runs = reading.newest_runs(experiment, count=count)
    if not runs:
        raise InputError(f"--last {count}: no finished run in the MLflow experiment {experiment!r}")
    return [from_record(run, label=run.id[:8]) for run in runs]


def from_record(run: RecordedRun, *, label: str) -> RunResult:
    """The result as far as MLflow has it.

    Raises:
        InputError: No round has been recorded.
    """
    if not run.curves:
        raise InputError(
            f"{label}: the MLflow run {run.id[:8]} ({run.name}) has recorded no round; it is"
            f" {run.status}. Name a run that has got further (`vitdc compare --list`)"
        )
    best = run.values.get("best_round")
    return RunResult(
        id=run.id,
        label=label,
        name=run.name,
        source="MLflow",
        params=run.params,
        values=run.values,
        curves=run.curves,
        state=run.stop_reason or run.status,
        best_round=None if best is None else int(best),
        data=run.data,
    )


def _in_directory(name: str) -> RunResult | None:
    for path in (Path(name), Path(name) / revisions.RESULTS):
        if (path / "artifact.json").is_file():
            evaluation = Evaluation.load(path)
            return from_evaluation(
                evaluation, id=str(path.resolve()), label=name, source="directory"
            )
    return None


def _in_dvc(names: Sequence[str]) -> dict[str, RunResult]:
    if not names or not revisions.in_repository():
        return {}
    results = {name: revisions.find_revision(name.removeprefix(DVC)) for name in names}
    return {name: result for name, result in results.items() if result}


def _in_mlflow(names: Sequence[str]) -> dict[str, RunResult]:
    if not names or not has_store():
        return {}
    runs = reading.find_runs([name.removeprefix(MLFLOW) for name in names])
    results = {}
    for name in names:
        if run := runs.get(asked := name.removeprefix(MLFLOW)):
            label = run.id[:8] if run.id.startswith(asked) else asked
            results[name] = from_record(run, label=label)
    return results


def _unknown(name: str) -> NoReturn:
    """Say where was looked."""
    if Path(name).is_dir():
        raise InputError(
            f"{name}: a directory without results (no artifact.json in it or in its results/);"
            " name the one that `vitdc evaluate` or `vitdc run` wrote"
        )
    asked = name.removeprefix(DVC).removeprefix(MLFLOW)
    looked = (
        []
        if name.startswith(MLFLOW)
        else [
            "no revision or experiment of that name in Git and DVC"
            if revisions.in_repository()
            else "not in a DVC repository here"
        ]
    )
    if not name.startswith(DVC):
        looked.append(
            "no run with that id or name in MLflow"
            if has_store()
            else "no MLflow store here (MLFLOW_TRACKING_URI says where it is)"
        )
    raise InputError(
        f"{asked}: no such run: no results directory, {', '.join(looked)}; `vitdc compare --list`"
        " and `dvc exp list` name what there is"
    )
