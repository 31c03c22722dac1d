"""Secrets are masked in messages, and an unreachable store is reported as a ConcordError."""

import time
from pathlib import Path

import pytest

from components.errors import ConcordError, RetryableError
from components.shared.io.secrets import masked, masked_json
from components.shared.tracking.connection import connect


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgresql://me:hunter2@db:5432/x", "postgresql://me:***@db:5432/x"),
        ("https://me:p%40ss@host/path?q=1", "https://me:***@host/path?q=1"),
        ("https://:only@host", "https://:***@host"),
        ("mysql://me:a@b:c@host/x", "mysql://me:***@host/x"),
        ("http://host/x?access_token=abc&v=2", "http://host/x?access_token=***&v=2"),
        ("mssql://host/x?pwd=abc", "mssql://host/x?pwd=***"),
        ("sqlite:///mlflow.db", "sqlite:///mlflow.db"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("two: http://a:b@c and http://d:e@f", "two: http://a:***@c and http://d:***@f"),
    ],
)
def test_passwords_and_tokens_are_masked(text: str, expected: str) -> None:
    assert masked(text) == expected


def test_secrets_of_the_environment_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "s3cr3t")
    assert masked("401 for user x with s3cr3t") == "401 for user x with ***"


def test_only_secrets_in_urls_are_masked_in_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    content = {"max_test_rows": 3, "split": ["test", 0.5, None], "from": {"url": 'http://me:geheim@host/x?token=a"}'}}
    assert masked_json(content) == {
        "max_test_rows": 3,
        "split": ["test", 0.5, None],
        "from": {"url": "http://me:***@host/x?token=***"},
    }


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
