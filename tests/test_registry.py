"""Registered models: logged once, read without running anything of theirs, promoted by score."""

from __future__ import annotations

import json
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import servers
import toys
import yaml
from click.testing import CliRunner
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_TIMEOUT
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from sklearn.metrics import normalized_mutual_info_score

from vitdc import artifacts, cli, tracking
from vitdc.artifacts import Dataset, Evaluation
from vitdc.config import Params
from vitdc.errors import InputError, TrainingError
from vitdc.prediction import Predictor
from vitdc.tracking import (
    download,
    download_model,
    log_evaluation,
    open_tracker,
    promote,
    promotion,
)
from vitdc.tracking.registry import Scores, model_digest, register_model

NAME = "vitdc-toy"
TEST_DATA = "a" * 64
PASSWORD = "long enough for MLflow"  # noqa: S105


@pytest.fixture
def store(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """The default store, and a cache of models, in an empty working directory."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    client = MlflowClient(f"sqlite:///{shutil.copy(empty_store, tmp_path / 'mlflow.db')}")
    client.create_experiment("vitdc", artifact_location=str(tmp_path / "mlartifacts"))
    return client


def make_run(client: MlflowClient) -> str:
    experiment = client.get_experiment_by_name("vitdc")
    return str(client.create_run(experiment.experiment_id).info.run_id)


def register(
    client: MlflowClient,
    directory: Path,
    *,
    nmi: float | None = 0.5,
    test_data: str = TEST_DATA,
    run_id: str | None = None,
) -> ModelVersion:
    """Register a model directory with a score that it may not deserve."""
    test = {"nmi": nmi, "ari": 0.4, "acc": None}
    scores = Scores({"test": test, "best_round": 2, "stop_reason": "converged"}, test_data)
    run_id = run_id or make_run(client)
    return register_model(client, run_id, directory, name=NAME, scores=scores)


def evaluate(run: toys.ToyRun, results: Path | None = None, **config: Any) -> None:
    """Tell MLflow what `vitdc evaluate` tells."""
    params = Params.parse({"joint": {"epochs": 1}, "tracking": config}, where="test")
    evaluation = Evaluation.load(results or run.results)
    with open_tracker(params, dataset_name="toy", content_hash="0" * 64) as tracker:
        rounds = [run.paths(0), run.paths(2)]
        log_evaluation(tracker, evaluation, rounds, dataset=Dataset.load(run.dataset))
    assert not tracker.left


def versions(client: MlflowClient, name: str = NAME) -> list[ModelVersion]:
    return sorted(client.search_model_versions(f"name='{name}'"), key=lambda v: int(v.version))


def files(client: MlflowClient, version: ModelVersion) -> Path:
    """The folder of a version's files in the store."""
    model_id = version.source.removeprefix("models:/")
    return Path(client.get_logged_model(model_id).artifact_location)


# --- registering -------------------------------------------------------------------------------


def test_a_finished_run_registers_its_model(store: MlflowClient, toy_run: toys.ToyRun) -> None:
    evaluate(toy_run)
    (version,) = versions(store)
    assert version.name == "vitdc-toy"
    results = Evaluation.load(toy_run.results)
    assert float(version.tags["vitdc.nmi_test"]) == results.metrics["test"]["nmi"]
    assert version.tags["vitdc.test_data"] == Dataset.load(toy_run.dataset).split_hash("test")
    assert version.description.startswith(f"NMI {results.metrics['test']['nmi']:.4f}")
    run = store.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    (output,) = run.outputs.model_outputs
    assert store.get_logged_model(output.model_id).status == "READY"


def test_a_model_says_what_goes_in_and_what_comes_out(
    store: MlflowClient, toy_run: toys.ToyRun
) -> None:
    version = register(store, toy_run.results / "model")
    model = Model.load(str(files(store, version)))
    assert model.signature.inputs.input_names() == ["image"]
    columns = ["cluster", "distance", "second_distance", "margin", "unsure"]
    assert model.signature.outputs.input_names() == columns
    assert model.saved_input_example_info is not None


def test_a_model_holds_neither_pickle_nor_code(store: MlflowClient, toy_run: toys.ToyRun) -> None:
    folder = files(store, register(store, toy_run.results / "model"))
    found = [path for path in folder.rglob("*") if path.is_file()]
    ours = {".safetensors", ".npy", ".json"}
    for path in found:
        inside = (folder / "data") in path.parents
        assert path.suffix in (ours if inside else {".json", ".yaml", ".txt", ""}), path
        assert b"\x80\x04\x95" not in path.read_bytes(), f"{path}: a pickle"
        if path.suffix == ".npy":
            np.load(path, allow_pickle=False)
    description = yaml.safe_load((folder / "MLmodel").read_text())
    assert description["flavors"].keys() == {"python_function"}
    assert description["flavors"]["python_function"]["code"] is None


def test_a_round_of_refine_is_registered_without_its_embeddings(
    store: MlflowClient, toy_run: toys.ToyRun
) -> None:
    folder = files(store, register(store, toy_run.rounds / "01"))
    assert {path.name for path in (folder / "data" / "model").iterdir()} == {
        "checkpoint",
        "clustering",
    }


def test_repeating_an_evaluation_registers_no_second_version(
    store: MlflowClient, toy_run: toys.ToyRun
) -> None:
    evaluate(toy_run)
    evaluate(toy_run)
    evaluate(toy_run, experiment="another")  # another run, the same model
    assert len(versions(store)) == 1


def test_another_model_is_another_version(store: MlflowClient, toy_run: toys.ToyRun) -> None:
    first, second = (register(store, toy_run.rounds / number) for number in ("01", "02"))
    assert [first.version, second.version] == [1, 2]
    assert model_digest(toy_run.rounds / "02") == model_digest(toy_run.results / "model")
    again = register(store, toy_run.results / "model")
    assert again.version == 2


def test_the_name_of_a_model_can_be_chosen(store: MlflowClient, toy_run: toys.ToyRun) -> None:
    evaluate(toy_run, registered_model="mine")
    assert len(versions(store, "mine")) == 1


def test_registering_can_be_switched_off(store: MlflowClient, toy_run: toys.ToyRun) -> None:
    evaluate(toy_run, registered_model=False)
    assert store.search_registered_models() == []


def test_the_task_of_a_pipeline_registers_under_the_name_of_its_run(
    store: MlflowClient, toy_run: toys.ToyRun
) -> None:
    for name in ("first", "second"):  # the same run, its parameters changed in between
        params = Params.parse({"tracking": {"registered_model": name}}, where="test")
        started = tracking.start_record(
            params, dataset_name="toy", content_hash="0" * 64, pipeline_run_id=f"job-{name}"
        )
    with tracking.resume_record(started) as tracker:
        images, evaluation = Dataset.load(toy_run.dataset), Evaluation.load(toy_run.results)
        log_evaluation(tracker, evaluation, [toy_run.paths(0)], dataset=images)
    assert len(versions(store, "second")) == 1


def test_a_name_that_mlflow_refuses_is_refused_before_the_run() -> None:
    with pytest.raises(InputError, match=r"tracking\.registered_model"):
        Params.parse({"tracking": {"registered_model": "a/b"}}, where="test")


def test_an_upload_that_broke_off_is_taken_up_again(
    store: MlflowClient, toy_run: toys.ToyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*args: Any) -> None:
        raise ConnectionError("the store of files is away")

    upload = toys.from_call(2, use=MlflowClient.log_model_artifacts, before=away)
    monkeypatch.setattr(MlflowClient, "log_model_artifacts", lambda *args: upload(*args))
    evaluate(toy_run)  # the outbox tries again
    (version,) = versions(store)
    (output,) = store.get_run(version.run_id).outputs.model_outputs
    assert store.get_logged_model(output.model_id).status == "READY"
    assert Predictor.load(download_model(f"models:/{NAME}/1")).num_clusters == 3


# --- reading -----------------------------------------------------------------------------------


def test_every_address_of_a_model_leads_to_it(store: MlflowClient, toy_run: toys.ToyRun) -> None:
    run_id = make_run(store)
    register(store, toy_run.rounds / "01")
    version = register(store, toy_run.results / "model", run_id=run_id)
    store.set_registered_model_alias(NAME, "champion", version.version)
    model_id = store.get_run(run_id).outputs.model_outputs[0].model_id
    addresses = [
        f"models:/{NAME}@champion",
        f"models:/{NAME}/2",
        f"models:/{NAME}",
        f"models:/{NAME}/latest",
        f"models:/{model_id}",
        f"runs:/{run_id}",
        f"runs:/{run_id}/{NAME}",
    ]
    found = {download_model(address) for address in addresses}
    assert len(found) == 1
    images = Dataset.load(toy_run.dataset).test.images
    ours, theirs = (
        Predictor.load(path, toys.COMPUTE).predict(images) for path in (toy_run.results, *found)
    )
    np.testing.assert_array_equal(ours.cluster, theirs.cluster)
    np.testing.assert_array_equal(ours.distance, theirs.distance)


def test_a_model_is_fetched_once(
    store: MlflowClient, toy_run: toys.ToyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(store, toy_run.results / "model")
    first = download_model(f"models:/{NAME}")
    monkeypatch.setattr(download, "_repository", toys.interrupt)
    assert download_model(f"models:/{NAME}") == first


def test_a_large_model_has_time_to_come(
    store: MlflowClient, toy_run: toys.ToyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server sends nothing before its own store has sent it the whole file."""
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT", raising=False)
    register(store, toy_run.results / "model")
    fetch_files, timeouts = download._download, []

    def note(*args: Any) -> Path:
        timeouts.append(MLFLOW_HTTP_REQUEST_TIMEOUT.get())
        return fetch_files(*args)

    monkeypatch.setattr(download, "_download", note)
    download_model(f"models:/{NAME}")
    assert min(timeouts) >= 300


def test_a_damaged_model_in_the_cache_is_fetched_again(
    store: MlflowClient, toy_run: toys.ToyRun
) -> None:
    register(store, toy_run.results / "model")
    path = download_model(f"models:/{NAME}")
    (path / "checkpoint" / "model.safetensors").write_bytes(b"damaged")
    assert download_model(f"models:/{NAME}") == path
    Predictor.load(path)
    assert [child.name for child in path.parent.iterdir()] == [path.name]


def test_files_that_are_not_those_of_the_digest_are_refused(
    store: MlflowClient, toy_run: toys.ToyRun
) -> None:
    first, second = (register(store, toy_run.rounds / number) for number in ("01", "02"))
    for folder in (files(store, first) / "data", files(store, second) / "data"):
        shutil.rmtree(folder / "model")
        shutil.copytree(toy_run.rounds / "00", folder / "model")
    with pytest.raises(InputError, match=f"models:/{NAME}/1: holds another model than the one"):
        download_model(f"models:/{NAME}/1")


def test_a_model_that_was_deleted_in_mlflow_is_logged_again(
    store: MlflowClient, toy_run: toys.ToyRun
) -> None:
    run_id = make_run(store)
    version = register(store, toy_run.results / "model", run_id=run_id)
    store.delete_model_version(NAME, version.version)
    store.delete_logged_model(version.source.removeprefix("models:/"))
    with pytest.raises(InputError, match="the run has no model"):
        download_model(f"runs:/{run_id}")
    assert register(store, toy_run.results / "model", run_id=run_id).version == 2
    assert download_model(f"runs:/{run_id}") == download_model(f"models:/{NAME}/2")


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("models:/nothing/1", "no registered model is called 'nothing'; there are vitdc-toy"),
        (f"models:/{NAME}/7", "no such version; it has 1"),
        (f"models:/{NAME}@champion", "no alias 'champion'; it has best"),
        ("runs:/" + "0" * 32, "MLflow has no run of this id"),
        ("models:/m-" + "0" * 32, "MLflow has no model of this id"),
        ("models:/a/b/c", "not the address of a model in MLflow; write models:/NAME@ALIAS"),
        ("s3://bucket/model", "not the address of a model in MLflow"),
    ],
)
def test_an_address_that_leads_nowhere_is_named(
    store: MlflowClient, toy_run: toys.ToyRun, uri: str, message: str
) -> None:
    register(store, toy_run.results / "model")
    store.set_registered_model_alias(NAME, "best", "1")
    with pytest.raises(InputError, match=message):
        download_model(uri)


def test_a_run_without_a_model_says_how_to_get_one(store: MlflowClient) -> None:
    run_id = make_run(store)
    with pytest.raises(InputError, match=f"{run_id}: the run has no model; `vitdc evaluate` logs"):
        download_model(f"runs:/{run_id}")


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        ("http://127.0.0.1:9", "MLflow at http://127.0.0.1:9 cannot be used: .*refused"),
        ("ftp://example.org", "unknown scheme; valid are"),
        ("postgresql://user:secret@127.0.0.1:9/mlflow", r"at postgresql://\*\*\*@127.0.0.1:9/"),
    ],
)
def test_a_wrong_tracking_uri_is_named(
    store: MlflowClient, monkeypatch: pytest.MonkeyPatch, variable: str, message: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", variable)
    with pytest.raises(InputError, match=message):
        download_model(f"models:/{NAME}/1")


# --- models of strangers -----------------------------------------------------------------------


class Evil:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], Any], tuple[str]]:
        return Path.touch, (Path("executed"),)  # type: ignore[return-value]


def with_pickle(folder: Path) -> None:
    (folder / "python_model.pkl").write_bytes(pickle.dumps(Evil()))


def with_pickle_among_the_data(folder: Path) -> None:
    (folder / "data" / "model" / "checkpoint" / "model.pt").write_bytes(pickle.dumps(Evil()))


def with_code(folder: Path) -> None:
    (folder / "code").mkdir()
    (folder / "code" / "vitdc.py").write_text("open('executed', 'w')\n")
    describe(folder, code="code")


def with_another_loader(folder: Path) -> None:
    (folder / "evil_loader.txt").write_text("")
    describe(folder, loader_module="evil_loader")


def with_data_elsewhere(folder: Path) -> None:
    describe(folder, data="../../somebody/data")


def with_another_flavor(folder: Path) -> None:
    values = yaml.safe_load((folder / "MLmodel").read_text())
    values["flavors"]["sklearn"] = {"pickled_model": "model.pkl"}
    (folder / "MLmodel").write_text(yaml.safe_dump(values))


def with_an_object_in_its_description(folder: Path) -> None:
    (folder / "MLmodel").write_text(
        "flavors: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path"
        " [executed]]\n"
    )


def describe(folder: Path, **changes: Any) -> None:
    values = yaml.safe_load((folder / "MLmodel").read_text())
    values["flavors"]["python_function"] |= changes
    (folder / "MLmodel").write_text(yaml.safe_dump(values))


@pytest.fixture
def evil_loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module on the path that must not be imported."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "evil_loader.py").write_text("open('executed', 'w')\n")
    monkeypatch.syspath_prepend(tmp_path / "modules")
    yield
    sys.modules.pop("evil_loader", None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_pickle, "it holds python_model.pkl"),
        (with_pickle_among_the_data, "it holds data/model/checkpoint/model.pt"),
        (with_code, "it holds code/vitdc.py"),
        (with_another_loader, "it is loaded by evil_loader"),
        (with_data_elsewhere, "its data is in ../../somebody/data"),
        (with_another_flavor, "it is loaded by"),
        (with_an_object_in_its_description, "its MLmodel cannot be read"),
    ],
)
def test_nothing_of_a_strangers_model_is_run(
    store: MlflowClient,
    toy_run: toys.ToyRun,
    tmp_path: Path,
    evil_loader: None,
    change: Callable[[Path], None],
    message: str,
) -> None:
    change(files(store, register(store, toy_run.results / "model")))
    for use in (download_model, promote):
        with pytest.raises(InputError, match=f"not a model that vitdc logged: {message}"):
            use(f"models:/{NAME}/1")
    assert not (tmp_path / "executed").exists()
    assert not store.get_registered_model(NAME).aliases
    assert list((tmp_path / "cache" / "vitdc" / "models").iterdir()) == []


def test_a_champion_is_what_mlflow_holds_not_what_the_cache_holds(
    store: MlflowClient, toy_run: toys.ToyRun
) -> None:
    version = register(store, toy_run.results / "model")
    download_model(f"models:/{NAME}/1")
    with_pickle(files(store, version))  # under the digest of a model that is known
    with pytest.raises(InputError, match="not a model that vitdc logged: it holds python_model"):
        promote(NAME)


def test_a_python_model_of_mlflow_is_not_unpickled(store: MlflowClient, tmp_path: Path) -> None:
    import mlflow.pyfunc

    mlflow.pyfunc.save_model(
        str(tmp_path / "foreign"),
        python_model=lambda model_input: model_input,
        pip_requirements=["mlflow"],
    )
    with_pickle(tmp_path / "foreign")
    store.create_registered_model("foreign")
    store.create_model_version("foreign", source=(tmp_path / "foreign").as_uri())
    with pytest.raises(InputError, match="models:/foreign/1: not a model that vitdc logged: it"):
        download_model("models:/foreign/1")
    assert not (tmp_path / "executed").exists()


def test_a_newer_format_is_named(store: MlflowClient, toy_run: toys.ToyRun) -> None:
    folder = files(store, register(store, toy_run.results / "model"))
    file = folder / "data" / "model" / "checkpoint" / "artifact.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format_version": 2}))
    message = f"models:/{NAME}/1/checkpoint: has format version 2, this vitdc .* reads 1"
    with pytest.raises(InputError, match=message):
        download_model(f"models:/{NAME}/1")


def test_changed_weights_are_noticed_however_large(
    store: MlflowClient, toy_run: toys.ToyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifacts.storage, "VERIFY_BYTES", 0)
    folder = files(store, register(store, toy_run.results / "model"))
    file = folder / "data" / "model" / "checkpoint" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(InputError, match=f"models:/{NAME}/1/checkpoint/.*: corrupt"):
        download_model(f"models:/{NAME}/1")


def test_test_data_are_the_same_whatever_the_training_images(
    toy_run: toys.ToyRun, tmp_path: Path
) -> None:
    def test_hash(**counts: int) -> str:
        name = "-".join(map(str, counts.values()))
        return Dataset.load(toys.write_toy_dataset(tmp_path / name, **counts)).split_hash("test")

    same = Dataset.load(toy_run.dataset).split_hash("test")
    assert test_hash(num_train=30, num_test=12) == same
    assert test_hash(num_train=42, num_test=11) != same


# --- promoting ---------------------------------------------------------------------------------


@pytest.fixture
def two(store: MlflowClient, toy_run: toys.ToyRun) -> MlflowClient:
    """Version 1 with NMI 0.5 is the champion, version 2 has 0.6."""
    register(store, toy_run.rounds / "01", nmi=0.5)
    promote(NAME)
    register(store, toy_run.rounds / "02", nmi=0.6)
    return store


def champion(client: MlflowClient) -> int:
    return int(client.get_model_version_by_alias(NAME, "champion").version)


def test_the_first_model_becomes_the_champion(store: MlflowClient, toy_run: toys.ToyRun) -> None:
    register(store, toy_run.results / "model", nmi=None)
    decision = promote(None)
    assert (decision.promoted, decision.champion, decision.score) == (True, None, None)
    assert champion(store) == 1


@pytest.mark.parametrize("model", [None, NAME, f"models:/{NAME}"])
def test_the_first_champion_is_the_best_on_the_test_images_of_the_newest(
    store: MlflowClient, toy_run: toys.ToyRun, model: str | None
) -> None:
    register(store, toy_run.rounds / "00", nmi=0.9, test_data="b" * 64)
    register(store, toy_run.rounds / "01", nmi=0.7)
    register(store, toy_run.rounds / "02", nmi=0.2)
    decision = promote(model)
    assert (decision.promoted, decision.version, decision.score) == (True, "2", 0.7)
    assert champion(store) == 2


def test_a_better_model_takes_over_and_the_reason_is_on_record(two: MlflowClient) -> None:
    decision = promote(None)
    assert decision.promoted
    assert decision.difference == pytest.approx(0.1)
    assert champion(two) == 2
    version = versions(two)[1]
    run = two.get_run(version.run_id)
    for tags in (version.tags, run.data.tags):
        recorded = json.loads(tags["vitdc.promotion.champion"])
        assert recorded["promoted"] is True
        assert (recorded["score"], recorded["champion_score"]) == (0.6, 0.5)
        assert (recorded["version"], recorded["champion"]) == ("2", "1")
        assert (recorded["metric"], recorded["margin"]) == ("nmi_test", 0)
        assert recorded["test_data"] == TEST_DATA
        assert recorded["time"]
        assert recorded["by"]
    assert "took over `champion`: nmi_test 0.6000 against 0.5000 of version 1" in (
        version.description
    )


@pytest.mark.parametrize(("nmi", "margin"), [(0.5, 0), (0.4, 0), (0.6, 0.2), (0.75, 0.25)])
def test_a_model_that_is_not_better_by_more_than_the_margin_is_kept_out(
    store: MlflowClient, toy_run: toys.ToyRun, nmi: float, margin: float
) -> None:
    register(store, toy_run.rounds / "01", nmi=0.5)
    promote(NAME)
    register(store, toy_run.rounds / "02", nmi=nmi)
    assert not promote(NAME, margin=margin).promoted
    assert champion(store) == 1
    recorded = json.loads(versions(store)[1].tags["vitdc.promotion.champion"])
    assert recorded["promoted"] is False
    assert recorded["margin"] == margin


def test_an_older_version_can_take_over_again_if_it_is_better(
    store: MlflowClient, toy_run: toys.ToyRun
) -> None:
    register(store, toy_run.rounds / "01", nmi=0.7)
    register(store, toy_run.rounds / "02", nmi=0.6)
    assert promote(f"{NAME}/2").promoted  # who names a version gets it
    assert champion(store) == 2
    assert promote(f"{NAME}/1").promoted
    assert champion(store) == 1


def test_a_version_is_found_by_its_run(two: MlflowClient) -> None:
    assert promote(versions(two)[1].run_id, dry_run=True).version == "2"
    assert promote(f"runs:/{versions(two)[0].run_id}", dry_run=True).version == "1"


def test_a_dry_run_changes_nothing(two: MlflowClient) -> None:
    assert promote(NAME, dry_run=True).promoted
    assert champion(two) == 1
    assert "vitdc.promotion.champion" not in versions(two)[1].tags


def test_the_champion_itself_is_kept(two: MlflowClient) -> None:
    before = versions(two)[0].description
    assert not promote(f"models:/{NAME}/1").promoted
    assert versions(two)[0].description == before


def test_other_aliases_have_champions_of_their_own(two: MlflowClient) -> None:
    assert promote(f"{NAME}/1", alias="staging").promoted
    assert two.get_registered_model(NAME).aliases == {"champion": 1, "staging": 1}
    for alias in ("latest", "v3", "a b"):
        with pytest.raises(InputError, match=f"--alias {alias}: MLflow takes letters"):
            promote(NAME, alias=alias)


def test_a_decision_outlives_a_run_in_the_trash(two: MlflowClient) -> None:
    two.delete_run(versions(two)[1].run_id)
    assert promote(NAME).promoted
    assert champion(two) == 2


@pytest.mark.usefixtures("warm_path")
def test_a_decision_outlives_a_run_that_is_gone_for_good(two: MlflowClient, tmp_path: Path) -> None:
    run_id = versions(two)[1].run_id
    two.delete_run(run_id)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    command = ["python", "-m", "mlflow", "gc", "--backend-store-uri", uri]
    subprocess.run([*command, "--tracking-uri", uri, "--run-ids", run_id], check=True)
    with pytest.raises(MlflowException, match="not found"):
        two.get_run(run_id)
    assert promote(NAME).promoted
    assert champion(two) == 2


def test_a_model_that_another_promotion_was_faster_with_is_compared_with(
    two: MlflowClient, toy_run: toys.ToyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the worse one of two would be the champion, if it took longer to judge."""
    register(two, toy_run.rounds / "00", nmi=0.55)
    decide = promotion._decide

    def be_overtaken(*args: Any, **options: Any) -> promotion.Decision:
        monkeypatch.setattr(promotion, "_decide", decide)
        decision = decide(*args, **options)
        assert promote(f"{NAME}/2").promoted
        return decision

    monkeypatch.setattr(promotion, "_decide", be_overtaken)
    decision = promote(f"{NAME}/3")
    assert (decision.promoted, decision.champion, decision.champion_score) == (False, "2", 0.6)
    assert champion(two) == 2


def test_what_is_wrong_here_is_not_blamed_on_mlflow(
    two: MlflowClient, toy_run: toys.ToyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(*arguments: Any) -> None:
        raise RuntimeError("CUDA out of memory")

    with monkeypatch.context() as device:
        device.setattr(Predictor, "predict", run_out)
        with pytest.raises(RuntimeError, match=r"^CUDA out of memory$"):
            promote(NAME, dataset=toy_run.dataset)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"^(?!.*MLFLOW_TRACKING_URI).*set XDG_CACHE_HOME"):
        download_model(f"models:/{NAME}")


@pytest.mark.parametrize("other", ["b" * 64, ""])
def test_scores_of_other_test_images_are_not_compared(
    store: MlflowClient, toy_run: toys.ToyRun, other: str
) -> None:
    register(store, toy_run.rounds / "01", nmi=0.5)
    promote(NAME)
    register(store, toy_run.rounds / "02", nmi=0.6, test_data=other)
    with pytest.raises(InputError, match=r"not scored on the same test images.* --dataset DIR"):
        promote(NAME)
    assert champion(store) == 1


def test_both_models_can_be_scored_on_one_data_set(
    store: MlflowClient, toy_run: toys.ToyRun
) -> None:
    for number, test_data in (("01", "a" * 64), ("02", "b" * 64)):
        register(store, toy_run.rounds / number, test_data=test_data)
    promote(f"{NAME}/1")
    decision = promote(f"{NAME}/2", dataset=toy_run.dataset)
    split = Dataset.load(toy_run.dataset).test
    expected = [
        normalized_mutual_info_score(
            split.labels, Predictor.load(toy_run.rounds / number).predict(split.images).cluster
        )
        for number in ("02", "01")
    ]
    assert [decision.score, decision.champion_score] == pytest.approx(expected)
    assert decision.promoted == (expected[0] > expected[1])
    assert decision.test_data == Dataset.load(toy_run.dataset).split_hash("test")


def test_a_data_set_without_labels_cannot_decide(
    store: MlflowClient, toy_run: toys.ToyRun, tmp_path: Path
) -> None:
    register(store, toy_run.results / "model")
    empty = toys.write_toy_dataset(tmp_path / "unlabelled", num_test=0)
    with pytest.raises(InputError, match="no image of its test split has a label"):
        promote(NAME, dataset=empty)


def test_models_without_scores_cannot_be_compared(
    store: MlflowClient, toy_run: toys.ToyRun
) -> None:
    register(store, toy_run.rounds / "01", nmi=0.5)
    promote(NAME)
    register(store, toy_run.rounds / "02", nmi=None)
    with pytest.raises(InputError, match="has no nmi_test, because its test images had no labels"):
        promote(NAME)


def test_without_a_model_to_promote_what_there_is_is_said(
    store: MlflowClient, toy_run: toys.ToyRun
) -> None:
    with pytest.raises(InputError, match="no model is registered in this MLflow"):
        promote(None)
    register(store, toy_run.results / "model")
    store.create_registered_model("another")
    with pytest.raises(InputError, match="MLflow has another, vitdc-toy; name one"):
        promote(None)


# --- the command -------------------------------------------------------------------------------


def run_promote(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli.find_command("promote"), arguments)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


def test_the_command_says_what_was_decided(two: MlflowClient) -> None:
    code, output = run_promote("--margin", "0.2")
    assert code == 0
    assert output.splitlines() == [
        "vitdc-toy: version 2 against version 1",
        "  nmi_test  0.6000 against 0.5000: +0.1000, needed: more than 0.2",
        "  test data aaaaaaaaaaaa",
        "kept: champion stays version 1",
    ]
    assert run_promote("--margin", "0.2", "--exit-code")[0] == 3
    code, output = run_promote("--dry-run")
    assert (code, output.splitlines()[-1]) == (
        0,
        "promoted: champion is version 2; nothing was changed (dry run)",
    )
    code, output = run_promote("--exit-code")
    assert (code, output.splitlines()[-1]) == (0, "promoted: champion is version 2")
    assert run_promote()[1].splitlines()[-1] == "kept: version 2 has the alias champion already"


@pytest.mark.parametrize("model", ["models:/nothing@champion", "f" * 32, f"{NAME}/9", "nothing"])
def test_what_cannot_be_promoted_ends_with_one_line_and_code_2(
    two: MlflowClient,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["vitdc", "promote", model])
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # pytest's own stays
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("vitdc: ")
    assert len(error.splitlines()) == 1


@pytest.fixture(scope="module")
def server(
    empty_store: Path, tmp_path_factory: pytest.TempPathFactory, warm_path: None
) -> Iterator[str]:
    """MLflow with users, handing on the files of models. Yields its address."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_store, folder / "mlflow.db")
    (folder / "auth.ini").write_text(
        "[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///auth.db\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    env = {
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_AUTH_ADMIN_USERNAME": "admin",
        "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "of this test",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    arguments = ["--app-name=basic-auth", "--backend-store-uri=sqlite:///mlflow.db"]
    arguments += [f"--artifacts-destination={folder / 'artifacts'}"]
    with servers.mlflow_server(folder, arguments=arguments, env=env, python="python") as running:
        yield running.uri


def test_a_server_with_users_serves_the_whole_way(
    server: str, toy_run: toys.ToyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    client = MlflowClient(server)
    client.create_experiment("vitdc")
    register(client, toy_run.results / "model")
    assert promote(None).by == "admin"
    path = download_model(f"models:/{NAME}@champion")
    assert model_digest(path) == model_digest(toy_run.results / "model")

    eve = {"username": "eve", "password": "another of these passwords"}
    users = f"{server}/api/2.0/mlflow/users/create"
    assert requests.post(users, json=eve, auth=("admin", PASSWORD), timeout=60).ok
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", eve["username"])
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", eve["password"])
    experiment = client.create_experiment("of-eve")
    mine = client.create_run(experiment).info.run_id
    with pytest.raises(TrainingError, match=r"you may not add versions to .* vitdc-toy; choose"):
        register(client, toy_run.rounds / "01", run_id=mine)

    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a wrong one")
    for use in (promote, download_model):
        with pytest.raises(InputError, match=r"^MLflow at http.* cannot be used: .*401") as caught:
            use(f"models:/{NAME}@champion")
        assert "\n" not in str(caught.value)
