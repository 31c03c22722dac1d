"""The composed services: what they hold outlives them, and nobody else can reach what is nobody else's."""

import json

import pytest
from mlflow import MlflowClient

from tests.containers import container, run, services_of
from tests.services import s3_client

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]
SERVICES = ("postgres", "s3", "mlflow")


def inspected(composition: dict[str, str], service: str) -> dict:
    return json.loads(run("docker", "inspect", container(composition["PROJECT"], service)))[0]


def test_runs_and_objects_outlive_the_containers(composition: dict[str, str]) -> None:
    before = services_of(composition)
    experiment = MlflowClient(before.tracking_uri).create_experiment("outlives")
    s3_client(before.s3_url, before.dvc).put_object(Bucket="dvc", Key="outlives", Body=b"1")
    old = container(composition["PROJECT"], "mlflow")

    run("docker/services", "down", environment=composition)
    assert not container(composition["PROJECT"], "mlflow")
    run("docker/services", "up", environment=composition)

    assert container(composition["PROJECT"], "mlflow") != old
    after = services_of(composition)
    assert MlflowClient(after.tracking_uri).get_experiment(experiment).name == "outlives"
    dvc = s3_client(after.s3_url, after.dvc)
    assert dvc.get_object(Bucket="dvc", Key="outlives")["Body"].read() == b"1"
    dvc.delete_object(Bucket="dvc", Key="outlives")


@pytest.mark.parametrize("service", SERVICES)
def test_each_is_healthy_on_a_read_only_root_and_open_to_this_machine_alone(
    composition: dict[str, str], service: str
) -> None:
    found = inspected(composition, service)
    assert found["State"]["Health"]["Status"] == "healthy"
    assert found["HostConfig"]["ReadonlyRootfs"]
    assert found["Config"]["User"] not in ("", "0", "root")
    opened = [one["HostIp"] for ports in found["NetworkSettings"]["Ports"].values() for one in ports or []]
    assert opened == ([] if service == "postgres" else ["127.0.0.1"])


def test_no_secret_stands_in_a_command_line(composition: dict[str, str]) -> None:
    with open(composition["ENV_FILE"], encoding="utf-8") as file:
        lines = [line.strip().split("=", 1) for line in file if "=" in line and not line.startswith("#")]
    secrets = [value for name, value in lines if name.endswith(("_SECRET", "_PASSWORD"))]
    assert len(secrets) == 4
    for service in SERVICES:
        processes = run("docker", "top", container(composition["PROJECT"], service), "-eo", "pid,args")
        assert not [secret for secret in secrets if secret in processes]
