"""A server of the tests, on a free port, for the API of another program."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


@dataclass
class Request:
    """A request: method, path without the query, query, headers, JSON body."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: Any


@contextmanager
def listening(answer: Callable[[Request], tuple[int, Any]], address: str = "127.0.0.1") -> Iterator[int]:
    """Serves at this address; yields the port.

    Args:
        answer: gives the status and the content: text, an iterator over bytes that are sent as they come, or JSON.
    """

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            parts = urlsplit(self.path)
            length = int(self.headers.get("Content-Length", 0))
            body = json.loads(self.rfile.read(length)) if length else None
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, content = answer(Request(self.command, parts.path, parse_qs(parts.query), headers, body))
            self.send_response(status)
            is_json = not isinstance(content, str | Iterator)
            self.send_header("Content-Type", "application/json" if is_json else "text/plain")
            if isinstance(content, Iterator):
                self.end_headers()
                for data in content:
                    self.wfile.write(data)
                    self.wfile.flush()
                return
            data = (json.dumps(content) if is_json else content).encode()
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_DELETE = _serve

        def log_message(self, format: str, *args: Any) -> None:
            """Logs nothing."""

    server = ThreadingHTTPServer((address, 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
