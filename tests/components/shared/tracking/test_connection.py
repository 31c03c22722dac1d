"""An unreachable store is reported as a ConcordError, without its password."""

import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

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


class AsksForLogin(BaseHTTPRequestHandler):
    """Answers as MLflow's server does without a login, and counts the requests."""

    requests = 0

    def do_GET(self) -> None:
        AsksForLogin.requests += 1
        body = b"You are not authenticated."
        self.send_response(401)
        self.send_header("WWW-Authenticate", 'Basic realm="mlflow"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET


def test_refused_login_is_reported_after_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), AsksForLogin) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(ConcordError) as caught:
            connect()
        server.shutdown()
    assert "could not open the store: the server refuses the login, or got none. Set MLFLOW_TRACKING_USERNAME and " in (
        str(caught.value)
    )
    assert AsksForLogin.requests == 1


def test_database_that_cannot_be_opened_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/file/mlflow.db")
    with pytest.raises(ConcordError, match="could not open the store") as caught:
        connect()
    assert caught.value.exit_code == 1  # as long as it is not moved
