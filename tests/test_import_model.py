"""The model of a run comes back under DVC, from this machine or from a real S3 store."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from toys import ToyRun, contents

from pipelines.models import import_model
from vitdc import tracking
from vitdc.config import Params, TrackingConfig
from vitdc.errors import InputError

CONFIG = TrackingConfig()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git and DVC repository with a remote beside it, as the working directory."""
    directory = tmp_path / "project"
    directory.mkdir()
    monkeypatch.chdir(directory)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    dvc = str(Path(sys.executable).with_name("dvc"))
    for command in (
        ["git", "init", "--quiet"],
        [dvc, "init", "--quiet"],
        [dvc, "remote", "add", "--quiet", "--default", "store", str(tmp_path / "remote")],
    ):
        subprocess.run(command, check=True, capture_output=True)
    return directory


def record(uri: str) -> None:
    """A pipeline run that left its model at `uri`."""
    started = tracking.start_record(
        Params(), dataset_name="toy", content_hash="0" * 64, pipeline_run_id="job-1"
    )
    tracking.record_evaluated(started, model_uri=uri)


def test_a_model_on_this_machine_is_copied_and_added(repository: Path, toy_run: ToyRun) -> None:
    model = toy_run.results / "model"
    record(str(model))
    trained = import_model(CONFIG, "job-1", Path("models/toy"), push=False)
    assert trained.round == 2
    assert contents(repository / "models" / "toy") == contents(model)
    (out,) = yaml.safe_load((repository / "models" / "toy.dvc").read_text())["outs"]
    assert out["md5"].endswith(".dir")
    assert "/toy" in (repository / "models" / ".gitignore").read_text()


def test_it_is_pushed_if_asked(repository: Path, toy_run: ToyRun) -> None:
    record(str(toy_run.results / "model"))
    import_model(CONFIG, "job-1", Path("toy"), push=True)
    pushed = [path for path in (repository.parent / "remote").rglob("*") if path.is_file()]
    assert len(pushed) == 1 + len(contents(repository / "toy"))  # the listing, and every file


@pytest.mark.parametrize("scheme", ["s3", "minio"])
def test_a_model_in_an_object_store_is_imported_by_its_url(
    repository: Path,
    toy_run: ToyRun,
    s3_server: Any,
    scheme: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint_url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.secret_key)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    bucket, client = f"models-{scheme}", s3_server.client()
    client.create_bucket(Bucket=bucket)
    files = contents(toy_run.results / "model")
    for name, data in files.items():
        client.put_object(Bucket=bucket, Key=f"v2/run/model/{name}", Body=data)
    record(f"{scheme}://{bucket}/v2/run/model")
    import_model(CONFIG, "job-1", Path("toy"), push=False)
    assert contents(repository / "toy") == files
    (dependency,) = yaml.safe_load((repository / "toy.dvc").read_text())["deps"]
    assert dependency["path"] == f"s3://{bucket}/v2/run/model"

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(InputError, match=r"cannot be imported: .*; check the address"):
        import_model(CONFIG, "job-1", Path("other"), push=False)


def test_what_cannot_be_imported_is_said_in_one_line(
    repository: Path, toy_run: ToyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    model = toy_run.results / "model"
    record(str(model))
    (repository / "there").mkdir()
    for run_id, output, said in (
        ("job-1", "there", "exists already"),
        ("job-2", "new", "neither an MLflow run nor a pipeline run"),
        ("job-1", str(tmp_path / "outside" / "model"), "not in a DVC repository"),
    ):
        with pytest.raises(InputError, match=said) as caught:
            import_model(CONFIG, run_id, Path(output), push=False)
        assert "\n" not in str(caught.value)
    record("minio://mlpipeline/v2/model")
    with pytest.raises(InputError, match="set AWS_ENDPOINT_URL"):
        import_model(CONFIG, "job-1", Path("new"), push=False)
    assert not (tmp_path / "outside").exists()
    record(str(tmp_path / "gone"))
    with pytest.raises(InputError, match="not there any more"):
        import_model(CONFIG, "job-1", Path("new"), push=False)


def test_a_failed_push_leaves_the_imported_model(repository: Path, toy_run: ToyRun) -> None:
    record(str(toy_run.results / "model"))
    dvc = str(Path(sys.executable).with_name("dvc"))
    subprocess.run([dvc, "remote", "remove", "store"], check=True, capture_output=True)
    with pytest.raises(InputError, match=r"toy is imported, but not pushed .*dvc remote add"):
        import_model(CONFIG, "job-1", Path("toy"), push=True)
    assert (repository / "toy.dvc").exists()
