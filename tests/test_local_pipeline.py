"""The pipeline itself, run by KFP's local runner: every task is a process of its own.

Containers are the matter of tests/containers; a cluster cannot exist here.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
import yaml
from toys import SMALL_PARAMS

from vitdc.scratch import alone

ROOT = Path(__file__).parent.parent

pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("warm_path")]

SMALL = {
    **SMALL_PARAMS,
    # the joint loss falls in every round, but less and less
    "pretraining": {"epochs": 4, "learning_rate": 0.003},
    "joint": {"epochs": 1, "batch_size": 16, "learning_rate": 0.005, "gamma": 0.1},
    "convergence": {"epsilon": 0.0, "max_rounds": 4},
}
RESULTS = ("clusters.csv", "rounds.csv", "metrics.json", "report.html", "artifact.json")

# Loaded by every Python that starts: writes down which modules a task imported.
WATCH_IMPORTS = """
import atexit, json, os, sys

def tell():
    if "--function_to_execute" in sys.argv:
        name = sys.argv[sys.argv.index("--function_to_execute") + 1]
        with open(os.environ["IMPORTS_LOG"], "a") as file:
            json.dump([name, sorted(m for m in sys.modules if "." not in m)], file)
            file.write("\\n")

atexit.register(tell)
"""

# Kills the first process that has saved the state of a training, as a lost node would.
KILL_ONCE = """
import os, sys

if "pretrain" in sys.argv:
    from vitdc.artifacts import checkpoint

    save = checkpoint.TrainingState.save

    def save_and_die(self, *args, **kwargs):
        save(self, *args, **kwargs)
        marker = os.environ["KILL_MARKER"]
        if not os.path.exists(marker):
            open(marker, "w").close()
            os._exit(137)

    checkpoint.TrainingState.save = save_and_die
"""

# On this machine nothing is tried again, which a cluster does.
RETRY_AT_ONCE = """
if sys.argv[0] == "-m":  # python -m pipelines
    from pipelines import tasks

    configure = tasks.Configure.task

    def task(self, task, name):
        return configure(self, task, name).set_retry(1, backoff_duration="0s")

    tasks.Configure.task = task
"""

# Runs a pipeline that has room for some rounds only, as on a cluster.
RUN_WITH_ROOM = """
import sys
from pathlib import Path
from pipelines.deep_clustering import Room
from pipelines.local import run_pipeline
from vitdc.config import Params

output, first, last, *continued = sys.argv[1:]
run_pipeline(
    Params.load(Path("params.yaml")),
    output=Path(output),
    root=Path(".kfp"),
    room=Room(first=int(first), last=int(last)),
    continued_run_id=continued[0] if continued else None,
)
"""


class Run(NamedTuple):
    """What `python -m pipelines run` printed and left."""

    code: int
    printed: str
    errors: str
    output: Path

    @property
    def tasks(self) -> dict[str, str]:
        """How long each task took, or "cached"; in the order they ended."""
        found = re.findall(
            r"^(\w[\w ]*?(?: \(round \d+\))?) {2,}(cached|[\d.]+ s)", self.printed, re.M
        )
        return dict(found)

    @property
    def ran(self) -> set[str]:
        return {name for name, took in self.tasks.items() if took != "cached"}

    @property
    def stop_reason(self) -> str:
        return str(json.loads((self.output / "metrics.json").read_text())["stop_reason"])


class Project(NamedTuple):
    """A directory with small parameters, in which commands are run."""

    directory: Path

    def run(self, output: str, *overrides: str, **environment: str) -> Run:
        options = [part for override in overrides for part in ("-S", override)]
        result = self.call("run", "--output", output, *options, **environment)
        return Run(result.returncode, result.stdout, result.stderr, self.directory / output)

    def call(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        variables = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", **environment}
        variables.pop("MLFLOW_TRACKING_URI", None)
        variables["PYTHONPATH"] = os.pathsep.join(
            part for part in (environment.get("PYTHONPATH"), str(ROOT)) if part
        )
        return subprocess.run(
            ["python", "-m", "pipelines", *arguments],
            cwd=self.directory,
            env=variables,
            capture_output=True,
            text=True,
            check=False,
        )


def make_project(directory: Path) -> Project:
    (directory / "params.yaml").write_text(yaml.safe_dump(SMALL))
    return Project(directory)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(tmp_path_factory.mktemp("kfp"))


@pytest.fixture(scope="module")
def first(project: Project) -> Run:
    """A run that no epsilon stops; later runs of the module find its tasks in the cache."""
    run = project.run("first")
    assert run.code == 0, run.printed + run.errors
    return run


def active_runs(directory: Path, store: str = "mlflow.db") -> dict[str, tuple[str, dict[str, str]]]:
    """Status and tags of the MLflow runs."""
    with sqlite3.connect(directory / store) as connection:
        query = "SELECT run_uuid, status FROM runs WHERE lifecycle_stage = 'active'"
        return {
            run_id: (
                status,
                dict(
                    connection.execute("SELECT key, value FROM tags WHERE run_uuid = ?", (run_id,))
                ),
            )
            for run_id, status in connection.execute(query).fetchall()
        }


def in_one_process(project: Path, output: Path, *overrides: str) -> Path:
    """The results of `vitdc run` with the project's parameters."""
    options = [part for each in ("tracking.enabled=false", *overrides) for part in ("-S", each)]
    subprocess.run(
        ["vitdc", "run", "--output", output, *options],
        cwd=project,
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
        check=True,
        capture_output=True,
    )
    return output / "results"


# --- the loop ----------------------------------------------------------------------------------


def rounds_of(run: Run) -> set[int]:
    return {int(number) for number in re.findall(r"\bretrain \(round (\d+)\)", run.printed)}


def test_without_an_epsilon_that_stops_it_the_loop_ends_at_the_cap(first: Run) -> None:
    assert first.stop_reason == "max-rounds"
    assert rounds_of(first) == {1, 2, 3, 4}
    assert [name for name in first.tasks if name.startswith("evaluate")] == ["evaluate (round 4)"]


def test_a_huge_epsilon_stops_after_the_second_retraining(project: Project, first: Run) -> None:
    run = project.run("two", "convergence.epsilon=100")
    assert run.stop_reason == "converged"
    assert rounds_of(run) == {1, 2}  # the rounds not taken did not run
    assert [name for name in run.tasks if name.startswith("evaluate")] == ["evaluate (round 2)"]
    assert not any("(round 3)" in name or "(round 4)" in name for name in run.tasks)


def test_an_epsilon_in_between_stops_in_between(project: Project, first: Run) -> None:
    rows = (first.output / "rounds.csv").read_text().splitlines()[2:]
    losses = [float(row.split(",")[1]) for row in rows]
    falls = [before - after for before, after in itertools.pairwise(losses)]
    assert falls[1] < falls[0], "choose other parameters: the second fall must be the smaller"
    run = project.run("three", f"convergence.epsilon={(falls[0] + falls[1]) / 2}")
    assert run.stop_reason == "converged"
    assert rounds_of(run) == {1, 2, 3}


# --- parity ------------------------------------------------------------------------------------


def test_the_pipeline_gives_the_same_bytes_as_one_process(
    project: Project, first: Run, tmp_path: Path
) -> None:
    expected = in_one_process(project.directory, tmp_path)
    for name in RESULTS:
        assert (first.output / name).read_bytes() == (expected / name).read_bytes(), name


@pytest.mark.slow
def test_without_labels_the_pipeline_gives_the_same_bytes_too(
    project: Project, tmp_path: Path
) -> None:
    overrides = (
        "data.labels=none",
        "pretraining.self_supervised.epochs=1",
        "convergence.max_rounds=1",
    )
    run = project.run("unlabelled", *overrides)
    assert run.code == 0, run.errors
    expected = in_one_process(project.directory, tmp_path, *overrides)
    for name in RESULTS:
        assert (run.output / name).read_bytes() == (expected / name).read_bytes(), name


def test_two_runs_with_little_room_end_as_one_with_room_for_all(
    project: Project, first: Run
) -> None:
    """The second goes on from the last round of the first, in the same MLflow run."""
    store = project.directory / "continued.db"
    environment = {
        **os.environ,
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONPATH": str(ROOT),
        "MLFLOW_TRACKING_URI": f"sqlite:///{store}",
    }

    def run(*arguments: str) -> None:
        subprocess.run(
            ["python", "-c", RUN_WITH_ROOM, *arguments],
            cwd=project.directory,
            env=environment,
            check=True,
        )

    run("room", "1", "2")
    ((_, (status, tags)),) = active_runs(project.directory, store.name).items()
    assert (status, tags["vitdc.stop_reason"]) == ("FINISHED", "out-of-room")
    assert json.loads((project.directory / "room" / "metrics.json").read_text())["rounds"] == 2
    run("more-room", "3", "4", tags["vitdc.kfp_run_id"])
    for name in RESULTS:
        expected = (first.output / name).read_bytes()
        assert (project.directory / "more-room" / name).read_bytes() == expected, name
    ((run_id, (status, tags)),) = active_runs(project.directory, store.name).items()
    assert (status, tags["vitdc.stop_reason"]) == ("FINISHED", "max-rounds")
    with sqlite3.connect(store) as connection:
        query = "SELECT step FROM metrics WHERE key = ? AND run_uuid = ? ORDER BY step"
        found = {
            key: [step for (step,) in connection.execute(query, (key, run_id))]
            for key in ("by_round/loss", "by_round/nmi_test", "joint/loss")
        }
    assert found == {
        "by_round/loss": [1, 2, 3, 4],
        "by_round/nmi_test": [0, 1, 2, 3, 4],
        "joint/loss": [1, 2, 3, 4],
    }


# --- cache -------------------------------------------------------------------------------------


def test_another_gamma_reruns_only_what_depends_on_gamma(project: Project, first: Run) -> None:
    run = project.run("gamma", "joint.gamma=0.9", "convergence.max_rounds=2")
    assert run.code == 0, run.errors
    always = {"find the data", "start the record", "record the end", "evaluate (round 2)"}
    rounds = {f"{step} (round {n})" for step in ("retrain", "embed", "cluster") for n in (1, 2)}
    assert run.ran == always | rounds | {"check (round 1)", "check (round 2)"}
    assert set(run.tasks) - run.ran == {
        "prepare",
        "pretrain (round 0)",
        "embed (round 0)",
        "cluster (round 0)",
    }


def test_another_code_reruns_everything(project: Project, first: Run, tmp_path: Path) -> None:
    patch = "from vitdc import code\ncode.code_version = lambda: 'changed'\n"
    (tmp_path / "sitecustomize.py").write_text(patch)
    run = project.run("code", "convergence.max_rounds=1", PYTHONPATH=str(tmp_path))
    assert run.code == 0, run.errors
    assert set(run.tasks) == run.ran


# --- what is recorded --------------------------------------------------------------------------


def test_a_run_is_one_mlflow_run_with_every_round_once(project: Project, first: Run) -> None:
    with sqlite3.connect(project.directory / "mlflow.db") as connection:
        query = (
            "SELECT run_uuid FROM params WHERE key = ? AND value = ? INTERSECT"
            " SELECT run_uuid FROM params WHERE key = ? AND value = ?"
        )
        wanted = ("convergence.epsilon", "0.0", "convergence.max_rounds", "4")
        ((run_id,),) = connection.execute(query, wanted).fetchall()
        points = connection.execute(
            "SELECT step, count(*) FROM metrics WHERE key = 'by_round/loss' AND run_uuid = ?"
            " GROUP BY step",
            (run_id,),
        ).fetchall()
    assert points == [(1, 1), (2, 1), (3, 1), (4, 1)]
    status, tags = active_runs(project.directory)[run_id]
    assert status == "FINISHED"
    assert tags[f"vitdc.kfp_run.{tags['vitdc.kfp_run_id']}"] == "SUCCEEDED"
    assert tags["vitdc.stop_reason"] == "max-rounds"


def test_the_kfp_ui_gets_scores_confusion_matrix_report_and_overview(
    project: Project, first: Run
) -> None:
    metrics = json.loads((first.output / "metrics.json").read_text())
    outputs = (project.directory / ".kfp").glob("*/evaluate*/executor_output.json")
    evaluated = min(outputs, key=lambda path: path.stat().st_mtime)  # of the first run
    found = json.loads(evaluated.read_text())["artifacts"]
    metadata = {name: entry["artifacts"][0]["metadata"] for name, entry in found.items()}
    assert metadata["metrics"]["nmi_test"] == metrics["test"]["nmi"]
    rows = metadata["confusion"]["confusionMatrix"]["rows"]
    assert sum(sum(row["row"]) for row in rows) == 100  # the test images
    assert "max-rounds" in metadata["results"]["summary"]
    report = Path(found["report"]["artifacts"][0]["uri"])
    assert report.read_bytes() == (first.output / "report.html").read_bytes()
    overview = Path(found["overview"]["artifacts"][0]["uri"]).read_text()
    assert overview.startswith(f"# Test NMI {metrics['test']['nmi']:.3f}")
    assert overview.count("\n| ") >= 2 + 1 + 5  # two splits, a heading, five rounds
    model = Path(found["model"]["artifacts"][0]["uri"])
    assert {path.name for path in model.iterdir()} == {"checkpoint", "clustering"}


# --- failures ----------------------------------------------------------------------------------


def test_a_failing_task_is_named_with_its_own_error_and_recorded(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    run = project.run("out", "data.source=folder", "data.root=nowhere", "data.image_size=8")
    assert run.code == 1
    (line,) = run.errors.strip().splitlines()
    assert "find the data: data.root: nowhere: no such folder" in line
    assert not run.output.exists()
    assert set(run.tasks) == {"find the data", "record the end"}
    ((status, tags),) = active_runs(tmp_path).values()
    assert status == "FAILED"
    assert "FAILED" in {v for k, v in tags.items() if k.startswith("vitdc.kfp_run.")}
    log = Path(line.rpartition(" ")[2]).read_text()
    printed = [text for text in log.splitlines() if text.startswith("    vitdc: data.root")]
    assert printed, "the task's own error is in its log"
    after = log.split(printed[-1])[1].splitlines()
    assert not any(text.startswith("    ") and text.strip() for text in after[:4])


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_ends_its_task_and_is_recorded(
    tmp_path: Path, number: int, code: int
) -> None:
    make_project(tmp_path)
    process = subprocess.Popen(
        ["python", "-m", "pipelines", "run", "--output", "out", "-S", "joint.epochs=100000"],
        cwd=tmp_path,
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # its process group is that of its tasks, too
    )
    try:
        deadline = time.monotonic() + 200
        while not list((tmp_path / ".kfp" / "scratch").glob("retrain-*")):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline, "no epoch was finished"
            time.sleep(0.2)
        start = time.monotonic()
        process.send_signal(number)  # to the run alone: it has to end its task
        printed, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    assert time.monotonic() - start < 60  # not after 100,000 epochs
    assert "start the record" in printed
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / ".kfp").glob("*/*/.*.partial"))
    assert not [p for p in psutil.process_iter() if is_task_in(p, tmp_path)]
    ((status, _),) = active_runs(tmp_path).values()
    assert status == "FAILED"


# --- fresh Pythons -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose tasks are no warm programs, and whose first training dies once."""
    project = make_project(tmp_path_factory.mktemp("killed"))
    patches = project.directory / "patches"
    patches.mkdir()
    (patches / "sitecustomize.py").write_text(WATCH_IMPORTS + KILL_ONCE + RETRY_AT_ONCE)
    run = project.run(
        "out",
        "convergence.max_rounds=1",
        PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        PYTHONPATH=str(patches),
        IMPORTS_LOG=str(project.directory / "imports.jsonl"),
        KILL_MARKER=str(project.directory / "killed"),
    )
    assert run.code == 0, run.printed + run.errors
    return run


@pytest.mark.slow
def test_a_killed_training_is_tried_again_and_ends_in_the_same_bytes(killed: Run) -> None:
    directory = killed.output.parent
    assert (directory / "killed").exists()
    expected = in_one_process(directory, directory / "expected", "convergence.max_rounds=1")
    for name in RESULTS:
        assert (killed.output / name).read_bytes() == (expected / name).read_bytes(), name
    ((status, _),) = active_runs(directory).values()
    assert status == "FINISHED"
    left = [path for path in (directory / ".kfp" / "scratch").rglob("*") if path.is_file()]
    assert left == [], "finished work leaves no scratch"


@pytest.mark.slow
def test_no_task_imports_what_it_does_not_use(killed: Run) -> None:
    lines = (killed.output.parent / "imports.jsonl").read_text().splitlines()
    imported: dict[str, set[str]] = {}
    for name, modules in map(json.loads, lines):
        imported.setdefault(name, set()).update(modules)
    unused = {
        "find_version": {"torch", "sklearn", "faiss", "mlflow", "matplotlib"},
        "prepare": {"torch", "faiss", "mlflow", "matplotlib"},
        "start_record": {"torch", "sklearn", "faiss", "matplotlib"},
        "pretrain": {"sklearn", "faiss", "matplotlib"},  # mlflow records it while it goes on
        "embed": {"sklearn", "faiss", "mlflow", "matplotlib"},
        "cluster": {"torch", "mlflow", "matplotlib"},
        "retrain": {"sklearn", "faiss", "matplotlib"},
        "check": {"torch", "sklearn", "faiss", "matplotlib"},
        "evaluate": set(),
        "end_record": {"torch", "sklearn", "faiss", "matplotlib"},
    }
    assert set(imported) == set(unused)
    for name, modules in unused.items():
        assert not imported[name] & modules, name


# --- bad input ---------------------------------------------------------------------------------


def is_task_in(process: psutil.Process, directory: Path) -> bool:
    try:
        return str(directory / ".kfp") in " ".join(process.cmdline())
    except psutil.Error:
        return False


def test_two_runs_at_a_time_in_one_root_are_refused(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    with alone(tmp_path / ".kfp"):
        run = project.run("out")
    assert run.code == 2
    assert f".kfp: process {os.getpid()} on " in run.errors
    assert "is at work there; wait until it has ended, or name another directory" in run.errors


BAD_INPUT = {
    "output that is not ours": (["run", "--output", "."], "cannot be written"),
    "root is a file": (["run", "--output", "o", "--root", "params.yaml"], "cannot be written"),
    "root in output": (["run", "--output", "o", "--root", "o/root"], "which it would replace"),
    "wrong type": (["run", "--output", "o", "-S", "joint.gamma=x"], "joint.gamma"),
    "unknown key": (["run", "--output", "o", "-S", "joint.gama=1"], "did you mean joint.gamma"),
    "no rounds": (["compile", "--output", "p.yaml", "--max-rounds", "0"], "at least 1 round"),
    "not yaml": (["compile", "--output", "p.txt"], "name a .yaml file"),
    "unwritable": (["compile", "--output", "params.yaml/p.yaml"], "cannot be written"),
    "bad quantity": (
        ["compile", "--output", "p.yaml", "-S", "kubernetes.resources.embed.memory=lots"],
        "kubernetes.resources.embed.memory",
    ),
    "no engine": (["run", "--output", "o", "--runner", "container"], "no container engine answers"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_ends_in_one_line_that_says_what_to_do(tmp_path: Path, case: str) -> None:
    arguments, said = BAD_INPUT[case]
    result = make_project(tmp_path).call(*arguments, DOCKER_HOST="unix:///nowhere.sock")
    assert result.returncode == 2, result.stdout + result.stderr
    (line,) = result.stderr.strip().splitlines()
    assert said in line


# --- data by version ---------------------------------------------------------------------------


@pytest.mark.slow
def test_a_later_run_takes_the_newest_version_of_the_data_and_nothing_else(
    tmp_path: Path, write_images: Callable[..., Path]
) -> None:
    """What a schedule does: the same parameters again, while the images move on."""
    project = make_project(tmp_path)
    images = [f"{label}/{number}.png" for label in ("cat", "dog") for number in range(12)]
    write_images(*images, folder="data/images")

    def git_and_dvc(*commands: str) -> None:
        for command in commands:
            subprocess.run(command.split(), cwd=tmp_path / "data", check=True)

    git_and_dvc(
        "git init -q -b main", "git config user.email t@example.org", "git config user.name t",
        "dvc init -q", "dvc add -q images", "git add .", "git commit -q -m one",
    )  # fmt: skip
    options = (
        "data={source: dvc, repo: data, path: images, image_size: 8}",
        "clustering.num_clusters=2",
        "convergence.max_rounds=1",
    )
    first = project.run("one", *options)
    assert first.code == 0, first.errors
    again = project.run("two", *options)
    assert again.tasks["prepare"] == again.tasks["retrain (round 1)"] == "cached"

    write_images("cat/new.png", folder="data/images")
    git_and_dvc("dvc add -q images", "git commit -q -a -m two")
    third = project.run("three", *options)
    assert {"prepare", "retrain (round 1)"} <= third.ran
    rows = [len((run.output / "clusters.csv").read_text().splitlines()) for run in (first, third)]
    assert rows == [1 + 24, 1 + 25]
    head = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=tmp_path / "data", text=True)
    commits = {tags.get("vitdc.data.commit") for _, tags in active_runs(tmp_path).values()}
    assert head.strip() in commits
    assert len(commits) == 2
