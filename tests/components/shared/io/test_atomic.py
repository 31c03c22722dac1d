"""A folder is whole after a kill at any point of its replacement, and on disk before it is renamed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from components.shared.io.atomic import new_folder, restored

ROOT = Path(__file__).parents[4]
# Replaces FOLDER and kills itself at the call number N that touches the disk; `fallback`: without an exchange.
WRITE = """
import os, shutil, signal, sys
from pathlib import Path
from components.shared.io import atomic
folder, count = Path(sys.argv[1]), int(sys.argv[2])
calls = []
def counted(function):
    def call(*arguments, **options):
        calls.append(function.__name__)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return call
for module, names in ((os, ("replace", "rename", "fsync", "unlink", "rmdir")), (atomic, ("_exchange",))):
    for name in names:
        setattr(module, name, counted(getattr(module, name)))
if len(sys.argv) > 3:
    atomic._exchange = lambda one, other: False
with atomic.new_folder(folder) as new:
    for name in "abc":
        (new / name).write_text("new")
"""


def content(folder: Path) -> set[str]:
    return {file.name + file.read_text() for file in folder.iterdir()}


@pytest.mark.parametrize("words", [[], ["fallback"]])
def test_a_kill_at_any_point_leaves_the_old_or_the_new_folder(words: list[str], tmp_path: Path) -> None:
    whole, seen = {"aold", "bold"}, []
    for count in range(1, 40):
        folder = tmp_path / str(count) / "out"
        with new_folder(folder) as first:
            for name in "ab":
                (first / name).write_text("old")
        words_of = [sys.executable, "-c", WRITE, str(folder), str(count), *words]
        code = subprocess.run(words_of, cwd=ROOT, check=False).returncode
        found = content(restored(folder))
        assert found in (whole, {"anew", "bnew", "cnew"}), f"killed at call {count}"
        seen.append(found == whole)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        with new_folder(folder) as third:
            (third / "d").write_text("third")
        assert os.listdir(folder.parent) == ["out"], "leftovers"
    assert code == 0
    assert True in seen
    assert seen == sorted(seen, reverse=True), "the old one first, then the new one"


def test_a_reader_that_restores_in_the_middle_does_not_break_the_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, replace = tmp_path / "out", os.replace
    readers: list[set[str]] = []
    with new_folder(folder) as first:
        (first / "a").write_text("old")

    def with_reader(source: Path, target: Path) -> None:
        if Path(target) == folder and not readers:
            readers.append(content(restored(folder)))
        replace(source, target)

    monkeypatch.setattr("components.shared.io.atomic._exchange", lambda one, other: False)
    monkeypatch.setattr(os, "replace", with_reader)
    with new_folder(folder) as second:
        (second / "a").write_text("new")
    assert readers == [{"aold"}]
    assert content(folder) == {"anew"}
    assert os.listdir(tmp_path) == ["out"]


def test_every_file_is_on_disk_before_the_folder_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync, flushed = os.fsync, []

    def recorded(descriptor: int) -> None:
        flushed.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).relative_to(tmp_path).as_posix())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recorded)
    with new_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
        (folder / "deep").mkdir()
        (folder / "deep" / "b").write_text("2")
        (folder / "link").symlink_to("a")
    before, after = flushed[:-1], flushed[-1]
    assert sorted(before) == [".out.partial", ".out.partial/a", ".out.partial/deep", ".out.partial/deep/b"]
    assert after == "."


def test_what_a_kill_left_is_found_by_the_step_that_reads_it(tmp_path: Path) -> None:
    (tmp_path / ".ingest.old").mkdir()
    (tmp_path / ".ingest.old" / "metrics.json").write_text(json.dumps({}))
    assert (restored(tmp_path / "ingest") / "metrics.json").exists()
