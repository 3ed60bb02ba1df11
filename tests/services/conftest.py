"""The services a team shares, for real: MLflow with users, PostgreSQL, an S3 store, a browser.

`make test-services` runs what is in this folder. MLflow gets the configuration that k8s/ gives it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
import requests
import servers
from stack import ADMIN, CHROMIUM, MEMBER, READER, ROOT, Tracking

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from playwright.sync_api import Browser, Page, Playwright

HERE = Path(__file__).parent
CHROMIUM_OPTIONS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
# the page remembers: no chat, and menus for the training of models instead of language models
MODEL_TRAINING = """
    localStorage.setItem('mlflow.workflowType_v1', '"machine_learning"');
    localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true');
    localStorage.setItem('mlflow.assistant.panelOpen_v1', 'false');
"""
DATABASE_PASSWORD = "the database's own"  # noqa: S105


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark whatever is in this folder, so that `make test` starts none of it."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker("services")
            item.add_marker(pytest.mark.timeout(900))  # the first one starts the services


@pytest.fixture(scope="session")
def postgresql() -> Iterator[servers.PostgreSQL]:
    with servers.postgresql(["--auth-host=scram-sha-256", "--encoding=UTF8"]) as database:
        script = (ROOT / "k8s/components/postgres/make_database.sh").read_text()
        names = {"POSTGRES_USER": "postgres", "MLFLOW_DATABASE_PASSWORD": DATABASE_PASSWORD}
        database.run_script(script, names)
        yield database


@pytest.fixture(scope="session")
def relay(s3_server: servers.S3Server) -> Iterator[servers.Relay]:
    """What stands between MLflow and the S3 store."""
    with servers.Relay(int(s3_server.endpoint_url.rpartition(":")[2])) as relay:
        yield relay


@pytest.fixture(scope="session")
def tracking(
    postgresql: servers.PostgreSQL,
    s3_server: servers.S3Server,
    relay: servers.Relay,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Tracking]:
    """MLflow on PostgreSQL, with users, and artifacts that go through it to the S3 store."""
    folder = tmp_path_factory.mktemp("mlflow")
    s3_server.client().create_bucket(Bucket="mlflow")
    database = {"PGUSER": "mlflow", "PGDATABASE": "mlflow", "PGPASSWORD": DATABASE_PASSWORD}
    database |= postgresql.client_environment
    env = database | {
        "MLFLOW_BACKEND_STORE_URI": "postgresql+psycopg:///",
        "MLFLOW_AUTH_CONFIG_PATH": str(ROOT / "k8s/base/mlflow/auth.ini"),
        "MLFLOW_AUTH_ADMIN_USERNAME": ADMIN.username,
        "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN.password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "signs the forms of the login pages",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{relay.port}",
        "AWS_ACCESS_KEY_ID": s3_server.access_key,
        "AWS_SECRET_ACCESS_KEY": s3_server.secret_key,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    arguments = ["--app-name=basic-auth", "--artifacts-destination=s3://mlflow"]
    dsn = psycopg.conninfo.make_conninfo(
        host=database["PGHOST"], port=database["PGPORT"], user=database["PGUSER"],
        dbname=database["PGDATABASE"], password=DATABASE_PASSWORD,
    )  # fmt: skip
    with servers.mlflow_server(folder, arguments=arguments, env=env) as mlflow:
        for login in (MEMBER, READER):
            made = requests.post(
                f"{mlflow.uri}/api/2.0/mlflow/users/create",
                json=login._asdict(), auth=ADMIN, timeout=30,
            )  # fmt: skip
            made.raise_for_status()
        yield Tracking(mlflow.server, mlflow.uri, dsn)


@pytest.fixture
def client(tracking: Tracking, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """MLflow's own client, as the member; this process and its children record there, too."""
    for name, value in tracking.environment().items():
        monkeypatch.setenv(name, value)
    from mlflow import MlflowClient

    return MlflowClient(tracking.uri, registry_uri=tracking.uri)


@pytest.fixture(scope="session")
def playwright() -> Iterator[Playwright]:
    """What drives browsers; there can be only one of it in a process."""
    if shutil.which(CHROMIUM) is None:
        servers.missing("Chromium", "chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        yield driver


@pytest.fixture(scope="session")
def browser(playwright: Playwright) -> Iterator[Browser]:
    """Headless Chromium of the system."""
    browser = playwright.chromium.launch(
        executable_path=CHROMIUM, args=[*CHROMIUM_OPTIONS], timeout=60_000
    )
    yield browser
    browser.close()


@pytest.fixture
def page(tracking: Tracking, browser: Browser) -> Iterator[Page]:
    """An empty page of a browser in which the member has logged in."""
    username, password = MEMBER
    context = browser.new_context(
        http_credentials={"username": username, "password": password},
        viewport={"width": 1440, "height": 900},
    )
    context.add_init_script(MODEL_TRAINING)
    context.set_default_timeout(60_000)
    page = context.new_page()
    yield page
    context.close()
