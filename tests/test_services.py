"""The services, both as local processes and as containers."""

import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from tests.support.services import Services, s3_client

pytestmark = pytest.mark.timeout(1800)  # the image may be built first


@pytest.fixture(
    params=[
        pytest.param("services", marks=pytest.mark.services, id="processes"),
        pytest.param("composed", marks=pytest.mark.docker, id="containers"),
    ]
)
def running(request: pytest.FixtureRequest) -> Services:
    return request.getfixturevalue(request.param)


def test_mlflow_stores_runs_in_postgres_and_artifacts_in_its_bucket(
    running: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psycopg
    from mlflow import MlflowClient

    for name, value in running.environment().items():
        monkeypatch.setenv(name, value)
    client = MlflowClient(running.tracking_uri)
    experiment = client.create_experiment("kept")
    run = client.create_run(experiment).info.run_id
    client.log_metric(run, "mae", 2.5)
    (tmp_path / "report.txt").write_text("four")
    client.log_artifact(run, str(tmp_path / "report.txt"))

    with psycopg.connect(running.database_uri.replace("+psycopg", "")) as connection:
        rows = connection.execute("SELECT key, value FROM metrics WHERE run_uuid = %s", (run,)).fetchall()
    assert rows == [("mae", 2.5)]
    owner = s3_client(running.s3_url, running.owner)
    (stored,) = [x for x in owner.list_objects_v2(Bucket="mlflow")["Contents"] if run in x["Key"]]
    assert owner.get_object(Bucket="mlflow", Key=stored["Key"])["Body"].read() == b"four"
    assert Path(client.download_artifacts(run, "report.txt", str(tmp_path))).read_text() == "four"


def test_key_only_reaches_its_own_bucket(running: Services) -> None:
    for name, own, other in (("mlflow", "mlflow", "dvc"), ("dvc", "dvc", "mlflow")):
        client = s3_client(running.s3_url, getattr(running, name))
        client.put_object(Bucket=own, Key="mine", Body=b"1")
        assert client.get_object(Bucket=own, Key="mine")["Body"].read() == b"1"
        client.delete_object(Bucket=own, Key="mine")
        for refused in (
            lambda client=client, other=other: client.list_objects_v2(Bucket=other),
            lambda client=client, other=other: client.put_object(Bucket=other, Key="theirs", Body=b"1"),
        ):
            with pytest.raises(ClientError, match="AccessDenied"):
                refused()
    with pytest.raises(ClientError, match=r"InvalidAccessKeyId|SignatureDoesNotMatch"):
        s3_client(running.s3_url, ("dvc", "guessed")).list_objects_v2(Bucket="dvc")


def test_dvc_pushes_and_pulls_with_credentials_from_the_environment(running: Services, tmp_path: Path) -> None:
    def dvc(*args: str) -> None:
        subprocess.run(
            [sys.executable, "-m", "dvc", *args], cwd=tmp_path, check=True, env=os.environ | running.environment(),
            stdout=subprocess.DEVNULL,
        )  # fmt: skip

    dvc("init", "--no-scm", "-q")
    dvc("remote", "add", "-d", "s3", "s3://dvc/store")
    (tmp_path / "row").write_text("1")
    dvc("add", "-q", "row")
    dvc("push", "-q")
    (tmp_path / "row").unlink()
    for path in (tmp_path / ".dvc" / "cache").rglob("*"):
        if path.is_file():
            path.unlink()
    dvc("pull", "-q")
    assert (tmp_path / "row").read_text() == "1"


def test_mlflow_rejects_unknown_host_names(running: Services) -> None:
    request = urllib.request.Request(f"{running.tracking_uri}/api/2.0/mlflow/experiments/get?experiment_id=0")
    request.add_header("Host", "evil.example")
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(request)
