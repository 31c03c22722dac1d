"""An unreachable store is reported as a ConcordError, without its password."""

import time
from pathlib import Path

import pytest

from components.errors import ConcordError, RetryableError
from components.shared.tracking.connection import connect


def test_unreachable_server_is_reported_quickly_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2@127.0.0.1:9")  # nothing listens on the discard port
    start = time.monotonic()
    with pytest.raises(RetryableError, match=r"could not open the store.*MLFLOW_TRACKING_URI") as caught:
        connect()
    assert "hunter2" not in str(caught.value)
    assert "me:***@127.0.0.1:9" in str(caught.value)
    assert time.monotonic() - start < 30


def test_database_that_cannot_be_opened_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/file/mlflow.db")
    with pytest.raises(ConcordError, match="could not open the store") as caught:
        connect()
    assert caught.value.exit_code == 1  # as long as it is not moved
