"""Submitting, following and scheduling, by the real kfp client.

A live Kubeflow cannot run in a test; `kfp_api` stands in for it: a real HTTP server that speaks the
part of the REST API that is used, and refuses what Kubeflow refuses. What it cannot show is what
happens in a cluster: pods, service accounts, gateways with a login.
"""

import datetime
import io
import ipaddress
import json
import logging
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kfp
import kubernetes_api
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from kfp_api import Kubeflow, failing, hanging, serve
from kubernetes_api import PODS, WORKFLOWS, make_pod, make_workflow, task_nodes

from pipelines import cluster, compiling
from pipelines.cluster import (
    Cluster,
    Cron,
    Ended,
    connect,
    connection,
    credentials,
    follow,
    following,
    observer,
    schedule,
    submit,
)
from vitdc.config import Params
from vitdc.errors import InputError, TrainingError

PARAMS = Params.parse({"convergence": {"max_rounds": 2}}, where="test")
RECORDINGS = Path(__file__).parent / "recordings"
TOKEN = "open-sesame"  # noqa: S105
VARIABLES = (
    *credentials.ENDPOINT_VARIABLES,
    *credentials.TOKEN_VARIABLES,
    *credentials.NAMESPACE_VARIABLES,
    *credentials.UI_VARIABLES,
    *credentials.CA_VARIABLES,
    "KF_PIPELINES_SA_TOKEN_PATH",
    "KUBERNETES_SERVICE_HOST",
)


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither the environment nor the home directory of whoever runs the tests."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(kfp.Client, "_LOCAL_KFP_CONTEXT", str(tmp_path / "kfp" / "context.json"))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "no-kubeconfig"))


@pytest.fixture
def kubeflow() -> Iterator[Kubeflow]:
    with serve() as server:
        yield server


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return compiling.build(PARAMS)


Start = Callable[..., cluster.Submitted]


@pytest.fixture
def start(kubeflow: Kubeflow, pipeline: Any) -> Start:
    """Submits the pipeline."""

    def submit_now(params: Params = PARAMS, **options: Any) -> cluster.Submitted:
        return submit(
            connect(kubeflow.url, options.pop("namespace", None)),
            options.pop("pipeline", pipeline),
            params,
            experiment=options.pop("experiment", "digits"),
            **options,
        )

    return submit_now


def refusal(*arguments: Any, **options: Any) -> str:
    """What connect says, as the one line that it must be."""
    with pytest.raises(InputError) as caught:
        connect(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.isascii()
    return message


# --- connecting --------------------------------------------------------------------------------


def test_connects_and_prints_nothing(
    kubeflow: Kubeflow, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    connected = connect(kubeflow.url + "/")
    assert (connected.host, connected.namespace) == (kubeflow.url, None)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_address_comes_from_the_environment(
    kubeflow: Kubeflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in credentials.ENDPOINT_VARIABLES:
        monkeypatch.setenv(name, kubeflow.url)
        assert connect().host == kubeflow.url
        monkeypatch.delenv(name)


def test_no_address_says_how_to_get_one() -> None:
    message = refusal()
    assert message.startswith("--host: no Kubeflow named; ")
    assert "kubectl port-forward" in message


@pytest.mark.parametrize("host", ["localhost:8080", "ftp://kubeflow", "http://", "http://a b", "x"])
def test_odd_address_is_refused_at_once(host: str) -> None:
    assert refusal(host).startswith(f"--host {host}: not an address; write it as http://")


def test_unreachable_port_is_told_within_seconds() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        host = f"http://127.0.0.1:{unused.getsockname()[1]}"
        start = time.monotonic()
        message = refusal(host)
    assert time.monotonic() - start < 20
    assert message.startswith(f"{host}: cannot be reached: Connection refused; is a port-forward")
    assert "kubectl port-forward -n kubeflow svc/ml-pipeline-ui 8080:80" in message


def test_unknown_host_is_told() -> None:
    assert "cannot be reached: no such host;" in refusal("http://kubeflow.invalid")


def test_silent_server_is_told_within_seconds(
    kubeflow: Kubeflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "TIMEOUT", (1, 0.5))
    kubeflow.answers = hanging(30)
    start = time.monotonic()
    assert "it takes the connection, but does not answer" in refusal(kubeflow.url)
    assert time.monotonic() - start < 20


def test_the_allowed_waiting_is_under_ten_seconds() -> None:
    assert sum(connection.TIMEOUT) < 10


@pytest.mark.parametrize(
    "answer",
    [
        (200, "text/html", "<html><form>Log in</form></html>"),
        (200, "application/json", '["another", "api"]'),
        (200, "application/json", '{"status": "ok"}'),
        (404, "text/html", "<html>404 page not found</html>"),
    ],
)
def test_another_server_is_recognised(kubeflow: Kubeflow, answer: tuple[int, str, str]) -> None:
    kubeflow.answers = lambda *_: answer
    message = refusal(kubeflow.url)
    assert "no Kubeflow Pipelines API" in message
    assert "/pipeline at its end" in message


def test_redirection_to_a_login_page_is_recognised(kubeflow: Kubeflow) -> None:
    def answer(method: str, path: str) -> tuple[int, str, str]:
        if path == "/dex/auth":
            return 200, "text/html", "<html>Log in</html>"
        return 302, "text/html", "/dex/auth"

    kubeflow.answers = answer
    assert "maybe a login page" in refusal(kubeflow.url)


def test_ui_whose_api_is_down_is_told(kubeflow: Kubeflow) -> None:
    kubeflow.answers = lambda *_: (200, "application/json", '{"apiServerReady": false}')
    assert "the API behind it does not" in refusal(kubeflow.url)


def test_server_error_is_told(kubeflow: Kubeflow) -> None:
    kubeflow.answers = failing(503, 99)
    assert refusal(kubeflow.url) == f"{kubeflow.url}: HTTP 503: upstream connect error"


def test_older_release_is_warned_of(kubeflow: Kubeflow, caplog: pytest.LogCaptureFixture) -> None:
    kubeflow.version = "2.5.0"
    connect(kubeflow.url)
    (record,) = caplog.records
    assert "is Kubeflow Pipelines 2.5.0; rounds are nested conditions" in record.message
    assert "need 2.17 or later" in record.message


@pytest.mark.parametrize("version", ["2.17.0", "v3.0.1", "dev_local", None])
def test_new_and_unknown_releases_pass(
    kubeflow: Kubeflow, version: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    kubeflow.version = version
    connect(kubeflow.url)
    assert not caplog.records


def test_broken_context_file_of_kfp_is_named(kubeflow: Kubeflow, tmp_path: Path) -> None:
    (tmp_path / "kfp").mkdir()
    (tmp_path / "kfp" / "context.json").write_text("{")
    assert "context.json: not the JSON that kfp writes" in refusal(kubeflow.url)


# --- tokens and TLS ----------------------------------------------------------------------------


def test_missing_and_wrong_token(kubeflow: Kubeflow, monkeypatch: pytest.MonkeyPatch) -> None:
    kubeflow.token = TOKEN
    message = refusal(kubeflow.url)
    assert "HTTP 401: the token is missing" in message
    assert "kubectl create token" in message
    monkeypatch.setenv("KF_PIPELINES_TOKEN", "wrong")
    assert "HTTP 401: the token is refused" in refusal(kubeflow.url)


@pytest.mark.parametrize("variable", credentials.TOKEN_VARIABLES)
def test_token_comes_from_the_environment(
    kubeflow: Kubeflow, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    kubeflow.token = TOKEN
    monkeypatch.setenv(variable, f" {TOKEN}\n")
    connect(kubeflow.url)


def test_token_file_is_read_again_for_every_request(
    kubeflow: Kubeflow, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(path))
    kubeflow.token = TOKEN
    connected = connect(kubeflow.url)
    path.write_text(f"{TOKEN}-2\n")
    kubeflow.token = f"{TOKEN}-2"
    connected.client.experiments.experiment_service_list_experiments()


def test_token_file_that_is_not_there_is_named(
    kubeflow: Kubeflow, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "absent"
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(path))
    assert refusal(kubeflow.url) == (
        f"KF_PIPELINES_SA_TOKEN_PATH={path}: no token there: No such file or directory"
    )


def test_token_with_line_breaks_is_refused_and_not_shown(
    kubeflow: Kubeflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KF_PIPELINES_TOKEN", "two\nlines")
    message = refusal(kubeflow.url)
    assert message.startswith("KF_PIPELINES_TOKEN: not a token")
    assert "two" not in message


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A self-signed certificate for the loopback address, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "kubeflow")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    (tmp_path / "ca.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (tmp_path / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return tmp_path / "ca.pem", tmp_path / "key.pem"


def test_unknown_authority_is_told_and_can_be_named(
    certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with serve(context) as kubeflow:
        message = refusal(kubeflow.url)
        assert "TLS failed: certificate verify failed: self-signed certificate" in message
        assert "--ca-file or SSL_CERT_FILE" in message
        connect(kubeflow.url, ca_file=certificate[0])
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
        connect(kubeflow.url)


def test_https_to_a_server_without_it_is_told(kubeflow: Kubeflow) -> None:
    assert "TLS failed: wrong version number" in refusal(kubeflow.url.replace("http:", "https:"))


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_file_without_certificates_is_named(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "ca.pem"
    if content:
        path.write_text(content)
    assert refusal("https://127.0.0.1:1", ca_file=path).startswith(f"{path}: no certificates")


# --- namespaces --------------------------------------------------------------------------------


@pytest.fixture
def shared(kubeflow: Kubeflow) -> Kubeflow:
    """A Kubeflow with several users."""
    kubeflow.multi_user = True
    kubeflow.namespaces = {"team-a"}
    return kubeflow


def test_several_users_need_a_namespace(
    shared: Kubeflow, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(kfp.Client, "_NAMESPACE_PATH", str(tmp_path / "absent"))
    assert refusal(shared.url).startswith("--namespace: this Kubeflow has several users;")
    monkeypatch.setenv("KFP_NAMESPACE", "team-a")
    assert connect(shared.url).namespace == "team-a"


def test_inside_a_cluster_the_namespace_is_that_of_the_pod(
    shared: Kubeflow, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "namespace").write_text("team-a\n")
    monkeypatch.setattr(kfp.Client, "_NAMESPACE_PATH", str(tmp_path / "namespace"))
    assert connect(shared.url).namespace == "team-a"
    assert not (tmp_path / "kfp").exists()  # kfp would remember it for all clusters


def test_namespace_without_permission_is_told(shared: Kubeflow) -> None:
    message = refusal(shared.url, "team-b")
    assert message.startswith(f"{shared.url}: HTTP 403: no permission in the namespace team-b,")
    assert "User 'ann@example.org' is not authorized" in message
    assert "ResourceAttributes" not in message
    assert "name another with --namespace" in message


def test_gateway_that_denies_access_is_told(kubeflow: Kubeflow) -> None:
    kubeflow.answers = lambda *_: (403, "text/plain", "RBAC: access denied")
    message = refusal(kubeflow.url)
    assert "HTTP 403: access is denied (RBAC: access denied); set KF_PIPELINES_TOKEN" in message


def test_namespace_that_does_not_exist_is_told(shared: Kubeflow, start: Start) -> None:
    said = 'Failed to create a new run: namespaces \\"team-a\\" not found'
    shared.answers = lambda method, path: (
        (500, "application/json", f'{{"code": 13, "message": "{said}"}}')
        if (method, path) == ("POST", "/apis/v2beta1/runs")
        else None
    )
    with pytest.raises(InputError, match="HTTP 500: the namespace team-a does not exist"):
        start(namespace="team-a")


def test_upload_that_is_denied_is_told_though_its_status_is_400(
    shared: Kubeflow, start: Start
) -> None:
    said = 'pipeline upload denied: permission to create pipelines in namespace \\"team-a\\"'
    shared.answers = lambda method, path: (
        (400, "application/json", f'{{"error_message": "{said}"}}') if "upload" in path else None
    )
    with pytest.raises(InputError, match="no permission in the namespace team-a"):
        start(namespace="team-a")


def test_one_user_is_told_that_a_namespace_has_no_effect(
    kubeflow: Kubeflow, caplog: pytest.LogCaptureFixture
) -> None:
    assert connect(kubeflow.url, "team-a").namespace is None
    assert "--namespace team-a has no effect" in caplog.text


# --- submitting --------------------------------------------------------------------------------


def test_first_submission_creates_what_is_missing(
    kubeflow: Kubeflow, start: Start, capfd: pytest.CaptureFixture[str]
) -> None:
    submitted = start(run_name="first")
    assert [e["display_name"] for e in kubeflow.experiments] == ["digits"]
    assert [p["name"] for p in kubeflow.pipelines] == ["deep-clustering"]
    (version,) = kubeflow.versions
    assert version["name"] == submitted.version
    run = kubeflow.runs[submitted.run_id]
    assert run["display_name"] == "first"
    assert run["service_account"] == "vitdc-runner"
    assert run["runtime_config"]["parameters"]["joint"]["gamma"] == 0.1
    assert "kubernetes" not in run["runtime_config"]["parameters"]
    assert run["pipeline_version_reference"] == {
        "pipeline_id": version["pipeline_id"],
        "pipeline_version_id": version["pipeline_version_id"],
    }
    assert submitted.url == f"{kubeflow.url}/#/runs/details/{submitted.run_id}"
    assert capfd.readouterr() == ("", "")


def test_second_submission_reuses_everything(kubeflow: Kubeflow, start: Start) -> None:
    first = start()
    other = Params.parse({"convergence": {"max_rounds": 2}, "joint": {"gamma": 0}}, where="test")
    second = start(other, pipeline=compiling.build(other))
    assert second.version == first.version
    assert second.run_id != first.run_id
    assert kubeflow.runs[second.run_id]["runtime_config"]["parameters"]["joint"]["gamma"] == 0
    assert [len(x) for x in (kubeflow.experiments, kubeflow.pipelines, kubeflow.versions)] == [
        1
    ] * 3


@pytest.mark.parametrize(
    "section", [{"kubernetes": {"retries": 0}}, {"convergence": {"max_rounds": 3}}]
)
def test_what_is_compiled_in_makes_a_new_version(
    kubeflow: Kubeflow, start: Start, section: dict[str, Any]
) -> None:
    start()
    other = Params.parse({"convergence": {"max_rounds": 2}} | section, where="test")
    start(other, pipeline=compiling.build(other))
    assert len({version["name"] for version in kubeflow.versions}) == 2
    assert len(kubeflow.pipelines) == 1


def test_interrupted_upload_is_made_up_for(kubeflow: Kubeflow, start: Start) -> None:
    kubeflow.answers = failing(500, 1, "upload_version")
    with pytest.raises(InputError, match="HTTP 500: upstream connect error"):
        start()
    assert len(kubeflow.pipelines) == 1
    start()
    assert len(kubeflow.pipelines) == len(kubeflow.versions) == 1


def test_several_users_each_have_their_pipelines(shared: Kubeflow, start: Start) -> None:
    shared.namespaces.add("team-b")
    start(namespace="team-a")
    start(namespace="team-b")
    assert [p["namespace"] for p in shared.pipelines] == ["team-a", "team-b"]
    assert [e["namespace"] for e in shared.experiments] == ["team-a", "team-b"]


def test_archived_experiment_is_told(kubeflow: Kubeflow, start: Start) -> None:
    start()
    kubeflow.experiments[0]["storage_state"] = "ARCHIVED"
    with pytest.raises(InputError, match="--experiment digits: it is archived;"):
        start()


def test_url_is_that_of_the_ui_where_it_has_its_own(
    kubeflow: Kubeflow, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KF_PIPELINES_UI_ENDPOINT", "https://kubeflow.example.org/pipeline/")
    submitted = start()
    assert submitted.url.startswith("https://kubeflow.example.org/pipeline/#/runs/details/")


# --- following ---------------------------------------------------------------------------------

ROUNDS: list[tuple[str, dict[str, str]]] = [
    ("PENDING", {}),
    ("RUNNING", {"deep-clustering": "RUNNING", "prepare-driver": "SUCCEEDED"}),
    ("RUNNING", {"prepare": "RUNNING", "executor": "PENDING"}),
    ("RUNNING", {"prepare": "SUCCEEDED", "executor": "SUCCEEDED", "pretrain": "RUNNING"}),
    ("RUNNING", {"prepare": "SUCCEEDED", "pretrain": "SUCCEEDED", "retrain-2": "RUNNING"}),
]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def watch(
    kubeflow: Kubeflow, run_id: str, stream: io.StringIO | None = None, **options: Any
) -> list[str]:
    """Follow a run; the lines that it printed."""
    stream = stream or io.StringIO()
    follow(connect(kubeflow.url), run_id, poll=0.01, stream=stream, **options)
    return stream.getvalue().splitlines()


def test_progress_names_tasks_as_people_do(kubeflow: Kubeflow, start: Start) -> None:
    submitted = start()
    ended = ("SUCCEEDED", {"prepare": "SUCCEEDED", "pretrain": "SUCCEEDED"})
    kubeflow.progress = [state for state in [*ROUNDS, ended] for _ in range(2)]
    lines = watch(kubeflow, submitted.run_id)
    assert [line.split(" ", 1)[1] for line in lines] == [
        "pending",
        "running",
        "running: prepare; a pod waits for its start",
        "running: pretrain (round 0); 1 task done",
        "running: retrain (round 2); 2 tasks done",
        "succeeded: 2 tasks done",
    ]
    assert lines[-1].startswith("1:02:03 ")  # from the creation to the end


def test_a_run_that_has_no_state_yet_is_pending(kubeflow: Kubeflow, start: Start) -> None:
    submitted = start()
    kubeflow.progress = [("", {}), ("SUCCEEDED", {})]
    assert [line.split(" ", 1)[1] for line in watch(kubeflow, submitted.run_id)] == [
        "pending",
        "succeeded",
    ]


def test_terminal_shows_one_line_that_changes(kubeflow: Kubeflow, start: Start) -> None:
    submitted = start()
    kubeflow.progress = [*ROUNDS, ("SUCCEEDED", {})]
    stream = Terminal()
    watch(kubeflow, submitted.run_id, stream)
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert text.endswith("1:02:03 succeeded\n")


def test_failure_names_task_reason_and_logs(kubeflow: Kubeflow, start: Start) -> None:
    submitted = start()
    kubeflow.progress = [
        ("FAILED", {"retrain": "FAILED", "executor": "FAILED", "exit-handler-1": "FAILED"})
    ]
    kubeflow.task_errors = {"executor": "Error (exit code 1)", "retrain": "Error (exit code 1)"}
    kubeflow.run_error = "child 'retrain' failed"
    with pytest.raises(TrainingError) as caught:
        watch(kubeflow, submitted.run_id)
    assert str(caught.value) == (
        "the run failed in retrain (round 1): Error (exit code 1); child 'retrain' failed;"
        f" its logs: {submitted.url}"
    )


def test_failure_without_details_is_told_all_the_same(kubeflow: Kubeflow, start: Start) -> None:
    submitted = start()
    kubeflow.progress = [("FAILED", {})]
    with pytest.raises(TrainingError) as caught:
        watch(kubeflow, submitted.run_id)
    assert str(caught.value) == f"the run failed; its logs: {submitted.url}"


def test_termination_is_told(kubeflow: Kubeflow, start: Start) -> None:
    submitted = start()
    kubeflow.progress = [("CANCELED", {})]
    with pytest.raises(TrainingError, match="the run was terminated; its logs: http"):
        watch(kubeflow, submitted.run_id)


def recorded(name: str) -> dict[str, Any]:
    """What a real Kubeflow answered to a request for a run."""
    return dict(json.loads((RECORDINGS / f"{name}.json").read_text(encoding="utf-8")))


def end_of(kubeflow: Kubeflow, start: Start, run: dict[str, Any]) -> tuple[str, str, list[str]]:
    """What following a recorded run says: the error, the last state, and all lines."""
    submitted = start()
    kubeflow.recorded = run
    stream = io.StringIO()
    with pytest.raises(TrainingError) as caught:
        watch(kubeflow, submitted.run_id, stream)
    lines = stream.getvalue().splitlines()
    message = str(caught.value).removesuffix(f"; its logs: {submitted.url}")
    return message, [line for line in lines if line[0].isdigit()][-1], lines


def test_a_failed_run_is_told_by_kubeflow_alone_with_its_task_and_where_to_look(
    kubeflow: Kubeflow, start: Start
) -> None:
    message, state, lines = end_of(kubeflow, start, recorded("run-failed"))
    assert message == "the run failed in cluster (round 1)"
    assert state == "0:05:45 failed: 9 tasks done"
    assert "kubectl get workflow,pods -n kubeflow -l pipeline/runid=" in lines[-1]
    assert "`kubectl logs -n kubeflow POD -c main --tail 20`" in lines[-1]


def test_a_failure_after_the_details_have_stopped_is_told_as_such(
    kubeflow: Kubeflow, start: Start
) -> None:
    message, _, _ = end_of(kubeflow, start, recorded("run-frozen") | {"state": "FAILED"})
    assert message == "the run failed in cluster (round 1) or later"


@pytest.mark.parametrize("name", ["run-terminated", "run-no-image-terminated"])
def test_a_terminated_run_that_kubeflow_calls_failed_is_told_as_terminated(
    kubeflow: Kubeflow, start: Start, name: str
) -> None:
    message, state, lines = end_of(kubeflow, start, recorded(name))
    assert message.startswith("the run was terminated")
    assert " terminated: " in state or state.endswith(" terminated")
    assert not any("kubectl" in line for line in lines)


def test_run_that_is_not_there_is_told(kubeflow: Kubeflow) -> None:
    with pytest.raises(InputError, match="there is no run 1234"):
        watch(kubeflow, "1234")


def test_server_that_fails_for_a_while_is_asked_again(kubeflow: Kubeflow, start: Start) -> None:
    submitted = start()
    kubeflow.progress = [("RUNNING", {}), ("SUCCEEDED", {})]
    kubeflow.answers = failing(503, 3, "/runs/")
    lines = watch(kubeflow, submitted.run_id)
    notes = [line for line in lines if "asking again" in line]
    assert notes == [
        f"asking again for up to 5 minutes: {kubeflow.url}: HTTP 503: upstream connect error"
    ]
    assert lines[-1].endswith("succeeded")


def test_server_that_stays_silent_is_given_up(
    kubeflow: Kubeflow, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted = start()
    monkeypatch.setattr(following, "PATIENCE", 0.1)
    kubeflow.answers = failing(503, 999, "/runs/")
    with pytest.raises(TrainingError, match="the run may well go on: http"):
        watch(kubeflow, submitted.run_id)


def test_expired_token_ends_the_following_at_once(kubeflow: Kubeflow, start: Start) -> None:
    submitted = start()
    kubeflow.answers = failing(401, 99, "/runs/")
    with pytest.raises(InputError, match=r"HTTP 401: the token.*; the run itself goes on: http"):
        watch(kubeflow, submitted.run_id)


def test_run_of_a_deleted_version_can_be_followed(kubeflow: Kubeflow, start: Start) -> None:
    submitted = start()
    kubeflow.versions.clear()
    kubeflow.progress = [("RUNNING", {"retrain": "RUNNING"}), ("SUCCEEDED", {})]
    assert watch(kubeflow, submitted.run_id)[0].endswith(" running")


def test_time_limit_ends_the_following(kubeflow: Kubeflow, start: Start) -> None:
    submitted = start()
    kubeflow.progress = [("RUNNING", {})]
    with pytest.raises(TrainingError, match=r"has not ended after 0\.1 s of following; it goes on"):
        watch(kubeflow, submitted.run_id, timeout=0.1)


def test_silence_about_a_waiting_pod_is_told_once_and_is_no_alarm(
    kubeflow: Kubeflow, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted = start()
    monkeypatch.setattr(following, "PENDING_SECONDS", 0.05)
    waiting = ("RUNNING", {"prepare": "RUNNING", "executor": "PENDING"})
    kubeflow.progress = [*[waiting] * 30, ("SUCCEEDED", {"prepare": "SUCCEEDED"})]
    lines = watch(kubeflow, submitted.run_id)
    (hint,) = [line for line in lines if "nothing new" in line]
    assert "nothing new of prepare for" in hint
    assert "either a pod waits, or the run goes on and its details do not" in hint
    (commands,) = [line for line in lines if "kubectl" in line]
    assert (
        f"`kubectl get workflow,pods -n kubeflow -l pipeline/runid={submitted.run_id}`" in commands
    )
    assert "`kubectl describe pod -n kubeflow POD`" in commands
    assert "not read here: kubeconfig: " in commands
    assert lines[-2].endswith(" running: prepare")  # no longer claimed to wait


def test_interrupt_ends_the_following_and_not_the_run(
    kubeflow: Kubeflow, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted = start()
    kubeflow.progress = [("RUNNING", {})]

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupt)
    stream = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        watch(kubeflow, submitted.run_id, stream)
    assert stream.getvalue().splitlines()[-1] == (
        f"no longer following; the run goes on, watch or terminate it: {submitted.url}"
    )
    assert not any("terminate" in path for _, path in kubeflow.requests)


# --- following, where Kubernetes can be read ---------------------------------------------------


@pytest.fixture
def kubernetes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[kubernetes_api.Kubernetes]:
    """A cluster that the kubeconfig names."""
    monkeypatch.setattr(observer, "GRACE", 0.0)
    with kubernetes_api.serve(kubernetes_api.Kubernetes()) as server:
        server.write_kubeconfig(tmp_path / "kubeconfig", "here", "there")
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        yield server


DONE = [
    task_nodes("prepare", "Succeeded", "Succeeded"),
    task_nodes("pretrain (round 0)", "Succeeded", "Succeeded"),
]
FROZEN = {"prepare": "SUCCEEDED", "pretrain": "RUNNING", "executor": "PENDING"}


def test_progress_is_the_workflows_where_kubeflows_has_stopped(
    kubeflow: Kubeflow, kubernetes: kubernetes_api.Kubernetes, start: Start
) -> None:
    run_id = start().run_id
    running = task_nodes("retrain (round 3)", "Succeeded", "Running")
    kubernetes.put(WORKFLOWS, make_workflow(run_id, *DONE, running))
    kubeflow.progress = [*[("RUNNING", FROZEN)] * 5, ("SUCCEEDED", FROZEN)]
    ended, lines = followed(kubeflow, run_id)
    assert [line.split(" ", 1)[1] for line in lines] == [
        "running: retrain (round 3); 2 tasks done",
        "succeeded: 2 tasks done",
    ]
    assert ended.tasks == {"prepare", "pretrain (round 0)"}
    whole = [accept for _, path, accept in kubernetes.requests if "workflows" in path]
    assert [accept for accept in whole if "Partial" not in accept] == ["*/*"]  # read once


def followed(kubeflow: Kubeflow, run_id: str, **options: Any) -> tuple[Ended, list[str]]:
    stream = io.StringIO()
    ended = follow(connect(kubeflow.url), run_id, poll=0.01, stream=stream, **options)
    return ended, stream.getvalue().splitlines()


def test_tasks_of_a_success_are_kubeflows_where_kubernetes_cannot_be_read(
    kubeflow: Kubeflow, start: Start
) -> None:
    kubeflow.progress = [("SUCCEEDED", {"prepare": "SUCCEEDED", "retrain-2": "SUCCEEDED"})]
    ended, _ = followed(kubeflow, start().run_id)
    assert ended.tasks == {"prepare", "retrain (round 2)"}


UNSCHEDULED = "0/1 nodes are available: 1 Insufficient x. preemption: 0/1 nodes are available"


def unscheduled(message: str = UNSCHEDULED) -> dict[str, Any]:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    return {"conditions": [{**condition, "message": message}]}


def container(reason: str, message: str = "") -> dict[str, Any]:
    waiting = {"waiting": {"reason": reason, "message": message}}
    return {"containerStatuses": [{"image": "registry/vitdc:1", "state": waiting}]}


NODE = {
    "metadata": {"name": "node", "labels": {}},
    "spec": {},
    "status": {"allocatable": {"cpu": "2", "memory": "16Gi", "pods": "110"}},
}


@pytest.mark.parametrize(
    ("asked", "status", "reason"),
    [
        ({"nvidia.com/gpu": "1"}, unscheduled(), "no node has nvidia.com/gpu"),
        ({"cpu": "1"}, unscheduled(), "no CPU free: 1 asked, 0.4 left"),
        ({"cpu": "8"}, unscheduled(), "no node has 8 CPU, the largest has 2 CPU"),
        ({"memory": "20Gi"}, unscheduled(), "no node has 20Gi memory, the largest has 16Gi memory"),
        ({"cpu": "100m"}, unscheduled(), "0/1 nodes are available: 1 Insufficient x."),
        (
            {},
            unscheduled('persistentvolumeclaim "vitdc-scratch" not found. not found'),
            "PersistentVolumeClaim vitdc-scratch is missing",
        ),
        (
            {},
            container(
                "ImagePullBackOff",
                'Back-off pulling image "registry/vitdc:1": ErrImagePull: failed to resolve:'
                " registry/vitdc:1: not found",
            ),
            "cannot pull registry/vitdc:1: not found",
        ),
        (
            {},
            container("CreateContainerConfigError", 'secret "vitdc-s3" not found'),
            "Secret vitdc-s3 is missing",
        ),
        (
            {},
            container("CreateContainerConfigError", "couldn't find key A in Secret kubeflow/x"),
            "CreateContainerConfigError: couldn't find key A in Secret kubeflow/x",
        ),
        ({}, container("ContainerCreating"), "MountVolume.SetUp failed for volume x"),
    ],
)
def test_a_waiting_pod_says_what_for(
    kubeflow: Kubeflow,
    kubernetes: kubernetes_api.Kubernetes,
    start: Start,
    asked: dict[str, str],
    status: dict[str, Any],
    reason: str,
) -> None:
    run_id = start().run_id
    waiting = task_nodes("retrain (round 1)", "Succeeded", "Pending")
    kubernetes.put(WORKFLOWS, make_workflow(run_id, *DONE, waiting))
    pod = make_pod(run_id, waiting[-1], "Pending", **status)
    pod["spec"]["containers"][0]["resources"] = {"requests": asked}
    reference = {"valueFrom": {"secretKeyRef": {"name": "vitdc-s3", "key": "AWS_ACCESS_KEY_ID"}}}
    pod["spec"]["containers"][0]["env"] = [reference]
    pod["spec"]["volumes"] = [{"persistentVolumeClaim": {"claimName": "vitdc-scratch"}}]
    other = make_pod("another", {"id": "other"}, "Running")
    other["spec"]["nodeName"] = "node"
    other["spec"]["containers"][0]["resources"]["requests"]["cpu"] = "1600m"
    kubernetes.put(PODS, pod, other)
    kubernetes.put("api/v1/pods", pod, other)
    kubernetes.put("api/v1/nodes", NODE)
    event = {"involvedObject": {"uid": pod["metadata"]["uid"]}, "type": "Warning"}
    earlier = {"message": "0/1 nodes", "eventTime": "2026-11-28T00:00:01Z", "lastTimestamp": None}
    later = {"message": "MountVolume.SetUp failed for volume x"}
    later["lastTimestamp"] = "2026-11-28T00:00:02Z"
    kubernetes.put(
        "api/v1/namespaces/kubeflow/events",
        {**event, **earlier, "metadata": {"name": "earlier"}},
        {**event, **later, "metadata": {"name": "later"}},
    )
    kubeflow.progress = [*[("RUNNING", FROZEN)] * 3, ("SUCCEEDED", FROZEN)]
    _, lines = followed(kubeflow, run_id)
    text = f"running: retrain (round 1) waits: {reason}; 2 tasks done"
    assert [line.split(" ", 1)[1] for line in lines[:-1]] == [text]


def test_who_may_not_read_nodes_is_told_what_the_scheduler_says(
    kubeflow: Kubeflow, kubernetes: kubernetes_api.Kubernetes, start: Start
) -> None:
    run_id = start().run_id
    waiting = task_nodes("prepare", "Pending")
    kubernetes.put(WORKFLOWS, make_workflow(run_id, waiting))
    kubernetes.put(PODS, make_pod(run_id, waiting[-1], "Pending", **unscheduled()))
    kubernetes.forbidden = ("/nodes",)
    kubeflow.progress = [*[("RUNNING", {})] * 3, ("SUCCEEDED", {})]
    _, lines = followed(kubeflow, run_id)
    assert lines[0].endswith("prepare waits: 0/1 nodes are available: 1 Insufficient x.")


def test_a_failure_is_told_with_reason_and_log(
    kubeflow: Kubeflow, kubernetes: kubernetes_api.Kubernetes, start: Start
) -> None:
    submitted = start()
    killed = task_nodes(
        "retrain (round 1)", "Succeeded", "Failed", message="main: Error (exit code 1)"
    )
    kubernetes.put(WORKFLOWS, make_workflow(submitted.run_id, *DONE, killed, phase="Failed"))
    pod = make_pod(submitted.run_id, killed[-1], "Failed")
    kubernetes.put(PODS, pod)
    kubernetes.logs[pod["metadata"]["name"]] = "epoch 1\nthe loss is not finite\n"
    kubeflow.progress = [("FAILED", FROZEN)]
    stream = io.StringIO()
    with pytest.raises(TrainingError) as caught:
        watch(kubeflow, submitted.run_id, stream)
    assert str(caught.value) == (
        f"the run failed in retrain (round 1): Error (exit code 1); its logs: {submitted.url}"
    )
    assert stream.getvalue().splitlines()[-3:] == [
        "the last lines of retrain (round 1):",
        "  epoch 1",
        "  the loss is not finite",
    ]


def test_the_logs_last_lines_are_the_tasks_own() -> None:
    log = """\
        "outputFile": "/minio/mlpipeline/output_metadata.json"
    }
}
42 images
vitdc: the loss is not finite
I1128 00:43:25.423885      15 launcher_v2.go:68] publish error
F1128 00:43:25.423885      15 main.go:49] failed to execute component: exit status 1
time=2026-11-28T00:48:30.361Z level=INFO msg="sub-process exited" argo=true error="exit status 1"
Error: exit status 1"""
    assert observer.tell_last(log.splitlines()) == [
        "42 images",
        "vitdc: the loss is not finite",
        "F1128 00:43:25.423885      15 main.go:49] failed to execute component: exit status 1",
    ]
    assert observer.tell_last([f"epoch {n}" for n in range(99)])[0] == "epoch 87"
    assert observer.tell_last(["{", "}"]) == []


def test_refused_kubernetes_leaves_kubeflows_view_and_says_so(
    kubeflow: Kubeflow, kubernetes: kubernetes_api.Kubernetes, start: Start
) -> None:
    submitted = start()
    kubernetes.forbidden = ("/workflows",)
    kubeflow.progress = [("RUNNING", {"prepare": "RUNNING"}), ("FAILED", {"prepare": "FAILED"})]
    stream = io.StringIO()
    with pytest.raises(TrainingError, match="the run failed in prepare; its logs"):
        watch(kubeflow, submitted.run_id, stream)
    assert "; not read here: " in stream.getvalue()
    assert "HTTP 403: forbidden" in stream.getvalue()
    assert len(kubernetes.requests) == 1


def test_a_context_that_is_not_there_is_refused(
    kubeflow: Kubeflow, kubernetes: kubernetes_api.Kubernetes, start: Start
) -> None:
    run_id = start().run_id
    kubeflow.progress = [("SUCCEEDED", {})]
    assert followed(kubeflow, run_id, context="there")[1]
    with pytest.raises(InputError, match=r"kubeconfig: .*elsewhere"):
        followed(kubeflow, run_id, context="elsewhere")


def test_another_cluster_is_not_taken_for_that_of_the_run(
    kubeflow: Kubeflow, kubernetes: kubernetes_api.Kubernetes, start: Start
) -> None:
    kubernetes.put(WORKFLOWS, make_workflow("another run"))
    kubeflow.progress = [("FAILED", {"prepare": "FAILED"})]
    stream = io.StringIO()
    with pytest.raises(TrainingError, match="the run failed in prepare; its logs"):
        watch(kubeflow, start().run_id, stream)
    assert f"{kubernetes.url} has no Workflow of this run" in stream.getvalue()


# --- schedules ---------------------------------------------------------------------------------

START = datetime.datetime(2026, 3, 4, 5, 6, 7, tzinfo=datetime.UTC)  # a Wednesday


@pytest.mark.parametrize(
    ("text", "expression", "next_time"),
    [
        ("30 2 * * *", "0 30 2 * * *", "2026-03-05 02:30:00"),
        ("0 30 2 * * *", "0 30 2 * * *", "2026-03-05 02:30:00"),
        ("*/15 * * * *", "0 */15 * * * *", "2026-03-04 05:15:00"),
        ("0 9 * * MON-FRI", "0 0 9 * * MON-FRI", "2026-03-04 09:00:00"),
        ("0 9 * * mon", "0 0 9 * * mon", "2026-03-09 09:00:00"),
        ("0 0 9 ? * 4-6", "0 0 9 ? * 4-6", "2026-03-05 09:00:00"),
        ("0 0 1 * 0", "0 0 0 1 * 0", "2026-03-08 00:00:00"),  # either the first or a Sunday
        ("0 0 29 2 *", "0 0 0 29 2 *", "2028-02-29 00:00:00"),
        ("5/20 4,7 * JAN,apr *", "0 5/20 4,7 * JAN,apr *", "2026-04-01 04:05:00"),
        ("@daily", "0 0 0 * * *", "2026-03-05 00:00:00"),
        ("* * * * * *", "* * * * * *", "2026-03-04 05:06:08"),
    ],
)
def test_cron_is_read_as_crontab_reads_it(text: str, expression: str, next_time: str) -> None:
    cron = Cron.parse(text)
    assert cron.expression == expression
    found = cron.next_time(START)
    assert found is not None
    assert f"{found:%Y-%m-%d %H:%M:%S}" == next_time


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "five fields are needed"),
        ("daily", "five fields are needed"),
        ("@every 1h", "five fields are needed"),
        ("0 0 0 * * * 2027", "five fields are needed"),
        ("60 * * * *", "'60' is no minute; valid are *, 0 to 59"),
        ("0 24 * * *", "'24' is no hour"),
        ("0 0 0 * *", "'0' is no day of month; valid are *, 1 to 31"),
        ("0 0 * * 7", "'7' is no day of week; valid are *, 0 to 6 or SUN to SAT"),
        ("0 0 * FEBRUARY *", "'FEBRUARY' is no month"),
        ("*/0 * * * *", "'*/0' is no minute"),
        ("5-1 * * * *", "'5-1' is no minute"),
        ("1,,2 * * * *", "'' is no minute"),
        ("0 0 L * *", "'L' is no day of month"),
        ("0 0 30 2 *", "there is no such day"),
    ],
)
def test_wrong_cron_is_refused_before_anything_else(text: str, problem: str) -> None:
    with pytest.raises(InputError) as caught:
        Cron.parse(text)
    assert str(caught.value).startswith(f"--cron {text!r}: ")
    assert problem in str(caught.value)


def make_schedule(connected: Cluster, pipeline: Any, **options: Any) -> cluster.Scheduled:
    cron = options.pop("cron", Cron.parse("30 2 * * *"))
    names = {"name": "nightly", "experiment": "digits"}
    return schedule(connected, pipeline, PARAMS, cron, **{**names, **options})


def test_schedule_starts_the_uploaded_version(kubeflow: Kubeflow, pipeline: Any) -> None:
    made = make_schedule(connect(kubeflow.url), pipeline)
    (recurring_run,) = kubeflow.recurring_runs
    assert recurring_run["trigger"] == {"cron_schedule": {"cron": "0 30 2 * * *"}}
    assert recurring_run["mode"] == "ENABLE"
    assert recurring_run["max_concurrency"] == "1"
    assert recurring_run["no_catchup"] is True
    assert recurring_run["service_account"] == "vitdc-runner"
    assert recurring_run["runtime_config"]["parameters"]["seed"] == 0
    (version,) = kubeflow.versions
    reference = recurring_run["pipeline_version_reference"]
    assert reference["pipeline_version_id"] == version["pipeline_version_id"]
    assert made.url == f"{kubeflow.url}/#/recurringrun/details/{made.recurring_run_id}"
    assert made.next_time is not None
    assert f"{made.next_time:%H:%M}" == "02:30"


def test_schedule_of_a_name_that_exists_is_refused_or_replaced(
    kubeflow: Kubeflow, pipeline: Any
) -> None:
    connected = connect(kubeflow.url)
    first = make_schedule(connected, pipeline)
    with pytest.raises(InputError) as caught:
        make_schedule(connected, pipeline)
    assert str(caught.value).startswith("--name nightly: there is such a schedule; replace it with")
    assert first.url in str(caught.value)
    second = make_schedule(connected, pipeline, replace=True)
    assert second.replaced == 1
    assert [run["recurring_run_id"] for run in kubeflow.recurring_runs] == [second.recurring_run_id]
    make_schedule(connected, pipeline, name="weekly")
    assert len(kubeflow.recurring_runs) == 2


def test_schedule_that_cannot_be_made_replaces_none(kubeflow: Kubeflow, pipeline: Any) -> None:
    connected = connect(kubeflow.url)
    first = make_schedule(connected, pipeline)
    with pytest.raises(InputError, match="HTTP 400: Max concurrency must be"):
        make_schedule(connected, pipeline, replace=True, max_concurrency=11)
    assert [run["recurring_run_id"] for run in kubeflow.recurring_runs] == [first.recurring_run_id]


def test_logging_of_libraries_stays_out_of_the_way(
    kubeflow: Kubeflow, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    submitted = start()
    kubeflow.answers = failing(503, 1, "/runs/")
    watch(kubeflow, submitted.run_id)
    assert not caplog.records


# --- the command line --------------------------------------------------------------------------


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipelines", *arguments],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )


def test_submit_prints_the_url_and_waits_if_asked(kubeflow: Kubeflow) -> None:
    done = call("submit", "--host", kubeflow.url, "-S", "joint.gamma=0.25", "--wait")
    assert done.returncode == 0, done.stderr
    (run_id,) = kubeflow.runs
    assert done.stdout == f"{kubeflow.url}/#/runs/details/{run_id}\n"
    assert "succeeded" in done.stderr
    assert kubeflow.runs[run_id]["runtime_config"]["parameters"]["joint"]["gamma"] == 0.25


def test_a_failed_run_is_exit_code_1_and_a_refused_token_exit_code_2(kubeflow: Kubeflow) -> None:
    kubeflow.progress = [("FAILED", {"embed": "FAILED"})]
    kubeflow.task_errors = {"embed": "out of memory"}
    done = call("submit", "--host", kubeflow.url, "--wait")
    assert done.returncode == 1
    assert "embed (round 0)" in done.stderr.splitlines()[-1]
    kubeflow.token = TOKEN
    done = call("submit", "--host", kubeflow.url)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.strip().splitlines()
    assert "token is missing" in line


def test_schedule_says_when_the_next_run_is(kubeflow: Kubeflow) -> None:
    done = call("schedule", "--host", kubeflow.url, "--cron", "0 3 * * 1", "--name", "weekly")
    assert done.returncode == 0, done.stderr
    assert "/#/recurringrun/details/" in done.stdout
    assert "next run at" in done.stderr
    assert kubeflow.recurring_runs[0]["display_name"] == "weekly"
