"""Our DVC hashes are compared with those of DVC itself."""

import hashlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from components.errors import ConcordError
from components.shared.tracking.hashes import dvc_content, dvc_hash


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DVC repository without git that holds files with unusual names and sizes."""
    root = tmp_path_factory.mktemp("dvc")
    tree = root / "tree"
    (tree / "sub" / "deeper").mkdir(parents=True)
    (tree / "empty-folder").mkdir()
    (tree / "a.txt").write_text("one\r\ntwo\n")
    (tree / "Zeta").write_bytes(b"")
    (tree / "sub.txt").write_text("sorts between sub/ and sub0 by code point, not by folder")
    (tree / "sub" / "ü 漢.bin").write_bytes(bytes(range(256)) * 5000)
    (tree / "sub" / "deeper" / ".hidden").write_text("counts too")
    (root / "file.bin").write_bytes(b"\x00" * 3_000_000)
    for arguments in (("init", "--no-scm"), ("add", "tree", "file.bin")):
        subprocess.run([sys.executable, "-m", "dvc", "--quiet", *arguments], cwd=root, check=True)
    return root


@pytest.mark.parametrize("name", ["tree", "file.bin"])
def test_hash_size_and_number_of_files_equal_dvc_s(repository: Path, name: str) -> None:
    tracked = yaml.safe_load((repository / f"{name}.dvc").read_text())["outs"][0]
    assert dvc_hash(repository / name) == tracked["md5"]
    expected = {key: tracked[key] for key in ("md5", "size", "nfiles") if key in tracked}
    assert dvc_content(repository / name).to_json() == expected


def test_many_files_hashed_in_processes_give_the_same_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    for number in range(2500):
        (tmp_path / "a" / f"{number % 7} {number}").write_bytes(b"x" * number)
    in_threads = dvc_hash(tmp_path)
    monkeypatch.setattr("components.shared.tracking.hashes._MANY_FILES", 2000)
    assert dvc_hash(tmp_path) == in_threads


def test_one_changed_byte_changes_the_hash_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"a")
    before = dvc_hash(tmp_path)
    (tmp_path / "f").write_bytes(b"b")
    assert dvc_hash(tmp_path) != before
    listing = b'[{"md5": "0cc175b9c0f1b6a831c399e269772661", "relpath": "f"}]'  # md5 of "a"
    assert before == hashlib.md5(listing).hexdigest() + ".dir"


def test_what_has_no_content_is_not_hashed_and_blocks_nothing(tmp_path: Path) -> None:
    """Links to nothing gave a traceback, and a pipe waited for a writer without end."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "f").write_bytes(b"a")
    before = dvc_content(tmp_path)
    (tmp_path / "sub" / "gone.png").symlink_to(tmp_path / "gone")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "socket.png"))
        assert dvc_content(tmp_path) == before


def test_missing_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConcordError, match=r"no-such-path: missing"):
        dvc_hash(tmp_path / "no-such-path")
