"""Which errors may not occur again: real errors of the libraries, from real connections and processes."""

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import requests
import torch
from botocore.config import Config
from botocore.session import Session
from huggingface_hub import HfApi
from mlflow import MlflowClient

from components.__main__ import main
from components.errors import ConcordError, RetryableError
from components.shared.io.process_pool import process_pool
from components.shared.io.transient import concord_error, is_transient
from tests.support.services import free_ports


@contextmanager
def server(status: int) -> Iterator[str]:
    """Answers every request with this status; with 0, closes the connection in the middle of the answer."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = json.dumps({"error_code": str(status), "message": "as asked"}).encode()
            self.send_response(status or 200)
            self.send_header("Content-Length", str(len(body) + (0 if status else 10)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_HEAD = do_PUT = answer

        def log_message(self, format: str, *args: Any) -> None:
            """Logs nothing."""

    found = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=found.serve_forever, args=[0.05], daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{found.server_port}"
    finally:
        found.shutdown()
        found.server_close()


@pytest.fixture(autouse=True)
def one_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


def get(url: str) -> None:
    requests.get(url, timeout=10).raise_for_status()


def mlflow(url: str) -> None:
    MlflowClient(tracking_uri=url).search_experiments()


def s3(url: str) -> None:
    session = Session()
    session.set_credentials("key", "secret")
    config = Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"})
    session.create_client("s3", "us-east-1", endpoint_url=url, config=config).list_objects_v2(Bucket="b")


def hub(url: str) -> None:
    HfApi(endpoint=url, token=False).model_info("me/model")


CLIENTS = pytest.mark.parametrize("call", [get, mlflow, s3])


def error_of(call: Callable[[str], None], url: str) -> Exception:
    try:
        call(url)
    except Exception as error:
        return error
    raise AssertionError("no error")


@CLIENTS
@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_busy_server_may_answer_later(call: Callable[[str], None], status: int) -> None:
    with server(status) as url:
        assert is_transient(error_of(call, url))


@CLIENTS
@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_refusal_stays_one(call: Callable[[str], None], status: int) -> None:
    with server(status) as url:
        assert not is_transient(error_of(call, url))


@pytest.mark.parametrize("call", [get, mlflow, s3, hub])
def test_a_lost_connection_may_come_back(call: Callable[[str], None]) -> None:
    assert is_transient(error_of(call, f"http://127.0.0.1:{free_ports(1)[0]}"))
    if call is not hub:  # which reads only the answer's headers
        with server(0) as url:
            assert is_transient(error_of(call, url))


@pytest.mark.parametrize(("status", "transient"), [(401, False), (403, False), (503, True)])
def test_the_hub(status: int, transient: bool) -> None:
    with server(status) as url:
        assert is_transient(error_of(hub, url)) == transient


def test_a_worker_process_that_was_killed() -> None:
    with process_pool(1) as pool, pytest.raises(BrokenProcessPool) as caught:
        pool.submit(os.kill, pool.submit(os.getpid).result(), signal.SIGKILL).result()
    assert is_transient(caught.value)


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"), True),
        (torch.distributed.DistBackendError("NCCL error in: ProcessGroupNCCL.cpp:1"), True),
        (torch.distributed.DistNetworkError("the client socket has timed out"), True),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), True),
        (RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), False),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), False),
        (ValueError("CUDA error"), False),
        (BrokenPipeError(32, "Broken pipe"), False),
        (ConnectionResetError(104, "Connection reset by peer"), True),
        (FileNotFoundError(2, "No such file"), False),
    ],
    ids=str,
)
def test_errors_of_devices_and_of_the_system(error: Exception, transient: bool) -> None:
    assert is_transient(error) == transient
    assert type(concord_error("what failed", error)) is (RetryableError if transient else ConcordError)


def test_the_cause_counts_and_a_refusal_wins() -> None:
    def raised(cause: Exception, suppress: bool = False) -> Exception:
        try:
            try:
                raise cause
            except Exception as error:
                if suppress:
                    raise ValueError("bad") from None
                raise ValueError("bad") from error
        except ValueError as error:
            return error

    assert is_transient(raised(ConnectionResetError()))
    assert not is_transient(raised(ConnectionResetError(), suppress=True))
    with server(403) as url:
        refused = error_of(get, url)
    refused.__cause__ = ConnectionResetError()
    assert not is_transient(refused)


@pytest.mark.parametrize(("status", "code"), [(503, 75), (401, 1), (403, 1)])
def test_the_command_line_exits_with_75_where_a_retry_may_help(
    status: int, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with server(status) as url:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        assert main(["registry", "show"]) == code
    assert "error MLflow at http" in capsys.readouterr().err


def test_an_unexpected_error_of_a_device_is_shown_whole_and_exits_with_75(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(_: list[str]) -> int:
        raise torch.AcceleratorError("CUDA error: unspecified launch failure")

    monkeypatch.setattr("components.commands.registry.command.main", fails)
    assert main(["registry", "show"]) == 75
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert "CUDA error: unspecified launch failure" in error
