"""A real S3 server (SeaweedFS) that tests can kill and restart, and a gateway in front of it that injects errors."""

import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

from tests.support.services import free_ports, s3_environment

WEED = Path(sys.executable).with_name("weed")
OWNER = ("OWNER", "owner-secret-1f0c")
READER = ("READER", "reader-secret-77ab")  # may read the bucket `open` only
BUCKETS = ("open", "closed")
START_SECONDS = 200.0


class S3Server:
    """A SeaweedFS server with its data in `folder`, on free ports.

    Attributes:
        url: of the S3 endpoint.
        owner: a boto3 client with full access.
    """

    def __init__(self, folder: Path) -> None:
        """Starts the server and creates two empty buckets."""
        self._folder = folder
        self._ports = ports = free_ports(8)
        names = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc")
        identities = [
            {"name": "owner", "actions": ["Admin", "Read", "Write", "List"], "credentials": [_pair(OWNER)]},
            {"name": "reader", "actions": ["Read:open", "List:open"], "credentials": [_pair(READER)]},
        ]
        (folder / "identities.json").write_text(json.dumps({"identities": identities}))
        self._command = [
            str(WEED), "-logtostderr=true", "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
            *(f"-{name}={port}" for name, port in zip(names, ports[:6], strict=True)),
            "-filer", "-s3", f"-s3.port={ports[6]}", f"-s3.port.grpc={ports[7]}",
            "-s3.port.iceberg=0", "-s3.port.lance=0",
            f"-s3.config={folder / 'identities.json'}", "-volume.max=20", "-master.volumeSizeLimitMB=256",
            "-master.telemetry=false", "-master.electionTimeout=1s", "-master.heartbeatInterval=100ms",
        ]  # fmt: skip
        self.url = f"http://127.0.0.1:{ports[6]}"
        self.owner = client(self.url, OWNER)
        self.start()
        try:
            for bucket in BUCKETS:
                self._retry(partial(self.owner.create_bucket, Bucket=bucket))
            self._retry(lambda: self.put("ready", b"1"))
        except BaseException:
            self.end()
            raise

    def start(self) -> None:
        """Starts the server process and does not wait until it responds."""
        # The server would accept the credentials in its environment.
        env = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        with open(self._folder / "log", "ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=env)
        # Kills the server when the pipe closes, which happens when the tests end, even if they are killed.
        self._watch = subprocess.Popen(
            ["sh", "-c", 'read _; kill -9 "$0"', str(self._process.pid)], stdin=subprocess.PIPE, start_new_session=True
        )

    def kill(self) -> None:
        """Kills the server with SIGKILL, so that it cannot shut down cleanly."""
        self._watch.communicate()
        self._process.wait()

    def end(self) -> None:
        """Kills the server if it runs, and removes its sockets, which are outside its folder."""
        if self._process.poll() is None:
            self.kill()
        self._watch.communicate()
        for port in self._ports:
            for socket_file in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                socket_file.unlink()

    def put(self, key: str, body: bytes, bucket: str = "open") -> None:
        """Uploads an object."""
        self.owner.put_object(Bucket=bucket, Key=key, Body=body)

    def put_in_parts(self, key: str, parts: list[bytes], bucket: str = "open") -> None:
        """Uploads an object as a multipart upload."""
        upload = self.owner.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
        common = {"Bucket": bucket, "Key": key, "UploadId": upload}
        done = [
            {"PartNumber": k, "ETag": self.owner.upload_part(**common, PartNumber=k, Body=part)["ETag"]}
            for k, part in enumerate(parts, start=1)
        ]
        self.owner.complete_multipart_upload(**common, MultipartUpload={"Parts": done})

    def _retry(self, action: Callable[[], object]) -> None:
        """Repeats `action` until it succeeds, for START_SECONDS at most."""
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                action()
                return
            except Exception:
                if time.monotonic() > end or self._process.poll() is not None:
                    print((self._folder / "log").read_text(errors="replace")[-3000:])
                    raise
                time.sleep(0.1)


class Gateway(ThreadingHTTPServer):
    """A proxy that forwards requests and responses unchanged, unless a test configures an error.

    Attributes:
        url: of the gateway, to be used as the endpoint.
        requests: path and Range header of every request, in order.
        status: path -> a status to respond with instead of forwarding the request, or None.
        cut: path -> number of bytes of the body after which to close the connection, or None.
        damage: path -> whether to change the first byte of the body.
        hold: path -> offset in the object from which on nothing is sent until `go` is set, or None.
        go: see hold.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, upstream: str) -> None:
        """Starts to serve in a thread."""
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = upstream.removeprefix("http://")
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.requests: list[tuple[str, str | None]] = []
        self.status: Callable[[str], int | None] = lambda path: None
        self.cut: Callable[[str], int | None] = lambda path: None
        self.damage: Callable[[str], bool] = lambda path: False
        self.hold: Callable[[str], int | None] = lambda path: None
        self.go = Event()
        Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def objects(self) -> list[tuple[str, str | None]]:
        """The requests for objects, without those for listings."""
        return [(path, range) for path, range in self.requests if "list-type" not in path]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Prints nothing: tests close connections on purpose."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Gateway

    def do_GET(self) -> None:
        gateway = self.server
        path = self.path.partition("?")[0] if "list-type" not in self.path else self.path
        gateway.requests.append((path, self.headers.get("Range")))
        self.close_connection = True
        if status := gateway.status(path):
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        upstream = http.client.HTTPConnection(gateway.upstream, timeout=30)
        upstream.request(self.command, self.path, headers=dict(self.headers.items()))
        reply = upstream.getresponse()
        self.send_response(reply.status)
        for name, value in reply.getheaders():
            if name.lower() not in ("connection", "server", "date", "transfer-encoding"):
                self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command == "GET":
            start = int((self.headers.get("Range") or "bytes=0-")[len("bytes=") : -1])
            self._body(reply, start, gateway.hold(path), gateway.cut(path), gateway.damage(path))

    do_HEAD = do_GET

    def _body(
        self, reply: http.client.HTTPResponse, start: int, hold: int | None, cut: int | None, damage: bool
    ) -> None:
        sent = 0
        while chunk := reply.read(1 << 16):
            if hold is not None and start + sent >= hold:
                self.server.go.wait()
            if cut is not None and sent + len(chunk) > cut:
                self.wfile.write(chunk[: cut - sent])
                return
            self.wfile.write(bytes([chunk[0] ^ 1]) + chunk[1:] if damage and not sent else chunk)
            sent += len(chunk)

    def log_message(self, *_: Any) -> None:
        pass


def client(url: str, credentials: tuple[str, str]) -> Any:
    """A boto3 client that does not retry."""
    import boto3
    from botocore.config import Config

    key, secret = credentials
    config = Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1})
    return boto3.client(
        "s3", endpoint_url=url, aws_access_key_id=key, aws_secret_access_key=secret, region_name="us-east-1",
        config=config,
    )  # fmt: skip


def environment(url: str, credentials: tuple[str, str] = READER) -> dict[str, str]:
    """The environment variables for S3."""
    return s3_environment(url, credentials)


def _pair(credentials: tuple[str, str]) -> dict[str, str]:
    return {"accessKey": credentials[0], "secretKey": credentials[1]}
