"""One step's container on a real Docker engine: success and failure are always detected correctly.

The steps themselves run in containers in tests/e2e/test_kubeflow.py.
"""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from components.errors import ConcordError
from components.steps import STEPS
from pipelines.containers import LABEL, ContainerRun, LocalRun, docker_client, image_id, may_relabel, step_containers
from tests.support.docker_engine import COMPLETE_OUTPUTS, IMAGE, SYSTEM, empty_image, write_python

if TYPE_CHECKING:
    from docker import DockerClient


@pytest.fixture(scope="module")
def client() -> Iterator["DockerClient"]:
    with empty_image() as engine:
        yield engine


@pytest.fixture
def local_run(tmp_path: Path) -> LocalRun:
    volumes = {path: {"bind": path, "mode": "ro"} for path in SYSTEM}
    volumes[str(tmp_path / "tools")] = {"bind": "/tools", "mode": "ro"}
    return LocalRun(tmp_path.name, volumes, {"ingest": 32 * 2**20})


def ingest(local_run: LocalRun, root: Path, script: str, **arguments: Any) -> str:
    """Runs ingest's container through kfp's own class, with `script` as its python; returns the status' name."""
    from kfp import local
    from kfp.local import docker_task_handler

    write_python(root, script)
    folder = root / "run" / "ingest"
    executor_input = json.dumps({"outputs": {"outputFile": str(folder / "executor_output.json")}})
    command = [*STEPS["ingest"].command(paths={"out": str(folder / "out")}), "--executor-input", executor_input]
    runner = local.DockerRunner(**arguments)
    with step_containers(local_run):
        handler = docker_task_handler.DockerTaskHandler(
            image=IMAGE, full_command=command, pipeline_root=str(root), runner=runner,
            env_vars={"GREETING": "hello"},
        )  # fmt: skip
        return str(handler.run().name)


@pytest.mark.parametrize("code", [1, 2, 130, 143])
def test_an_attempt_that_another_one_would_not_change_is_the_last(
    code: int, local_run: LocalRun, tmp_path: Path
) -> None:
    """No container is started, so this needs no engine."""
    folder = tmp_path / "run" / "ingest"
    local_run.attempts.append(ContainerRun("ingest", 1, folder, folder / "log-1.txt", code, ["it failed"]))
    assert ingest(local_run, tmp_path, "exit 0") == "FAILURE"
    assert len(local_run.attempts) == 1


def test_container_that_ends_at_once_always_fails(client: "DockerClient", local_run: LocalRun, tmp_path: Path) -> None:
    """kfp's own handler reports some of these as successes."""
    for number in range(1, 9):
        assert ingest(local_run, tmp_path, "exit 3") == "FAILURE"
        attempt = local_run.attempts[-1]
        assert (attempt.exit_code, attempt.attempt) == (3, number)
        assert attempt.errors == ["its container ended with exit code 3"]


def test_exit_code_0_without_outputs_fails(client: "DockerClient", local_run: LocalRun, tmp_path: Path) -> None:
    assert ingest(local_run, tmp_path, "exit 0") == "FAILURE"
    assert local_run.attempts[0].exit_code == 0
    assert any("out is missing" in error for error in local_run.attempts[0].errors)


def test_complete_outputs_succeed(client: "DockerClient", local_run: LocalRun, tmp_path: Path) -> None:
    assert ingest(local_run, tmp_path, COMPLETE_OUTPUTS) == "SUCCESS", local_run.attempts[0].errors
    assert local_run.attempts[0].errors == []


def test_output_is_logged_and_options_reach_the_container(
    client: "DockerClient", local_run: LocalRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ingest(
        local_run, tmp_path, 'echo "$GREETING $*"; df -k /dev/shm | tail -1; touch /usr/x; echo kept >&2; exit 1',
        read_only=True, network_mode="none",
    )  # fmt: skip
    log = local_run.attempts[0].log.read_text(encoding="utf-8")
    assert "hello -m components ingest --params params.yaml" in log
    assert "32768" in log
    assert "Read-only file system" in log
    assert "kept" in log
    assert "hello -m components ingest" in capsys.readouterr().err


def test_container_is_removed(client: "DockerClient", local_run: LocalRun, tmp_path: Path) -> None:
    ingest(local_run, tmp_path, "exit 1")
    assert client.containers.list(all=True, filters={"label": f"{LABEL}={local_run.run_id}"}) == []


def test_killed_container_fails(client: "DockerClient", local_run: LocalRun, tmp_path: Path) -> None:
    def kill() -> None:
        while not (containers := client.containers.list(filters={"label": f"{LABEL}={local_run.run_id}"})):
            time.sleep(0.1)
        containers[0].kill()

    killer = threading.Thread(target=kill)
    killer.start()
    assert ingest(local_run, tmp_path, "sleep 60") == "FAILURE"
    killer.join()
    assert local_run.attempts[0].exit_code == 137


@pytest.mark.parametrize("selinux", [True, False])
def test_mounts_are_relabelled_under_selinux_except_system_folders(
    client: "DockerClient", local_run: LocalRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, selinux: bool
) -> None:
    """Without SELinux, the engine accepts the option `z` and changes no label."""
    options = ["name=seccomp,profile=default", *(["name=selinux"] if selinux else [])]
    monkeypatch.setattr(type(client), "info", lambda self: {"SecurityOptions": options})
    mounts: list[str] = []

    def inspect() -> None:
        while not (containers := client.containers.list(filters={"label": f"{LABEL}={local_run.run_id}"})):
            time.sleep(0.1)
        mounts.extend(containers[0].attrs["HostConfig"]["Binds"])
        containers[0].kill()

    inspector = threading.Thread(target=inspect)
    inspector.start()
    ingest(local_run, tmp_path, "sleep 60")
    inspector.join()
    z = ",z" if selinux else ""
    own = {f"{tmp_path}:{tmp_path}:rw{z}", f"{tmp_path}/tools:/tools:ro{z}"}
    assert set(mounts) == own | {f"{path}:{path}:ro" for path in SYSTEM}


@pytest.mark.parametrize(
    ("path", "may"),
    [("/home/anne/data", True), ("/srv/data", True), ("/var/tmp/x", True), ("/usrlocal", True), ("/", False),
     ("/home", False), ("/tmp", False), ("/usr/share/fonts", False), ("/etc", False), ("/etc/ssl/certs", False)],
)  # fmt: skip
def test_system_folders_are_not_relabelled(path: str, may: bool) -> None:
    assert may_relabel(Path(path)) == may


def test_missing_image_is_reported(client: "DockerClient") -> None:
    assert image_id(client, IMAGE).startswith("sha256:")
    with pytest.raises(ConcordError, match="concord:nowhere: no such image here"):
        image_id(client, "concord:nowhere")


def test_missing_engine_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    with pytest.raises(ConcordError, match="no Docker engine answers"):
        docker_client()
