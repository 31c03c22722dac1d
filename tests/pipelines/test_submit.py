"""What `submit` sends to Kubeflow and how it ends, held against a peer that speaks the API's shapes: a real Kubeflow
cannot run here. kfp's own client does the talking."""

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.settings import UNDECISIVE
from components.steps import STEPS
from pipelines.__main__ import main
from pipelines.submit import COOKIE, HOST, TOKEN, TOKEN_FILE
from tests.support.kubeflow_peer import API, EXPERIMENT, PROXY, RUN, SCHEDULE, SILENCE, Peer, serving
from tests.support.settings_files import RAW_CLUSTER

ROOT = Path(__file__).parents[2]
RAW: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
HASH = "0123456789abcdef0123456789abcdef.dir"
DATA = "s3://raw/gauges"


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Peer]:
    for name in (HOST, TOKEN, COOKIE, TOKEN_FILE, "CONCORD_IMAGE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # kfp keeps a context there
    with serving(Peer()) as found:
        yield found


def submit(peer: Peer, *words: str) -> int:
    given = ["submit", "--host", peer.host, "--params", str(ROOT / "params.yaml"), "--data-uri", DATA]
    return main([*given, "--data-hash", HASH, "--poll", "0.01", *words])


def said(capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """stdout, and stderr with its lines joined."""
    found = capsys.readouterr()
    return found.out, re.sub(r"\s+", " ", found.err)


def test_a_run_is_created_in_its_experiment_with_every_input(peer: Peer, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit(peer, "--experiment", "night", "--run-name", "first", "--image", "registry.example/concord:7") == 0
    assert peer.one("POST", "/experiments").body["display_name"] == "night"
    sent = peer.one("POST", "/runs").body
    assert (sent["display_name"], sent["experiment_id"]) == ("first", EXPERIMENT)
    given = sent["runtime_config"]["parameters"]
    assert (given["data_uri"], given["data_hash"], given["experiment"]) == (DATA, HASH, "night")
    for section in RAW.keys() - {"experiment", *UNDECISIVE}:
        assert json.loads(given[f"{section}_settings"]) == RAW[section]
    pipeline = sent["pipeline_spec"]["pipeline_spec"]
    assert given.keys() == pipeline["root"]["inputDefinitions"]["parameters"].keys()
    executors = pipeline["deploymentSpec"]["executors"]
    assert executors["exec-grpo"]["container"]["image"] == "registry.example/concord:7"
    platform = sent["pipeline_spec"]["platform_spec"]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert platform["exec-grpo"]["pvcMount"][0]["mountPath"] == "/checkpoints"
    out, err = said(capsys)
    assert out == f"{RUN}\n"  # alone, for a script to take
    assert f"{peer.host}/#/runs/details/{RUN}" in err


def test_an_experiment_that_exists_is_used(peer: Peer) -> None:
    peer.experiments = ["gauges"]
    assert submit(peer) == 0
    assert not [asked for asked in peer.asked if (asked.method, asked.path) == ("POST", f"{API}/experiments")]
    sent = peer.one("POST", "/runs").body
    assert sent["experiment_id"] == EXPERIMENT
    assert re.fullmatch(r"gauges \d{4}-\d\d-\d\d \d\d:\d\d:\d\d", sent["display_name"])


@pytest.mark.parametrize(
    ("model", "drift", "run"),
    [
        ("gauge-reader", "warning", {"register"}),
        ("gauge-reader", "error", {"register", "validate"}),
        (None, "error", {"register"}),
    ],
)
def test_what_is_in_the_cache_is_not_run_again_but_for_what_today_s_champion_decides(
    model: str | None, drift: str, run: set[str], peer: Peer, tmp_path: Path
) -> None:
    """Model and data are held against it: yesterday's judgement is not that."""
    raw = copy.deepcopy(RAW)
    raw["validate"]["drift"]["model"] = model
    raw["validate"]["severity"]["image_size_drift"] = drift
    params = tmp_path / "params.yaml"
    params.write_text(yaml.safe_dump(raw), encoding="utf-8")
    assert submit(peer, "--params", str(params), "--cache", "on") == 0
    spec = peer.one("POST", "/runs").body["pipeline_spec"]["pipeline_spec"]
    cached = {name for name, task in spec["root"]["dag"]["tasks"].items() if task["cachingOptions"].get("enableCache")}
    assert cached == {"importer", *STEPS} - run
    assert "CONCORD_REUSE" not in json.dumps(spec)


def test_without_a_cache_every_step_computes(peer: Peer) -> None:
    """Neither Kubeflow's cache nor what another run left in the DVC remote."""
    assert submit(peer, "--cache", "off") == 0
    spec = peer.one("POST", "/runs").body["pipeline_spec"]["pipeline_spec"]
    assert not [task for task in spec["root"]["dag"]["tasks"].values() if task["cachingOptions"].get("enableCache")]
    for name in STEPS:
        env = spec["deploymentSpec"]["executors"][f"exec-{name}"]["container"]["env"]
        assert {"name": "CONCORD_REUSE", "value": "off"} in env


def test_the_cluster_s_account_and_root_are_said(peer: Peer, tmp_path: Path) -> None:
    cluster = RAW_CLUSTER | {"service_account": "trainer", "pipeline_root": "s3://artifacts/concord"}
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(cluster), encoding="utf-8")
    assert submit(peer, "--cluster", str(file)) == 0
    sent = peer.one("POST", "/runs").body
    assert sent["service_account"] == "trainer"
    assert sent["runtime_config"]["pipeline_root"] == "s3://artifacts/concord"


@pytest.mark.parametrize(("words", "no_catchup"), [((), True), (("--catch-up",), False)])
def test_a_schedule(words: tuple[str, ...], no_catchup: bool, peer: Peer, capsys: pytest.CaptureFixture[str]) -> None:
    cron = ("--cron", "0 30 2 * * 1-5", "--max-concurrency", "2", "--run-name", "nightly", "--cache", "off")
    assert submit(peer, *cron, *words) == 0
    sent = peer.one("POST", "/recurringruns").body
    assert sent["trigger"]["cron_schedule"]["cron"] == "0 30 2 * * 1-5"
    assert (sent["display_name"], sent["max_concurrency"], sent["mode"]) == ("nightly", 2, "ENABLE")
    assert sent["no_catchup"] == no_catchup
    assert sent["runtime_config"]["parameters"]["data_hash"] == HASH
    tasks = sent["pipeline_spec"]["pipeline_spec"]["root"]["dag"]["tasks"]
    assert not any(task["cachingOptions"].get("enableCache") for task in tasks.values())
    assert not [asked for asked in peer.asked if asked.path == f"{API}/runs"]
    out, err = said(capsys)
    assert out == f"{SCHEDULE}\n"
    assert f"/#/recurringrun/details/{SCHEDULE}" in err


def test_a_run_that_succeeds_is_followed_to_its_end(peer: Peer, capsys: pytest.CaptureFixture[str]) -> None:
    peer.states = [
        ("PENDING", {}),
        ("RUNNING", {"ingest": "RUNNING"}),
        503,  # a server that restarts
        ("RUNNING", {"ingest": "SUCCEEDED", "validate": "RUNNING"}),
        ("RUNNING", {"ingest": "SUCCEEDED", "validate": "RUNNING"}),
        ("SUCCEEDED", {"ingest": "SUCCEEDED", "validate": "SUCCEEDED"}),
    ]
    assert submit(peer, "--wait") == 0
    lines = re.findall(r"\d\d:\d\d:\d\d (\S+: \w+)", said(capsys)[1])
    assert lines == ["ingest: RUNNING", "ingest: SUCCEEDED", "validate: RUNNING", "validate: SUCCEEDED"]


@pytest.mark.parametrize("state", ["FAILED", "CANCELED", "SKIPPED"])
def test_a_run_that_does_not_succeed_is_a_failure(state: str, peer: Peer, capsys: pytest.CaptureFixture[str]) -> None:
    peer.states = [
        ("RUNNING", {"ingest": "SUCCEEDED", "sft": "RUNNING"}),
        (state, {"ingest": "SUCCEEDED", "sft": state}),
    ]
    assert submit(peer, "--wait") == 1
    out, err = said(capsys)
    assert out == f"{RUN}\n"
    assert f"run {RUN}: {state}" in err
    if state == "FAILED":
        assert "FAILED at sft: sft exited 3" in err


def test_waiting_ends(peer: Peer, capsys: pytest.CaptureFixture[str]) -> None:
    peer.states = [("RUNNING", {"ingest": "RUNNING"})]
    assert submit(peer, "--wait", "--timeout", "0.00001") == 1
    assert f"run {RUN}: still RUNNING after 1e-05 hours; it goes on unwatched" in said(capsys)[1]


def test_a_host_that_stays_away_ends_the_watch(peer: Peer, capsys: pytest.CaptureFixture[str]) -> None:
    peer.states = [("RUNNING", {}), 500]
    assert submit(peer, "--wait") == 1
    assert "The run goes on without being watched" in said(capsys)[1]


def test_a_host_that_takes_a_request_and_never_answers_ends_the_watch(
    peer: Peer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.submit.SECOND_LIMIT", 1)
    peer.states = [("RUNNING", {}), SILENCE]
    assert submit(peer, "--wait", "--timeout", "0.00001") == 1
    assert "The run goes on without being watched" in said(capsys)[1]


def test_kubectl_s_cluster_is_asked_where_kubeflow_is_and_not_where_the_runs_are(
    peer: Peer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = {"name": "here", "cluster": {"server": peer.host}}
    context = {"name": "here", "context": {"cluster": "here", "user": "me"}}
    config = {"clusters": [cluster], "contexts": [context], "users": [{"name": "me", "user": {}}]}
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Config", "current-context": "here", **config}))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(path))
    words = ["submit", "--params", str(ROOT / "params.yaml"), "--data-uri", DATA, "--data-hash", HASH]
    assert main([*words, "--namespace", "alice"]) == 0
    assert {asked.path.partition(API)[0] for asked in peer.asked} == {PROXY}
    assert peer.one("POST", f"{PROXY}{API}/experiments").body["namespace"] == "alice"


def test_a_token_without_a_host_is_refused(
    peer: Peer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN, "very-secret-token")
    words = ["submit", "--params", str(ROOT / "params.yaml"), "--data-uri", DATA, "--data-hash", HASH]
    assert main(words) == 1
    assert "KF_PIPELINES_TOKEN is set and no host" in said(capsys)[1]


def test_the_token_is_sent_and_never_shown(
    peer: Peer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    peer.token = "very-secret-token"
    monkeypatch.setenv(TOKEN, peer.token)
    monkeypatch.setenv(HOST, peer.host)
    peer.states = [("SUCCEEDED", {})]
    words = ["submit", "--params", str(ROOT / "params.yaml"), "--data-uri", DATA, "--data-hash", HASH, "--wait"]
    assert main(words) == 0
    assert {asked.headers["authorization"] for asked in peer.asked} == {"Bearer very-secret-token"}
    peer.refuse = {"/runs": (400, "bad request of very-secret-token")}
    assert main(words) == 1
    out, err = said(capsys)
    assert "could not submit the pipeline: 400 Bad Request: bad request of ***" in err
    assert "very-secret-token" not in out + err
    assert "very-secret-token" not in json.dumps([asked.body for asked in peer.asked])


def test_a_token_in_a_file_and_a_cookie(peer: Peer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("from-a-file\n", encoding="utf-8")
    peer.token = "from-a-file"
    monkeypatch.setenv(TOKEN_FILE, str(tmp_path / "token"))
    monkeypatch.setenv(COOKIE, "authservice_session=abc")
    assert submit(peer) == 0
    assert {asked.headers["cookie"] for asked in peer.asked} == {"authservice_session=abc"}


def test_a_wrong_token_is_told(peer: Peer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    peer.token = "right"
    monkeypatch.setenv(TOKEN, "wrong-one")
    assert submit(peer) == 1
    out, err = said(capsys)
    assert "does not let you in (401). Set KF_PIPELINES_TOKEN" in err
    assert "wrong-one" not in out + err


def test_nobody_there(capsys: pytest.CaptureFixture[str], peer: Peer) -> None:
    peer.host = "http://127.0.0.1:9"
    assert submit(peer) == 1
    assert "Kubeflow Pipelines: could not reach it" in said(capsys)[1]


def test_something_else_there(capsys: pytest.CaptureFixture[str], peer: Peer) -> None:
    peer.host += "/pipeline"
    assert submit(peer) == 1
    assert "no Kubeflow Pipelines there (404)" in said(capsys)[1]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--data-uri", "data"), "--data-uri: no pod reads a local folder; copy the data to s3://bucket/prefix."),
        (("--data-uri", "gs://b0/p"), "--data-uri: gs://... cannot be read; give a folder, or copy the data to s3://"),
        (("--data-uri", "s3://KEY:secret@b0/p"), "--data-uri: an S3 address holds no credentials"),
        (("--cron", "0 2 * * *"), "six fields are needed, the first for seconds"),
        (("--cron", "0 0 2 * * *", "--wait"), "--wait: a schedule has no end"),
        (("--cron", "0 0 2 * * *", "--max-concurrency", "0"), "--max-concurrency 0: at least 1"),
        (("--data-hash", ""), "data.dvc is missing, so the data's hash is not known"),
    ],
)
def test_words_that_make_no_sense_send_nothing(
    words: tuple[str, ...], told: str, peer: Peer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit(peer, *words) == 1
    assert told in said(capsys)[1]
    assert peer.asked == []
