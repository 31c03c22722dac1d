"""Fixtures: a real MLflow store for each test, trained models, a real S3 server."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from components.settings import Settings, load_settings

if TYPE_CHECKING:
    from tests.support.gray_world import GrayWorld
    from tests.support.s3_server import Gateway, S3Server

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sqlite file with MLflow's empty tables; creating them takes seconds, so it is copied."""
    from components.shared.tracking.connection import quiet

    quiet()
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # the default experiment keeps its artifacts where the database was made
        MlflowClient(f"sqlite:///{folder}/mlflow.db").search_experiments()
    return folder / "mlflow.db"


@pytest.fixture
def store(empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test's working directory, with its own MLflow store."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    return tmp_path


@pytest.fixture(scope="session")
def settings() -> Settings:
    """The settings of params.yaml."""
    return load_settings(ROOT / "params.yaml")


@pytest.fixture(scope="session")
def gray(tmp_path_factory: pytest.TempPathFactory) -> "GrayWorld":
    """Row shards and two trained models, created once; do not write there."""
    from tests.support import gray_world  # torch takes seconds, and most tests need none

    return gray_world.make(tmp_path_factory.mktemp("gray"))


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[S3Server]":
    """A real S3 server, started once. Each test uses its own keys."""
    from tests.support.s3_server import S3Server

    server = S3Server(tmp_path_factory.mktemp("weed"))
    yield server
    server.end()


@pytest.fixture
def gateway(s3_server: "S3Server", tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Iterator[Gateway]":
    """A proxy to the server that can misbehave, set in the environment; the working directory is the test's."""
    from tests.support.s3_server import Gateway, environment

    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_ENDPOINT_URL_S3", "CONCORD_CACHE"):
        monkeypatch.delenv(name, raising=False)
    gateway = Gateway(s3_server.url)
    for name, value in environment(gateway.url).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    yield gateway
    gateway.go.set()
    gateway.shutdown()
    gateway.server_close()
