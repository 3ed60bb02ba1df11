"""What earlier processes could not deliver: a list of it, and its delivery by command."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from vitdc.tracking import journal
from vitdc.tracking.outbox import Outbox, Waiting, outbox_directory
from vitdc.tracking.store import open_store, store_name
from vitdc.tracking.tracker import connect


class WaitingRun(NamedTuple):
    """A run of which MLflow has not taken everything.

    Attributes:
        run_id: Of the MLflow run.
        name: Of the run.
        uri: Of the store it belongs to, without password.
        waiting: What is waiting.
        refused: Number of entries that MLflow has refused for good.
        in_use: Whether a process that lives is delivering it.
        folder: Where it is kept.
    """

    run_id: str
    name: str
    uri: str
    waiting: Waiting
    refused: int
    in_use: bool
    folder: Path


def waiting_runs(directory: Path | None = None) -> list[WaitingRun]:
    """All runs with something left, in the order in which it was told."""
    found = [_look(folder) for folder in _folders(directory) if _is_readable(folder)]
    left = [run for run in found if run.waiting or run.refused]
    return sorted(left, key=lambda run: run.waiting.since or 0)


def hidden_folders(directory: Path | None = None) -> list[Path]:
    """Folders of runs that another user recorded, who alone can see what is in them."""
    return [folder for folder in _folders(directory) if not _is_readable(folder)]


def _folders(directory: Path | None) -> list[Path]:
    return sorted(path for path in (directory or outbox_directory()).glob("*") if path.is_dir())


def _is_readable(folder: Path) -> bool:
    try:
        next(folder.iterdir(), None)
    except PermissionError:
        return False
    return True


def _look(folder: Path) -> WaitingRun:
    about = journal.read_about(folder)
    paths = journal.journals(folder)
    entries = [each.entry for path in paths for each in journal.read(path)]
    return WaitingRun(
        run_id=folder.name,
        name=str(about.get("name", "?")),
        uri=str(about.get("uri", "?")),
        waiting=Waiting.of(entries),
        refused=len(journal.refused(folder)),
        in_use=any(_is_held(path) for path in paths),
        folder=folder,
    )


def _is_held(path: Path) -> bool:
    held = journal.Journal.hold(path)
    if held is None:
        return True
    held.close()
    return False


def deliver_waiting(directory: Path | None = None) -> Iterator[tuple[WaitingRun, Waiting]]:
    """Deliver what is waiting for the store that MLFLOW_TRACKING_URI names, run by run.

    Yields:
        The run as it was, and what is still left of it.

    Raises:
        InputError: The store cannot be used.
    """
    with open_store(way_out="set MLFLOW_TRACKING_URI to where the runs were recorded") as client:
        client.search_experiments(max_results=1)
    for run in waiting_runs(directory):
        if run.waiting and not run.in_use and run.uri == store_name():
            about = {**journal.read_about(run.folder), "run_id": run.run_id}
            yield run, _deliver(about, run.folder.parent)


def _deliver(about: dict[str, Any], directory: Path) -> Waiting:
    outbox = Outbox(about, lambda: connect(about), directory=directory)
    return outbox.close()


def forget(run: WaitingRun) -> None:
    """Delete what is kept of a run."""
    journal.remove(run.folder)
