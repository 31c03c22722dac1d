"""What a step creates in a pod, and a path that it may not write to: real processes, under a real user."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from components.shared.io.permissions import denied_message

ROOT = Path(__file__).parents[4]
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2


def without_override() -> None:
    """Makes root obey the modes of files, from the next program on, as a container's user does."""
    for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


def step(words: list[str], folder: Path, **options: Any) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "components", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "1000"}
    environment |= {"HOME": str(folder), "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, **options)


def test_a_stricter_umask_stays() -> None:
    code = "import os; from components.shared.io.permissions import restrict_umask as r; r(); print(os.umask(0))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, umask=0o077)
    assert run.stdout == f"{0o077}\n", run.stderr


def test_in_a_pod_nothing_is_writable_by_others_and_a_volume_without_permission_is_reported(tmp_path: Path) -> None:
    for name in ("in", "warm", "checkpoints"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoints").chmod(0o555)
    words = ["grpo", "--params", str(ROOT / "params.yaml"), "--ingest", "in", "--sft", "warm", "--out", "made/out"]
    words += ["--state", "checkpoints", "--executor-input", '{"outputs": {"outputFile": "/x"}}']
    run = step(words, tmp_path, umask=0, preexec_fn=without_override)
    assert run.returncode == 1, run.stderr
    assert "Traceback" not in run.stderr
    user = f"user {os.getuid()} (group {os.getgid()})"
    assert f"{user} has no permission: {tmp_path}/checkpoints belongs to {user} and has mode 555" in run.stderr
    assert "Change its owner (chown) or mode (chmod)" in run.stderr
    assert "pipelines/README.md, step 3" in run.stderr
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o755, "Argo sets umask 0"
    assert (tmp_path / "made" / ".out.lock").stat().st_mode & 0o777 == 0o644


def test_other_errors_are_not_reported_as_permissions() -> None:
    assert denied_message(FileNotFoundError(2, "No such file", "x")) is None
    assert denied_message(PermissionError(1, "Operation not permitted")) is None  # of no path
    assert denied_message(OSError(30, "Read-only file system", "/usr/x")) == (
        "/usr/x: its file system is read-only. Choose a path on another one."
    )
