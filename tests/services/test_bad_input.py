"""What people get wrong with shared services: one clear line, exit code 2."""

from __future__ import annotations

from pathlib import Path

import pytest
import servers
import toys
from stack import ADMIN, MEMBER, READER, Login, Tracking, run_vitdc, write_params


def assert_refused(done: object, *said: str) -> None:
    """It ends with 2 and its last words are one line that says what and where."""
    code, err = done.returncode, done.stderr  # type: ignore[attr-defined]
    assert code == 2, err
    lines = err.strip().splitlines()
    assert [line for line in lines if line.startswith("vitdc: ")] == lines[-1:], err
    assert "Traceback" not in err
    for words in said:
        assert words in lines[-1]


@pytest.fixture
def evaluate(toy_run: toys.ToyRun, tmp_path: Path) -> object:
    """A function that records a finished run, with some of its environment changed."""
    write_params(tmp_path)
    paths = {"dataset": toy_run.dataset, "rounds": toy_run.rounds, "output": tmp_path / "results"}
    arguments = [text for key, path in paths.items() for text in (f"--{key}", str(path))]

    def run(env: dict[str, str], experiment: str, seed: int = 0) -> object:
        options = (f"-Stracking.experiment={experiment}", f"-Sseed={seed}")
        return run_vitdc("evaluate", *arguments, *options, folder=tmp_path, env=env)

    return run


def test_a_tracking_uri_where_nothing_answers(evaluate, tracking: Tracking) -> None:
    uri = f"http://127.0.0.1:{servers.free_ports(1)[0]}"
    done = evaluate(tracking.environment() | {"MLFLOW_TRACKING_URI": uri}, "bad")
    assert_refused(done, uri, "Connection refused", "set MLFLOW_TRACKING_URI")


def test_a_tracking_uri_of_another_server(
    evaluate, tracking: Tracking, s3_server: servers.S3Server
) -> None:
    uri = s3_server.endpoint_url
    done = evaluate(tracking.environment() | {"MLFLOW_TRACKING_URI": uri}, "bad")
    assert_refused(done, uri, "set MLFLOW_TRACKING_URI")


@pytest.mark.parametrize("login", [Login(MEMBER.username, "wrong"), Login("nobody", "at all")])
def test_a_wrong_login(evaluate, tracking: Tracking, login: Login) -> None:
    done = evaluate(tracking.environment(login), "bad")
    assert_refused(done, tracking.uri, "MLFLOW_TRACKING_PASSWORD")
    assert login.password not in done.stderr


def test_no_login(evaluate, tracking: Tracking) -> None:
    done = evaluate({"MLFLOW_TRACKING_URI": tracking.uri}, "bad")
    assert_refused(done, tracking.uri, "MLFLOW_TRACKING_USERNAME")


def test_a_user_who_may_only_read(evaluate, tracking: Tracking) -> None:
    assert evaluate(tracking.environment(ADMIN), "of-the-admin").returncode == 0
    done = evaluate(tracking.environment(READER), "of-the-admin", seed=1)
    assert_refused(done, tracking.uri, "Permission denied")


@pytest.mark.parametrize("bucket", ["private", "missing"])
def test_a_bucket_without_permission(
    s3_server: servers.S3Server, tmp_path: Path, bucket: str
) -> None:
    write_params(tmp_path)
    client = s3_server.client()
    if bucket == "private":
        client.create_bucket(Bucket=bucket)
        client.put_object(Bucket=bucket, Key="images/a.png", Body=b"secret")
    env = {
        "AWS_ACCESS_KEY_ID": "visitor",
        "AWS_SECRET_ACCESS_KEY": "open please",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    options = [
        f"-Sdata.source=s3://{bucket}/images",
        f"-Sdata.endpoint_url={s3_server.endpoint_url}",
        "-Sdata.image_size=8",
    ]
    done = run_vitdc("prepare", "--output", "dataset", *options, folder=tmp_path, env=env)
    assert_refused(done, f"s3://{bucket}/images", "denied")
