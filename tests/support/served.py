"""A registered version of a model folder, and the server of `python -m components serve` on it."""

import http.client
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.register.packaging import log_model
from components.register.registry import Registry
from components.settings import Reader, Settings
from components.shared.tracking.step_run import step_run
from components.steps import STEPS
from tests.support.repository import environment

ROOT = Path(__file__).parents[2]
READY_SECONDS = 120


def register_version(settings: Settings, weights: Path, reader: Reader) -> str:
    """Registers a model folder in the store of MLFLOW_TRACKING_URI and makes it champion; returns its number."""
    with step_run(STEPS["register"], settings, {"sft": weights}) as track:
        model_id = log_model(track, weights, reader)
        registry = Registry(track.client, settings.registered_model)
        registry.create()
        version = track.client.create_model_version(
            registry.name, f"models:/{model_id}", track.run_id, model_id=model_id
        )
        track.finish({}, {})
    registry.promote(str(version.version), "for a test")
    return str(version.version)


def answers(url: str) -> bool:
    """Whether a server answers there."""
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except OSError:
        return False
    return True


def half_sent(url: str, content: Any) -> Callable[[], tuple[int, Any]]:
    """Sends half of a request for readings, which is then in progress.

    Returns:
        what sends the rest, and gives the status and the decoded answer.
    """
    body = json.dumps(content).encode()
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    connection.putrequest("POST", "/invocations")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body[: len(body) // 2])
    time.sleep(1)  # the server has read it

    def finish() -> tuple[int, Any]:
        connection.send(body[len(body) // 2 :])
        answer = connection.getresponse()
        status, text = answer.status, answer.read()
        connection.close()
        return status, json.loads(text)

    return finish


@dataclass
class Server:
    """A running server.

    Attributes:
        process: of the server.
        url: its address.
        log: file with its output.
    """

    process: "subprocess.Popen[bytes]"
    url: str
    log: Path

    def post(self, path: str, content: Any, kind: str | None = "application/json") -> tuple[int, Any]:
        """Status and decoded answer; `content` is sent as JSON unless it is bytes."""
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        return self.fetch(urllib.request.Request(self.url + path, body, {"Content-Type": kind} if kind else {}))

    def get(self, path: str) -> tuple[int, Any]:
        """Status and decoded answer."""
        return self.fetch(urllib.request.Request(self.url + path))

    def fetch(self, request: urllib.request.Request) -> tuple[int, Any]:
        """Status and decoded answer; the decoder accepts what is JSON by the standard alone."""
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                status, body = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, body = error.code, error.read()
        return status, json.loads(body, parse_constant=_no_json) if body.strip() else None

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Sends a signal; returns the exit code."""
        self.process.send_signal(number)
        return self.process.wait(60)


def _no_json(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


@contextmanager
def serving(folder: Path, variables: Mapping[str, str], *words: str) -> Iterator[Server]:
    """Starts the server in a folder and waits until it is ready; ends it afterwards.

    Args:
        folder: its working directory, which gets its log.
        variables: environment variables beside those of a clean environment.
        words: further words of its command line.
    """
    port, log = free_port(), folder / "server.log"
    command = [sys.executable, "-m", "components", "serve", "--port", str(port), *words]
    variables = environment({"PYTHONPATH": str(ROOT), **variables})
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=folder, env=variables, stdout=file, stderr=file)
    server = Server(process, f"http://127.0.0.1:{port}", log)
    try:
        _wait_ready(server)
        yield server
    finally:
        process.kill()
        process.wait()


def _wait_ready(server: Server) -> None:
    until = time.monotonic() + READY_SECONDS
    while time.monotonic() < until:
        assert server.process.poll() is None, server.log.read_text()
        try:
            urllib.request.urlopen(f"{server.url}/ping", timeout=5).close()
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(server.log.read_text())
