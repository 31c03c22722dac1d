"""Fetching the release by its hub id, from a server that imitates the hub."""

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from components.commands.data.ensure import ensure
from components.commands.data.fetch import fetch
from components.errors import ConcordError
from components.ingest.sources.release import read_release
from components.settings import Release
from tests.support.packed import pack, sample
from tests.support.raw_folder import ROOT, content, encoded, write_params

REVISION = "0123456789abcdef0123456789abcdef01234567"
ID = "owner/release"


class Hub(ThreadingHTTPServer):
    """A server with the files of one commit.

    Attributes:
        gets: paths of the GET requests.
        broken: paths that are sent with other content than listed.
        failing: paths whose requests are refused.
    """

    request_queue_size = 128  # the library opens many connections at once; a full queue drops them

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.files = content(folder)
        self.gets: list[str] = []
        self.broken: set[str] = set()
        self.failing: set[str] = set()
        self.url = f"http://127.0.0.1:{self.server_port}"


class HubHandler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.answer(head=True)

    def do_GET(self) -> None:
        self.answer(head=False)

    def answer(self, head: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        tree, files = f"/api/datasets/{ID}/tree/{REVISION}", f"/datasets/{ID}/resolve/{REVISION}/"
        if path.startswith(tree):
            below = path.removeprefix(tree).strip("/")
            listed = [listing(name, data) for name, data in self.server.files.items() if name.startswith(below)]
            self.send(200, json.dumps(listed).encode(), head, {"Content-Type": "application/json"})
        elif path.startswith(files) and (name := path.removeprefix(files)) in self.server.files:
            if name in self.server.failing:
                self.send(403, b"", head, {})
                return
            data = self.server.files[name]
            if not head:
                self.server.gets.append(name)
                data = bytes(len(data)) if name in self.server.broken else data
            etag = hashlib.sha256(self.server.files[name]).hexdigest()
            self.send(200, data, head, {"ETag": f'"{etag}"', "X-Repo-Commit": REVISION})
        else:
            self.send(404, b"", head, {"X-Error-Code": "RepoNotFound"})

    def send(self, code: int, data: bytes, head: bool, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if not head:
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def listing(name: str, data: bytes) -> dict[str, object]:
    """An entry of the listing; archives are LFS files, listed with their SHA-256."""
    entry: dict[str, object] = {"type": "file", "path": name, "size": len(data)}
    entry["oid"] = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    if name.endswith(".tar"):
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return entry


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "hub"
    for split, ages in (("train", [30] * 3 + [90]), ("test", [30, 90])):
        members = [
            part
            for k, age in enumerate(ages)
            for part in sample(f"{k:06d}", encoded(k + 10 * len(ages), "JPEG", 8), age)
        ]
        pack(folder / "agedb" / split / f"{split}-0.tar", members)
    pack(folder / "boneage" / "train" / "0.tar", sample("a", b"1", 3))
    (folder / "agedb" / "README.md").write_text("AgeDB-DIR\n")
    (folder / "README.md").write_text("all\n")
    server = Hub(folder)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def release(revision: str = REVISION) -> Release:
    hub = {"id": ID, "revision": revision}
    return Release.model_validate({"subset": "agedb", "train": None, "val": None, "test": None, "hub": hub})


def test_the_subset_is_fetched_and_read(hub: Hub, tmp_path: Path) -> None:
    out = tmp_path / "data"
    fetch(release(), out, hub.url)
    assert content(out) == {name: data for name, data in hub.files.items() if name.startswith("agedb/")}
    changed = {"source": "release", "split": "given-test", "release": release().model_dump()}
    rows = list(read_release(out, write_params(tmp_path / "params.yaml", ingest=changed)))
    assert len(rows) == 6
    assert not (tmp_path / ".data.fetched").exists()


def test_complete_files_are_not_fetched_again(hub: Hub, tmp_path: Path) -> None:
    hub.failing = {"agedb/test/test-0.tar"}
    with pytest.raises(ConcordError, match=r"owner/release at 0123456789ab: could not be fetched: .*(?s:.*)run again"):
        fetch(release(), tmp_path / "data", hub.url)
    assert not (tmp_path / "data").exists()
    hub.failing, hub.gets = set(), []
    fetch(release(), tmp_path / "data", hub.url)
    assert "agedb/test/test-0.tar" in hub.gets
    assert "agedb/train/train-0.tar" not in hub.gets


@pytest.mark.parametrize("name", ["agedb/train/train-0.tar", "agedb/README.md"])
def test_a_file_with_another_hash_is_refused(hub: Hub, tmp_path: Path, name: str) -> None:
    hub.broken = {name}
    with pytest.raises(ConcordError, match=f"{Path(name).name} does not have the hash that the hub lists"):
        fetch(release(), tmp_path / "data", hub.url)
    assert not (tmp_path / "data").exists()
    hub.broken = set()
    fetch(release(), tmp_path / "data", hub.url)
    assert (tmp_path / "data" / name).read_bytes() == hub.files[name]


def test_an_unknown_commit_is_an_error_without_secrets(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_planted_secret")
    with pytest.raises(ConcordError, match=r"could not be fetched: (?s:.*)Check ingest\.release\.hub") as caught:
        fetch(release("f" * 40), tmp_path / "data", hub.url)
    assert "planted" not in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_data_ensure_fetches_a_missing_release(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)  # the library reads it on import, hence the separate process
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "120")  # on a busy machine, 10 s are not enough
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "120")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    Path("data.dvc").write_text("outs: [{path: data, md5: 0}]\n")  # for the data of another experiment
    changed = {"source": "release", "split": "given-test", "path": "faces", "release": release().model_dump()}
    write_params(Path("params.yaml"), ingest=changed)
    command = [sys.executable, "-m", "components", "data", "ensure"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    assert set(content(Path("faces"))) == {name for name in hub.files if name.startswith("agedb/")}
    hub.gets = []
    ensure()
    assert not hub.gets
