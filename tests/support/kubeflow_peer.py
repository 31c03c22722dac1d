"""A small HTTP server with the shapes of Kubeflow Pipelines' v2beta1 API, since no Kubeflow can run here.

It keeps every request, and answers a watched run with states in an order that the test gives.
"""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

API = "/apis/v2beta1"
RUN = "5f0c1d6e-0000-4000-8000-000000000001"
SCHEDULE = "5f0c1d6e-0000-4000-8000-000000000002"
# As the API of Kubernetes hands a request through; the client adds a slash.
PROXY = "/api/v1/namespaces/kubeflow/services/ml-pipeline:http/proxy/"
SILENCE = "silence"
EXPERIMENT = "5f0c1d6e-0000-4000-8000-000000000003"


@dataclass
class Asked:
    """One request: method, path without the query, the query, headers, the JSON body."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: Any


@dataclass
class Peer:
    """What it was asked, and what it answers.

    Attributes:
        states: of the run, one an answer, each the run's state and its tasks'; the last one stays. A number is an HTTP
            error in its place, `SILENCE` no answer at all for as long as a test may take.
        experiments: names that exist already.
        token: without it in the Authorization header every answer is 401; empty: no login.
        refuse: path -> status and message of an error.
    """

    host: str = ""
    asked: list[Asked] = field(default_factory=list)
    states: list[tuple[str, dict[str, str]] | int | str] = field(default_factory=list)
    experiments: list[str] = field(default_factory=list)
    token: str = ""
    refuse: dict[str, tuple[int, str]] = field(default_factory=dict)

    def one(self, method: str, path: str) -> Asked:
        """The only request of that kind."""
        whole = path if path.startswith(PROXY) else API + path
        found = [asked for asked in self.asked if (asked.method, asked.path) == (method, whole)]
        assert len(found) == 1, [(asked.method, asked.path) for asked in self.asked]
        return found[0]

    def answer(self, asked: Asked) -> tuple[int, Any]:
        """Status and content."""
        path = asked.path.removeprefix(PROXY).removeprefix(API)
        if self.token and asked.headers.get("authorization") != f"Bearer {self.token}":
            return 401, {"message": f"no such token: {asked.headers.get('authorization')}"}
        if path in self.refuse:
            status, message = self.refuse[path]
            return status, {"error": message, "code": 3, "message": message, "details": []}
        if (asked.method, path) == ("GET", "/healthz"):
            return 200, {"multi_user": False}
        if (asked.method, path) == ("GET", "/experiments"):
            wanted = json.loads(asked.query["filter"][0])["predicates"][0]
            name = wanted.get("stringValue", wanted.get("string_value"))
            found = [{"experiment_id": EXPERIMENT, "display_name": name}] if name in self.experiments else []
            return 200, {"experiments": found, "total_size": len(found)} if found else {}
        if (asked.method, path) == ("POST", "/experiments"):
            return 200, {**asked.body, "experiment_id": EXPERIMENT}
        if (asked.method, path) == ("POST", "/runs"):
            return 200, {**asked.body, "run_id": RUN, "state": "PENDING"}
        if (asked.method, path) == ("POST", "/recurringruns"):
            return 200, {**asked.body, "recurring_run_id": SCHEDULE, "status": "ENABLED"}
        if (asked.method, path) == ("GET", f"/runs/{RUN}"):
            return self._run()
        return 404, {"message": f"{asked.method} {path} is not in this peer"}

    def _run(self) -> tuple[int, Any]:
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        if isinstance(state, int):
            return state, {"message": "away"}
        if isinstance(state, str):
            time.sleep(60)
            return 500, {}
        of_run, of_tasks = state
        tasks: list[dict[str, Any]] = [
            {"run_id": RUN, "display_name": name, "state": found, "child_tasks": [{"pod_name": f"pod-{name}"}]}
            for name, found in {
                "root": of_run,
                **{f"{name}-driver": "SUCCEEDED" for name in of_tasks},
                **of_tasks,
            }.items()
        ]
        for task in tasks:
            if task["state"] == "FAILED" and task["display_name"] != "root":
                task["error"] = {"code": 13, "message": f"{task['display_name']} exited 3"}
        return 200, {"run_id": RUN, "state": of_run, "run_details": {"task_details": tasks}}


@contextmanager
def serving(peer: Peer) -> Iterator[Peer]:
    """Serves on a free port of this machine; `peer.host` says which."""

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            parts = urlsplit(self.path)
            length = int(self.headers.get("Content-Length", 0))
            body = json.loads(self.rfile.read(length)) if length else None
            headers = {name.lower(): value for name, value in self.headers.items()}
            asked = Asked(self.command, parts.path, parse_qs(parts.query), headers, body)
            peer.asked.append(asked)
            status, content = peer.answer(asked)
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = _serve

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    peer.host = f"http://127.0.0.1:{server.server_port}"
    try:
        yield peer
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
