"""`check`: what it reports of a cluster with everything a run needs, and of one that lacks a thing."""

import base64
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.__main__ import main
from pipelines.connection import COOKIE, HOST, TOKEN, TOKEN_FILE
from tests.support.kubeflow_peer import FakeServer, serving
from tests.support.kubernetes_peer import REVIEWS, kubeconfig
from tests.support.services import free_ports, mlflow, s3, s3_client, s3_environment
from tests.support.settings_files import RAW_CLUSTER, TAINT

ROOT = Path(__file__).parents[2]
HASH = "0123456789abcdef0123456789abcdef.dir"
KUBECONFIG = "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION"
IN_NAMESPACE = "/api/v1/namespaces/kubeflow"
KEY = ("OWNER", "owner-secret-1f0c")
RIGHTS = {"list pods", "get pods/log", "list events", "list workflows"}


def encoded(**data: str) -> dict[str, Any]:
    return {"data": {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}}


def launcher(root: str, endpoint: str) -> dict[str, Any]:
    keys = {"accessKeyKey": "AWS_ACCESS_KEY_ID", "secretKeyKey": "AWS_SECRET_ACCESS_KEY"}
    reference = {"secretName": "concord-s3", **keys}
    default = {"endpoint": endpoint, "disableSSL": True, "credentials": {"fromEnv": False, "secretRef": reference}}
    return {"data": {"defaultPipelineRoot": root, "providers": yaml.safe_dump({"s3": {"default": default}})}}


def node(**allocatable: str) -> dict[str, Any]:
    return {
        "metadata": {"name": "node-1", "labels": {"pool": "cpu"}},
        "spec": {},
        "status": {"allocatable": {"cpu": "7910m", "memory": "32452728Ki", **allocatable}},
    }


def objects() -> dict[str, Any]:
    """Returns the objects of a cluster with what clusters/default.yaml needs."""
    keys = {"AWS_ACCESS_KEY_ID": KEY[0], "AWS_SECRET_ACCESS_KEY": KEY[1], "AWS_ENDPOINT_URL": "http://192.0.2.1"}
    return {
        f"{IN_NAMESPACE}/services/ml-pipeline": {"kind": "Service"},
        f"{IN_NAMESPACE}/secrets/concord-s3": encoded(**keys),
        f"{IN_NAMESPACE}/secrets/concord-mlflow": encoded(MLFLOW_TRACKING_URI="http://me:very-secret@192.0.2.1"),
        f"{IN_NAMESPACE}/persistentvolumeclaims/concord-checkpoints": {
            "spec": {"accessModes": ["ReadWriteMany"]},
            "status": {"phase": "Bound"},
        },
        f"{IN_NAMESPACE}/configmaps/kfp-launcher": launcher("s3://artifacts", "192.0.2.1"),
        "/api/v1/nodes": {"items": [node()]},
    }


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeServer]:
    variables = (HOST, TOKEN, COOKIE, TOKEN_FILE, "CONCORD_IMAGE", "CONCORD_CLUSTER", "KUBERNETES_SERVICE_HOST")
    for name in (*variables, "MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL", "AWS_PROFILE", "CONCORD_DVC_REMOTE"):
        monkeypatch.delenv(name, raising=False)
    (port,) = free_ports(1)  # where nothing listens: buckets are not readable from here
    for name, value in s3_environment(f"http://127.0.0.1:{port}", KEY).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", str(tmp_path))
    with serving(FakeServer(objects=objects(), rights=set(RIGHTS))) as running:
        monkeypatch.setattr(KUBECONFIG, str(kubeconfig(tmp_path, running.host)))
        running.objects[f"{IN_NAMESPACE}/configmaps/kfp-launcher"] = launcher("s3://artifacts", f"127.0.0.1:{port}")
        yield running


def check(server: FakeServer, capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, dict[str, tuple[str, str]]]:
    """Returns the exit code, and thing -> its state and text."""
    capsys.readouterr()
    code = main(["check", "--host", server.host, *args])
    out = capsys.readouterr().out
    assert KEY[1] not in out
    assert "very-secret" not in out
    table: dict[str, tuple[str, str]] = {}
    what = ""
    for line in out.splitlines():
        if found := re.match(r"(\S.*?)  +(ok|error|unknown)  +(.*)", line):
            what = found[1]
            table[what] = (found[2], found[3].strip())
        elif what and line.startswith(" "):
            table[what] = (table[what][0], f"{table[what][1]} {line.strip()}")
    return code, table


def test_cluster_with_everything_has_no_error(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    code, table = check(server, capsys)
    assert [what for what, (state, _) in table.items() if state == "error"] == []
    assert code == 0
    assert table["Kubeflow Pipelines"] == ("ok", "version 2.17.0")
    assert table["Kubernetes"] == ("ok", "kubectl's context here, namespace kubeflow")
    assert table["secret concord-s3"] == ("ok", "AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, AWS_SECRET_ACCESS_KEY")
    assert table["volume claim concord-checkpoints"] == ("ok", "Bound, ReadWriteMany")
    assert table["pipeline root"][1].startswith("s3://artifacts at 127.0.0.1:")
    assert table["node for sft"] == ("ok", "4 cores, 8Gi: 1 of 1 nodes")
    assert {state for what, (state, _) in table.items() if what.startswith("right to ")} == {"ok"}
    # Nothing listens there, and MLflow's address is only in the pods' secret.
    assert {table[what][0] for what in ("data", "artifact bucket", "DVC remote", "MLflow")} == {"unknown"}


def test_nothing_is_changed(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    check(server, capsys)
    assert {(request.method, request.path) for request in server.requests if request.method != "GET"} == {
        ("POST", REVIEWS)
    }


def gone(path: str) -> Callable[[dict[str, Any]], None]:
    return lambda objects: objects.pop(path)


def changed(path: str, **content: Any) -> Callable[[dict[str, Any]], None]:
    return lambda objects: objects.__setitem__(path, content)


CLAIM = f"{IN_NAMESPACE}/persistentvolumeclaims/concord-checkpoints"
LAUNCHER = f"{IN_NAMESPACE}/configmaps/kfp-launcher"


@pytest.mark.parametrize(
    ("change", "what", "text"),
    [
        (gone(f"{IN_NAMESPACE}/secrets/concord-mlflow"), "secret concord-mlflow",
         "missing in namespace kubeflow. Create it: kubectl -n kubeflow create secret generic concord-mlflow "
         "--from-literal=MLFLOW_TRACKING_URI=..."),
        (changed(f"{IN_NAMESPACE}/secrets/concord-s3", **encoded(AWS_ACCESS_KEY_ID="x", AWS_ENDPOINT_URL="x")),
         "secret concord-s3", "has no key AWS_SECRET_ACCESS_KEY. Add it: kubectl -n kubeflow edit secret concord-s3"),
        (gone(CLAIM), "volume claim concord-checkpoints", "missing in namespace kubeflow. Create it"),
        (changed(CLAIM, spec={"accessModes": ["ReadWriteOnce"]}, status={"phase": "Pending"}),
         "volume claim concord-checkpoints", "Pending, not Bound. See why: kubectl -n kubeflow describe pvc"),
        (changed(LAUNCHER, data={"defaultPipelineRoot": "s3://artifacts"}), "pipeline root",
         "s3://artifacts, and the launcher has no endpoint and key for s3. Add its endpoint and key to providers"),
        (changed(LAUNCHER, data={"defaultPipelineRoot": "s3://artifacts", "providers": "{"}), "pipeline root",
         "config map kfp-launcher: providers cannot be read"),
        (changed("/api/v1/nodes", items=[node(cpu="2")]), "node for sft",
         "4 cores, 8Gi: no node has this; node-1 has 2 cpu. Change steps.sft in the cluster file, or add a node"),
        (changed("/api/v1/nodes", items=[node(memory="4Gi")]), "node for grpo", "node-1 has 4Gi memory"),
        (changed("/api/v1/nodes", items=[]), "node for ingest", "there is no node"),
    ],
)  # fmt: skip
def test_what_is_missing_is_an_error_with_its_remedy(
    change: Callable[[dict[str, Any]], None],
    what: str,
    text: str,
    server: FakeServer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    change(server.objects)
    code, table = check(server, capsys)
    assert code == 1
    assert table[what][0] == "error"
    assert text in table[what][1]


def test_claim_that_waits_for_its_first_pod_is_no_error(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    spec = {"accessModes": ["ReadWriteOnce"], "storageClassName": "local"}
    server.objects[CLAIM] = {"spec": spec, "status": {"phase": "Pending"}}
    server.objects["/apis/storage.k8s.io/v1/storageclasses/local"] = {"volumeBindingMode": "WaitForFirstConsumer"}
    code, table = check(server, capsys)
    state, text = table["volume claim concord-checkpoints"]
    assert (code, state) == (0, "ok")
    assert "Pending, ReadWriteOnce: pods that train at once must share a node; bound with the first pod" in text


def several_nodes(folder: Path) -> str:
    """Returns the path of a cluster file with grpo on two nodes."""
    cluster = json.loads(json.dumps(RAW_CLUSTER))
    cluster["steps"]["grpo"]["nodes"] = 2
    (folder / "cluster.yaml").write_text(yaml.safe_dump(cluster), encoding="utf-8")
    return str(folder / "cluster.yaml")


def test_several_nodes_need_trainer_and_a_volume_for_many(
    server: FakeServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, table = check(server, capsys, "--cluster", several_nodes(tmp_path))
    assert code == 1
    assert table["runtime torch-distributed"][0] == "error"
    assert "Install Kubeflow Trainer" in table["runtime torch-distributed"][1]
    server.objects["/apis/trainer.kubeflow.org/v1alpha1/clustertrainingruntimes/torch-distributed"] = {"metadata": {}}
    code, table = check(server, capsys, "--cluster", several_nodes(tmp_path))
    assert (code, table["runtime torch-distributed"]) == (0, ("ok", "exists"))
    server.objects[CLAIM] = {"spec": {"accessModes": ["ReadWriteOnce"]}, "status": {"phase": "Bound"}}
    code, table = check(server, capsys, "--cluster", several_nodes(tmp_path))
    assert code == 1
    assert (
        "ReadWriteOnce: the nodes of grpo share it. Name a claim that is ReadWriteMany"
        in (table["volume claim concord-checkpoints"][1])
    )


@pytest.mark.parametrize(
    ("has", "lacks"),
    [
        ({}, "has no nvidia.com/gpu, has no label pool=gpu"),
        ({"gpus": "1", "label": "gpu"}, ""),
        ({"gpus": "1", "label": "gpu", "taint": "nvidia.com/gpu"}, ""),
        ({"gpus": "1", "label": "gpu", "taint": "reserved"}, "has the taint reserved"),
        ({"gpus": "1", "label": "gpu", "cordoned": True}, "is cordoned"),
    ],
)
def test_node_needs_the_accelerator_the_label_and_no_foreign_taint(
    has: dict[str, Any], lacks: str, server: FakeServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    cluster = json.loads(json.dumps(RAW_CLUSTER))
    gpu = {"accelerator": {"type": "nvidia.com/gpu", "count": 1}, "node_selector": {"pool": "gpu"}}
    cluster["steps"]["sft"] |= {**gpu, "tolerations": [dict(TAINT)]}
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(cluster), encoding="utf-8")
    only = node(**({"nvidia.com/gpu": has["gpus"]} if "gpus" in has else {}))
    only["metadata"]["labels"]["pool"] = has.get("label", "cpu")
    if "taint" in has:
        only["spec"]["taints"] = [{"key": has["taint"], "effect": "NoSchedule", "value": "present"}]
    only["spec"]["unschedulable"] = has.get("cordoned", False)
    server.objects["/api/v1/nodes"] = {"items": [only]}
    state, text = check(server, capsys, "--cluster", str(file))[1]["node for sft"]
    assert state == ("error" if lacks else "ok")
    assert lacks in text


def test_missing_right_is_an_error(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.rights.remove("get pods/log")
    code, table = check(server, capsys)
    assert code == 1
    assert table["right to get pods/log"][0] == "error"
    assert table["right to list pods"][0] == "ok"


def test_refused_questions_are_unknown(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    paths = ("/api/v1/nodes", f"{IN_NAMESPACE}/secrets/concord-s3")
    server.refuse = {path: (403, f"forbidden: {path}") for path in paths}
    table = check(server, capsys)[1]
    assert table["secret concord-s3"][0] == table["nodes"][0] == "unknown"
    assert "kubectl's context here: may not read /api/v1/nodes: forbidden" in table["nodes"][1]


def test_owner_of_a_namespace_who_may_not_see_kubeflow_s_own(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.refuse = {f"{IN_NAMESPACE}/services/ml-pipeline": (403, "forbidden")}
    assert check(server, capsys)[1]["secret concord-s3"][0] == "ok"


def test_kubectl_s_context_of_another_cluster_is_not_read(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    del server.objects[f"{IN_NAMESPACE}/services/ml-pipeline"]
    code, table = check(server, capsys)
    assert code == 0
    assert table["Kubernetes"][0] == "unknown"
    assert "kubectl's context here has no service ml-pipeline in namespace kubeflow" in table["Kubernetes"][1]
    assert not [request for request in server.requests if "secrets" in request.path]


@pytest.mark.parametrize(("version", "text"), [("1.8.5", "older than 2.17"), ("", "its version is unknown")])
def test_version_of_kubeflow(version: str, text: str, server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.version = version
    assert text in check(server, capsys)[1]["Kubeflow Pipelines"][1]


def test_kubeflow_that_does_not_answer_is_an_error(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.refuse = {"/healthz": (503, "starting")}
    code, table = check(server, capsys)
    assert code == 1
    assert table["Kubeflow Pipelines"][0] == "error"


def test_buckets_and_mlflow_are_asked_from_here(
    server: FakeServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with s3(tmp_path, {"owner": KEY, "mlflow": ("M", "m"), "dvc": ("D", "d")}) as url:
        for name, value in s3_environment(url, KEY).items():
            monkeypatch.setenv(name, value)
        server.objects[LAUNCHER] = launcher("s3://mlflow/artifacts", url.removeprefix("http://"))
        s3_client(url, KEY).put_object(Bucket="dvc", Key="gauges/a.png", Body=b"a")
        with mlflow(tmp_path, f"sqlite:///{tmp_path}/mlflow.db", url, KEY) as tracking:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking)
            code, table = check(server, capsys, "--data-uri", "s3://dvc/gauges")
            assert [table[what][0] for what in ("data", "artifact bucket", "DVC remote", "MLflow")] == ["ok"] * 4
            assert code == 0
        assert check(server, capsys, "--data-uri", "s3://dvc/gau*")[1]["data"][0] == "ok"
        code, table = check(server, capsys, "--data-uri", "s3://dvc/gauge")
        assert (code, table["data"][0]) == (1, "error")
        assert "no object. Correct --data-uri" in table["data"][1]
        assert table["MLflow"][0] == "unknown"
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        table = check(server, capsys, "--data-uri", "s3://dvc/gauges")[1]
        assert "refuses access (403" in table["data"][1]
        assert table["DVC remote"][0] == "error"


def test_submit_refuses_what_cannot_start(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    del server.objects[f"{IN_NAMESPACE}/secrets/concord-mlflow"]
    server.objects["/api/v1/nodes"] = {"items": []}  # an autoscaler may add one
    argv = ["submit", "--host", server.host, "--params", str(ROOT / "params.yaml"), "--data-uri", "s3://raw/gauges"]
    argv += ["--data-hash", HASH]
    assert main(argv) == 1
    err = capsys.readouterr().err
    assert "secret concord-mlflow: missing in namespace kubeflow. Create it: kubectl" in err
    assert "node" not in err
    assert not [request for request in server.requests if request.method == "POST"]
    assert main([*argv, "--check", "off"]) == 0
