"""Signals to real processes: one is answered at a safe point, a second one at once."""

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
# Works in `finishing` until it is asked to stop, then for SECONDS more; writes what happened to FILE.
WORK = """
import sys, time
from components.shared.io.stop import Stopped, exit_code, finishing
from components.shared.io.stop import handle_stop_signals, stop_signal, stop_when_parent_dies
handle_stop_signals()
file, seconds, parent = open(sys.argv[1], "w", buffering=1), float(sys.argv[2]), len(sys.argv) > 3
if parent:
    stop_when_parent_dies()
try:
    with finishing("this step"):
        file.write("started\\n")
        while not stop_signal():
            time.sleep(0.01)
        time.sleep(seconds)
        print("finished", flush=True)
        file.write("finished\\n")
except Stopped as stop:
    file.write("stopped\\n")
    sys.exit(exit_code(stop))
"""


def started(log: Path, seconds: float, **options: object) -> "subprocess.Popen[bytes]":
    process = subprocess.Popen([sys.executable, "-c", WORK, str(log), str(seconds)], cwd=ROOT, **options)  # type: ignore[call-overload]
    wait_for(log, "started")
    return process


def wait_for(log: Path, word: str) -> None:
    deadline = time.monotonic() + 60
    while not (log.exists() and word in log.read_text()):
        assert time.monotonic() < deadline, f"no {word!r} in {log.read_text() if log.exists() else log}"
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_work_is_finished_and_the_exit_code_names_the_signal(number: signal.Signals, tmp_path: Path) -> None:
    process = started(tmp_path / "log", 0.1, stdout=subprocess.DEVNULL)
    process.send_signal(number)
    assert process.wait(timeout=30) == 128 + number
    assert (tmp_path / "log").read_text() == "started\nfinished\nstopped\n"


def test_a_second_signal_ends_the_process_at_once(tmp_path: Path) -> None:
    process = started(tmp_path / "log", 600, stdout=subprocess.DEVNULL)
    process.send_signal(signal.SIGINT)
    time.sleep(1.2)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 143
    assert (tmp_path / "log").read_text() == "started\n"


def test_the_two_signals_of_a_closed_terminal_are_one_request(tmp_path: Path) -> None:
    process = started(tmp_path / "log", 0.5, stdout=subprocess.DEVNULL)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.1)
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=30) == 129
    assert (tmp_path / "log").read_text() == "started\nfinished\nstopped\n"


def test_output_to_a_closed_terminal_is_no_error(tmp_path: Path) -> None:
    terminal, end = pty.openpty()
    process = started(tmp_path / "log", 0.1, stdin=end, stdout=end, stderr=end, start_new_session=True)
    os.close(end)
    os.close(terminal)
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=30) == 129
    assert (tmp_path / "log").read_text() == "started\nfinished\nstopped\n"


def test_nohup_is_respected(tmp_path: Path) -> None:
    process = started(
        tmp_path / "log",
        0.1,
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert process.poll() is None
    process.terminate()
    assert process.wait(timeout=30) == 143


def test_the_death_of_the_parent_is_a_request_to_stop(tmp_path: Path) -> None:
    log = tmp_path / "log"
    between = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {WORK!r}, {str(log)!r}, '0', 'parent'])"
    parent = subprocess.Popen([sys.executable, "-c", between], cwd=ROOT, stdout=subprocess.DEVNULL)
    wait_for(log, "started")
    parent.kill()
    parent.wait()
    wait_for(log, "stopped")
