"""What several end-to-end tests begin with."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.gauge_world import ingested
from tests.support.services import mlflow_alone


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An MLflow server; its URI."""
    with mlflow_alone(tmp_path_factory.mktemp("mlflow")) as uri:
        yield uri


@pytest.fixture(scope="module")
def ingest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Row shards of a few dozen gauges."""
    return ingested(tmp_path_factory.mktemp("world"))
