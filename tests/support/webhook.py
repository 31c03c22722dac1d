"""A webhook as chats have it: keeps the JSON that it gets."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


class Webhook(ThreadingHTTPServer):
    """Answers every POST with `status`; `bodies` has what it got. As a context, it listens until the block ends."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bodies: list[dict[str, str]] = []
        self.status = 200

    @property
    def url(self) -> str:
        """An address with a part that must stay secret: hidden-path."""
        return f"http://127.0.0.1:{self.server_port}/services/hidden-path"

    def __enter__(self) -> "Webhook":
        Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Webhook

    def do_POST(self) -> None:
        self.server.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass
