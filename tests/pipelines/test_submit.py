"""`submit`: its requests to Kubeflow, and how it reports the end of a run.

kfp's own client talks to a fake server with the API's request and response formats, since a real Kubeflow cannot run
here.
"""

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.settings import WITHOUT_EFFECT
from components.steps import STEPS
from pipelines.__main__ import main
from pipelines.cluster_settings import Cluster
from pipelines.connection import COOKIE, HOST, TOKEN, TOKEN_FILE
from pipelines.runs_api import plugins_input
from tests.support.kubeflow_peer import API, EXPERIMENT, PROXY, RUN, SCHEDULE, SILENCE, FakeServer, serving
from tests.support.settings_files import RAW_CLUSTER

ROOT = Path(__file__).parents[2]
RAW: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
HASH = "0123456789abcdef0123456789abcdef.dir"
DATA = "s3://raw/gauges"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeServer]:
    for name in (HOST, TOKEN, COOKIE, TOKEN_FILE, "CONCORD_IMAGE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # kfp keeps a context there
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    with serving(FakeServer()) as running:
        yield running


def submit(server: FakeServer, *args: str) -> int:
    argv = ["submit", "--host", server.host, "--params", str(ROOT / "params.yaml"), "--data-uri", DATA]
    return main([*argv, "--data-hash", HASH, "--poll", "0.01", *args])


def outputs(capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """Returns stdout, and stderr with its lines joined."""
    captured = capsys.readouterr()
    return captured.out, re.sub(r"\s+", " ", captured.err)


def test_run_is_created_in_its_experiment_with_every_input(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit(server, "--experiment", "night", "--run-name", "first", "--image", "registry.example/concord:7") == 0
    assert server.one("POST", "/experiments").body["display_name"] == "night"
    sent = server.one("POST", "/runs").body
    assert (sent["display_name"], sent["experiment_id"]) == ("first", EXPERIMENT)
    parameters = sent["runtime_config"]["parameters"]
    assert (parameters["data_uri"], parameters["data_hash"], parameters["experiment"]) == (DATA, HASH, "night")
    for section in RAW.keys() - {"experiment", *WITHOUT_EFFECT}:
        assert json.loads(parameters[f"{section}_settings"]) == RAW[section]
    pipeline = sent["pipeline_spec"]["pipeline_spec"]
    assert parameters.keys() == pipeline["root"]["inputDefinitions"]["parameters"].keys()
    executors = pipeline["deploymentSpec"]["executors"]
    assert executors["exec-grpo"]["container"]["image"] == "registry.example/concord:7"
    platform = sent["pipeline_spec"]["platform_spec"]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert platform["exec-grpo"]["pvcMount"][0]["mountPath"] == "/checkpoints"
    out, err = outputs(capsys)
    assert out == f"{RUN}\n"  # nothing else, so that a script can use it
    assert f"{server.host}/#/runs/details/{RUN}" in err


def test_existing_experiment_is_used(server: FakeServer) -> None:
    server.experiments = ["gauges"]
    assert submit(server) == 0
    assert not [
        request for request in server.requests if (request.method, request.path) == ("POST", f"{API}/experiments")
    ]
    sent = server.one("POST", "/runs").body
    assert sent["experiment_id"] == EXPERIMENT
    assert re.fullmatch(r"gauges \d{4}-\d\d-\d\d \d\d:\d\d:\d\d", sent["display_name"])


@pytest.mark.parametrize(
    ("compared", "drift", "must_run"),
    [
        (True, "warning", {"register"}),
        (True, "error", {"register", "validate"}),
        (False, "error", {"register"}),
    ],
)
def test_steps_are_cached_except_those_that_compare_with_the_champion(
    compared: bool, drift: str, must_run: set[str], server: FakeServer, tmp_path: Path
) -> None:
    """The champion changes, so a cached comparison can be out of date."""
    raw = copy.deepcopy(RAW)
    if not compared:
        raw["validate"]["drift"] = None
    raw["validate"]["severity"]["image_size_drift"] = drift
    params = tmp_path / "params.yaml"
    params.write_text(yaml.safe_dump(raw), encoding="utf-8")
    assert submit(server, "--params", str(params), "--cache", "on") == 0
    spec = server.one("POST", "/runs").body["pipeline_spec"]["pipeline_spec"]
    cached = {name for name, task in spec["root"]["dag"]["tasks"].items() if task["cachingOptions"].get("enableCache")}
    assert cached == {"importer", *STEPS} - must_run
    assert "CONCORD_REUSE" not in json.dumps(spec)


def test_cache_off_computes_every_step(server: FakeServer) -> None:
    """Neither Kubeflow's cache nor outputs in the DVC remote are used."""
    assert submit(server, "--cache", "off") == 0
    spec = server.one("POST", "/runs").body["pipeline_spec"]["pipeline_spec"]
    assert not [task for task in spec["root"]["dag"]["tasks"].values() if task["cachingOptions"].get("enableCache")]
    for name in STEPS:
        env = spec["deploymentSpec"]["executors"][f"exec-{name}"]["container"]["env"]
        assert {"name": "CONCORD_REUSE", "value": "off"} in env


def test_service_account_and_pipeline_root_are_sent(server: FakeServer, tmp_path: Path) -> None:
    cluster = RAW_CLUSTER | {"service_account": "trainer", "pipeline_root": "s3://artifacts/concord"}
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(cluster), encoding="utf-8")
    assert submit(server, "--cluster", str(file)) == 0
    sent = server.one("POST", "/runs").body
    assert sent["service_account"] == "trainer"
    assert sent["runtime_config"]["pipeline_root"] == "s3://artifacts/concord"


MLFLOW = {"name": "mlflow", "optional": True, "env": {"MLFLOW_TRACKING_URI": "uri"}}
LOGIN = {"name": "login", "optional": False, "env": {"MLFLOW_TRACKING_USERNAME": "user"}}


@pytest.mark.parametrize(
    ("change", "disabled"),
    [
        ({}, True),  # the secret concord-mlflow of the default file
        ({"secrets": [MLFLOW]}, True),
        ({"secrets": [], "environment": {"MLFLOW_TRACKING_URI": "http://mlflow:5000"}}, True),
        ({"secrets": [], "environment": {"MLFLOW_EXPERIMENT_ID": "7"}}, True),
        ({"secrets": [LOGIN]}, False),
        ({"secrets": [], "environment": {}}, False),
    ],
)
def test_kubeflow_s_mlflow_plugin_is_off_where_the_cluster_file_names_the_server(
    change: dict[str, Any], disabled: bool
) -> None:
    """A variable that the plugin and a secret both set makes the pod invalid, and the run hangs."""
    cluster = Cluster.model_validate(RAW_CLUSTER | change)
    expected = {"disabled": True} if disabled else {"experiment_name": "night"}
    assert plugins_input(cluster, "night") == {"mlflow": expected}


@pytest.mark.parametrize(
    ("path", "args", "change", "expected"),
    [
        ("/runs", (), {}, {"disabled": True}),
        ("/recurringruns", ("--cron", "0 0 2 * * *"), {"secrets": []}, {"experiment_name": "night"}),
    ],
)
def test_plugin_s_input_is_sent_with_runs_and_schedules(
    path: str,
    args: tuple[str, ...],
    change: dict[str, Any],
    expected: dict[str, Any],
    server: FakeServer,
    tmp_path: Path,
) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(RAW_CLUSTER | change), encoding="utf-8")
    assert submit(server, "--cluster", str(file), "--experiment", "night", *args) == 0
    sent = server.one("POST", path).body
    assert sent["plugins_input"] == {"mlflow": expected}
    assert ("MLFLOW_TRACKING_URI" in json.dumps(sent["pipeline_spec"])) == ("disabled" in expected)


def test_what_is_sent_is_the_compiled_pipeline(server: FakeServer, tmp_path: Path) -> None:
    file = tmp_path / "pipeline.yaml"
    assert main(["compile", "--params", str(ROOT / "params.yaml"), "--data-hash", HASH, "--out", str(file)]) == 0
    pipeline, platform = yaml.safe_load_all(file.read_text(encoding="utf-8"))
    assert submit(server) == 0
    sent = server.one("POST", "/runs").body
    assert sent["pipeline_spec"] == {"pipeline_spec": pipeline, "platform_spec": platform}


@pytest.mark.parametrize(("args", "no_catchup"), [((), True), (("--catch-up",), False)])
def test_cron_creates_a_schedule(
    args: tuple[str, ...], no_catchup: bool, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    cron = ("--cron", "0 30 2 * * 1-5", "--max-concurrency", "2", "--run-name", "nightly", "--cache", "off")
    assert submit(server, *cron, *args) == 0
    sent = server.one("POST", "/recurringruns").body
    assert sent["trigger"]["cron_schedule"]["cron"] == "0 30 2 * * 1-5"
    assert (sent["display_name"], sent["max_concurrency"], sent["mode"]) == ("nightly", 2, "ENABLE")
    assert sent["no_catchup"] == no_catchup
    assert sent["runtime_config"]["parameters"]["data_hash"] == HASH
    tasks = sent["pipeline_spec"]["pipeline_spec"]["root"]["dag"]["tasks"]
    assert not any(task["cachingOptions"].get("enableCache") for task in tasks.values())
    assert not [request for request in server.requests if request.path == f"{API}/runs"]
    out, err = outputs(capsys)
    assert out == f"{SCHEDULE}\n"
    assert f"/#/recurringrun/details/{SCHEDULE}" in err


def test_a_schedule_on_a_pattern_begins_with_the_newest_data(server: FakeServer) -> None:
    words = ["submit", "--host", server.host, "--params", str(ROOT / "params.yaml"), "--cron", "0 0 2 * * *"]
    assert main([*words, "--data-uri", "s3://raw/gauges-*"]) == 0
    sent = server.one("POST", "/recurringruns").body
    parameters = sent["runtime_config"]["parameters"]
    assert (parameters["data_uri"], parameters["data_hash"]) == ("s3://raw/gauges-*", "")
    spec = sent["pipeline_spec"]["pipeline_spec"]
    tasks = spec["root"]["dag"]["tasks"]
    assert set(tasks) == {"newest", "importer", *STEPS}
    assert not tasks["newest"]["cachingOptions"].get("enableCache"), "it must look each time"
    assert tasks["ingest"]["cachingOptions"]["enableCache"]
    for name, output in (("data_uri", "uri"), ("data_hash", "hash")):
        found = tasks["ingest"]["inputs"]["parameters"][name]["taskOutputParameter"]
        assert found == {"producerTask": "newest", "outputParameterKey": output}
    container = spec["deploymentSpec"]["executors"]["exec-newest"]["container"]
    assert container["command"] == ["python", "-m", "components", "newest"]
    platform = sent["pipeline_spec"]["platform_spec"]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    secrets = [secret["secretName"] for secret in platform["exec-newest"]["secretAsEnv"]]
    assert secrets == [secret["secretName"] for secret in platform["exec-ingest"]["secretAsEnv"]]


def test_wait_prints_states_until_the_run_succeeds(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.states = [
        ("PENDING", {}),
        ("RUNNING", {"ingest": "RUNNING"}),
        503,  # the server restarts
        ("RUNNING", {"ingest": "SUCCEEDED", "validate": "RUNNING"}),
        ("RUNNING", {"ingest": "SUCCEEDED", "validate": "RUNNING"}),
        ("SUCCEEDED", {"ingest": "SUCCEEDED", "validate": "SUCCEEDED"}),
    ]
    assert submit(server, "--wait") == 0
    lines = re.findall(r"\d\d:\d\d:\d\d (\S+: \w+)", outputs(capsys)[1])
    assert lines == ["ingest: RUNNING", "ingest: SUCCEEDED", "validate: RUNNING", "validate: SUCCEEDED"]


@pytest.mark.parametrize("state", ["FAILED", "CANCELED", "SKIPPED"])
def test_wait_fails_unless_the_run_succeeds(state: str, server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.states = [
        ("RUNNING", {"ingest": "SUCCEEDED", "sft": "RUNNING"}),
        (state, {"ingest": "SUCCEEDED", "sft": state}),
    ]
    assert submit(server, "--wait") == 1
    out, err = outputs(capsys)
    assert out == f"{RUN}\n"
    assert f"run {RUN}: {state}" in err
    if state == "FAILED":
        assert "FAILED at sft: sft exited 3" in err


def test_wait_ends_after_its_timeout(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.states = [("RUNNING", {"ingest": "RUNNING"})]
    assert submit(server, "--wait", "--timeout", "0.00001") == 1
    assert (
        f"run {RUN}: still RUNNING after 1e-05 hours. The run continues, but is no longer watched" in outputs(capsys)[1]
    )


def test_wait_ends_if_the_host_stays_away(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.states = [("RUNNING", {}), 500]
    assert submit(server, "--wait") == 1
    assert "The run continues, but is no longer watched" in outputs(capsys)[1]


def test_wait_ends_if_the_host_never_answers(
    server: FakeServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.connection.REQUEST_TIMEOUT", 1)
    server.states = [("RUNNING", {}), SILENCE]
    assert submit(server, "--wait", "--timeout", "0.00001") == 1
    assert "The run continues, but is no longer watched" in outputs(capsys)[1]


def test_kubectl_proxy_uses_kubeflow_s_namespace_not_the_runs_namespace(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = {"name": "here", "cluster": {"server": server.host}}
    context = {"name": "here", "context": {"cluster": "here", "user": "me"}}
    config = {"clusters": [cluster], "contexts": [context], "users": [{"name": "me", "user": {}}]}
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Config", "current-context": "here", **config}))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(path))
    argv = ["submit", "--params", str(ROOT / "params.yaml"), "--data-uri", DATA, "--data-hash", HASH]
    assert main([*argv, "--namespace", "alice"]) == 0
    to_kubeflow = [request for request in server.requests if not request.path.endswith("/services/ml-pipeline")]
    assert {request.path.partition(API)[0] for request in to_kubeflow} == {PROXY}
    assert server.one("POST", f"{PROXY}{API}/experiments").body["namespace"] == "alice"


def test_token_without_a_host_is_refused(
    server: FakeServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN, "very-secret-token")
    argv = ["submit", "--params", str(ROOT / "params.yaml"), "--data-uri", DATA, "--data-hash", HASH]
    assert main(argv) == 1
    assert "KF_PIPELINES_TOKEN is set, but no host is" in outputs(capsys)[1]


def test_token_is_sent_and_never_printed(
    server: FakeServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.token = "very-secret-token"
    monkeypatch.setenv(TOKEN, server.token)
    monkeypatch.setenv(HOST, server.host)
    server.states = [("SUCCEEDED", {})]
    argv = ["submit", "--params", str(ROOT / "params.yaml"), "--data-uri", DATA, "--data-hash", HASH, "--wait"]
    assert main(argv) == 0
    assert {request.headers["authorization"] for request in server.requests} == {"Bearer very-secret-token"}
    server.refuse = {"/runs": (400, "bad request of very-secret-token")}
    assert main(argv) == 1
    out, err = outputs(capsys)
    assert "could not submit the pipeline: 400 Bad Request: bad request of ***" in err
    assert "very-secret-token" not in out + err
    assert "very-secret-token" not in json.dumps([request.body for request in server.requests])


def test_token_file_and_cookie_are_sent(server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("from-a-file\n", encoding="utf-8")
    server.token = "from-a-file"
    monkeypatch.setenv(TOKEN_FILE, str(tmp_path / "token"))
    monkeypatch.setenv(COOKIE, "authservice_session=abc")
    assert submit(server) == 0
    assert {request.headers["cookie"] for request in server.requests} == {"authservice_session=abc"}


def test_wrong_token_is_reported(
    server: FakeServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.token = "right"
    monkeypatch.setenv(TOKEN, "wrong-one")
    assert submit(server) == 1
    out, err = outputs(capsys)
    assert "refuses the login (401). Set KF_PIPELINES_TOKEN" in err
    assert "wrong-one" not in out + err


def test_unreachable_host_is_reported(capsys: pytest.CaptureFixture[str], server: FakeServer) -> None:
    server.host = "http://127.0.0.1:9"
    assert submit(server) == 1
    assert "Kubeflow Pipelines: could not reach the server" in outputs(capsys)[1]


def test_host_without_kubeflow_is_reported(capsys: pytest.CaptureFixture[str], server: FakeServer) -> None:
    server.host += "/pipeline"
    assert submit(server) == 1
    assert "Kubeflow Pipelines does not answer here (404)" in outputs(capsys)[1]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--data-uri", "data"), "--data-uri: pods cannot read a local folder; copy the data to s3://bucket/prefix."),
        (
            ("--data-uri", "gs://b0/p"),
            "--data-uri: gs://... is not supported; give a folder, or copy the data to s3://",
        ),
        (("--data-uri", "s3://KEY:secret@b0/p"), "--data-uri: an S3 address must not contain credentials"),
        (("--cron", "0 2 * * *"), "needs six fields, the first for seconds"),
        (("--cron", "0 0 2 * * *", "--wait"), "--wait: a schedule never ends"),
        (("--cron", "0 0 2 * * *", "--max-concurrency", "0"), "--max-concurrency 0: must be at least 1"),
        (("--data-uri", "s3://raw/gauges-*"), "--data-hash: the newest folder of --data-uri has a hash of its own."),
        (("--data-hash", ""), "data.dvc is missing, so the data's hash is unknown"),
    ],
)
def test_wrong_arguments_are_reported_and_send_nothing(
    args: tuple[str, ...], message: str, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit(server, *args) == 1
    assert message in outputs(capsys)[1]
    assert server.requests == []
