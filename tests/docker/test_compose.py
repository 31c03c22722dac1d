"""The services in containers: their data outlives the containers, and access is restricted."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.containers import ROOT, composed, container, run, services_of
from tests.support.services import s3_client

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]
SERVICES = ("postgres", "s3", "gateway", "mlflow")


def inspected(composition: dict[str, str], service: str) -> dict:
    return json.loads(run("docker", "inspect", container(composition["PROJECT"], service)))[0]


def statuses(composition: dict[str, str], service: str) -> list[dict[str, str]]:
    """Returns /proc/PID/status (Uid, CapEff, ...) of each process of the service."""
    pids = run("docker", "top", container(composition["PROJECT"], service), "-eo", "pid").splitlines()[1:]
    processes = []
    for pid in pids:
        try:
            status = Path(f"/proc/{pid.strip()}/status").read_text(encoding="utf-8")
        except FileNotFoundError:  # a health check that has ended in the meantime
            continue
        processes.append(
            {name: value.strip() for name, _, value in (line.partition(":") for line in status.splitlines())}
        )
    return processes


def test_runs_and_objects_outlive_the_containers(composition: dict[str, str]) -> None:
    before = services_of(composition)
    experiment = before.client().create_experiment("outlives")
    s3_client(before.s3_url, before.dvc).put_object(Bucket="dvc", Key="outlives", Body=b"1")
    old = container(composition["PROJECT"], "mlflow")

    run("docker/services", "down", environment=composition)
    assert not container(composition["PROJECT"], "mlflow")
    run("docker/services", "up", environment=composition)

    assert container(composition["PROJECT"], "mlflow") != old
    after = services_of(composition)
    assert after.client().get_experiment(experiment).name == "outlives"
    dvc = s3_client(after.s3_url, after.dvc)
    assert dvc.get_object(Bucket="dvc", Key="outlives")["Body"].read() == b"1"
    dvc.delete_object(Bucket="dvc", Key="outlives")


@pytest.mark.parametrize("service", SERVICES)
def test_services_are_healthy_restricted_and_only_open_to_this_machine(
    composition: dict[str, str], service: str
) -> None:
    details = inspected(composition, service)
    assert details["State"]["Health"]["Status"] == "healthy"
    assert details["HostConfig"]["ReadonlyRootfs"]
    assert details["HostConfig"]["CapDrop"] == ["ALL"]
    assert_without_privileges(statuses(composition, service))
    addresses = [port["HostIp"] for ports in details["NetworkSettings"]["Ports"].values() for port in ports or []]
    assert addresses == ([] if service in ("postgres", "s3") else ["127.0.0.1"])


def assert_without_privileges(processes: list[dict[str, str]]) -> None:
    assert processes
    for status in processes:
        assert "0" not in status["Uid"].split(), status["Name"]
        assert (int(status["CapEff"], 16), int(status["CapPrm"], 16)) == (0, 0), status["Name"]
        assert status["NoNewPrivs"] == "1", status["Name"]


@pytest.fixture(scope="module")
def root_image(composition: dict[str, str]) -> Iterator[str]:
    """The S3 server's image, changed to start as root like the published one, and with another uid for `seaweed`."""
    tag = f"concord-s3:{composition['PROJECT']}"
    change = ("--user", "0", "--entrypoint", "sed", "concord-s3", "-i", "s/:10002:/:10003:/", "/etc/passwd")
    name = f"{composition['PROJECT']}-changed"
    run("docker", "run", "--name", name, *change)
    try:
        run("docker", "commit", "--change", "USER 0", name, tag)
        yield tag
    finally:
        run("docker", "rm", name)
        run("docker", "rmi", tag)


def test_image_that_starts_as_root_switches_users_with_any_umask(
    root_image: str, shared_folder: Path, tmp_path: Path
) -> None:
    scripts = tmp_path / "docker"
    shutil.copytree(ROOT / "docker", scripts, ignore=shutil.ignore_patterns("wheels", "services.env"))
    for name in ("s3", "gateway"):
        (scripts / name).chmod(0o700)
    with composed(tmp_path, shared_folder, str(scripts / "services"), {"S3_IMAGE": root_image}) as running:
        server = [status for status in statuses(running, "s3") if status["Name"] == "weed"]  # without health checks
        assert_without_privileges(server)
        assert server[0]["Uid"].split() == ["10003"] * 4
        services = services_of(running)
        dvc = s3_client(services.s3_url, services.dvc)
        dvc.put_object(Bucket="dvc", Key="own", Body=b"1")
        foreign_files = run(
            "docker", "exec", container(running["PROJECT"], "s3"), "find", "/data", "!", "-uid", "10003"
        )
        assert foreign_files == ""


def test_no_command_line_contains_a_secret(composition: dict[str, str]) -> None:
    with open(composition["ENV_FILE"], encoding="utf-8") as file:
        lines = [line.strip().split("=", 1) for line in file if "=" in line and not line.startswith("#")]
    secrets = [value for name, value in lines if name.endswith(("_SECRET", "_PASSWORD")) and value.isalnum()]
    assert len(secrets) == 6
    for service in SERVICES:
        processes = run("docker", "top", container(composition["PROJECT"], service), "-eo", "pid,args")
        assert not [secret for secret in secrets if secret in processes]
