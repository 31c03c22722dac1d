"""Uploading a folder to a server that imitates the hub."""

import base64
import hashlib
import json
import threading
import warnings
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from huggingface_hub import constants

from components.commands.registry import command
from components.commands.registry.push import push
from components.errors import ConcordError

ID = "plant/gauge-reader"
TOKEN = "hf_planted_secret"
FILES = {
    "README.md": b"---\nlibrary_name: transformers\n---\n",
    "config.json": b"{}",
    "model.safetensors": bytes(range(256)) * 40,
    "validation.parquet": b"PAR1",
}


class Hub(ThreadingHTTPServer):
    """A server that stores what is committed to one repository.

    Attributes:
        files: path -> content of the repository.
        objects: SHA-256 -> content of large files that are uploaded but not committed.
        created: what the client asked for when it created the repository.
        tokens: the authorizations of all requests to the API.
        refuse: status with which the commit is refused; 0: it is not.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.files: dict[str, bytes] = {
            "model-00001-of-00002.safetensors": b"old",
            "adapter/adapter_config.json": b"old",
            "photo.jpg": b"kept",
        }
        self.objects: dict[str, bytes] = {}
        self.created: dict[str, Any] = {}
        self.tokens: set[str | None] = set()
        self.refuse = 0
        self.url = f"http://127.0.0.1:{self.server_port}"


class HubHandler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        """Lists the files."""
        siblings = [{"rfilename": name} for name in self.server.files]
        tree = [{"type": "file", "path": name, "size": 1, "oid": "0"} for name in self.server.files]
        self.send(tree if "/tree/" in self.path else {"id": ID, "sha": "0" * 40, "siblings": siblings})

    def do_PUT(self) -> None:
        """Receives a large file."""
        data = self.body()
        self.server.objects[hashlib.sha256(data).hexdigest()] = data
        self.send({})

    def do_POST(self) -> None:
        hub, path, data = self.server, urlsplit(self.path).path, self.body()
        hub.tokens.add(self.headers["Authorization"])
        if path == "/api/repos/create":
            hub.created = json.loads(data)
            self.send({"url": f"{hub.url}/{ID}"})
        elif path == "/api/validate-yaml":
            self.send({"errors": [], "warnings": []})
        elif path == f"/api/models/{ID}/preupload/main":
            self.send({"files": [mode(file["path"]) for file in json.loads(data)["files"]]})
        elif path == f"/{ID}.git/info/lfs/objects/batch":
            actions = {"upload": {"href": f"{hub.url}/upload"}}
            self.send({"objects": [{**each, "actions": actions} for each in json.loads(data)["objects"]]})
        elif path == f"/api/models/{ID}/commit/main" and not hub.refuse:
            self.commit([json.loads(line) for line in data.splitlines()])
        else:
            self.send({"error": f"not with {self.headers['Authorization']}"}, hub.refuse or 404)

    def commit(self, operations: list[dict[str, Any]]) -> None:
        hub = self.server
        for key, value in ((each["key"], each["value"]) for each in operations):
            if key == "file":
                hub.files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                hub.files[value["path"]] = hub.objects[value["oid"]]
            elif key == "deletedFile":
                del hub.files[value["path"]]
        self.send({"commitUrl": f"{hub.url}/{ID}/commit/{'1' * 40}", "commitOid": "1" * 40, "success": True})

    def body(self) -> bytes:
        if length := self.headers["Content-Length"]:
            return self.rfile.read(int(length))
        data = b""
        while size := int(self.rfile.readline(), 16):  # chunked
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def send(self, content: Any, code: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def mode(path: str) -> dict[str, Any]:
    large = path.endswith((".safetensors", ".parquet"))
    return {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its servers have a protocol of their own
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, data in FILES.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


def test_all_files_are_uploaded_to_a_private_repository(hub: Hub, folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert push(folder, ID, hub.url) == f"{hub.url}/{ID}"
    assert hub.files == {**FILES, "photo.jpg": b"kept"}, "weights of an earlier upload are removed, other files stay"
    assert (hub.created["name"], hub.created["organization"]) == ("gauge-reader", "plant")
    assert hub.created.get("private") or hub.created.get("visibility") == "private"
    assert hub.tokens == {f"Bearer {TOKEN}", None} or hub.tokens == {f"Bearer {TOKEN}"}


def test_a_refused_upload_is_an_error_without_the_token(hub: Hub, folder: Path) -> None:
    hub.refuse = 403
    with pytest.raises(
        ConcordError, match=r"could not be uploaded(?s:.*)Set HF_TOKEN(?s:.*)hf upload plant/"
    ) as caught:
        push(folder, ID, hub.url)
    assert TOKEN not in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert set(FILES) == {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("repository", "token", "message"),
    [
        ("gauge-reader", TOKEN, "expected ORG/NAME"),
        ("a/b/c", TOKEN, "expected ORG/NAME"),
        (ID, "", "there is no token. Set HF_TOKEN"),
    ],
)
def test_what_an_upload_needs_is_checked_before_the_export(
    repository: str, token: str, message: str, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from components.register.registry import Registry
    from components.shared.tracking.connection import connect

    registry = Registry(connect(), "reader")
    registry.create()
    registry.client.create_model_version("reader", source=f"{store}/model")
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(store / "none"))
    with pytest.raises(ConcordError, match=message):
        command.main(["export", "--model", "reader", "--version", "1", "--out", "out", "--push", repository])
    assert not Path("out").exists()
