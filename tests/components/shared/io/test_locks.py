"""The right to a training's state: one at a time, free again when its holder has ended, and no matter without locks."""

import errno
import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from components.errors import ConcordError
from components.runner import StepCall, run
from components.settings import Settings
from components.shared.io import locks
from components.shared.io.locks import timed_lock
from components.shared.tracking.lineage import lineage_of
from components.steps import STEPS

HOLD = (
    "import sys; from pathlib import Path; from components.shared.io.locks import timed_lock\n"
    "with timed_lock(Path(sys.argv[1]), 'it'): print('has it', flush=True); input()"
)


def test_the_second_is_refused_and_a_holder_that_was_killed_holds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "LOCK_SECONDS", 0.0)
    file = tmp_path / "state" / ".sft.lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "has it\n"
        with (
            pytest.raises(ConcordError, match=r"state: another run is at the same sft, .* Let it end"),
            timed_lock(file, "the same sft"),
        ):
            pytest.fail("two have it")
        with timed_lock(tmp_path / "state" / ".other.lock", "another training"):
            pass
        monkeypatch.setattr(locks, "LOCK_SECONDS", 30.0)
        holder.kill()
        with timed_lock(file, "the same sft"):
            pass


def test_where_the_file_system_has_no_locks_nothing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(_: int, __: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with timed_lock(tmp_path / "a.lock", "it"), timed_lock(tmp_path / "a.lock", "it"):
        pass


def test_a_training_that_another_run_is_at_is_refused_before_it_touches_anything(
    store: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "LOCK_SECONDS", 0.0)
    inputs = {port: store / port for port in STEPS["sft"].inputs}
    for place in inputs.values():
        place.mkdir()
    key = lineage_of(STEPS["sft"], settings, inputs).key
    assert key is not None
    with (
        timed_lock(store / "state" / f".sft-{key[:16]}.lock", "it"),
        pytest.raises(ConcordError, match="at the same sft"),
    ):
        run(StepCall(STEPS["sft"], settings, inputs, {"out": store / "out"}, store / "state", ()))
    assert not (store / "out").exists()
    assert not (store / "state" / "sft").exists()
