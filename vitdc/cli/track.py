"""`vitdc track`: what MLflow has not taken yet, and its delivery."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from vitdc.errors import InputError, TrainingError
from vitdc.names import printable

if TYPE_CHECKING:
    from vitdc.tracking.waiting import WaitingRun

NOTHING = "Nothing is waiting: MLflow has all that was told."


@click.command("track")
@click.option("--resume", is_flag=True, help="Deliver it now.")
@click.option("--forget", metavar="RUN_ID", help="Delete what is kept of a run, undelivered.")
def command(resume: bool, forget: str | None) -> None:
    """Show what MLflow has not taken yet, or deliver it.

    A run tells MLflow what it does while it trains. When MLflow is away, everything is kept in
    .mlflow-outbox/ (VITDC_OUTBOX names another directory) and delivered when it is back, in order
    and once: by the same process, by the next stage of the run, or by this command:

    \b
        vitdc track             what is waiting, per run
        vitdc track --resume    deliver it to the MLflow that MLFLOW_TRACKING_URI names
        vitdc track --forget RUN_ID

    What MLflow has refused for good (a bad value, a run that was deleted) is set aside in
    refused.jsonl and not tried again. Exit code 1 means that something could not be delivered.
    """
    if forget:
        _forget(forget)
    elif resume:
        _resume()
    else:
        _show()


def _show() -> None:
    from vitdc.tracking.waiting import waiting_runs

    runs = waiting_runs()
    for run in runs:
        click.echo(_describe(run))
    if any(run.waiting and not run.in_use for run in runs):
        click.echo("`vitdc track --resume` delivers it.")
    if not (_show_hidden() or runs):
        click.echo(NOTHING)


def _show_hidden() -> bool:
    """Say what only others can see; whether there is anything of the kind."""
    from vitdc.tracking.waiting import hidden_folders

    hidden = hidden_folders()
    for folder in hidden:
        click.echo(f"{folder}: another user's, who alone can see and deliver what is in it")
    return bool(hidden)


def _describe(run: WaitingRun) -> str:
    lines = [printable(f"{run.run_id}  {run.name}  for {run.uri}")]
    if run.waiting.since is not None:
        told = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(run.waiting.since))
        who = " (a running process delivers it)" if run.in_use else ""
        lines.append(f"    waiting since {told}: {run.waiting}{who}")
    if run.refused:
        lines.append(f"    refused by MLflow: {run.refused}, see {run.folder / 'refused.jsonl'}")
    return "\n".join(lines)


def _resume() -> None:
    from vitdc.tracking.store import store_name
    from vitdc.tracking.waiting import deliver_waiting, waiting_runs

    hidden = _show_hidden()
    if not any(run.waiting for run in waiting_runs()):
        if not hidden:
            click.echo(NOTHING)
        return
    for run, left in deliver_waiting():
        outcome = f"{left} left" if left else f"delivered {run.waiting}"
        click.echo(printable(f"{run.run_id}  {run.name}: {outcome}"))
    waiting = [run for run in waiting_runs() if run.waiting]
    for run in waiting:
        if run.in_use:
            text = f"{run.run_id}  {run.name}: {run.waiting}; a running process delivers it"
            click.echo(printable(text))
    remaining = [run for run in waiting if not run.in_use]
    for uri in sorted({run.uri for run in remaining} - {store_name()}):
        click.echo(f"left for {uri}: set MLFLOW_TRACKING_URI to it and run this again")
    if remaining:
        runs = f"{len(remaining)} run{'s' if len(remaining) > 1 else ''}"
        raise TrainingError(f"MLflow has not taken everything of {runs}")


def _forget(run_id: str) -> None:
    from vitdc.tracking.waiting import forget, waiting_runs

    known = {run.run_id: run for run in waiting_runs()}
    if run_id not in known:
        ids = ", ".join(known) or "none"
        raise InputError(f"--forget {run_id}: nothing of this run is kept; there is: {ids}")
    if known[run_id].in_use:
        raise InputError(f"--forget {run_id}: a running process is using it; end that first")
    forget(known[run_id])
    click.echo(f"{run_id}: forgotten")
