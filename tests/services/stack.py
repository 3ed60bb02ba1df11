"""Who uses the services, and how: logins, the vitdc command, screenshots."""

from __future__ import annotations

import os
import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
import servers
import toys
import yaml

if TYPE_CHECKING:
    from playwright.sync_api import Page

ROOT = Path(__file__).parents[2]
CHROMIUM = "/usr/bin/chromium"
SCREENSHOTS = ROOT / ".ci" / "artifacts"


class Login(NamedTuple):
    """Somebody MLflow knows."""

    username: str
    password: str

    @property
    def environment(self) -> dict[str, str]:
        return {
            "MLFLOW_TRACKING_USERNAME": self.username,
            "MLFLOW_TRACKING_PASSWORD": self.password,
        }


ADMIN = Login("admin", "the keys to everything")
MEMBER = Login("member", "may record runs")
READER = Login("reader", "may look at runs")


class Tracking(NamedTuple):
    """MLflow with its database; `MEMBER` may record, `READER` sees what others recorded."""

    server: servers.Server
    uri: str
    database: str  # libpq's connection string

    def environment(self, login: Login = MEMBER) -> dict[str, str]:
        """What a person sets who records there, on a machine that may be very busy."""
        patience = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "120"}  # seconds
        return {"MLFLOW_TRACKING_URI": self.uri, **patience, **login.environment}

    def requests(self) -> Counter[str]:
        """How often MLflow was asked for what so far, by the end of the address."""
        log = self.server.log.read_text(errors="replace")
        return Counter(re.findall(r'"[A-Z]+ /\S*?([^/?\s]+)(?:\?\S*)? HTTP', log))

    def query(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Ask the database itself: the REST interface may hide what is there twice."""
        with psycopg.connect(self.database) as connection:
            return connection.execute(statement, values).fetchall()

    def points(self, run_id: str) -> list[tuple[str, int, float]]:
        """Every row of a run's metrics: key, step, value."""
        return self.query(
            "SELECT key, step, value FROM metrics WHERE run_uuid = %s ORDER BY key, step", run_id
        )


def screenshot(page: Page, name: str, **options: Any) -> None:
    """Keep what the page shows as an artifact of CI."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", **options)


# ------------------------------------------------------------------------------ vitdc as people do


def start_vitdc(
    *arguments: str | Path, folder: Path, env: dict[str, str], **options: Any
) -> subprocess.Popen[str]:
    """Start the command `vitdc` of this environment in a folder, its output to be read."""
    return subprocess.Popen(
        [servers.tool("vitdc"), *arguments],
        cwd=folder, env=os.environ | env, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
    )  # fmt: skip


def run_vitdc(
    *arguments: str | Path, folder: Path, env: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run `vitdc` to its end, whatever it is."""
    process = start_vitdc(*arguments, folder=folder, env=env)
    out, err = process.communicate()
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def write_params(folder: Path) -> Path:
    """params.yaml of a run that takes seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(toys.SMALL_PARAMS))
    return path
