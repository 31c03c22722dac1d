"""File systems without locks: a step reports it and goes on."""

import errno
import fcntl
import os
from pathlib import Path

import pytest

from components.shared.io import locks


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_the_work_goes_on_and_the_user_knows(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(file: object, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refused)
    with (
        locks.output_lock(tmp_path / "out"),
        locks.work_lock(tmp_path / "lock", "it"),
        locks.brief_lock(tmp_path / "b"),
    ):
        pass
    error = " ".join(capsys.readouterr().err.split())
    assert error.count("has no locks") == 2
    assert f"{tmp_path}: its file system" in error
