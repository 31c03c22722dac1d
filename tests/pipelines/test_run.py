"""`run`: what containers are given, and what is said of a run that went wrong. On a real Docker engine, where the image
is empty and its python a script; the steps themselves in containers: .ci/run."""

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
from components.steps import STEPS
from pipelines.__main__ import main
from pipelines.cluster_settings import Cluster, load_cluster
from pipelines.run import PASSED, check_tracking, container_arguments, passed_on, shared_memory, volume, with_retries
from tests.support.docker_engine import IMAGE, SYSTEM, WHOLE, empty_image, write_python

ROOT = Path(__file__).parents[2]
SECRET = "not-to-be-written-anywhere"


@pytest.fixture
def cluster() -> Cluster:
    return load_cluster()


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*PASSED, "CONCORD_IMAGE", "CONCORD_CLUSTER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    with empty_image():
        yield IMAGE


def run(folder: Path, image: str, script: str, *words: str) -> int:
    """The command, on a data folder with one file."""
    (folder / "data").mkdir()
    (folder / "data" / "scenes.csv").write_text("id\n", encoding="utf-8")
    mounts = [f"{path}:{path}:ro" for path in SYSTEM] + [f"{write_python(folder, script)}:/tools:ro"]
    given = ["run", "--params", str(ROOT / "params.yaml"), "--image", image, "--data", str(folder / "data")]
    given += ["--out", str(folder / "out"), "--network", "none", *words]
    return main(given + [word for mount in mounts for word in ("--volume", mount)])


def left(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The run's folder and its run.json."""
    place = next((folder / "out").glob("concord-training-*"))
    return place, json.loads((place / "run.json").read_text(encoding="utf-8"))


# ingest is whole, if it was given what it is to be given; validate exits 3, sft must never start.
FAILS = f"""
case $3 in
  ingest) ls /raw/scenes.csv && test "$AWS_SECRET_ACCESS_KEY" = {SECRET} && test -n "$KFP_RUN_ID" || exit 9
    {WHOLE} ;;
  *) exit 3 ;;
esac
"""


def test_the_step_that_failed_is_named_with_its_log(
    image: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, image, FAILS, "--retries", "1") == 1
    place, told = left(tmp_path)
    said = re.sub(r"\s+", " ", capsys.readouterr().err)
    assert (
        f"error validate, try 2: its container ended with exit code 3. What it said: {place}/validate/log-2.txt" in said
    )
    assert [(each["step"], each["exit_code"]) for each in told["tries"]] == [
        ("ingest", 0),
        ("validate", 3),
        ("validate", 3),
    ]
    assert told["done"] is False
    assert set(told["outputs"]) == {"ingest"}
    assert told["outputs"]["ingest"]["out"]["path"] == f"{place}/ingest/out"
    assert not (place / "sft").exists()
    assert not list((tmp_path / "out").glob(".scratch*"))


def test_no_secret_is_written(image: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, image, FAILS)
    files = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert any(file.name == "pipeline.yaml" for file in files)
    for file in files:
        assert SECRET not in file.read_text(encoding="utf-8"), file
    assert SECRET not in "".join(capsys.readouterr())


def test_an_output_that_is_not_there_fails_a_step_that_says_it_is_done(
    image: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, image, "echo all done") == 1
    place, told = left(tmp_path)
    assert told["tries"][0]["exit_code"] == 0
    said = re.sub(r"\s+", " ", capsys.readouterr().err)
    assert f"error ingest: {place}/ingest/out is missing" in said


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_leaves_no_container(stop: signal.Signals, image: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    mounts = [f"{path}:{path}:ro" for path in SYSTEM] + [
        f"{write_python(tmp_path, 'touch $9.started; sleep 60')}:/tools"
    ]
    # A test run that was started in the background ignores SIGINT, and so would all that it starts.
    words = ["env", "--default-signal=INT", sys.executable, "-m", "pipelines", "run", "--image", image]
    words += ["--data", str(tmp_path / "data")]
    words += ["--out", str(tmp_path / "out")] + [word for mount in mounts for word in ("--volume", mount)]
    process = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not list((tmp_path / "out").glob("*/ingest/*.started")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)
    process.send_signal(stop)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "stopped, and the container removed" in said
    run_id = re.findall(r"run ([0-9a-f-]{36})", said)[0]
    listed = ["docker", "ps", "--all", "--quiet", "--filter", f"label=concord.run={run_id}"]
    assert subprocess.run(listed, capture_output=True, text=True, check=True).stdout == ""
    assert not list((tmp_path / "out").glob(".scratch*"))


def test_an_image_that_is_not_there(image: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "concord:nowhere", "exit 0") == 1
    assert "concord:nowhere: no such image here. Build it (make image)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_data_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--params", str(ROOT / "params.yaml"), "--data", str(tmp_path / "no")]) == 1
    assert "no: no such folder. Make it (make data)" in re.sub(r"\s+", " ", capsys.readouterr().err)


def test_variables_are_passed_by_name(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", "/hub")
    found = passed_on(cluster, ["HF_HOME"])
    assert found == {
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "HF_HOME": "/hub",
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:5000",
    }
    with pytest.raises(ConcordError, match="--env NOWHERE_SET: not set here"):
        passed_on(cluster, ["NOWHERE_SET"])


def test_secrets_of_the_cluster_are_passed_where_they_are_set(
    monkeypatch: pytest.MonkeyPatch, cluster: Cluster
) -> None:
    tree = cluster.tree()
    tree["secrets"].append({"name": "more", "optional": False, "env": {"CORPORATE_LOGIN": "key"}})
    monkeypatch.setenv("CORPORATE_LOGIN", "me")
    assert passed_on(Cluster.model_validate(tree), [])["CORPORATE_LOGIN"] == "me"


@pytest.mark.parametrize("uri", [None, "", "sqlite:///mlflow.db", "file:/runs"])
def test_a_store_that_dies_with_its_container_is_refused(uri: str | None) -> None:
    with pytest.raises(ConcordError, match="MLFLOW_TRACKING_URI: must name an MLflow server"):
        check_tracking({} if uri is None else {"MLFLOW_TRACKING_URI": uri})


def test_containers_have_no_rights() -> None:
    arguments = container_arguments("host", None)
    assert (arguments["read_only"], arguments["cap_drop"]) == (True, ["ALL"])
    assert "device_requests" not in arguments
    assert container_arguments("host", "all")["device_requests"][0]["Count"] == -1
    assert container_arguments("host", "2")["device_requests"][0]["Count"] == 2
    with pytest.raises(ConcordError, match="--gpus two: all, or a number"):
        container_arguments("host", "two")


def test_volumes(tmp_path: Path) -> None:
    assert volume(f"{tmp_path}:/hub") == (str(tmp_path), {"bind": "/hub", "mode": "rw"})
    assert volume(f"{tmp_path}:/hub:ro") == (str(tmp_path), {"bind": "/hub", "mode": "ro"})
    for text in (str(tmp_path), f"{tmp_path}:hub", f"{tmp_path}:/hub:rx", f"{tmp_path}:/a:ro:x"):
        with pytest.raises(ConcordError, match="HERE:THERE or HERE:THERE:ro"):
            volume(text)
    with pytest.raises(ConcordError, match="does not exist"):
        volume(f"{tmp_path}/no:/hub")


def test_shared_memory_is_that_of_the_settings(cluster: Cluster) -> None:
    tree = cluster.tree()
    sizes = {"ingest": None, "validate": "64M", "sft": "2Gi", "grpo": "512Mi", "evaluate": "1G", "register": "4Ki"}
    for name, size in sizes.items():
        tree["steps"][name]["shared_memory"] = size
    assert shared_memory(Cluster.model_validate(tree)) == {
        "validate": 64 * 10**6,
        "sft": 2 * 2**30,
        "grpo": 512 * 2**20,
        "evaluate": 10**9,
        "register": 4 * 2**10,
    }


def test_retries_here_are_those_of_the_command_line(cluster: Cluster) -> None:
    found = with_retries(cluster, 3)
    assert {found.pod(name).retries for name in STEPS} == {3}
    assert found.backoff.seconds == 1
    tree, before = found.tree(), cluster.tree()
    for each in (tree, before):
        del each["backoff"]
        for pod in each["steps"].values():
            del pod["retries"]
    assert tree == before


def test_the_image_is_chosen_by_flag_then_environment_then_cluster_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compiled(*words: str) -> str:
        out = tmp_path / "p.yaml"
        command = ["compile", "--params", str(ROOT / "params.yaml"), "--data-hash", "0" * 32, "--out", str(out)]
        assert main([*command, *words]) == 0
        spec = next(yaml.safe_load_all(out.read_text(encoding="utf-8")))
        return str(spec["deploymentSpec"]["executors"]["exec-sft"]["container"]["image"])

    assert compiled() == "concord:cpu"
    monkeypatch.setenv("CONCORD_IMAGE", "concord:environment")
    assert compiled() == "concord:environment"
    assert compiled("--image", "concord:word") == "concord:word"
