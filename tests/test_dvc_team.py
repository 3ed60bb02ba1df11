"""A team with a bucket: one trains and pushes, another clones and reproduces without training.

Real Git, DVC and S3; one small training serves all tests, each in a clone of its own. What ran is
read from what DVC says, what came out is compared by hash.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from toys import SMALL_PARAMS, contents

ROOT = Path(__file__).parent.parent
BUCKET = "team"
STAGES = ("prepare", "pretrain", "embed", "refine", "evaluate")

pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("warm_path")]


@dataclass(frozen=True)
class Person:
    """Somebody with a clone, on a machine of their own: nothing of DVC is shared but the bucket."""

    clone: Path
    environment: Mapping[str, str]

    def start(self, *command: str, **variables: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            cwd=self.clone,
            env={**self.environment, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *command: str, code: int = 0, **variables: str) -> str:
        """Output and errors of a command, whose exit code must be `code`."""
        process = self.start(*command, **variables)
        output, _ = process.communicate()
        assert process.returncode == code, output
        return output

    def stages_run(self, *command: str) -> list[str]:
        """The stages whose command a `dvc repro` ran."""
        return re.findall(r"Running stage '(\w+)'", self.run(*command))

    def commit(self, message: str) -> None:
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--message", message)

    def set_params(self, **sections: Any) -> None:
        (self.clone / "params.yaml").write_text(yaml.safe_dump({**SMALL_PARAMS, **sections}))

    def read(self, path: str) -> bytes:
        return (self.clone / path).read_bytes()

    def mlflow_runs(self) -> list[str]:
        """Of every run that MLflow shows: how it ended, and gamma."""
        query = (
            "SELECT status || ' ' || value FROM runs JOIN params USING (run_uuid)"
            " WHERE key = 'joint.gamma' AND lifecycle_stage = 'active'"
        )
        with closing(sqlite3.connect(self.clone / "mlflow.db")) as connection:
            return sorted(row for (row,) in connection.execute(query))


Clone = Callable[[str], Person]


@pytest.fixture(scope="module")
def clone_hub(s3_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A function that clones the team's Git repository on a machine of that name."""
    place = tmp_path_factory.mktemp("team")
    subprocess.run(
        ["git", "init", "--quiet", "--bare", "-b", "main", place / "hub.git"], check=True
    )
    names = ("AWS_", "DVC_", "GIT_", "MLFLOW_")
    ours = {k: v for k, v in os.environ.items() if not k.startswith(names)}
    shared = {
        **ours,
        "PYTHONPATH": str(ROOT),
        "OMP_WAIT_POLICY": "PASSIVE",
        "COLUMNS": "200",
        "DVC_NO_ANALYTICS": "1",
        "AWS_ACCESS_KEY_ID": s3_server.access_key,
        "AWS_SECRET_ACCESS_KEY": s3_server.secret_key,
        "AWS_CONFIG_FILE": str(place / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(place / "none"),
        "AWS_EC2_METADATA_DISABLED": "true",
        "GIT_CONFIG_GLOBAL": str(place / "none"),
        **{f"GIT_{role}_NAME": "tester" for role in ("AUTHOR", "COMMITTER")},
        **{f"GIT_{role}_EMAIL": "tester@example.org" for role in ("AUTHOR", "COMMITTER")},
    }

    def clone(name: str) -> Person:
        machine = place / name
        machine.mkdir()
        own = {"DVC_SITE_CACHE_DIR": "site", "DVC_GLOBAL_CONFIG_DIR": "config"}
        person = Person(
            machine / "vitdc", {**shared, **{key: str(machine / own[key]) for key in own}}
        )
        command = ["git", "clone", "--quiet", str(place / "hub.git"), str(person.clone)]
        subprocess.run(command, check=True, capture_output=True)
        return person

    return clone


@pytest.fixture(scope="module")
def author(clone_hub: Clone, s3_server: Any) -> Person:
    """Who has trained, committed dvc.lock and pushed everything, as the README says."""
    s3_server.client().create_bucket(Bucket=BUCKET)
    person = clone_hub("author")
    for name in ("dvc.yaml", ".gitignore", ".dvcignore"):
        shutil.copy(ROOT / name, person.clone)
    (person.clone / ".dvc").mkdir()
    for name in ("config", ".gitignore"):
        shutil.copy(ROOT / ".dvc" / name, person.clone / ".dvc")
    shutil.copytree(ROOT / ".dvc" / "plots", person.clone / ".dvc" / "plots")
    person.set_params()
    person.run("dvc", "remote", "add", "--default", "team", f"s3://{BUCKET}/vitdc")
    person.run("dvc", "remote", "modify", "team", "endpointurl", s3_server.endpoint_url)
    person.commit("the project and the team's bucket")
    assert person.stages_run("dvc", "repro") == list(STAGES)
    person.commit("first run")
    person.run("dvc", "push", "--run-cache")
    person.run("git", "push", "--quiet", "--set-upstream", "origin", "main")
    return person


@pytest.fixture
def colleague(author: Person, clone_hub: Clone, request: pytest.FixtureRequest) -> Person:
    """Somebody with a fresh clone of what the author pushed."""
    return clone_hub(re.sub(r"\W+", "-", request.node.name))


def same_results(one: Person, other: Person) -> bool:
    """Whether both have the same results, models and rounds, byte for byte."""
    return all(
        contents(one.clone / name) == contents(other.clone / name)
        for name in ("outputs", "results")
    )


# --- pull and reproduce --------------------------------------------------------------------------


def test_the_project_itself_names_no_bucket_and_no_secret() -> None:
    assert "remote" not in (ROOT / ".dvc" / "config").read_text()
    assert "/config.local" in (ROOT / ".dvc" / ".gitignore").read_text().splitlines()


def test_who_pulls_has_everything_and_trains_nothing(author: Person, colleague: Person) -> None:
    colleague.run("dvc", "pull")
    assert same_results(author, colleague)
    assert colleague.stages_run("dvc", "repro") == []
    assert colleague.run("git", "status", "--short") == ""


def test_repro_pull_is_enough(author: Person, colleague: Person) -> None:
    assert colleague.stages_run("dvc", "repro", "--pull") == []
    assert same_results(author, colleague)
    assert colleague.run("git", "status", "--short") == ""


def test_without_dvc_lock_the_run_cache_knows_the_results(
    author: Person, colleague: Person
) -> None:
    (colleague.clone / "dvc.lock").unlink()
    told = colleague.run("dvc", "repro", "--pull")
    assert "Running stage" not in told
    assert re.findall(r"Stage '(\w+)' is cached", told) == list(STAGES)
    assert same_results(author, colleague)
    assert colleague.read("dvc.lock") == author.read("dvc.lock")


@pytest.mark.parametrize(
    ("remote", "variables", "said"),
    [
        ({}, {"AWS_SECRET_ACCESS_KEY": "wrong"}, "Forbidden"),
        ({}, {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "credentials"),
        ({"url": "s3://nowhere/vitdc"}, {}, "The specified bucket does not exist"),
        (
            {"endpointurl": "http://127.0.0.1:9"},
            {"AWS_MAX_ATTEMPTS": "1"},  # boto tries for minutes else
            "Could not connect to the endpoint URL",
        ),
    ],
    ids=["secret", "credentials", "bucket", "endpoint"],
)
def test_what_is_wrong_with_the_remote_is_said_as_the_readme_explains(
    colleague: Person, remote: Mapping[str, str], variables: Mapping[str, str], said: str
) -> None:
    for option, value in remote.items():
        colleague.run("dvc", "remote", "modify", "--local", "team", option, value)
    process = colleague.start("dvc", "pull", **variables)
    output, _ = process.communicate()
    assert process.returncode != 0
    assert said in output
    assert "Traceback" not in output
    assert not (colleague.clone / "outputs" / "pretrained").exists()
    assert colleague.run("git", "status", "--short") == "", "--local settings are not for Git"


# --- experiments ---------------------------------------------------------------------------------


def wait_for_queue(person: Person) -> str:
    deadline = time.monotonic() + 300
    while re.search(r"Queued|Running", status := person.run("dvc", "queue", "status")):
        assert time.monotonic() < deadline, status
        time.sleep(1)
    return status


@pytest.fixture(scope="module")
def experimenter(author: Person, clone_hub: Clone) -> Iterator[Person]:
    """Somebody who has queued two experiments, run them side by side and shared them."""
    person = clone_hub("experimenter")
    person.run("dvc", "pull", "--run-cache")
    person.run("dvc", "exp", "run", "--queue", "--name", "strong", "-S", "joint.gamma=0.5")
    person.run("dvc", "exp", "run", "--queue", "--name", "control", "-S", "joint.gamma=0")
    # a worker of DVC's may stay when all is done, and would keep the output open
    person.run("sh", "-c", "dvc queue start --jobs 2 > /dev/null 2>&1")
    try:
        status = wait_for_queue(person)
        logs = [person.run("dvc", "queue", "logs", name) for name in ("strong", "control")]
        assert status.count("Success") == 2, "\n".join(logs)
        for log in logs:
            assert re.findall(r"Running stage '(\w+)'", log) == ["refine", "evaluate"]
        person.run("dvc", "exp", "push", "--run-cache", "origin", "strong", "control")
        yield person
    finally:
        person.run("dvc", "queue", "stop", "--kill")


def losses(person: Person) -> dict[str, float]:
    """The joint loss of both experiments, as DVC compares it."""
    told = person.run("dvc", "metrics", "diff", "strong", "control", "--json")
    loss = json.loads(told)["results/metrics.json"]["loss"]
    return {"strong": loss["old"], "control": loss["new"]}


@pytest.mark.slow
def test_queued_experiments_are_recorded_in_the_repository(experimenter: Person) -> None:
    assert experimenter.mlflow_runs() == ["FINISHED 0.0", "FINISHED 0.5"]
    assert not list(experimenter.clone.glob(".dvc/tmp/exps/**/mlflow.db"))
    assert contents(experimenter.clone / ".scratch") == {}


@pytest.mark.slow
def test_experiments_are_in_the_table_with_what_differs(experimenter: Person) -> None:
    table = experimenter.run("dvc", "exp", "show", "--csv", "--only-changed")
    header, *rows = [line.split(",") for line in table.splitlines() if "," in line]
    gamma = {row[0]: row[header.index("joint.gamma")] for row in rows if row[0]}
    assert gamma == {"strong": "0.5", "control": "0"}
    assert "test.nmi" in header


@pytest.mark.slow
def test_a_colleague_applies_a_shared_experiment_without_training(
    experimenter: Person, colleague: Person
) -> None:
    assert set(colleague.run("dvc", "exp", "list", "origin").split()) == {
        "main:", "strong", "control"
    }  # fmt: skip
    colleague.run("dvc", "exp", "pull", "origin", "strong", "control")
    colleague.run("dvc", "exp", "apply", "strong")
    assert yaml.safe_load(colleague.read("params.yaml"))["joint"]["gamma"] == 0.5
    assert colleague.stages_run("dvc", "repro") == []
    loss = json.loads(colleague.read("results/metrics.json"))["loss"]
    assert loss == losses(experimenter)["strong"]


@pytest.mark.slow
def test_parameters_that_somebody_has_tried_are_not_trained_again(
    experimenter: Person, colleague: Person
) -> None:
    colleague.set_params(joint={**SMALL_PARAMS["joint"], "gamma": 0.5})
    assert colleague.stages_run("dvc", "repro", "--pull") == []
    loss = json.loads(colleague.read("results/metrics.json"))["loss"]
    assert loss == losses(experimenter)["strong"]


@pytest.mark.slow
def test_two_experiments_differ_in_parameters_and_metrics(experimenter: Person) -> None:
    diff = json.loads(experimenter.run("dvc", "params", "diff", "strong", "control", "--json"))
    assert diff == {"params.yaml": {"joint.gamma": {"old": 0.5, "new": 0, "diff": -0.5}}}
    loss = losses(experimenter)
    assert loss["strong"] > loss["control"], "l has a second part, if gamma is not 0"


@pytest.mark.slow
def test_plots_diff_draws_both_experiments_in_one_chart(experimenter: Person) -> None:
    page = json.loads(experimenter.run("dvc", "plots", "diff", "strong", "control", "--json"))
    (chart,) = [p for name, (p,) in page["data"].items() if name == "NMI"]
    spec = json.loads(chart["content"]) if isinstance(chart["content"], str) else chart["content"]
    lines = {(row["rev"], row["field"]) for row in spec["data"]["values"]}
    assert lines == {
        (rev, field) for rev in ("strong", "control") for field in ("nmi_test", "nmi_train")
    }
    assert spec["encoding"]["color"]["field"] == "rev"
    assert spec["encoding"]["strokeDash"]["field"] == "field"
    for key in ("color", "strokeDash"):
        shown = spec["encoding"][key]["scale"]["range"]
        assert len({str(value) for value in shown}) == 2


def epochs_kept(person: Person) -> int:
    """Epochs of a round in the scratch; 0 where there is none, or while it is being replaced."""
    for state in (person.clone / ".scratch").glob("refine-*/training/*/artifact.json"):
        with suppress(FileNotFoundError):
            return len(json.loads(state.read_text())["metadata"]["history"])
    return 0


def run_until_killed(person: Person, *command: str, epochs: int) -> str:
    """What a command says before the machine goes down, some epochs into a round."""
    process = person.start(*command)
    try:
        deadline = time.monotonic() + 200
        while epochs_kept(person) < epochs:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, "too few epochs were finished"
            time.sleep(0.05)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
    return output


@pytest.mark.slow
def test_an_interrupted_experiment_goes_on_where_it_was(colleague: Person) -> None:
    colleague.run("dvc", "pull")
    command = ("dvc", "exp", "run", "--temp", "-S", "joint.epochs=100000", "-S", "joint.gamma=0.6")
    assert "continuing" not in run_until_killed(colleague, *command, epochs=3)
    again = run_until_killed(colleague, *command, epochs=epochs_kept(colleague) + 3)
    assert "refine: continuing from" in again


# --- images of one's own -------------------------------------------------------------------------


def write_image(path: Path, place: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(place + len(path.stem)).integers(0, 80, (8, 8, 3))
    pixels[:, 2 * place : 2 * place + 3] += 150
    pixels[0, 0] = [ord(c) for c in path.stem.rjust(3)[-3:]]
    Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture
def owner(colleague: Person) -> Person:
    """Somebody who has set the pipeline up for a folder of images, as the README says."""
    colleague.set_params(
        data={"source": "folder", "root": "data/images", "image_size": 8},
        clustering={"num_clusters": 3, "num_restarts": 2},
    )
    pipeline = colleague.clone / "dvc.yaml"
    text = pipeline.read_text()
    assert text.count("# deps: [data/images]") == 1
    pipeline.write_text(text.replace("# deps: [data/images]", "deps: [data/images]"))
    return colleague


def test_own_images_are_watched_shared_and_taken_back(owner: Person, clone_hub: Clone) -> None:
    for index in range(45):
        write_image(owner.clone / f"data/images/c{index % 3}/{index}.png", index % 3)
    owner.run("dvc", "add", "data/images")
    assert owner.stages_run("dvc", "repro", "prepare") == ["prepare"]
    assert owner.stages_run("dvc", "repro", "prepare") == []
    owner.commit("my images")
    before = owner.read("outputs/dataset/index.csv")

    write_image(owner.clone / "data/images/c0/new.png", 0)
    assert owner.stages_run("dvc", "repro", "prepare") == ["prepare"]
    assert b"c0/new.png" in owner.read("outputs/dataset/index.csv")
    changed = owner.run("git", "status", "--short").split()
    assert {"data/images.dvc", "dvc.lock"} == set(changed) - {"M"}

    owner.run("git", "checkout", "--", ".")
    owner.run("dvc", "checkout", "data/images.dvc", "prepare")
    assert owner.stages_run("dvc", "repro", "prepare") == []
    assert owner.read("outputs/dataset/index.csv") == before

    owner.run("dvc", "push", "--run-cache")
    owner.run("git", "push", "--quiet", "origin", "HEAD:mine")
    other = clone_hub("colleague-of-the-owner")
    other.run("git", "checkout", "--quiet", "mine")
    assert other.stages_run("dvc", "repro", "--pull", "prepare") == []
    assert other.read("outputs/dataset/index.csv") == before
    assert len(contents(other.clone / "data/images")) == 45


def test_images_imported_from_a_bucket_change_when_they_are_updated(
    owner: Person, s3_server: Any, tmp_path: Path
) -> None:
    client = s3_server.client()
    client.create_bucket(Bucket="album")

    def upload(name: str, place: int) -> None:
        write_image(tmp_path / name, place)
        client.upload_file(str(tmp_path / name), "album", f"all/c{place}/{name}")

    for index in range(45):
        upload(f"{index}.png", index % 3)
    (owner.clone / "data").mkdir()
    url = ("s3://album/all", "data/images", "--fs-config", f"endpointurl={s3_server.endpoint_url}")
    owner.run("dvc", "import-url", *url)
    assert owner.stages_run("dvc", "repro", "prepare") == ["prepare"]
    upload("new.png", 1)
    assert owner.stages_run("dvc", "repro", "prepare") == [], (
        "an import stays what it is until it is updated"
    )
    owner.run("dvc", "update", "data/images.dvc")
    assert owner.stages_run("dvc", "repro", "prepare") == ["prepare"]
    assert b"c1/new.png" in owner.read("outputs/dataset/index.csv")


def test_images_that_dvc_does_not_watch_are_warned_about(owner: Person) -> None:
    for index in range(45):
        write_image(owner.clone / f"data/images/c{index % 3}/{index}.png", index % 3)
    pipeline = owner.clone / "dvc.yaml"
    pipeline.write_text(pipeline.read_text().replace("    deps: [data/images]", "    #"))
    told = owner.run("dvc", "repro", "prepare")
    assert "vitdc: data.root: DVC does not watch data/images" in told
