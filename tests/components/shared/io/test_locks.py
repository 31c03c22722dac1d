"""`work_lock`: one holder at a time, released when the holder dies, and ignored on file systems without locks."""

import errno
import fcntl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from components.shared.io.locks import work_lock

HOLD_LOCK = (
    "import sys; from pathlib import Path; from components.shared.io.locks import work_lock\n"
    "with work_lock(Path(sys.argv[1]), 'it') as waited: print(waited, flush=True); input()"
)


@contextmanager
def holder(file: Path) -> Iterator[Any]:
    words = [sys.executable, "-c", HOLD_LOCK, str(file)]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, text=True, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("killed", [False, True])
def test_a_second_process_waits_until_the_holder_ends_or_is_killed(killed: bool, tmp_path: Path) -> None:
    file = tmp_path / "state" / ".sft.lock"
    with holder(file) as first:
        assert first.stdout.readline() == "False\n"
        with holder(file) as second:
            assert "state: another run is executing it; waiting for it to finish" in second.stderr.readline()
            assert second.poll() is None
            with work_lock(tmp_path / "state" / ".other.lock", "another training") as waited:
                assert not waited
            if killed:
                first.kill()
            else:
                first.communicate("\n")
            assert second.stdout.readline() == "True\n"


def test_without_locks_in_the_file_system_nothing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(_: int, __: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with work_lock(tmp_path / "a.lock", "it"), work_lock(tmp_path / "a.lock", "it") as waited:
        assert not waited
