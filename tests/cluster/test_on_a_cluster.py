"""From the manifests to the model under DVC, on a real cluster, by the commands of k8s/README.md.

What takes long is started first and looked at later; the order of the tests is that of their needs.
"""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from typing import NamedTuple

import pytest
import repositories
from mlflow import MlflowClient
from mlflow.entities import Run
from real_cluster import (
    SERVICES,
    Cluster,
    Overlay,
    PipelineRun,
    Submission,
    component_of,
    decoded,
    forwarded,
    kubectl,
    objects,
    readme,
    wait_for,
)

from vitdc.artifacts import Checkpoint
from vitdc.tracking.naming import RESULT, result_points, round_key

SMALL = ("pretraining.epochs=2", "joint.epochs=1")
EPOCHS = 80  # time enough to delete the pod
LONG = 2000  # epochs that nobody waits for
NOT_CACHED = {"find_version", "start_record", "check", "evaluate", "end_record"}
GPU = "vitdc.example.org/gpu"  # that no node has


class Started(NamedTuple):
    """What was started at once."""

    terminated: PipelineRun
    digits: Submission
    one_round: PipelineRun
    two_rounds: PipelineRun


@pytest.fixture(scope="session")
def started(cluster: Cluster, overlay: Overlay) -> Started:
    """Runs with seeds of their own, so that the cache has nothing of them, and the README's."""
    seed = int(time.time())
    terminated = cluster.submit("terminated", f"seed={seed + 1}", f"pretraining.epochs={LONG}")
    digits = cluster.start("digits", options=("--wait",))
    one, two = (
        cluster.submit(
            f"{rounds} rounds", f"seed={seed}", f"convergence.max_rounds={rounds}", *SMALL, *more
        )
        for rounds, *more in ((1, f"joint.epochs={EPOCHS}"), (2,))
    )
    return Started(terminated, digits, one, two)


def test_an_impossible_gpu_is_named_within_20_seconds(cluster: Cluster, overlay: Overlay) -> None:
    submission = cluster.start(
        "impossible GPU", f"kubernetes.gpu_resource={GPU}", "kubernetes.resources.prepare.gpus=1",
        options=("--wait",),
    )  # fmt: skip
    run = submission.run()
    threading.Thread(target=submission.text, daemon=True).start()
    try:
        wait_for(lambda: run.pods("prepare"), what="pod of prepare")
        waiting = time.monotonic()
        wait_for(lambda: GPU in "".join(submission.lines), what=f"word of {GPU}", seconds=60)
        assert time.monotonic() - waiting < 20, "".join(submission.lines)
    finally:
        run.terminate()
    assert submission.process.wait(300) == 1


def test_a_terminated_run_is_killed_in_mlflow_and_leaves_no_scratch(
    cluster: Cluster, started: Started, mlflow: MlflowClient
) -> None:
    run = started.terminated
    run.running("pretrain")
    wait_for(lambda: run.run_id in scratch(cluster), what="unfinished training", seconds=120)
    run.terminate()
    assert run.wait() in ("CANCELED", "FAILED")  # the second is what KFP 2.17 says
    wait_for(lambda: status(run, mlflow) != "RUNNING", what="end in MLflow", seconds=180)
    assert status(run, mlflow) == "KILLED"
    assert run.run_id not in scratch(cluster)


def status(run: PipelineRun, mlflow: MlflowClient) -> str:
    return str(run.record(mlflow).info.status)


def scratch(cluster: Cluster) -> list[str]:
    """The folders of the scratch volume."""
    name = f"scratch-{int(time.time())}"
    return cluster.in_a_pod(name, "ls /scratch", claim="vitdc-scratch").split()


def test_a_training_whose_pod_is_deleted_goes_on_where_it_was(
    cluster: Cluster, started: Started, mlflow: MlflowClient
) -> None:
    run = started.one_round
    pod = run.running("retrain")
    exec_in = ("-n", cluster.namespace, "exec", pod, "-c", "main", "--")
    wait_for(
        lambda: kubectl(*exec_in, "find", f"/scratch/{run.run_id}", "-name", "*.safetensors"),
        what="unfinished training",
        seconds=120,
    )
    time.sleep(10)  # some epochs more
    kubectl("-n", cluster.namespace, "delete", "pod", pod, "--grace-period=1")
    again = run.running("retrain")
    assert again != pod
    assert run.wait() == "SUCCEEDED"
    # said at the end: how many images this pod has trained on
    log = kubectl("-n", cluster.namespace, "logs", again, "-c", "main")
    (images,) = re.findall(r"retrain, round 1: (\d+) images in", log)
    record = run.record(mlflow)
    history = mlflow.get_metric_history(record.info.run_id, "joint/loss")
    assert {point.step for point in history} == set(range(1, EPOCHS + 1))
    assert 0 < int(images) < EPOCHS * 1438
    assert record.info.status == "FINISHED"


@pytest.mark.parametrize("rounds", [1, 2])
def test_a_pipeline_ends_after_the_rounds_it_may_have(
    rounds: int, started: Started, mlflow: MlflowClient
) -> None:
    run = started.one_round if rounds == 1 else started.two_rounds
    assert run.wait() == "SUCCEEDED"
    record = run.record(mlflow)
    assert record.info.status == "FINISHED"
    assert record.data.metrics[f"{RESULT}rounds"] == rounds
    # after two rounds of so little training the loss may have risen, which stops the rounds, too
    reasons = ("max-rounds",) if rounds == 1 else ("max-rounds", "converged", "loss-rose")
    assert record.data.tags["vitdc.stop_reason"] in reasons
    counted = Counter(map(component_of, run.pods()))
    assert counted["check"] == rounds
    assert counted["evaluate"] == counted["end_record"] == 1


class Outcome(NamedTuple):
    """What `vitdc run` made in a pod of the image."""

    metrics: dict[str, object]
    rounds: list[dict[str, str]]


@pytest.fixture(scope="session")
def expected(cluster: Cluster, started: Started) -> Outcome:
    """The digits without Kubeflow, in the same image on the same cluster."""
    results = "/tmp/out/results"  # noqa: S108 (in a pod)
    said = cluster.in_a_pod(
        "vitdc-run",
        "vitdc run --params /files/params.yaml --output /tmp/out -S tracking.enabled=false >&2"
        f" && echo @ && cat {results}/metrics.json && echo @ && cat {results}/rounds.csv",
        files=cluster.folder / "params.yaml",
    )
    _, metrics, rounds = said.split("@\n")
    return Outcome(json.loads(metrics), list(csv.DictReader(rounds.splitlines())))


@pytest.fixture(scope="session")
def digits(started: Started) -> PipelineRun:
    """The README's run, which has succeeded."""
    run = started.digits.run()
    text = started.digits.text()
    assert started.digits.process.wait(60) == 0, text
    return run


def test_the_digits_have_the_scores_of_vitdc_run_and_mlflow_has_every_metric(
    digits: PipelineRun, expected: Outcome, mlflow: MlflowClient
) -> None:
    record = digits.record(mlflow)
    assert record.info.status == "FINISHED"
    assert_result(record, expected)
    assert_rounds(record, expected, mlflow)
    epochs = {"pretraining/loss": 20, "joint/loss": 6 * (len(expected.rounds) - 1)}
    for name, number in epochs.items():
        history = mlflow.get_metric_history(record.info.run_id, name)
        assert {point.step for point in history} == set(range(1, number + 1)), name


def assert_result(record: Run, expected: Outcome) -> None:
    """MLflow has the values of metrics.json, to the last bit."""
    points, tags = result_points(expected.metrics)
    wanted = {point.key: value for point, value in points.items()}
    found = {k: v for k, v in record.data.metrics.items() if k.startswith(RESULT)}
    assert found == wanted
    assert tags.items() <= record.data.tags.items()


def assert_rounds(record: Run, expected: Outcome, mlflow: MlflowClient) -> None:
    """MLflow has the values of rounds.csv."""
    for name in expected.rounds[0].keys() - {"round", "verdict"}:
        wanted = {int(row["round"]): float(row[name]) for row in expected.rounds if row[name]}
        history = mlflow.get_metric_history(record.info.run_id, round_key(name))
        assert {point.step: point.value for point in history} == wanted, name


class Repeated(NamedTuple):
    """What finds the digits in the cache."""

    again: PipelineRun
    largest: PipelineRun
    short: PipelineRun


@pytest.fixture(scope="session")
def repeated(cluster: Cluster, digits: PipelineRun) -> Repeated:
    own = f"tracking.experiment={cluster.session}-continued"
    return Repeated(
        cluster.submit("again"),
        cluster.submit("largest", options=(f"--max-rounds={largest_room(cluster)}",)),
        cluster.submit("short", own, options=("--max-rounds=2",)),
    )


def largest_room(cluster: Cluster) -> int:
    """The most rounds that `compile` accepts."""
    accepted, refused = 4, 100
    while refused - accepted > 1:
        rounds = (accepted + refused) // 2
        process = cluster.pipelines("compile", "--output=p.yaml", f"--max-rounds={rounds}")
        text, _ = process.communicate()
        if process.returncode == 0:
            accepted = rounds
        else:
            assert "--max-rounds" in text
            refused = rounds
    return accepted


def test_a_second_run_comes_from_the_cache(
    digits: PipelineRun, repeated: Repeated, expected: Outcome, mlflow: MlflowClient
) -> None:
    assert repeated.again.wait() == "SUCCEEDED"
    assert {component_of(pod) for pod in repeated.again.pods()} == NOT_CACHED
    record = repeated.again.record(mlflow)
    assert record.info.run_id == digits.record(mlflow).info.run_id
    assert record.info.status == "FINISHED"
    assert_result(record, expected)


def test_a_run_with_the_largest_room_that_compile_allows_goes_through_its_rounds(
    repeated: Repeated, expected: Outcome, mlflow: MlflowClient
) -> None:
    assert repeated.largest.wait() == "SUCCEEDED"
    assert len(repeated.largest.pods("check")) == len(expected.rounds) - 1 >= 3
    assert_result(repeated.largest.record(mlflow), expected)


def test_a_continued_run_ends_as_one_long_run(
    cluster: Cluster, repeated: Repeated, expected: Outcome, mlflow: MlflowClient
) -> None:
    assert repeated.short.wait() == "SUCCEEDED"
    first = repeated.short.record(mlflow)
    options = (f"--continue={repeated.short.run_id}", "--max-rounds=2")
    rest = cluster.submit("continued", options=options)
    assert rest.wait() == "SUCCEEDED"
    record = rest.record(mlflow)
    assert record.info.run_id == first.info.run_id
    assert record.info.status == "FINISHED"
    assert_result(record, expected)
    assert_rounds(record, expected, mlflow)


def test_the_model_is_brought_under_dvc(
    cluster: Cluster,
    digits: PipelineRun,
    mlflow: MlflowClient,
    repository: repositories.Repository,
) -> None:
    """The keys are those of KFP's own object store, where the pipeline's artifacts are."""
    (secret,) = objects("secrets", "-n", "kubeflow", "--field-selector",
                        "metadata.name=mlpipeline-minio-artifact")  # fmt: skip
    key, value = (decoded(secret["data"][name]) for name in ("accesskey", "secretkey"))
    command = [sys.executable, "-m", "pipelines", "import-model", digits.run_id]
    command += [f"--params={cluster.folder / 'params.yaml'}", "--output=models/digits", "--push"]
    with forwarded("kubeflow", "seaweedfs", 9000) as store:
        keys = {"AWS_ENDPOINT_URL": store, "AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": value}
        subprocess.run(command, cwd=repository.path, env=os.environ | keys, check=True)
    model = repository.path / "models" / "digits"
    assert model.with_name("digits.dvc").is_file()
    assert Checkpoint.load(model / "checkpoint").round == best_round(digits.record(mlflow))


def best_round(record: Run) -> int:
    return int(record.data.metrics[f"{RESULT}best_round"])


def test_no_run_that_has_ended_leaves_scratch(cluster: Cluster, started: Started) -> None:
    ended = {run.run_id for run in started if isinstance(run, PipelineRun)}
    assert not ended & set(scratch(cluster))


def test_another_image_is_applied_while_jobs_wait(cluster: Cluster, overlay: Overlay) -> None:
    if not overlay.ours:
        pytest.skip(f"namespace {SERVICES} was there before; its services are left as they are")
    delete_jobs = readme("kubectl delete jobs")
    overlay.run(delete_jobs)
    overlay.set_image("localhost/vitdc:no-such-tag")
    overlay.apply()
    overlay.set_image(cluster.image)
    with pytest.raises(subprocess.CalledProcessError):  # which is why the README has the command
        overlay.apply()
    overlay.run(delete_jobs)
    overlay.apply()
    overlay.wait(cluster.namespace)


def test_removal_leaves_nothing(cluster: Cluster, overlay: Overlay) -> None:
    if not overlay.ours:
        pytest.skip(f"namespace {SERVICES} was there before; its services are left as they are")
    overlay.run(readme("kubectl delete -k k8s/overlays/local"))
    kinds = "deployments,statefulsets,jobs,services,configmaps,secrets,persistentvolumeclaims"
    kinds += ",networkpolicies,serviceaccounts,roles,rolebindings"
    labels = ("-l", "app.kubernetes.io/part-of=vitdc")
    assert not objects(kinds, "-n", cluster.namespace, *labels)
    assert SERVICES not in {each["metadata"]["name"] for each in objects("namespaces")}
