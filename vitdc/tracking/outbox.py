"""Delivery to MLflow in the background: in order, once, and not at the cost of the training.

What is told is written to a journal on disk at once and delivered by a thread. While MLflow is away
everything is kept, and delivered when it is back: by the same process, by the next one of the same
run, or by `vitdc track --resume`. Nothing here raises into the work that is being recorded.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import re
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from vitdc.errors import InputError
from vitdc.tracking import journal
from vitdc.tracking.journal import Entry, Journal, Numbered
from vitdc.tracking.store import Trouble, error_text, home, trouble

OUTBOX_VARIABLE = "VITDC_OUTBOX"
FOLDER = ".mlflow-outbox"

INTERVAL = 5.0  # seconds between deliveries while there is no hurry: few requests, big ones
PATIENCE = 30.0  # seconds that the end of a stage waits for a server that is away
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)  # seconds between attempts; the last one again and again
MAX_POINTS = 1000  # of one request
FINISH = "finish"  # the kind of entry that ends a run

# What this process has said, by the folder of a run: every stage of `vitdc run` has its own outbox.
_warned: set[tuple[Path, str]] = set()

_logger = logging.getLogger(__name__)


class Recipient(Protocol):
    """Where entries go; see `record.RunRecord.deliver`."""

    def deliver(self, entry: Entry, folder: Path) -> None:
        """Take an entry; a second time changes nothing. `folder` has the files it names."""

    def answers(self) -> bool:
        """Whether MLflow itself can be reached, e.g. where only the store behind it is away."""


class Waiting(NamedTuple):
    """What MLflow has not taken."""

    points: int
    files: int
    others: int
    since: float | None  # when the oldest of it was told, in seconds since 1970

    @classmethod
    def of(cls, entries: list[Entry]) -> Waiting:
        points = sum(len(entry.get("points", ())) for entry in entries)
        files = sum("file" in entry for entry in entries)
        others = len(entries) - files - sum("points" in entry for entry in entries)
        return cls(points, files, others, min((e["time"] for e in entries), default=None))

    def __bool__(self) -> bool:
        return self.since is not None

    def __str__(self) -> str:
        counts = {"value": self.points, "file": self.files, "other message": self.others}
        said = [f"{n} {name}{'s' if n > 1 else ''}" for name, n in counts.items() if n]
        return ", ".join(said) or "nothing"


def outbox_directory() -> Path:
    """Where journals lie: VITDC_OUTBOX, the scratch volume of a cluster, or beside the work.

    In a container that can make neither, the temporary directory must do; it ends with the
    container. One that is there and cannot be written, because another user made it, stays it: that
    is said where something is to be kept.
    """
    if chosen := os.environ.get(OUTBOX_VARIABLE):
        return Path(chosen).absolute()
    scratch = os.environ.get("VITDC_SCRATCH")
    directory = Path(scratch, "mlflow-outbox") if scratch else home() / FOLDER
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    if existing == directory or os.access(existing, os.W_OK):
        return directory.absolute()
    return Path(tempfile.gettempdir(), f"vitdc-mlflow-outbox-{os.getuid()}")


class _Pending(NamedTuple):
    """An entry that waits, and the journal that keeps it (None if the disk could not)."""

    journal: Journal | None
    numbered: Numbered


class Outbox:
    """What is told about one MLflow run, delivered in the background until `close`.

    Args:
        about: Which run of which store: `run_id`, `uri`, `name`, `identity`.
        connect: Makes the recipient; called in the background, again while MLflow is away.
        directory: Of the folders of all runs.
        remember: Keep `about` until the run is finished, for later stages that begin while MLflow
            is away.
    """

    def __init__(
        self,
        about: Mapping[str, Any],
        connect: Callable[[], Recipient],
        *,
        directory: Path | None = None,
        remember: bool = False,
    ) -> None:
        self.folder = (directory or outbox_directory()) / str(about["run_id"])
        self._about = about
        self._connect = connect
        self._recipient: Recipient | None = None
        self._journal: Journal | None = None
        self._numbers = itertools.count(1)
        self._pending: deque[_Pending] = deque()
        self._condition = threading.Condition()
        self._hurry = False
        self._stop = False
        self._busy = False
        self._away_since: float | None = None
        self._problem: str | None = None  # why nothing is delivered any more
        self._last_delivery = -math.inf
        self._most = MAX_POINTS  # entries of one delivery; fewer while one of them is bad
        self._remember = remember
        self._finished = False  # what ends the run has been told
        self._adopt()
        self._thread = threading.Thread(target=self._work, name="mlflow-outbox", daemon=True)
        self._thread.start()

    # --- told by the work ------------------------------------------------------------------------

    def tell(self, kind: str, *, keep: Path | None = None, **values: Any) -> None:
        """Keep an entry and have it delivered; never raises.

        Args:
            kind: What `Recipient.deliver` does with it.
            keep: A file that belongs to it; its content counts as it is now.
            values: The rest of the entry, as JSON can write it.
        """
        with self._condition:
            if self._stop:  # a last measurement of the machine, beside the end
                return
            number = next(self._numbers)
            entry: Entry = {"kind": kind, "time": time.time(), **values}
            kept = self._keep(number, entry, keep)
            self._pending.append(_Pending(kept, Numbered(number, entry)))
            self._finished |= kind == FINISH
            self._condition.notify_all()

    def flush(self, patience: float | None = None, limit: float = math.inf) -> Waiting:
        """Wait until everything is delivered, or MLflow has been away or busy for too long.

        Args:
            patience: Seconds to wait for a server that is away, from now or since it went.
            limit: Seconds to wait at all.

        Returns:
            What is left.
        """
        patience = PATIENCE if patience is None else patience
        start = time.monotonic()
        with self._condition:
            self._hurry = True
            self._condition.notify_all()
            while self._pending and self._problem is None and self._thread.is_alive():
                away, now = self._away_since, time.monotonic()
                if away is not None and not self._busy and now - max(start, away) > patience:
                    break
                if now - start > limit:
                    break
                self._condition.wait(0.1)
            self._hurry = False
            return Waiting.of([each.numbered.entry for each in self._pending])

    def close(self, patience: float | None = None, limit: float = math.inf) -> Waiting:
        """Deliver what can be delivered, say what is left, and let it go; it takes no more."""
        with self._condition:  # nothing can be told between the two, since only `flush` waits
            left = self.flush(patience, limit)
            self._stop = True
            self._condition.notify_all()
        self._thread.join(1)
        if left:
            self._warn(
                "left",
                f"MLflow has not taken everything ({left}); it is kept in {self.folder}, and `vitdc"
                " track --resume` delivers it",
            )
        elif outages := _warned & {(self.folder, about) for about in ("away", "files", "left")}:
            _warned.difference_update(outages)
            _logger.info("MLflow: all that was kept is delivered")
        self._release()
        return left

    # --- keeping ---------------------------------------------------------------------------------

    def _adopt(self) -> None:
        """Take over what earlier processes of this run left; it goes first."""
        with self._ignoring_disk():
            for left in journal.take_over(self.folder):
                waiting = left.waiting()
                self._pending += [_Pending(left, numbered) for numbered in waiting]
                self._finished |= any(each.entry["kind"] == FINISH for each in waiting)
                if not waiting:
                    left.delete()

    def _keep(self, number: int, entry: Entry, keep: Path | None) -> Journal | None:
        try:
            if self._journal is None:
                self._journal = self._begin()
            if keep is not None:
                entry["file"] = f"{self._journal.files.name}/{number}/{keep.name}"
                journal.keep(keep, self.folder / entry["file"])
            self._journal.append(Numbered(number, entry))
        except OSError as error:
            if keep is not None:
                entry["file"] = str(keep.absolute())
            self._warn(
                "disk",
                f"MLflow: what is told cannot be kept in {self.folder} ({error.strerror or error})"
                " and would be lost with this process; set VITDC_OUTBOX to a directory that can be"
                " written",
            )
            return None
        return self._journal

    def _begin(self) -> Journal:
        """A new journal; without what it is about nobody could deliver it."""
        begun = Journal.create(self.folder)
        try:
            journal.write_about(self.folder, self._about)
        except OSError:
            begun.delete()
            raise
        return begun

    def _ignoring_disk(self) -> AbstractContextManager[None]:
        return suppress(OSError)

    def _release(self) -> None:
        """Delete the journals that are delivered, and let others have those that are not."""
        with self._condition, self._ignoring_disk():
            held = {each.journal for each in self._pending if each.journal}
            for left in held - {self._journal}:
                left.close()
            if self._journal is not None:
                if self._journal in held:
                    self._journal.close()
                else:
                    self._journal.delete()
            self._journal = None
            if self._remember and not self._finished:
                journal.write_about(self.folder, self._about)

    # --- delivering ------------------------------------------------------------------------------

    def _work(self) -> None:
        attempt = 0
        while (batch := self._next_batch()) is not None:
            try:
                if self._recipient is None:
                    self._recipient = self._connect()
                self._recipient.deliver(_merged(batch), self.folder)
            except Exception as error:
                attempt = self._failed(batch, error, attempt)
            else:
                attempt = 0
                self._settle(batch)

    def _next_batch(self) -> list[_Pending] | None:
        """Wait for entries that go in one delivery; None when there is nothing more to do."""
        with self._condition:
            self._busy = False
            self._condition.notify_all()
            while not self._stop:
                wait = self._last_delivery + INTERVAL - time.monotonic()
                due = self._pending and self._problem is None
                if due and (self._hurry or wait <= 0):
                    self._busy = True
                    self._last_delivery = time.monotonic()
                    return _first_together(self._pending, self._most)
                self._condition.wait(wait if due else None)
            return None

    def _settle(self, batch: list[_Pending]) -> None:
        """Note that a batch is delivered."""
        with self._condition:
            self._away_since = None
            for each in batch:
                if each.journal and "file" in each.numbered.entry:
                    with self._ignoring_disk():
                        journal.remove(self.folder / each.numbered.entry["file"])
            self._drop(batch)

    def _drop(self, batch: list[_Pending]) -> None:
        self._most = MAX_POINTS
        done = {id(each.numbered) for each in batch}
        self._pending = deque(each for each in self._pending if id(each.numbered) not in done)
        with self._ignoring_disk():
            for owner, group in itertools.groupby(batch, key=lambda each: each.journal):
                numbers = [each.numbered.number for each in group]
                if owner is None:
                    continue
                if owner is not self._journal and all(
                    each.journal is not owner for each in self._pending
                ):
                    owner.delete()
                else:
                    owner.delivered(numbers)

    def _failed(self, batch: list[_Pending], error: Exception, attempt: int) -> int:
        """Decide what a failed delivery means; returns the number of attempts so far."""
        kind = trouble(error)
        if kind is Trouble.OUTAGE:
            self._away(batch, error)
            self._pause(PAUSES[min(attempt, len(PAUSES) - 1)])
            return attempt + 1
        if kind is Trouble.BLOCKED:
            with self._condition:
                self._problem = error_text(error)
            self._warn(
                "blocked",
                f"MLflow refuses this run: {error_text(error)}; going on without; what is told is"
                f" kept in {self.folder}, and `vitdc track --resume` delivers it once that is put"
                " right",
            )
            return 0
        if len(batch) > 1:
            self._most = len(batch) // 2
        else:
            self._set_aside(batch, error)
        return 0

    def _away(self, batch: list[_Pending], error: Exception) -> None:
        """MLflow cannot be reached, or the store of its files."""
        with self._condition:
            self._away_since = self._away_since or time.monotonic()
        first = batch[0]
        if "file" not in first.numbered.entry or not self._answers():
            self._warn(
                "away",
                f"MLflow cannot be reached: {_reason(error)}; going on; what is told is kept in"
                f" {self.folder} and delivered when it is back",
            )
            return
        self._warn(
            "files",
            f"MLflow takes no files: {_reason(error)}; its store of files is away or denies it"
            f" (MLflow's own log says which); going on; they are kept in {self.folder} and"
            " delivered when it takes them",
        )
        with self._condition:  # other entries need not wait for the store of files
            self._pending.remove(first)
            self._pending.append(first)

    def _answers(self) -> bool:
        return self._recipient is not None and self._recipient.answers()

    def _set_aside(self, batch: list[_Pending], error: Exception) -> None:
        reason = error_text(error)
        with self._condition, self._ignoring_disk():
            for each in batch:
                journal.refuse(self.folder, each.numbered.entry, reason)
        with self._condition:
            self._drop(batch)
        self._warn(
            "refused",
            f"MLflow does not take {Waiting.of([each.numbered.entry for each in batch])}: {reason};"
            f" going on; it is set aside in {self.folder / journal.REFUSED}",
        )

    def _pause(self, seconds: float) -> None:
        with self._condition:
            self._busy = False
            self._condition.notify_all()
            deadline = time.monotonic() + seconds
            while not self._stop and (left := deadline - time.monotonic()) > 0:
                self._condition.wait(left)

    def _warn(self, about: str, text: str) -> None:
        """Say something once in this process."""
        if (self.folder, about) not in _warned:
            _warned.add((self.folder, about))
            _logger.warning("%s", text)


def _reason(error: Exception) -> str:
    """What happened, without the library's address and object names where it says it at the end."""
    text = error_text(
        error.__cause__ if isinstance(error, InputError) and error.__cause__ else error
    )
    innermost = re.search(r"\(Caused by \w+\(.*?: (?P<reason>[^:]*?)[\"')]*$", text)
    return innermost["reason"] if innermost else text


def _first_together(pending: deque[_Pending], most: int) -> list[_Pending]:
    """The first entry, and those right after it that go in the same request."""
    first = itertools.islice(pending, most)
    batch = list(itertools.takewhile(lambda each: each.numbered.entry["kind"] == "points", first))
    totals = itertools.accumulate(len(each.numbered.entry["points"]) for each in batch)
    return batch[: max(1, sum(total <= MAX_POINTS for total in totals))] or [pending[0]]


def _merged(batch: list[_Pending]) -> Entry:
    entries = [each.numbered.entry for each in batch]
    if len(entries) == 1:
        return entries[0]
    return {**entries[0], "points": [point for entry in entries for point in entry["points"]]}
