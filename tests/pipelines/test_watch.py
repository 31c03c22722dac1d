"""`submit --wait` on recorded states of a real cluster: why a step waits, and the last log lines of a failed one."""

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from components.errors import ConcordError
from components.shared.kubeflow.kubernetes_api import connect_kubernetes
from components.shared.tracking.connection import connect as mlflow_client
from pipelines.__main__ import main
from pipelines.connection import COOKIE, HOST, TOKEN, TOKEN_FILE, connect
from pipelines.run_pods import RunPods, step_of_node
from pipelines.watch import watch
from tests.support.kubeflow_peer import FakeServer, serving
from tests.support.kubernetes_peer import kubeconfig, recorded

ROOT = Path(__file__).parents[2]
HASH = "0123456789abcdef0123456789abcdef.dir"
KUBECONFIG = "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeServer]:
    for name in (HOST, TOKEN, COOKIE, TOKEN_FILE, "CONCORD_IMAGE", "KUBERNETES_SERVICE_HOST", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with serving(FakeServer()) as running:
        monkeypatch.setattr(KUBECONFIG, str(kubeconfig(tmp_path, running.host)))
        yield running


def wait(
    server: FakeServer, capsys: pytest.CaptureFixture[str], *states: Any, hours: float | None = 1e-5
) -> tuple[str, str]:
    """Watches a run that goes through the states; returns the error at the end, and stderr with its lines joined."""
    server.recorded = [recorded(state) if isinstance(state, str) else state for state in states]
    run_id = server.recorded[0]["run"]["run_id"]
    client = connect(argparse.Namespace(host=server.host, ca_cert=None))
    with pytest.raises(ConcordError) as error:
        watch(client, run_id, RunPods(run_id, lambda: connect_kubernetes(None)), 0.01, hours)
    return str(error.value), re.sub(r"\s+", " ", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("state", "step", "reason"),
    [
        ("secret-missing", "ingest", 'CreateContainerConfigError: secret "concord-nope" not found'),
        ("image-missing", "ingest", 'ErrImagePull: failed to pull and unpack image "registry.example.com/library/conc'),
        ("cores-missing", "ingest", "Unschedulable: 0/1 nodes are available: 1 Insufficient cpu."),
        ("claim-missing", "sft", 'Unschedulable: 0/1 nodes are available: persistentvolumeclaim "nope" not found.'),
        (
            "invalid-pod",
            "ingest",
            'Argo: Pod "concord-training-mjvxt-retry-system-container-impl-3349064922" is invalid',
        ),
    ],
)
def test_pending_step_is_pending_and_says_why(
    state: str, step: str, reason: str, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    err = wait(server, capsys, state)[1]
    assert f"{step}: PENDING" in err
    assert f"{step}: RUNNING" not in err
    assert f"{step}: PENDING: {reason}" in err
    assert "may not be specified when `value` is not empty" in err or state != "invalid-pod"


def test_pending_step_says_nothing_more_in_its_first_minute(
    server: FakeServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.watch.PENDING_SECONDS", 1e9)
    err = wait(server, capsys, "secret-missing")[1]
    assert "ingest: PENDING" in err
    assert "concord-nope" not in err
    assert not [request for request in server.requests if "/pods" in request.path]


def test_reason_is_printed_once(
    server: FakeServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.watch.PENDING_SECONDS", 0.0)
    err = wait(server, capsys, *["secret-missing"] * 3, hours=0.0001)[1]
    assert len([request for request in server.requests if request.path.endswith("/pods")]) > 1
    assert err.count("concord-nope") == 1


def test_pod_without_a_reason_of_its_own_has_that_of_its_events(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where a volume cannot be mounted: the container is ContainerCreating for ever."""
    state = recorded("secret-missing")
    for container in state["pods"][0]["status"]["containerStatuses"]:
        container["state"] = {"waiting": {"reason": "ContainerCreating"}}
    assert 'ingest: PENDING: Failed: Error: secret "concord-nope" not found' in wait(server, capsys, state)[1]


def test_pod_s_own_status_needs_no_right_to_read_events(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.refuse = {"/api/v1/namespaces/kubeflow/events": (403, "events are forbidden")}
    assert 'PENDING: CreateContainerConfigError: secret "concord-nope"' in wait(server, capsys, "secret-missing")[1]


def test_driver_that_cannot_start_is_reported(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    """Kubeflow's driver of a step is a pod too; while it waits, the step itself has no task yet."""
    state = recorded("cores-missing")
    tasks = state["run"]["run_details"]["task_details"]
    tasks[:] = [
        task for task in tasks if task["display_name"] not in ("ingest", "ingest(0)", "executor", "executor(0)")
    ]
    for task in tasks:
        if task["display_name"].startswith("ingest-driver"):
            task["state"] = "PENDING"
    node = "workflows.argoproj.io/node-name"
    pending = next(pod for pod in state["pods"] if pod["status"]["phase"] == "Pending")
    pending["metadata"]["annotations"][node] = "run(0).root(0).ingest-driver(0)"
    state["pods"] = [pending]
    assert (
        "ingest: PENDING: Unschedulable: 0/1 nodes are available: 1 Insufficient cpu." in wait(server, capsys, state)[1]
    )


def test_task_that_finds_the_newest_data_is_reported_too(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    text = json.dumps(recorded("secret-missing")).replace("ingest", "newest")
    err = wait(server, capsys, json.loads(text))[1]
    assert 'newest: PENDING: CreateContainerConfigError: secret "concord-nope" not found' in err


def test_other_runs_pods_are_not_read(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    """kubectl's context may name another cluster than the host of Kubeflow does."""
    state = recorded("secret-missing")
    for pod in state["pods"]:
        pod["metadata"]["labels"]["pipeline/runid"] = "of-another-run"
    err = wait(server, capsys, state)[1]
    assert "the reason is unknown. kubectl's context here has no pod of run bd96a9f5" in err
    assert "Is it the run's cluster?" in err
    assert "concord-nope" not in err
    assert not [request for request in server.requests if request.path.endswith(("/events", "/workflows"))]


def test_cluster_that_cannot_be_asked_does_not_end_the_watch(
    server: FakeServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(KUBECONFIG, str(tmp_path / "missing"))
    error, err = wait(server, capsys, "secret-missing")
    assert "ingest: PENDING: the reason is unknown. kubectl: could not read its context" in err
    assert "still RUNNING" in error


def test_forbidden_pods_are_reported(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.refuse = {"/api/v1/namespaces/kubeflow/pods": (403, 'User "me" cannot list resource "pods"')}
    err = wait(server, capsys, "secret-missing")[1]
    assert 'may not read /api/v1/namespaces/kubeflow/pods: User "me" cannot list resource "pods"' in err


def test_running_step_is_running(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    err = wait(server, capsys, "running")[1]
    assert re.findall(r"\d\d:\d\d:\d\d (\S+: \w+)", err) == ["ingest: SUCCEEDED", "validate: SUCCEEDED", "sft: RUNNING"]


def test_out_of_memory_has_its_limit_and_the_setting(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    error = wait(server, capsys, "out-of-memory")[0]
    assert "FAILED at ingest: out of memory (OOMKilled), the limit is 150Mi. Raise steps.ingest.memory in the " in error


def test_failed_step_shows_the_last_lines_of_its_log(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    error, err = wait(server, capsys, "step-failed")
    assert "FAILED at ingest: main exited with 1." in error
    assert "error /s3/concord-artifacts/raw/nothing: missing, and ingest reads it." in err
    assert "exit status 1" in err
    assert "publish success" not in err


def test_log_is_kubernetes_own_where_kubeflow_has_none(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    state = recorded("step-failed")
    (pod,) = state["logs"]
    state |= {"logs": {}, "kubernetes_logs": {pod: "one\n\x1b[31mthe last words\x1b[0m\n"}}
    assert " the last words " in wait(server, capsys, state)[1]


def test_log_is_found_without_kubernetes(
    server: FakeServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(KUBECONFIG, str(tmp_path / "missing"))
    err = wait(server, capsys, "step-failed")[1]
    assert "error /s3/concord-artifacts/raw/nothing: missing" in err
    assert "why it failed is unknown. kubectl: could not read its context" in err


def test_log_has_no_secrets(
    server: FakeServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    state = recorded("step-failed")
    (pod,) = state["logs"]
    state["logs"][pod] = "error: very-secret at https://me:password@host/x\n"
    err = wait(server, capsys, state)[1]
    assert "error: *** at https://me:***@host/x" in err


def test_submit_sends_kubectl_s_token_and_prints_it_nowhere(
    server: FakeServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(KUBECONFIG, str(kubeconfig(tmp_path, server.host, "kubectl-s-own-token")))
    server.recorded = [recorded("secret-missing")]
    argv = ["submit", "--host", server.host, "--params", str(ROOT / "params.yaml"), "--data-uri", "s3://raw/gauges"]
    assert main([*argv, "--data-hash", HASH, "--wait", "--poll", "0.01", "--timeout", "0.00001"]) == 1
    asked = [request for request in server.requests if request.path.endswith("/pods")]
    assert {request.headers["authorization"] for request in asked} == {"Bearer kubectl-s-own-token"}
    captured = capsys.readouterr()
    assert "PENDING: CreateContainerConfigError" in captured.err
    assert "kubectl-s-own-token" not in captured.out + captured.err


def test_run_that_a_person_ended_says_so(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    error, err = wait(server, capsys, "running", "being-ended", "ended-by-a-person", hours=None)
    assert "run: CANCELING" in err
    assert "FAILED at sft: ended by a person" in error
    assert "exited with 143" not in error + err


def test_argo_s_workflow_names_the_step_of_each_pod(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    """In Kubernetes, a workflow's nodes are a map, and each has the name of its path in the workflow."""
    state = recorded("invalid-pod")
    nodes = state["workflow"]["status"]["nodes"]
    for node in nodes:
        node["name"] = (
            f"w(0).root(0).sft(0).{node['displayName']}" if node["phase"] == "Error" else "w(0).root-driver(0)"
        )
    state["workflow"]["status"]["nodes"] = {node["id"]: node for node in nodes}
    assert "is invalid" not in wait(server, capsys, state)[1]  # ingest is pending, and sft's pod is invalid


@pytest.mark.parametrize(
    ("node", "step"),
    [
        ("concord-training-9r8bd(0).root(0).ingest(0).executor(0)", "ingest"),
        ("concord-training-9r8bd(0).root(0).sft(0).executor(2)", "sft"),
        ("concord-training-9r8bd(0).root(0).sft-driver(0)", "sft"),
        ("concord-training-9r8bd(0).root-driver(0)", "root"),
        ("concord-training-9r8bd.root.grpo.executor", "grpo"),  # where the cluster retries nothing
        ("", ""),
    ],
)
def test_step_of_an_argo_node(node: str, step: str) -> None:
    assert step_of_node(node) == step


def test_pod_asks_its_own_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("token", "ca.crt"):
        (tmp_path / name).write_text("content", encoding="utf-8")
    monkeypatch.setattr("kubernetes.config.incluster_config.SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr("kubernetes.config.incluster_config.SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    monkeypatch.setattr("kubernetes.client.rest.RESTClientObject.__init__", lambda self, configuration: None)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "192.0.2.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    kubernetes = connect_kubernetes("alice")
    assert (kubernetes.name, kubernetes.namespace) == ("the cluster of this pod", "alice")
    assert kubernetes.api.configuration.host == "https://192.0.2.1:443"


@pytest.mark.parametrize(("state", "status"), [("step-failed", "FAILED"), ("ended-by-a-person", "KILLED")])
def test_what_an_ended_run_left_running_in_mlflow_is_closed(
    state: str,
    status: str,
    server: FakeServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    client = mlflow_client()
    ours = {"concord.pipeline_run": recorded(state)["run"]["run_id"]}
    left, ended, others = (client.create_run("0", tags=tags).info.run_id for tags in (ours, ours, {}))
    client.set_terminated(ended, "FINISHED")
    _, printed = wait(server, capsys, state)
    assert [client.get_run(run).info.status for run in (left, ended, others)] == [status, "FINISHED", "RUNNING"]
    assert f"runs that were still RUNNING, now {status}: 1" in printed
