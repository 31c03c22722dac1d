"""One step's container on a real Docker engine: its end is judged rightly, each time. (The steps themselves in
containers: .ci/run.)"""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from components.errors import ConcordError
from components.steps import STEPS
from pipelines.containers import LABEL, Machine, engine, image_id, may_be_labelled, step_containers
from tests.support.docker_engine import IMAGE, SYSTEM, WHOLE, empty_image, write_python

if TYPE_CHECKING:
    from docker import DockerClient


@pytest.fixture(scope="module")
def client() -> Iterator["DockerClient"]:
    with empty_image() as found:
        yield found


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    volumes = {path: {"bind": path, "mode": "ro"} for path in SYSTEM}
    volumes[str(tmp_path / "tools")] = {"bind": "/tools", "mode": "ro"}
    return Machine(tmp_path.name, volumes, {"ingest": 32 * 2**20})


def ingest(machine: Machine, root: Path, script: str, **arguments: Any) -> str:
    """Runs ingest's container by way of kfp's own class, with `script` as its python; the status' name."""
    from kfp import local
    from kfp.local import docker_task_handler

    write_python(root, script)
    place = root / "run" / "ingest"
    told = json.dumps({"outputs": {"outputFile": str(place / "executor_output.json")}})
    words = [*STEPS["ingest"].command(paths={"out": str(place / "out")}), "--executor-input", told]
    runner = local.DockerRunner(**arguments)
    with step_containers(machine):
        handler = docker_task_handler.DockerTaskHandler(
            image=IMAGE, full_command=words, pipeline_root=str(root), runner=runner,
            env_vars={"GREETING": "hello"},
        )  # fmt: skip
        return str(handler.run().name)


def test_a_container_that_ends_at_once_is_a_failure_every_time(
    client: "DockerClient", machine: Machine, tmp_path: Path
) -> None:
    """kfp's own handler takes some of these for successes."""
    for number in range(1, 9):
        assert ingest(machine, tmp_path, "exit 3") == "FAILURE"
        this = machine.tries[-1]
        assert (this.exit_code, this.number) == (3, number)
        assert this.faults == ["its container ended with exit code 3"]


def test_an_exit_code_of_0_is_not_enough(client: "DockerClient", machine: Machine, tmp_path: Path) -> None:
    assert ingest(machine, tmp_path, "exit 0") == "FAILURE"
    assert machine.tries[0].exit_code == 0
    assert any("out is missing" in fault for fault in machine.tries[0].faults)


def test_whole_outputs_are_a_success(client: "DockerClient", machine: Machine, tmp_path: Path) -> None:
    assert ingest(machine, tmp_path, WHOLE) == "SUCCESS", machine.tries[0].faults
    assert machine.tries[0].faults == []


def test_what_it_says_is_kept_and_its_surroundings_are_as_told(
    client: "DockerClient", machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ingest(
        machine, tmp_path, 'echo "$GREETING $*"; df -k /dev/shm | tail -1; touch /usr/x; echo kept >&2; exit 1',
        read_only=True, network_mode="none",
    )  # fmt: skip
    log = machine.tries[0].log.read_text(encoding="utf-8")
    assert "hello -m components ingest --params params.yaml" in log
    assert "32768" in log
    assert "Read-only file system" in log
    assert "kept" in log
    assert "hello -m components ingest" in capsys.readouterr().err


def test_no_container_is_left(client: "DockerClient", machine: Machine, tmp_path: Path) -> None:
    ingest(machine, tmp_path, "exit 1")
    assert client.containers.list(all=True, filters={"label": f"{LABEL}={machine.label}"}) == []


def test_a_killed_container_is_a_failure(client: "DockerClient", machine: Machine, tmp_path: Path) -> None:
    def kill() -> None:
        while not (found := client.containers.list(filters={"label": f"{LABEL}={machine.label}"})):
            time.sleep(0.1)
        found[0].kill()

    killer = threading.Thread(target=kill)
    killer.start()
    assert ingest(machine, tmp_path, "sleep 60") == "FAILURE"
    killer.join()
    assert machine.tries[0].exit_code == 137


@pytest.mark.parametrize("selinux", [True, False])
def test_mounts_are_labelled_where_selinux_is_on_but_for_the_system_s(
    client: "DockerClient", machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, selinux: bool
) -> None:
    """The engine of a machine without SELinux takes the word and leaves the labels as they are."""
    options = ["name=seccomp,profile=default", *(["name=selinux"] if selinux else [])]
    monkeypatch.setattr(type(client), "info", lambda self: {"SecurityOptions": options})
    mounts: list[str] = []

    def look() -> None:
        while not (found := client.containers.list(filters={"label": f"{LABEL}={machine.label}"})):
            time.sleep(0.1)
        mounts.extend(found[0].attrs["HostConfig"]["Binds"])
        found[0].kill()

    looker = threading.Thread(target=look)
    looker.start()
    ingest(machine, tmp_path, "sleep 60")
    looker.join()
    z = ",z" if selinux else ""
    own = {f"{tmp_path}:{tmp_path}:rw{z}", f"{tmp_path}/tools:/tools:ro{z}"}
    assert set(mounts) == own | {f"{path}:{path}:ro" for path in SYSTEM}


@pytest.mark.parametrize(
    ("path", "may"),
    [("/home/anne/data", True), ("/srv/data", True), ("/var/tmp/x", True), ("/usrlocal", True), ("/", False),
     ("/home", False), ("/tmp", False), ("/usr/share/fonts", False), ("/etc", False), ("/etc/ssl/certs", False)],
)  # fmt: skip
def test_folders_of_the_system_keep_their_label(path: str, may: bool) -> None:
    assert may_be_labelled(Path(path)) == may


def test_image_that_is_not_there_is_named(client: "DockerClient") -> None:
    assert image_id(client, IMAGE).startswith("sha256:")
    with pytest.raises(ConcordError, match="concord:nowhere: no such image here"):
        image_id(client, "concord:nowhere")


def test_no_engine_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    with pytest.raises(ConcordError, match="no Docker engine answers"):
        engine()
