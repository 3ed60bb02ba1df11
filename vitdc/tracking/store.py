"""Where the records are: the store that MLFLOW_TRACKING_URI names, and its errors in one line."""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from enum import Enum
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from vitdc.errors import InputError, TrainingError, mask_credentials, one_line

if TYPE_CHECKING:
    from mlflow import MlflowClient

DEFAULT_URI = "sqlite:///mlflow.db"
ARTIFACT_FOLDER = "mlartifacts"
_SQL_SCHEMES = ("sqlite", "postgresql", "mysql", "mssql")
_SCHEMES = (*_SQL_SCHEMES, "http", "https")
_WAIT = (408, 409, 425, 429, 499)  # HTTP: too slow, conflict, too early, too many, cancelled
_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}  # which pages the UI shows
_REFUSED = (401, 403, 404)
_BAD_VALUE = re.compile(r"\([\w.]*(Data|Integrity|Value|Overflow)Error\)")  # as SQLAlchemy says it
_OF_OTHERS = ("sqlalchemy", "urllib3", "requests", "boto", "psycopg2", "sqlite3", "pymysql")


class Trouble(Enum):
    """What an error of a delivery means for the next one."""

    OUTAGE = "try again later"
    BLOCKED = "no use to go on before somebody does something"
    REFUSED = "this will never be taken, the next may"


def home() -> Path:
    """Where the records of a person's work lie by default: the working directory.

    DVC runs queued experiments in temporary copies of the repository, which it deletes, and tells
    every stage in DVC_ROOT where the repository is; then it is that one.
    """
    return Path(os.environ.get("DVC_ROOT", "")).absolute()


def tracking_uri() -> str:
    """The store that MLFLOW_TRACKING_URI names, or the default one."""
    return os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI


def store_name() -> str:
    """The store by a name that does not depend on the working directory and holds no password."""
    uri = tracking_uri()
    file = sqlite_file(uri)
    return mask_credentials(f"sqlite:///{file}" if file else uri)


@contextmanager
def open_store(
    way_out: str = "set MLFLOW_TRACKING_URI to a store that works, or tracking.enabled to false",
    *,
    retries: int = 1,
) -> Iterator[MlflowClient]:
    """The store that MLFLOW_TRACKING_URI names; what goes wrong with it is said in one line.

    A request is tried again `retries` times: at once, after 4 s, 8 s, 16 s, ...
    """
    uri = tracking_uri()
    _check_scheme(uri)
    quiet_mlflow()
    with (
        explaining(
            InputError,
            problem=f"MLflow at {mask_credentials(uri)} cannot be used",
            way_out=way_out,
        ),
        patience(retries=retries, timeout=30),  # a busy server takes its time
    ):
        from mlflow import MlflowClient

        with _alone(uri):
            uri = _prepare_database(uri)
            client = MlflowClient(uri, registry_uri=uri)
        yield client


def has_store() -> bool:
    """Whether there is anything to read: a file that does not exist holds no runs."""
    file = sqlite_file(tracking_uri())
    return file is None or file.exists()


@contextmanager
def existing_store(*, way_out: str) -> Iterator[MlflowClient]:
    """The store as `open_store` gives it, for those who only read: none is made."""
    if not has_store():
        raise InputError(
            f"{sqlite_file(tracking_uri())}: no such file, so nothing is recorded; {way_out}"
        )
    with open_store(way_out=way_out) as client:
        yield client


def _check_scheme(uri: str) -> None:
    scheme = urlsplit(uri).scheme.partition("+")[0]
    if scheme in _SCHEMES:
        return
    problem = "MLflow no longer records in folders" if scheme in ("", "file") else "unknown scheme"
    raise InputError(
        f"MLFLOW_TRACKING_URI={mask_credentials(uri)}: {problem}; valid are sqlite:///FILE.db, http://HOST:PORT"
        " and other databases (postgresql://...)"
    )


def quiet_mlflow() -> None:
    """Keep mlflow's chatter out of the terminal, and the news of our runs on this machine."""
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it raises them, too


def _prepare_database(uri: str) -> str:
    """Open a database once: mlflow itself retries for minutes before it says what is wrong.

    An SQLite file is made where there is none.

    Returns:
        The URI, with the absolute path of an SQLite file, so that it does not depend on the
        working directory.
    """
    if urlsplit(uri).scheme.partition("+")[0] not in _SQL_SCHEMES:
        return uri
    import sqlalchemy

    url = sqlalchemy.make_url(uri)
    if file := sqlite_file(uri):
        file.parent.mkdir(parents=True, exist_ok=True)
        _make_whole(file)
        url = url.set(database=str(file))
    engine = sqlalchemy.create_engine(url)
    try:
        sqlalchemy.inspect(engine).get_table_names()
    finally:
        engine.dispose()
    return url.render_as_string(hide_password=False)


def _make_whole(file: Path) -> None:
    """Make an SQLite store under another name, so that it appears with all tables or not at all.

    MLflow takes seconds to make them and cannot go on where it was interrupted. What an interrupted
    MLflow left is put aside.
    """
    from mlflow import MlflowClient

    if file.exists() and not _is_half_made(file):
        return
    partial = file.with_name(f".{file.name}.partial")
    for leftover in (partial, partial.with_name(f"{partial.name}-journal")):
        leftover.unlink(missing_ok=True)
    try:
        uri = f"sqlite:///{partial}"
        MlflowClient(uri, registry_uri=uri)
        if file.exists():
            file.rename(file.with_name(f"{file.name}.half-made"))
        partial.rename(file)
    finally:
        partial.unlink(missing_ok=True)


def _is_half_made(file: Path) -> bool:
    """Whether a store lacks the experiment Default, which MLflow makes last; so it holds no run."""
    with closing(sqlite3.connect(file)) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        if "experiments" not in tables:
            return not tables  # others would not be MLflow's
        return not connection.execute("SELECT count(*) FROM experiments").fetchone()[0]


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Let one process at a time make the tables of an SQLite store, or MLflow fails in the others.

    Queued experiments start at the same moment, in a fresh clone without any tables.
    """
    file = sqlite_file(uri)
    if file is None:
        yield
        return
    from filelock import FileLock

    with FileLock(f"{file}.lock") as lock:
        try:
            yield
        finally:
            Path(lock.lock_file).unlink(missing_ok=True)  # still held, so nobody starts with it


def sqlite_file(uri: str) -> Path | None:
    """The absolute path of an SQLite store, None for another store; a relative one is at home."""
    if not uri.startswith("sqlite"):
        return None
    import sqlalchemy

    name = sqlalchemy.make_url(uri).database
    return home() / name if name and name != ":memory:" else None


def find_experiment(client: MlflowClient, name: str) -> str:
    """Id of the experiment, made if need be."""
    from mlflow.exceptions import MlflowException

    file = sqlite_file(client.tracking_uri)
    artifacts = str(file.parent / ARTIFACT_FOLDER) if file else None
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return client.create_experiment(
                name, artifact_location=artifacts, tags=_EXPERIMENT_TAGS
            )
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            experiment = client.get_experiment_by_name(name)  # another process was faster
            assert experiment is not None
    if experiment.lifecycle_stage == "deleted":
        raise InputError(
            f"tracking.experiment: {name!r} is in MLflow's trash; restore it with `mlflow"
            f" experiments restore -x {experiment.experiment_id}` or choose another name"
        )
    if file and artifacts:
        _check_artifacts(file, experiment.artifact_location, artifacts, name)
    return str(experiment.experiment_id)


def _check_artifacts(file: Path, recorded: str, expected: str, experiment: str) -> None:
    """Follow an SQLite store that was moved: MLflow keeps absolute paths of artifacts in it."""
    if recorded.startswith("mlflow-artifacts:"):
        raise InputError(
            f"tracking.experiment: {experiment!r} was made by a server, which alone can store its"
            " artifacts; set MLFLOW_TRACKING_URI to the server or choose another name"
        )
    if recorded == expected or Path(recorded).name != ARTIFACT_FOLDER:
        return
    connection = sqlite3.connect(file)
    with connection:
        connection.execute(
            "UPDATE experiments SET artifact_location = ? WHERE artifact_location = ?",
            (expected, recorded),
        )
        connection.execute(
            "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?)"
            " WHERE substr(artifact_uri, 1, ?) = ?",
            (expected, len(recorded) + 1, len(recorded) + 1, f"{recorded}/"),
        )
    connection.close()


@contextmanager
def patience(*, retries: int, timeout: int) -> Iterator[None]:
    """Let a lost server be noticed soon, unless the user chose otherwise; mlflow waits minutes.

    Of several at a time, nested or in threads, the most patient one counts: mlflow has one for all.
    """
    _patience.enter(retries, timeout)
    try:
        yield
    finally:
        _patience.leave(retries, timeout)


class _Patience:
    """Mlflow's default of its variables; in the environment itself, threads would disturb others.

    Attributes:
        wanted: Retries and seconds of all that are at work.
        own: Those of mlflow.
    """

    def __init__(self) -> None:
        self.wanted: list[tuple[int, int]] = []
        self.own: tuple[int, int] | None = None
        self._lock = threading.Lock()

    def enter(self, retries: int, timeout: int) -> None:
        with self._lock:
            self.wanted.append((retries, timeout))
            self._apply()

    def leave(self, retries: int, timeout: int) -> None:
        with self._lock:
            self.wanted.remove((retries, timeout))
            self._apply()

    def _apply(self) -> None:
        from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES as RETRIES
        from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_TIMEOUT as TIMEOUT

        self.own = self.own or (RETRIES.default, TIMEOUT.default)
        found = self.wanted or [self.own]
        RETRIES.default = max(retries for retries, _ in found)
        TIMEOUT.default = max(timeout for _, timeout in found)


_patience = _Patience()


@contextmanager
def explaining(kind: type[Exception], *, problem: str, way_out: str) -> Iterator[None]:
    """Turn an error of mlflow or below into one of ours, in one line."""
    try:
        yield
    except (InputError, TrainingError):
        raise
    except Exception as error:
        if _http_status(error) == HTTPStatus.UNAUTHORIZED:
            way_out = (
                "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to a login it knows"
            )
        raise kind(f"{problem}: {error_text(error)}; {way_out}") from error


def _http_status(error: BaseException) -> int | None:
    """The HTTP status of a server's answer; None if it gave none."""
    from mlflow.exceptions import MlflowException

    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if isinstance(response, Mapping):  # botocore's
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if status is None and isinstance(error, MlflowException):
        status = error.get_http_status_code()  # type: ignore[no-untyped-call]
    return status


def trouble(error: BaseException) -> Trouble:
    """What an error of mlflow, of a database or of the network means.

    Anything that cannot be an answer to this very message counts as an outage.
    """
    if isinstance(error, InputError):  # ours; without a cause it is e.g. a run in the trash
        return trouble(error.__cause__) if error.__cause__ else Trouble.BLOCKED
    status = _http_status(error)
    if getattr(error, "error_code", None) == "BAD_REQUEST":  # whatever the database of MLflow says
        return Trouble.REFUSED if _BAD_VALUE.search(str(error)) else Trouble.OUTAGE
    if status is not None:
        if status in _REFUSED:
            return Trouble.BLOCKED
        return Trouble.REFUSED if 400 <= status < 500 and status not in _WAIT else Trouble.OUTAGE
    if isinstance(error, FileNotFoundError):  # a file that was to be sent
        return Trouble.REFUSED
    known = isinstance(error, OSError) or type(error).__module__.startswith(_OF_OTHERS)
    return Trouble.OUTAGE if known else Trouble.REFUSED


def reason_of(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return f"{type(error).__name__}: {error_text(error)}"


def error_text(error: BaseException) -> str:
    """The message without line breaks, what was said first and last if it is long."""
    causes = (getattr(each, "orig", None) for each in (error, error.__cause__))
    own = next(filter(None, causes), error)  # SQLAlchemy wraps the driver's error, mlflow both
    text = one_line(own)
    return text if len(text) <= 600 else f"{text[:250]} ... {text[-250:]}"
