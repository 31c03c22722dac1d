"""`timed_lock`: one holder at a time, released when the holder dies, and ignored on file systems without locks."""

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
from components.shared.tracking.lineage import compute_lineage
from components.shared.training.checkpoints import state_folder
from components.steps import STEPS

HOLD_LOCK = (
    "import sys; from pathlib import Path; from components.shared.io.locks import timed_lock\n"
    "with timed_lock(Path(sys.argv[1]), 'it'): print('locked', flush=True); input()"
)


def test_a_second_process_is_refused_until_the_holder_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "LOCK_SECONDS", 0.0)
    file = tmp_path / "state" / ".sft.lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD_LOCK, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        with (
            pytest.raises(ConcordError, match=r"state: another run is executing the same sft, .* Wait for it or stop"),
            timed_lock(file, "the same sft"),
        ):
            pytest.fail("two processes hold the lock")
        with timed_lock(tmp_path / "state" / ".other.lock", "another training"):
            pass
        monkeypatch.setattr(locks, "LOCK_SECONDS", 30.0)
        holder.kill()
        with timed_lock(file, "the same sft"):
            pass


def test_without_locks_in_the_file_system_nothing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(_: int, __: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with timed_lock(tmp_path / "a.lock", "it"), timed_lock(tmp_path / "a.lock", "it"):
        pass


def test_a_step_that_another_run_executes_is_refused_before_it_writes_anything(
    store: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where that run has another result of validate: sft does not read it, and both have one training state."""
    monkeypatch.setattr(locks, "LOCK_SECONDS", 0.0)
    inputs = {port: store / port for port in STEPS["sft"].inputs}
    for folder in inputs.values():
        folder.mkdir()
    folder = state_folder(store / "state" / "sft", compute_lineage(STEPS["sft"], settings, inputs))
    (inputs["validate"] / "metrics.json").write_text("{}", encoding="utf-8")
    with (
        timed_lock(store / "state" / f".sft-{folder.name}.lock", "it"),
        pytest.raises(ConcordError, match="executing the same sft"),
    ):
        run(StepCall(STEPS["sft"], settings, inputs, {"out": store / "out"}, store / "state", ()))
    assert not (store / "out").exists()
    assert list(folder.iterdir()) == []
