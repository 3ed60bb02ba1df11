"""`vitdc compare` on real records: MLflow stores, DVC experiments, results directories."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from repositories import Repository
from toys import ToyRun

from vitdc.artifacts import RoundRow
from vitdc.cli.compare import command
from vitdc.comparison import compare
from vitdc.comparison.finding import find_results, newest_results
from vitdc.config import Params
from vitdc.errors import InputError
from vitdc.tracking import open_tracker

HASH = "0123456789abcdef" * 4
CHANGES = {"gamma-0": {"joint": {"gamma": 0.0}}, "gamma-1": {"joint": {"gamma": 1.0}}}

# Stands for the steps of the pipeline: results as `evaluate` writes them, in no time.
STAGE = """
import json, pathlib, yaml
params = yaml.safe_load(open("params.yaml"))
nmi = 0.5 + 0.1 * params["joint"]["gamma"] + 0.01 * params["seed"]
scores = {"nmi": nmi, "ari": nmi, "acc": nmi}
metrics = {"test": scores, "train": scores, "loss": 1 - nmi, "rounds": 1, "best_round": 1,
           "stop_reason": "converged"}
rows = [{"round": 0, "nmi_test": 0.4}, {"round": 1, "loss": 1 - nmi, "nmi_test": nmi}]
metadata = {"rows": rows, "parameters": params, "dataset_name": "toy", "content_hash": "0" * 64}
results = pathlib.Path("results")
results.mkdir(exist_ok=True)
(results / "metrics.json").write_text(json.dumps(metrics))
(results / "artifact.json").write_text(json.dumps({"metadata": metadata}))
"""
PIPELINE = """
stages:
  evaluate:
    cmd: python make.py
    deps: [make.py]
    params: [seed, joint]
    outs: [results/artifact.json]
    metrics: [results/metrics.json]
"""


@pytest.fixture
def store(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The default store, in an empty working directory."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return Path(shutil.copy(empty_store, "mlflow.db"))


def record(
    seed: int = 0, *, gamma: float = 0.1, nmi: float | None = 0.8, name: str | None = None
) -> str:
    """Record a run as `refine` and `evaluate` do; without `nmi`, only that it has begun."""
    params = Params.parse(
        {"seed": seed, "joint": {"gamma": gamma}, "tracking": {"run_name": name}}, where="test"
    )
    with open_tracker(params, dataset_name="toy", content_hash=HASH) as tracker:
        if nmi is not None:
            rows = [
                RoundRow(0, nmi_train=0.5, nmi_test=0.4),
                RoundRow(1, 1.25, 1.0, 0.5, 0.9, nmi, 0.7, 0.85, 0.1, verdict="converged"),
            ]
            scores = {"nmi": nmi, "ari": 0.7, "acc": 0.85}
            metrics = {
                "test": scores,
                "train": {"nmi": 0.9, "ari": 0.8, "acc": 0.9},
                "rounds": 1,
                "best_round": 1,
                "stop_reason": "converged",
                "loss": 1.25,
            }
            tracker.log_rounds(rows)
            tracker.log_result(rows=rows, metrics=metrics, results=Path("nowhere"))
        return str(tracker.run_id)  # type: ignore[attr-defined]


# --- MLflow ------------------------------------------------------------------------------------


def test_a_run_is_found_by_its_id_the_beginning_of_it_and_its_name(store: Path) -> None:
    id = record(name="the good one")
    record(1)
    found = find_results([id, id[:6], "the good one", f"mlflow:{id[:8]}"])
    assert {result.id for result in found.values()} == {id}
    assert [result.label for result in found.values()] == [id[:8], id[:8], "the good one", id[:8]]


def test_what_was_recorded_is_what_is_compared(store: Path) -> None:
    (result,) = find_results([record(3, gamma=0.5, nmi=0.75)]).values()
    assert result.source == "MLflow"
    assert result.seed == "3"
    assert result.params["joint.gamma"] == "0.5"
    assert result.data == HASH[:16]
    assert result.state == "converged"
    assert result.best_round == 1
    expected = {"nmi_test": 0.75, "ari_test": 0.7, "acc_test": 0.85, "nmi_train": 0.9, "loss": 1.25}
    assert {name: result.values[name] for name in expected} == expected
    assert result.curves == {
        "nmi_test": {0: 0.4, 1: 0.75},
        "nmi_train": {0: 0.5, 1: 0.9},
        "loss": {1: 1.25},
    }


def test_the_newest_runs_are_the_finished_ones_the_oldest_first(store: Path) -> None:
    ids = [record(seed) for seed in range(3)]
    record(9, nmi=None)
    assert [result.id for result in newest_results("vitdc", 2)] == ids[1:]


def test_seeds_of_two_settings_are_paired(store: Path) -> None:
    base = [record(seed, gamma=0.0, nmi=0.7 + 0.01 * seed) for seed in range(3)]
    other = [record(seed, gamma=0.1, nmi=0.8 + 0.01 * seed) for seed in range(3)]
    comparison = compare(list(find_results([*base, *other]).values()))
    assert [group.label for group in comparison.groups] == ["gamma=0.0", "gamma=0.1"]
    assert comparison.differences[0].num_pairs == 3
    assert comparison.differences[0].mean == pytest.approx(0.1)
    assert not comparison.warnings


def test_a_name_of_several_runs_is_refused_and_they_are_named(store: Path) -> None:
    ids = [record(seed, name="twin") for seed in (0, 1)]
    with pytest.raises(InputError, match="twin: fits several runs") as raised:
        find_results(["twin"])
    assert all(id[:8] in str(raised.value) for id in ids)


def test_a_run_without_rounds_is_refused(store: Path) -> None:
    id = record(nmi=None)
    with pytest.raises(InputError, match=f"{id[:8]}.*has recorded no round; it is running"):
        find_results([id])


def test_a_deleted_run_is_unknown(store: Path) -> None:
    from mlflow import MlflowClient

    id = record()
    MlflowClient(f"sqlite:///{store.absolute()}").delete_run(id)
    with pytest.raises(InputError, match="no run with that id"):
        find_results([id])


def test_a_store_that_does_not_answer_is_one_line(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    with pytest.raises(
        InputError, match=r"127\.0\.0\.1:9 cannot be used.*MLFLOW_TRACKING_URI"
    ) as e:
        find_results(["3f2a"])
    assert "secret" not in str(e.value)
    assert "\n" not in str(e.value)


# --- directories -------------------------------------------------------------------------------


def test_a_results_directory_knows_its_parameters_and_data(
    toy_run: ToyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(toy_run.results, tmp_path / "mine" / "results")
    (direct, inside) = find_results([str(toy_run.results), "mine"]).values()
    metrics = json.loads((toy_run.results / "metrics.json").read_text())
    for result in (direct, inside):
        assert result.values["nmi_test"] == metrics["test"]["nmi"]
        assert result.params["joint.gamma"] == "0.5"
        assert result.params["clustering.num_clusters"] == "3"
        assert result.seed == "0"
        assert result.data == "0" * 16
        assert sorted(result.curves["nmi_test"]) == [0, 1, 2]
    assert "counted again: mine" in compare([direct, inside]).warnings[0]


def test_a_directory_and_the_mlflow_run_of_equal_parameters_are_one_group(
    toy_run: ToyRun, store: Path
) -> None:
    from vitdc.comparison.runs import flat_params

    (direct,) = find_results([str(toy_run.results)]).values()
    sections = json.loads((toy_run.results / "artifact.json").read_text())["metadata"]["parameters"]
    params = Params.parse({**sections, "seed": 1}, where="test")
    with open_tracker(params, dataset_name="toy", content_hash="0" * 64) as tracker:
        tracker.log_rounds([RoundRow(0, nmi_test=0.4), RoundRow(1, nmi_test=0.6)])
    (recorded,) = find_results([tracker.run_id]).values()  # type: ignore[attr-defined]
    assert flat_params(sections).keys() - {"seed"} <= recorded.params.keys()
    comparison = compare([direct, recorded])
    assert list(comparison.varying) == ["seed"]
    assert len(comparison.groups) == 1


def test_results_of_an_older_vitdc_are_refused(
    toy_run: ToyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(toy_run.results, "old")
    description = json.loads(Path("old/artifact.json").read_text())
    del description["metadata"]["parameters"]
    Path("old/artifact.json").write_text(json.dumps(description))
    with pytest.raises(InputError, match=r"old: written by an older vitdc.*vitdc evaluate"):
        find_results(["old"])


# --- DVC ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def experiments(tmp_path_factory: pytest.TempPathFactory, warm_path: None) -> Iterator[Path]:
    """A DVC repository with a committed run, the experiments of CHANGES and a remote."""
    place = tmp_path_factory.mktemp("dvc")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GIT_CONFIG_GLOBAL", str(place / "none"))
        patch.setenv("DVC_GLOBAL_CONFIG_DIR", str(place / "none"))
        patch.setenv("DVC_SITE_CACHE_DIR", str(place / "site-cache"))
        patch.setenv("DVC_NO_ANALYTICS", "1")
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        for role in ("AUTHOR", "COMMITTER"):
            patch.setenv(f"GIT_{role}_NAME", "tester")
            patch.setenv(f"GIT_{role}_EMAIL", "tester@example.com")
        repository = Repository.make(place / "project", remote=str(place / "remote"))
        (repository.path / "make.py").write_text(STAGE)
        (repository.path / "dvc.yaml").write_text(PIPELINE)
        (repository.path / "params.yaml").write_text("seed: 0\njoint: {gamma: 0.5}\n")
        repository.commit("the pipeline")
        repository.git("tag", "before")
        run(repository.path, "repro", "-q")
        repository.commit("a run")
        for name, change in CHANGES.items():
            gamma = change["joint"]["gamma"]
            run(repository.path, "exp", "run", "-q", "-n", name, "-S", f"joint.gamma={gamma}")
        run(repository.path, "push", "-q", "--all-commits")
        yield repository.path


def run(directory: Path, *arguments: str) -> None:
    done = subprocess.run(
        ["dvc", *arguments], cwd=directory, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_experiments_revisions_and_the_workspace_are_read(
    experiments: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(experiments)
    found = find_results(["main", "gamma-0", "dvc:gamma-1", "workspace"])
    nmi = {name: result.values["nmi_test"] for name, result in found.items()}
    assert nmi == pytest.approx(
        {"main": 0.55, "gamma-0": 0.5, "dvc:gamma-1": 0.6, "workspace": 0.6}
    )
    assert {result.source for result in found.values()} == {"DVC"}
    assert found["gamma-0"].params["joint.gamma"] == "0.0"
    assert found["gamma-0"].curves["nmi_test"] == pytest.approx({0: 0.4, 1: 0.5})
    comparison = compare([found["main"], found["gamma-0"], found["dvc:gamma-1"]])
    assert [group.label for group in comparison.groups] == ["gamma=0.5", "gamma=0.0", "gamma=1.0"]


def test_a_revision_before_the_first_run_is_refused(
    experiments: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(experiments)
    with pytest.raises(InputError, match=r"before: .*results/artifact.json"):
        find_results(["before"])


def test_a_name_that_nothing_has_is_refused_with_where_it_was_looked_for(
    experiments: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(experiments)
    with pytest.raises(InputError, match=r"no revision or experiment.*no MLflow store here"):
        find_results(["nonsense"])
    assert not Path("mlflow.db").exists()


def test_results_come_from_the_remote_where_the_cache_has_none(
    experiments: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", experiments, clone], check=True)
    monkeypatch.chdir(clone)
    assert find_results(["main"])["main"].values["nmi_test"] == pytest.approx(0.55)
    shutil.rmtree(clone / ".dvc" / "cache", ignore_errors=True)
    config = clone / ".dvc" / "config"
    config.write_text(config.read_text().replace(str(experiments.with_name("remote")), "/nowhere"))
    subprocess.run(["git", "-C", clone, "commit", "-qam", "another remote"], check=True)
    with pytest.raises(InputError, match=r"main: results/artifact.json .* remote"):
        find_results(["main"])


def test_outside_of_a_repository_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(InputError, match=r"not in a DVC repository here.*no MLflow store here"):
        find_results(["main"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: a directory without results"):
        find_results(["empty"])


def test_a_name_in_mlflow_and_in_git_must_be_told_apart(
    experiments: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(experiments)
    shutil.copy(empty_store, "mlflow.db")
    try:
        id = record(name="main")
        with pytest.raises(InputError, match=f"main: both .* write dvc:main or mlflow:{id[:8]}"):
            find_results(["main"])
        assert find_results([f"mlflow:{id[:8]}"]).popitem()[1].id == id
        assert find_results(["dvc:main"]).popitem()[1].source == "DVC"
    finally:
        Path("mlflow.db").unlink()


def test_what_dvc_has_is_compared_while_mlflow_is_away(
    experiments: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(experiments)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    found = find_results(["main", "gamma-0"])
    assert {result.source for result in found.values()} == {"DVC"}
    assert caplog.text.count("127.0.0.1:9 cannot be used") == 1
    assert "going on with what DVC has" in caplog.text
    with pytest.raises(InputError, match=r"127.0.0.1:9 cannot be used"):
        find_results(["main", "nonsense"])
    with pytest.raises(InputError, match=r"127.0.0.1:9 cannot be used"):
        find_results(["main", "mlflow:gamma-0"])


# --- the command -------------------------------------------------------------------------------

Vitdc = Callable[..., tuple[int, str, str]]


@pytest.fixture
def vitdc(store: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Vitdc:
    """Runs `vitdc compare` in this process; gives exit code, output and errors."""
    from vitdc import cli

    monkeypatch.setattr(cli, "end_on_sigterm", lambda: None)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vitdc", "compare", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    return call


def test_the_command_prints_and_writes_the_comparison(vitdc: Vitdc) -> None:
    for gamma in (0.0, 0.1):
        for seed in range(2):
            record(seed, gamma=gamma, nmi=0.7 + gamma + 0.01 * seed)
    code, out, err = vitdc("--last", 4, "--output", "deep/page.html")
    assert (code, err) == (0, "")
    assert "gamma=0.1" in out
    assert "+0.1000" in out
    assert "page: deep/page.html" in out
    assert "<!DOCTYPE html>" in Path("deep/page.html").read_text()
    code, out, _ = vitdc("--last", 4, "--format", "json", "--output", "page.html")
    assert json.loads(out)["differences"][0]["pairs"] == 2


def test_the_baseline_may_be_named(vitdc: Vitdc) -> None:
    record(gamma=0.0)
    id = record(gamma=0.1)
    _, out, _ = vitdc("--last", 2, "--baseline", id[:8], "--format", "json")
    found = json.loads(out)
    assert found["baseline"] == "gamma=0.1"
    assert len(found["runs"]) == 2  # the baseline is one of the last two


def test_the_list_shows_what_there_is(vitdc: Vitdc) -> None:
    finished, begun = record(nmi=0.75, name="my run"), record(1, nmi=None)
    code, out, _ = vitdc("--list")
    lines = out.splitlines()
    assert code == 0
    assert lines[1].startswith(finished[:8])
    assert "finished  0.750  my run" in lines[1]
    assert lines[2].startswith(begun[:8])
    assert "running" in lines[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "`vitdc compare --list` lists those in MLflow"),
        (["nonsense"], "nonsense: no such run"),
        (["--last", "2"], "no finished run in the MLflow experiment 'vitdc'"),
        (["--list"], "no run in the MLflow experiment 'vitdc' yet"),
        (["--list", "--experiment", "other"], "--experiment other: not in MLflow"),
        (["--last", "0"], "0 is not in the range"),
    ],
)
def test_wrong_input_is_exit_code_2(vitdc: Vitdc, arguments: list[str], message: str) -> None:
    from mlflow import MlflowClient

    MlflowClient(f"sqlite:///{Path('mlflow.db').absolute()}").create_experiment("vitdc")
    code, out, err = vitdc(*arguments)
    assert code == 2
    assert out == ""
    assert message in " ".join(err.split())
    assert "Traceback" not in err


def test_a_single_run_is_not_a_comparison(vitdc: Vitdc) -> None:
    id = record()
    code, _, err = vitdc(id, id[:8])
    assert code == 2
    assert err == "vitdc: 1 run to compare; at least two different ones are needed\n"


def test_a_page_that_cannot_be_written_is_exit_code_2(vitdc: Vitdc) -> None:
    ids = [record(seed) for seed in (0, 1)]
    Path("file").write_text("")
    code, _, err = vitdc(*ids, "--output", "file/page.html")
    assert code == 2
    assert err.startswith("vitdc: --output file/page.html: cannot be written")


def test_the_help_tells_how_to_begin() -> None:
    assert command.help is not None
    assert "vitdc compare --list" in command.help
    assert "dvc exp list" in command.help
