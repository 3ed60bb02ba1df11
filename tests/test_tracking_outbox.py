"""What is told reaches MLflow in order and once, whoever dies on the way."""

from __future__ import annotations

import errno
import functools
import itertools
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import servers
import sqlalchemy.exc
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from processes import wait_until
from test_tracking import HISTORY, METRICS, ROWS, evaluate, make_params, record
from toys import ToyRun, contents

from vitdc import steps
from vitdc.cli import find_command
from vitdc.errors import InputError
from vitdc.tracking import download_model, journal, outbox, store
from vitdc.tracking.journal import Entry, Journal, Numbered
from vitdc.tracking.outbox import Outbox
from vitdc.tracking.store import Trouble, trouble
from vitdc.tracking.waiting import waiting_runs

ABOUT = {"run_id": "run", "name": "toy", "identity": "0", "uri": "sqlite:///none"}


class Recipient:
    """Takes entries as MLflow does, and fails as it is told to."""

    def __init__(self) -> None:
        self.taken: list[Entry] = []
        self.error: Exception | None = None
        self.refuses: Any = lambda entry: None
        self.attempts = 0
        self.lock = threading.Lock()

    def deliver(self, entry: Entry, folder: Path) -> None:
        with self.lock:
            self.attempts += 1
            error = self.error or self.refuses(entry)
            if error:
                raise error
            content = (folder / entry["file"]).read_text() if "file" in entry else None
            self.taken.append({**entry, "content": content})

    def answers(self) -> bool:
        return self.error is None

    @property
    def steps(self) -> list[int]:
        return [point[1] for entry in self.taken for point in entry.get("points", ())]


@pytest.fixture
def recipient() -> Recipient:
    return Recipient()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "PAUSES", (0.05,))
    monkeypatch.setattr(outbox, "INTERVAL", 0.0)


def open_outbox(directory: Path, recipient: Recipient) -> Outbox:
    return Outbox(ABOUT, lambda: recipient, directory=directory)


def tell(box: Outbox, *steps: int) -> None:
    for step in steps:
        box.tell("points", points=[("loss", step, 0.5, 1000 + step)])


# --- the journal ---------------------------------------------------------------------------------

ENTRIES = st.lists(
    st.fixed_dictionaries({"kind": st.just("tags"), "time": st.floats(0, 1e9), "tags": st.text()}),
    max_size=8,
)


@given(entries=ENTRIES, share=st.floats(0, 1))
def test_a_journal_that_is_cut_off_anywhere_holds_what_came_before(
    tmp_path_factory: pytest.TempPathFactory, entries: list[Entry], share: float
) -> None:
    held = Journal.create(tmp_path_factory.mktemp("journal"))
    ends = [0]
    for number, entry in enumerate(entries, start=1):
        held.append(Numbered(number, entry))
        ends.append(held.path.stat().st_size)
    cut = int(share * ends[-1])
    os.truncate(held.path, cut)
    whole = sum(end - 1 <= cut for end in ends[1:])  # without its line's end an entry is whole
    assert [each.entry for each in held.waiting()] == entries[:whole]
    held.close()
    again = Journal.hold(held.path)
    assert again
    again.append(Numbered(99, {"kind": "tags", "time": 0.0, "tags": "after"}))
    assert [each.number for each in again.waiting()] == [*range(1, whole + 1), 99]
    again.delete()


@given(entries=ENTRIES, taken=st.sets(st.integers(1, 8)))
def test_what_is_delivered_does_not_wait(
    tmp_path_factory: pytest.TempPathFactory, entries: list[Entry], taken: set[int]
) -> None:
    held = Journal.create(tmp_path_factory.mktemp("journal"))
    for number, entry in enumerate(entries, start=1):
        held.append(Numbered(number, entry))
    held.delivered(taken)
    left = [number for number in range(1, len(entries) + 1) if number not in taken]
    assert [each.number for each in journal.read(held.path)] == left
    held.delete()


def test_a_journal_belongs_to_one_process_at_a_time(tmp_path: Path) -> None:
    held = Journal.create(tmp_path / "run")
    assert list(journal.take_over(tmp_path / "run")) == []
    held.close()
    (taken,) = journal.take_over(tmp_path / "run")
    taken.delete()
    assert not (tmp_path / "run").exists()


# --- delivery ------------------------------------------------------------------------------------


def test_what_is_told_arrives_in_order_and_leaves_nothing(
    tmp_path: Path, recipient: Recipient
) -> None:
    box = open_outbox(tmp_path / "box", recipient)
    tell(box, *range(50))
    box.tell("tags", tags={"a": "b"})
    tell(box, 50)
    box.tell(outbox.FINISH)
    assert not box.close()
    assert recipient.steps == [*range(51)]
    assert [e["kind"] for e in recipient.taken if "points" not in e] == ["tags", "finish"]
    assert recipient.taken[-2]["points"] == [("loss", 50, 0.5, 1050)]
    assert list((tmp_path / "box").iterdir()) == []


def test_a_run_that_goes_on_leaves_nothing_but_what_it_is(
    tmp_path: Path, recipient: Recipient
) -> None:
    box = Outbox(ABOUT, lambda: recipient, directory=tmp_path, remember=True)
    tell(box, 0)
    assert not box.close()
    folder = tmp_path / str(ABOUT["run_id"])
    assert [path.name for path in folder.iterdir()] == [journal.ABOUT]
    assert journal.read_about(folder) == ABOUT
    assert waiting_runs(tmp_path) == []


def test_all_that_waits_goes_in_one_delivery_and_none_follows_at_once(
    tmp_path: Path, recipient: Recipient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results and measurements alike: an epoch has both."""
    monkeypatch.setattr(outbox, "INTERVAL", 3600.0)
    box = open_outbox(tmp_path, recipient)
    tell(box, 0)
    wait_until(lambda: recipient.attempts == 1)
    for epoch in range(1, 81):
        tell(box, epoch)
        box.tell("points", points=[("seconds/epoch", epoch, 1.5, 1000 + epoch)])
    time.sleep(0.1)
    assert recipient.attempts == 1
    assert not box.close()
    assert recipient.attempts == 2
    assert len(recipient.steps) == 161


def test_a_delivery_holds_no_more_than_mlflow_takes(tmp_path: Path, recipient: Recipient) -> None:
    with recipient.lock:
        box = open_outbox(tmp_path, recipient)
        for start in range(0, 2800, 400):
            points = [("loss", step, 0.5, step) for step in range(start, start + 400)]
            box.tell("points", points=points)
    assert not box.close()
    assert recipient.steps == [*range(2800)]
    assert max(len(entry["points"]) for entry in recipient.taken) <= outbox.MAX_POINTS


def test_an_end_that_may_not_wait_leaves_the_rest_to_the_next_process(
    tmp_path: Path, recipient: Recipient
) -> None:
    """Also where MLflow answers, but slowly."""
    with recipient.lock:
        box = open_outbox(tmp_path, recipient)
        tell(box, *range(5))
        started = time.monotonic()
        assert box.close(limit=0.2).points == 5
        assert time.monotonic() - started < 5
    again = open_outbox(tmp_path, recipient)
    assert not again.close()
    assert set(recipient.steps) == {*range(5)}


@settings(max_examples=20)
@given(outages=st.lists(st.booleans(), max_size=12), num=st.integers(1, 12))
def test_outages_change_neither_order_nor_number(
    tmp_path_factory: pytest.TempPathFactory, outages: list[bool], num: int
) -> None:
    recipient = Recipient()
    answers = iter(outages)
    recipient.refuses = lambda entry: OSError("away") if next(answers, False) else None
    box = open_outbox(tmp_path_factory.mktemp("box"), recipient)
    tell(box, *range(num))
    assert not box.close()
    assert recipient.steps == [*range(num)]


def test_a_server_that_goes_away_is_said_once_and_everything_arrives_later(
    tmp_path: Path, recipient: Recipient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="vitdc")
    box = open_outbox(tmp_path, recipient)
    recipient.error = ConnectionError("no route")
    tell(box, *range(5))
    wait_until(lambda: recipient.attempts > 2)
    assert box.flush(patience=0).points == 5
    recipient.error = None
    assert not box.close()
    assert recipient.steps == [0, 1, 2, 3, 4]
    said = [r.getMessage() for r in caplog.records]
    assert sum("cannot be reached: no route; going on" in text for text in said) == 1
    assert "all that was kept is delivered" in said[-1]


def test_a_long_delivery_before_an_outage_takes_no_patience_from_it(
    tmp_path: Path, recipient: Recipient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is restarted after a large upload has as long as any other."""
    clock, passed = time.monotonic, [0.0]
    monkeypatch.setattr(outbox.time, "monotonic", lambda: clock() + passed[0])

    def break_off(entry: Entry) -> Exception | None:
        if passed[0]:
            return None
        passed[0] = 3600.0
        return ConnectionError("broken pipe")

    recipient.refuses = break_off
    monkeypatch.setattr(outbox, "INTERVAL", 60.0)
    box = open_outbox(tmp_path, recipient)
    box.tell("tags", tags={"large": "file"})
    assert not box.close(patience=600)


def test_what_is_told_beside_the_end_is_delivered_or_not_taken(
    tmp_path: Path, recipient: Recipient
) -> None:
    box = open_outbox(tmp_path, recipient)
    done = threading.Event()

    def measure() -> None:
        for step in itertools.count():
            tell(box, step)
            if done.wait(0.001):
                return

    beside = threading.Thread(target=measure)
    beside.start()
    assert not box.close()
    taken = list(recipient.steps)
    done.set()
    beside.join()
    tell(box, 10**6)
    assert recipient.steps == taken == [*range(len(taken))]
    assert list(tmp_path.iterdir()) == []


def test_what_is_left_at_the_end_is_said_again_once_it_was_delivered(
    tmp_path: Path, recipient: Recipient, caplog: pytest.LogCaptureFixture
) -> None:
    """Every stage of `vitdc run` has an outbox of its own."""
    for times, error in ((1, ConnectionError("away")), (1, None), (2, ConnectionError("away"))):
        recipient.error = error
        box = open_outbox(tmp_path, recipient)
        tell(box, times)
        box.close(patience=0)
        assert caplog.text.count("vitdc track --resume") == times


def test_what_is_left_at_the_end_is_delivered_by_the_next_process_before_its_own(
    tmp_path: Path, recipient: Recipient, caplog: pytest.LogCaptureFixture
) -> None:
    recipient.error = ConnectionError("no route")
    first = open_outbox(tmp_path, recipient)
    (tmp_path / "report.html").write_text("first")
    first.tell("file", keep=tmp_path / "report.html", folder="")
    tell(first, 0, 1)
    left = first.close(patience=0)
    assert (left.points, left.files) == (2, 1)
    assert "2 values, 1 file" in caplog.text
    assert "vitdc track --resume" in caplog.text
    (tmp_path / "report.html").unlink()
    (tmp_path / "report.html").write_text("of another run")
    recipient.error = None
    second = open_outbox(tmp_path, recipient)
    tell(second, 2)
    second.tell(outbox.FINISH)
    assert not second.close()
    assert recipient.steps == [0, 1, 2]
    assert [entry["content"] for entry in recipient.taken if "file" in entry] == ["first"]
    assert {path.name for path in tmp_path.iterdir()} == {"report.html"}


def test_a_bad_value_is_set_aside_and_does_not_hold_up_the_rest(
    tmp_path: Path, recipient: Recipient, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow.exceptions import MlflowException

    bad = MlflowException.invalid_parameter_value("no such tag")
    recipient.refuses = lambda entry: bad if entry["kind"] == "tags" else None
    (tmp_path / "file").write_text("content")
    box = open_outbox(tmp_path / "box", recipient)
    tell(box, 0)
    box.tell("tags", tags={"bad": "1"})
    tell(box, 1)
    box.tell("tags", tags={"bad": "2"}, keep=tmp_path / "file")
    assert not box.close()
    assert recipient.steps == [0, 1]
    assert caplog.text.count("does not take") == 1
    first, second = journal.refused(tmp_path / "box" / "run")
    assert (first["tags"], first["reason"]) == ({"bad": "1"}, "no such tag")
    assert (tmp_path / "box" / "run" / second["file"]).read_text() == "content"
    (left,) = waiting_runs(tmp_path / "box")
    assert (left.refused, bool(left.waiting)) == (2, False)


def test_a_bad_value_takes_no_good_one_along(tmp_path: Path, recipient: Recipient) -> None:
    """What is told in a short time goes in one request."""
    from mlflow.exceptions import MlflowException

    bad = MlflowException.invalid_parameter_value("no such step")
    recipient.refuses = lambda entry: bad if 7 in [p[1] for p in entry["points"]] else None
    with recipient.lock:
        box = open_outbox(tmp_path, recipient)
        tell(box, *range(20))
    tell(box, 20)
    assert not box.close()
    assert recipient.steps == [step for step in range(21) if step != 7]
    (refused,) = journal.refused(tmp_path / "run")
    assert [point[1] for point in refused["points"]] == [7]


@pytest.mark.parametrize(
    ("message", "meaning"),
    [
        ("QueuePool limit of size 5 overflow 10 reached, connection timed out", Trouble.OUTAGE),
        ("(psycopg.errors.ReadOnlySqlTransaction) cannot execute INSERT", Trouble.OUTAGE),
        ("(psycopg.DataError) PostgreSQL text fields cannot contain NUL", Trouble.REFUSED),
    ],
)
def test_what_mlflows_database_cannot_do_now_is_tried_again(message: str, meaning: Trouble) -> None:
    """MLflow calls everything that its database says a bad request."""
    from mlflow.exceptions import MlflowException, RestException
    from mlflow.protos.databricks_pb2 import BAD_REQUEST, INVALID_PARAMETER_VALUE

    assert trouble(MlflowException(message, error_code=BAD_REQUEST)) is meaning
    answered = RestException({"error_code": "BAD_REQUEST", "message": message})
    assert trouble(answered) is meaning
    bad = MlflowException(message, error_code=INVALID_PARAMETER_VALUE)
    assert trouble(bad) is Trouble.REFUSED


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_run_that_is_refused_is_not_tried_for_ever(
    tmp_path: Path, recipient: Recipient, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    import requests

    response = requests.Response()
    response.status_code = status
    recipient.error = requests.HTTPError("not yours", response=response)
    box = open_outbox(tmp_path, recipient)
    tell(box, 0)
    assert box.flush().points == 1
    tell(box, 1)
    started = time.monotonic()
    assert box.close().points == 2
    assert time.monotonic() - started < outbox.PATIENCE / 2, "it waits for nobody"
    assert recipient.attempts == 1
    assert "refuses this run: not yours" in caplog.text
    recipient.error = None
    assert not open_outbox(tmp_path, recipient).close()
    assert recipient.steps == [0, 1]


def test_a_store_of_files_that_is_away_does_not_hold_up_values(
    tmp_path: Path, recipient: Recipient, caplog: pytest.LogCaptureFixture
) -> None:
    recipient.refuses = lambda entry: OSError("no bucket") if "file" in entry else None
    (tmp_path / "file").write_text("content")
    box = open_outbox(tmp_path / "box", recipient)
    box.tell("file", keep=tmp_path / "file", folder="")
    tell(box, 0, 1)
    wait_until(lambda: recipient.steps == [0, 1])
    wait_until(lambda: box.flush(patience=0)[:3] == (0, 1, 0))
    recipient.refuses = lambda entry: None
    assert not box.close()
    assert recipient.taken[-1]["content"] == "content"
    assert caplog.text.count("MLflow takes no files: no bucket; its store of files is away or") == 1
    assert "cannot be reached" not in caplog.text


def test_a_disk_that_is_full_loses_nothing_while_the_process_lives(
    tmp_path: Path,
    recipient: Recipient,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(*args: Any) -> int:
        raise OSError(28, "No space left on device")

    box = open_outbox(tmp_path, recipient)
    with monkeypatch.context() as disk:
        disk.setattr(journal.os, "write", full)
        tell(box, 0, 1)
    tell(box, 2)
    assert not box.close()
    assert recipient.steps == [0, 1, 2]
    assert caplog.text.count("No space left on device") == 1


def test_of_a_full_database_only_its_own_words_are_said() -> None:
    own = sqlalchemy.exc.OperationalError(
        "INSERT ...", (), sqlite3.OperationalError("disk is full")
    )
    error = MlflowException(own)
    error.__cause__ = own
    assert store.error_text(error) == store.error_text(own) == "disk is full"


def test_a_disk_without_locks_costs_neither_values_nor_open_files(
    tmp_path: Path,
    recipient: Recipient,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As some network file systems are."""

    def unknown(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(journal.fcntl, "flock", unknown)
    box = open_outbox(tmp_path, recipient)
    tell(box, 0)
    before = len(list(Path("/proc/self/fd").iterdir()))
    tell(box, *range(1, 50))
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert not box.close()
    assert recipient.steps == [*range(50)]
    assert caplog.text.count("Function not implemented") == 1
    assert not list(tmp_path.rglob("*.jsonl"))


def test_a_journal_that_is_closed_writes_into_no_other_file(tmp_path: Path) -> None:
    held = Journal.create(tmp_path / "run")
    held.close()
    with (tmp_path / "other").open("w"), pytest.raises(OSError, match="descriptor"):
        held.delivered([1])
    assert (tmp_path / "other").read_text() == ""


def test_telling_waits_for_nobody(tmp_path: Path, recipient: Recipient) -> None:
    with recipient.lock:  # a delivery hangs
        box = open_outbox(tmp_path, recipient)
        started = time.monotonic()
        tell(box, *range(200))
        assert time.monotonic() - started < 5
    assert not box.close()
    assert recipient.steps == [*range(200)]


@pytest.mark.parametrize("temporary", [False, True])
def test_the_outbox_outlives_a_temporary_experiment_of_dvc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, temporary: bool
) -> None:
    monkeypatch.delenv("VITDC_OUTBOX", raising=False)
    monkeypatch.delenv("VITDC_SCRATCH", raising=False)
    here = tmp_path / ".dvc/tmp/exps/tmp123" if temporary else tmp_path
    here.mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(here)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))  # as DVC does for every stage
    assert outbox.outbox_directory() == tmp_path / ".mlflow-outbox"
    monkeypatch.setenv("VITDC_SCRATCH", str(tmp_path / "scratch"))
    assert outbox.outbox_directory() == tmp_path / "scratch" / "mlflow-outbox"
    monkeypatch.setenv("VITDC_OUTBOX", str(tmp_path / "chosen"))
    assert outbox.outbox_directory() == tmp_path / "chosen"


def test_an_outbox_of_another_user_is_not_passed_over(
    recipient: Recipient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As a container that ran as root leaves it in a working directory."""
    monkeypatch.delenv("VITDC_OUTBOX", raising=False)
    monkeypatch.delenv("VITDC_SCRATCH", raising=False)
    with tempfile.TemporaryDirectory() as name:  # pytest's own are closed to other users
        monkeypatch.setenv("DVC_ROOT", name)
        recipient.error = ConnectionError("away")
        directory = outbox.outbox_directory()
        box = open_outbox(directory, recipient)
        tell(box, 0)
        box.close(patience=0)
        with as_another_user(Path(name)):
            assert outbox.outbox_directory() == directory
            assert waiting_runs() == []
            for options in ([], ["--resume"]):
                done = CliRunner().invoke(find_command("track"), options)
                assert done.exit_code == 0, done.output
                assert f"{directory / 'run'}: another user's" in done.output
                assert "Nothing is waiting" not in done.output
            caplog.clear()
            recipient.error = None
            box = open_outbox(directory, recipient)
            tell(box, 1)
            assert not box.close()
            assert "set VITDC_OUTBOX to a directory" in caplog.text


@contextmanager
def as_another_user(directory: Path) -> Iterator[None]:
    """Be somebody who can see that the folders of a directory are there."""
    folders = [directory / ".mlflow-outbox", directory / ".mlflow-outbox" / "run"]
    if os.geteuid() == 0:
        directory.chmod(0o755)
        os.seteuid(65534)
    else:  # what one can do to oneself
        for folder, mode in zip(folders, (0o500, 0), strict=True):
            folder.chmod(mode)
    try:
        yield
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
        else:
            for folder in folders:
                folder.chmod(0o700)


def test_what_a_running_process_delivers_is_said_to_be(
    tmp_path: Path, empty_store: Path, recipient: Recipient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITDC_OUTBOX", str(tmp_path / "outbox"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{empty_store}")
    recipient.error = ConnectionError("away")
    box = open_outbox(tmp_path / "outbox", recipient)
    tell(box, 0)
    done = CliRunner().invoke(find_command("track"), ["--resume"])
    assert (done.exit_code, done.output) == (
        0,
        "run  toy: 1 value; a running process delivers it\n",
    )
    box.close(patience=0)
    done = CliRunner().invoke(find_command("track"), ["--resume"])
    assert "left for sqlite:///none: set MLFLOW_TRACKING_URI" in done.output
    assert str(done.exception) == "MLflow has not taken everything of 1 run"


def test_what_a_journal_is_about_is_there_or_the_journal_is_not(
    tmp_path: Path, recipient: Recipient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else nobody could deliver it: it says to which store."""

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    recipient.error = ConnectionError("away")
    box = open_outbox(tmp_path, recipient)
    with monkeypatch.context() as disk:
        disk.setattr(Path, "replace", full)
        tell(box, 0)
    assert not list(tmp_path.rglob("*.jsonl"))
    tell(box, 1)
    box.close(patience=0)
    (left,) = waiting_runs(tmp_path)
    assert (left.uri, left.waiting.points) == (ABOUT["uri"], 1)


# --- a real server -------------------------------------------------------------------------------


class Served(NamedTuple):
    """MLflow on an SQLite store and a folder of artifacts."""

    server: servers.Server
    uri: str
    store: Path


@pytest.fixture(scope="module")
def mlflow(
    empty_store: Path, tmp_path_factory: pytest.TempPathFactory, warm_path: None
) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("server")
    store = Path(shutil.copy(empty_store, folder / "mlflow.db"))
    arguments = [f"--backend-store-uri=sqlite:///{store}"]
    arguments += [f"--artifacts-destination={folder / 'artifacts'}"]
    env = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with servers.mlflow_server(folder, arguments=arguments, env=env, python="python") as running:
        yield Served(running.server, running.uri, store)


@pytest.fixture
def served(mlflow: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Served:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow.uri)
    monkeypatch.setenv("VITDC_OUTBOX", str(tmp_path / "outbox"))
    monkeypatch.chdir(tmp_path)
    if not servers.answers(f"{mlflow.uri}/health"):  # the test before killed it
        mlflow.server.start()
    return mlflow


def run_in(server: Served, experiment: str) -> Run:
    """The only run of an experiment, read from the store itself."""
    client = MlflowClient(f"sqlite:///{server.store}")
    found = client.get_experiment_by_name(experiment)
    assert found
    (run,) = client.search_runs([found.experiment_id])
    return run


def recorded(server: Served, run: Run, key: str) -> list[tuple[int, float]]:
    """Steps and values in the order of their rows: each row is a value that was taken."""
    with sqlite3.connect(server.store) as connection:
        query = "SELECT step, value FROM metrics WHERE run_uuid = ? AND key = ? ORDER BY rowid"
        return list(connection.execute(query, (run.info.run_id, key)))


def test_a_batch_that_is_sent_twice_is_recorded_once(served: Served) -> None:
    from mlflow.entities import Metric

    client = MlflowClient(served.uri)
    run = client.create_run(client.create_experiment("twice"))
    metrics = [Metric("loss", 1 / step, 1000 + step, step) for step in range(1, 5)]
    for part in (metrics[:3], metrics, metrics[1:]):
        client.log_batch(run.info.run_id, metrics=part)
    assert [step for step, _ in recorded(served, run, "loss")] == [1, 2, 3, 4]


def test_a_server_killed_in_the_middle_of_a_run_gets_everything_once(
    served: Served, results: Path, caplog: pytest.LogCaptureFixture
) -> None:
    params = make_params(tracking={"experiment": "killed"})
    epochs = [{"epoch": e, "loss": 1 / e} for e in range(1, 31)]
    with record(params) as tracker:
        for done in range(1, 31):
            if done == 10:
                assert not tracker.flush()
                served.server.kill()
            if done == 20:
                time.sleep(1)
                served.server.start()
            tracker.log_history(0, epochs[:done])
        tracker.log_result(rows=ROWS, metrics=METRICS, results=results)
    run = run_in(served, "killed")
    assert run.info.status == "FINISHED"
    assert recorded(served, run, "pretraining/loss") == [(e, 1 / e) for e in range(1, 31)]
    assert [step for step, _ in recorded(served, run, "by_round/nmi_test")] == [0, 1, 2]
    client = MlflowClient(served.uri)
    assert {f.path for f in client.list_artifacts(run.info.run_id)} >= {"report.html"}
    assert caplog.text.count("cannot be reached") == 1
    assert not waiting_runs()


WORKER = """
import sys, time
from vitdc.config import Params
from vitdc.tracking import open_tracker, outbox
outbox.INTERVAL = 0.05
params = Params.parse({"tracking": {"experiment": sys.argv[1]}}, where="test")
with open_tracker(params, dataset_name="digits", content_hash="1" * 64) as tracker:
    for epoch in range(1, 10_000):
        tracker.log_history(0, [{"epoch": epoch, "loss": 1 / epoch}])
        print(epoch, flush=True)
        time.sleep(0.01)
"""


def work_until(epoch: int, experiment: str) -> int:
    """A process that records and is killed in the middle; returns the last epoch it told."""
    command = ["python", "-c", WORKER, experiment]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout
        for line in process.stdout:
            if int(line) >= epoch:
                break
        process.kill()
        return max([int(line), *map(int, process.stdout.read().split())])


def test_client_and_server_killed_in_turn_lose_and_double_nothing(served: Served) -> None:
    first = work_until(50, "turns")
    run = run_in(served, "turns")
    second = work_until(first + 50, "turns")  # tells the first ones again, as a repeated stage
    served.server.kill()
    (left,) = waiting_runs() or [None]
    shown = CliRunner().invoke(find_command("track"), [])
    if left:
        assert run.info.run_id in shown.output
        failed = CliRunner().invoke(find_command("track"), ["--resume"])
        assert isinstance(failed.exception, InputError), "one line, exit code 2"
        assert served.uri in str(failed.exception)
    served.server.start()
    done = CliRunner().invoke(find_command("track"), ["--resume"])
    assert done.exit_code == 0, done.output
    steps = [step for step, _ in recorded(served, run, "pretraining/loss")]
    last = max(first, second)
    assert steps[: last - 1] == [*range(1, last)], "in order, once"
    assert len(steps) in (last, last - 1, last + 1)
    assert "Nothing is waiting" in CliRunner().invoke(find_command("track"), []).output


def test_a_stage_that_starts_while_the_server_is_away_goes_on_with_the_run(
    served: Served, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "PATIENCE", 0.0)
    params = make_params(tracking={"experiment": "stages"})
    with record(params) as tracker:
        tracker.log_history(0, HISTORY)
        assert not tracker.flush()
        served.server.kill()
        tracker.log_rounds(ROWS)
    evaluate(params, results)
    (left,) = waiting_runs()
    assert left.waiting.files == 4
    other = make_params(tracking={"experiment": "stages"}, seed=1)
    with pytest.raises(InputError, match="refused"), record(other):
        pass
    served.server.start()
    assert CliRunner().invoke(find_command("track"), ["--resume"]).exit_code == 0
    run = run_in(served, "stages")
    assert run.info.status == "FINISHED"
    assert [step for step, _ in recorded(served, run, "by_round/nmi_test")] == [0, 1, 2]
    assert run.data.tags["vitdc.stop_reason"] == "converged"


def test_a_run_that_mlflow_knows_goes_on_with_its_next_stage(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `dvc repro` does, although everything of the stage before was delivered."""
    monkeypatch.setattr(outbox, "PATIENCE", 0.0)
    params = make_params(tracking={"experiment": "between"})
    with record(params) as tracker:
        tracker.log_history(0, HISTORY)
        assert not tracker.flush()
    assert not waiting_runs()
    served.server.kill()
    with record(params) as tracker:
        tracker.log_rounds(ROWS)
    served.server.start()
    assert CliRunner().invoke(find_command("track"), ["--resume"]).exit_code == 0
    run = run_in(served, "between")
    assert [step for step, _ in recorded(served, run, "by_round/nmi_test")] == [0, 1, 2]


def test_a_result_that_mlflow_does_not_get_is_kept_and_delivered_with_its_model(
    served: Served,
    toy_run: ToyRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """MLflow goes away during `vitdc evaluate`: a warning, exit code 0, nothing lost."""
    monkeypatch.setattr(outbox, "PATIENCE", 0.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    @functools.wraps(steps.evaluate)
    def evaluate_and_lose_mlflow(**arguments: Any) -> Any:
        made = evaluate_step(**arguments)
        served.server.kill()
        return made

    evaluate_step = steps.evaluate
    monkeypatch.setattr(steps, "evaluate", evaluate_and_lose_mlflow)
    Path("params.yaml").write_text("tracking: {experiment: lost}")
    options = ["--dataset", toy_run.dataset, "--rounds", toy_run.rounds, "--output", "kept"]
    done = CliRunner().invoke(find_command("evaluate"), [*map(str, options)])
    assert done.exit_code == 0, done.output
    assert "test NMI" in done.output
    warnings = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert [text.count("MLflow cannot be reached") for text in warnings].count(1) == 1
    assert sum("vitdc track --resume" in text for text in warnings) == 1
    (left,) = waiting_runs()
    assert left.waiting.files > 3
    shutil.rmtree("kept/figures")  # the outbox has files of its own

    served.server.start()
    assert CliRunner().invoke(find_command("track"), ["--resume"]).exit_code == 0
    assert not waiting_runs()
    run = run_in(served, "lost")
    assert run.info.status == "FINISHED"
    client = MlflowClient(served.uri)
    for name in ("report.html", "rounds.csv", "clusters.csv", "metrics.json"):
        found = client.download_artifacts(run.info.run_id, name)
        assert Path(found).read_bytes() == Path("kept", name).read_bytes()
    assert client.list_artifacts(run.info.run_id, "figures")
    model = download_model(f"runs:/{run.info.run_id}")
    parts = {name for name in contents(Path("kept/model")) if "/" in name}
    assert parts
    assert contents(model).items() >= {n: contents(Path("kept/model"))[n] for n in parts}.items()


def test_a_run_deleted_while_it_is_recorded_is_said_once_and_kept(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    with record(make_params(tracking={"experiment": "deleted"})) as tracker:
        run = run_in(served, "deleted")
        MlflowClient(served.uri).delete_run(run.info.run_id)
        tracker.log_history(0, HISTORY)
        tracker.flush()
        tracker.log_rounds(ROWS)
    assert caplog.text.count("in MLflow's trash") == 1
    assert len(waiting_runs()) == 1
    MlflowClient(served.uri).restore_run(run.info.run_id)
    assert CliRunner().invoke(find_command("track"), ["--resume"]).exit_code == 0
    assert [step for step, _ in recorded(served, run, "pretraining/loss")] == [1, 2]
