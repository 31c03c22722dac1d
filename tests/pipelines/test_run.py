"""`run`: options of the containers, and reports of failed runs.

The tests use a real Docker engine with an empty image whose python is a shell script. The steps themselves run in
containers in tests/e2e/test_kubeflow.py.
"""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.errors import ConcordError
from components.settings import Settings
from components.steps import STEPS
from pipelines.__main__ import main
from pipelines.cluster_settings import Cluster, load_cluster
from pipelines.containers import ContainerRun, LocalRun
from pipelines.run import (
    PASSED_VARIABLES,
    check_tracking_uri,
    container_options,
    on_this_machine,
    parse_volume,
    passed_environment,
    run_record,
    shared_memory_sizes,
)
from tests.support.docker_engine import COMPLETE_OUTPUTS, IMAGE, SYSTEM, empty_image, write_python

ROOT = Path(__file__).parents[2]
SECRET = "not-to-be-written-anywhere"


@pytest.fixture
def cluster() -> Cluster:
    return load_cluster()


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*PASSED_VARIABLES, "CONCORD_IMAGE", "CONCORD_CLUSTER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    with empty_image():
        yield IMAGE


def run(folder: Path, image: str, script: str, *args: str) -> int:
    """Runs the command on a data folder with one file; returns its exit code."""
    (folder / "data").mkdir()
    (folder / "data" / "scenes.csv").write_text("id\n", encoding="utf-8")
    mounts = [f"{path}:{path}:ro" for path in SYSTEM] + [f"{write_python(folder, script)}:/tools:ro"]
    argv = ["run", "--params", str(ROOT / "params.yaml"), "--image", image, "--data", str(folder / "data")]
    argv += ["--out", str(folder / "out"), "--network", "none", *args]
    return main(argv + [arg for mount in mounts for arg in ("--volume", mount)])


def run_folder(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Returns the run's folder and the content of its run.json."""
    run_path = next((folder / "out").glob("concord-training-*"))
    return run_path, json.loads((run_path / "run.json").read_text(encoding="utf-8"))


# ingest succeeds if it has its data and variables; validate exits with 3, so sft must never start.
VALIDATE_FAILS = f"""
case $3 in
  ingest) ls /raw/scenes.csv && test "$AWS_SECRET_ACCESS_KEY" = {SECRET} && test -n "$KFP_RUN_ID" || exit 9
    {COMPLETE_OUTPUTS} ;;
  *) exit 3 ;;
esac
"""


def test_failed_step_is_reported_with_its_log(image: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, image, VALIDATE_FAILS, "--retries", "1") == 1
    run_path, record = run_folder(tmp_path)
    stderr = re.sub(r"\s+", " ", capsys.readouterr().err)
    assert (
        f"error validate, attempt 2: its container ended with exit code 3. Its log: {run_path}/validate/log-2.txt"
        in stderr
    )
    assert [(each["step"], each["exit_code"]) for each in record["attempts"]] == [
        ("ingest", 0),
        ("validate", 3),
        ("validate", 3),
    ]
    assert record["done"] is False
    assert set(record["outputs"]) == {"ingest"}
    assert record["outputs"]["ingest"]["out"]["path"] == f"{run_path}/ingest/out"
    assert not (run_path / "sft").exists()
    assert not list((tmp_path / "out").glob(".scratch*"))


def test_no_secret_is_written(image: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, image, VALIDATE_FAILS)
    files = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert any(file.name == "pipeline.yaml" for file in files)
    for file in files:
        assert SECRET not in file.read_text(encoding="utf-8"), file
    assert SECRET not in "".join(capsys.readouterr())


def test_the_record_of_a_run_has_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "abc-secret-def")
    tree = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    tree["task"]["question"] = "Which number has https://me:a/b@c@host or abc-secret-def?"
    attempt = ContainerRun("ingest", 1, tmp_path, tmp_path / "log", 1, ["ingest: HF_TOKEN=abc failed"])
    record = run_record(LocalRun("1", {}, {}, [attempt]), Settings.model_validate(tree), {"image": "x"}, done=False)
    assert record["params"]["task"]["question"] == "Which number has https://me:***@host or ***?"
    assert record["params"]["sft"] == tree["sft"]
    assert record["attempts"][0]["errors"] == ["ingest: HF_TOKEN=*** failed"]


def test_step_with_exit_code_0_but_missing_output_fails(
    image: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, image, "echo all done") == 1
    run_path, record = run_folder(tmp_path)
    assert record["attempts"][0]["exit_code"] == 0
    stderr = re.sub(r"\s+", " ", capsys.readouterr().err)
    assert f"error ingest: {run_path}/ingest/out is missing" in stderr


@pytest.mark.parametrize("stop_signal", [signal.SIGINT, signal.SIGTERM])
def test_stopped_run_leaves_no_container(stop_signal: signal.Signals, image: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    mounts = [f"{path}:{path}:ro" for path in SYSTEM] + [
        f"{write_python(tmp_path, 'touch $9.started; sleep 60')}:/tools"
    ]
    # A test run that was started in the background ignores SIGINT, and its children would inherit that.
    command = ["env", "--default-signal=INT", sys.executable, "-m", "pipelines", "run", "--image", image]
    command += ["--data", str(tmp_path / "data")]
    command += ["--out", str(tmp_path / "out")] + [arg for mount in mounts for arg in ("--volume", mount)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not list((tmp_path / "out").glob("*/ingest/*.started")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)
    process.send_signal(stop_signal)
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "stopped, and the container is removed" in stderr
    run_id = re.findall(r"run ([0-9a-f-]{36})", stderr)[0]
    list_command = ["docker", "ps", "--all", "--quiet", "--filter", f"label=concord.run={run_id}"]
    assert subprocess.run(list_command, capture_output=True, text=True, check=True).stdout == ""
    assert not list((tmp_path / "out").glob(".scratch*"))


def test_missing_image_is_reported(image: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "concord:nowhere", "exit 0") == 1
    assert "concord:nowhere: no such image here. Build it (make image)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_missing_data_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--params", str(ROOT / "params.yaml"), "--data", str(tmp_path / "no")]) == 1
    assert "no: no such folder. Create it (make data)" in re.sub(r"\s+", " ", capsys.readouterr().err)


def test_variables_of_the_environment_are_passed(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", "/hub")
    assert passed_environment(cluster, ["HF_HOME"]) == {
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "HF_HOME": "/hub",
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:5000",
    }
    with pytest.raises(ConcordError, match="--env NOWHERE_SET: not set here"):
        passed_environment(cluster, ["NOWHERE_SET"])


def test_variables_of_the_cluster_s_secrets_are_passed_if_set(
    monkeypatch: pytest.MonkeyPatch, cluster: Cluster
) -> None:
    tree = cluster.tree()
    tree["secrets"].append({"name": "more", "optional": False, "env": {"CORPORATE_LOGIN": "key"}})
    monkeypatch.setenv("CORPORATE_LOGIN", "me")
    assert passed_environment(Cluster.model_validate(tree), [])["CORPORATE_LOGIN"] == "me"


@pytest.mark.parametrize("uri", [None, "", "sqlite:///mlflow.db", "file:/runs"])
def test_mlflow_store_in_a_file_is_refused(uri: str | None) -> None:
    with pytest.raises(ConcordError, match="MLFLOW_TRACKING_URI: must name an MLflow server"):
        check_tracking_uri({} if uri is None else {"MLFLOW_TRACKING_URI": uri})


def test_containers_have_no_capabilities_and_a_read_only_root() -> None:
    options = container_options("host", None)
    assert (options["read_only"], options["cap_drop"]) == (True, ["ALL"])
    assert "device_requests" not in options
    assert container_options("host", "all")["device_requests"][0]["Count"] == -1
    assert container_options("host", "2")["device_requests"][0]["Count"] == 2
    with pytest.raises(ConcordError, match="--gpus two: must be `all` or a number"):
        container_options("host", "two")


def test_volume_argument_is_parsed(tmp_path: Path) -> None:
    assert parse_volume(f"{tmp_path}:/hub") == (str(tmp_path), {"bind": "/hub", "mode": "rw"})
    assert parse_volume(f"{tmp_path}:/hub:ro") == (str(tmp_path), {"bind": "/hub", "mode": "ro"})
    for text in (str(tmp_path), f"{tmp_path}:hub", f"{tmp_path}:/hub:rx", f"{tmp_path}:/a:ro:x"):
        with pytest.raises(ConcordError, match="HERE:THERE or HERE:THERE:ro"):
            parse_volume(text)
    with pytest.raises(ConcordError, match="does not exist"):
        parse_volume(f"{tmp_path}/no:/hub")


def test_shared_memory_comes_from_the_cluster_file(cluster: Cluster) -> None:
    tree = cluster.tree()
    sizes = {"ingest": None, "validate": "64M", "sft": "2Gi", "grpo": "512Mi", "evaluate": "1G", "register": "4Ki"}
    for name, size in sizes.items():
        tree["steps"][name]["shared_memory"] = size
    assert shared_memory_sizes(Cluster.model_validate(tree)) == {
        "validate": 64 * 10**6,
        "sft": 2 * 2**30,
        "grpo": 512 * 2**20,
        "evaluate": 10**9,
        "register": 4 * 2**10,
    }


def test_on_this_machine_retries_come_from_the_command_line_and_a_step_has_one_node(cluster: Cluster) -> None:
    asked = cluster.tree()
    asked["steps"]["grpo"]["nodes"] = 2
    local = on_this_machine(Cluster.model_validate(asked), 3)
    assert {local.pod(name).retries for name in STEPS} == {3}
    assert {local.nodes(name) for name in STEPS} == {1}
    assert local.backoff.seconds == 1
    tree, before = local.tree(), cluster.tree()
    for each in (tree, before):
        del each["backoff"]
        for pod in each["steps"].values():
            del pod["retries"]
    assert tree == before


def test_image_comes_from_flag_then_environment_then_cluster_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compiled_image(*args: str) -> str:
        out = tmp_path / "p.yaml"
        command = ["compile", "--params", str(ROOT / "params.yaml"), "--data-hash", "0" * 32, "--out", str(out)]
        assert main([*command, *args]) == 0
        spec = next(yaml.safe_load_all(out.read_text(encoding="utf-8")))
        return str(spec["deploymentSpec"]["executors"]["exec-sft"]["container"]["image"])

    assert compiled_image() == "concord:cpu"
    monkeypatch.setenv("CONCORD_IMAGE", "concord:environment")
    assert compiled_image() == "concord:environment"
    assert compiled_image("--image", "concord:flag") == "concord:flag"
