"""A step's parent in the pod: what it retries, what it reports, and the signals that it passes on. Real processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from components.errors import ConcordError
from components.shared.io.memory_limit import limit_bytes, memory_cgroup, processes_killed
from components.shared.kubeflow.tries import Tries, run_tries

ROOT = Path(__file__).parents[4]
TWO = Tries(retries=2, seconds=0.01, factor=2, minutes=10)
# Runs a shell script as the step of a pod, with two retries.
PARENT = """
import sys
from components.shared.io.stop import handle_stop_signals
from components.shared.kubeflow.tries import Tries, run_tries
handle_stop_signals()
sys.exit(run_tries("sft", ["sh", "-c", sys.argv[1]], Tries(2, float(sys.argv[2]), 1, 10)))
"""


def run(script: str, tries: Tries = TWO, cgroup: Path | None = None) -> int:
    return run_tries("sft", ["sh", "-c", script], tries, cgroup)


@pytest.mark.parametrize("code", [0, 1, 2, 3, 129, 130, 143])
def test_what_another_try_would_not_change_is_not_retried(code: int, tmp_path: Path) -> None:
    assert run(f"echo >> {tmp_path}/tries; exit {code}") == code
    assert (tmp_path / "tries").read_text() == "\n"


@pytest.mark.parametrize("end", ["exit 75", "kill -KILL $$", "kill -SEGV $$", "kill -TERM $$"])
def test_what_another_try_may_change_is_retried(end: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The third try succeeds. The parent got no signal, so a child that is killed was killed by somebody else."""
    assert run(f"echo $CONCORD_TRY >> {tmp_path}/tries; test $CONCORD_TRY = 3 || {end}") == 0
    assert (tmp_path / "tries").read_text().split() == ["1", "2", "3"]
    error = capsys.readouterr().err
    assert "retry 1 of 2 in 0.01 s" in error
    assert "retry 2 of 2 in 0.02 s" in error


@pytest.mark.parametrize(("end", "code"), [("exit 75", 75), ("kill -KILL $$", 137), ("kill -SEGV $$", 139)])
def test_tries_end_with_the_last_exit_code(
    end: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(f"echo >> {tmp_path}/tries; {end}") == code
    assert (tmp_path / "tries").read_text() == "\n\n\n"
    assert "and no retry is left" in capsys.readouterr().err


def test_tries_and_waits_share_the_pod_s_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A retry that would begin when the pod is killed is none."""
    assert run(f"echo >> {tmp_path}/tries; exit 75", Tries(5, 3600, 1, 60)) == 75
    assert (tmp_path / "tries").read_text() == "\n"
    assert "no time of the 60 minutes is left" in capsys.readouterr().err


CGROUPS = pytest.mark.parametrize(
    ("events", "limit"), [("memory.events", "memory.max"), ("memory.oom_control", "memory.limit_in_bytes")]
)


@CGROUPS
@pytest.mark.parametrize(("end", "code"), [("kill -KILL $$", 137), ("exit 75", 137), ("exit 1", 1)])
def test_a_step_without_memory_is_reported_with_the_limit_and_not_retried(
    events: str, limit: str, end: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The kernel's files of cgroup 2 and 1. It may have ended the step, a rank of it (75), or a worker (1)."""
    (tmp_path / events).write_text("low 0\nmax 3\noom 1\noom_kill 1\n")
    (tmp_path / limit).write_text(f"{8 << 30}\n")
    count = f"sed -i 's/oom_kill 1/oom_kill 2/' {tmp_path}/{events}"
    assert run(f"echo >> {tmp_path}/tries; {count}; {end}", cgroup=tmp_path) == code
    assert (tmp_path / "tries").read_text() == "\n"
    error = capsys.readouterr().err
    assert "error sft: out of memory: the kernel ended a process of the step at the limit 8 GiB." in error
    assert "Raise steps.sft.memory in the cluster file" in error


@CGROUPS
def test_an_earlier_lack_of_memory_does_not_count(events: str, limit: str, tmp_path: Path) -> None:
    (tmp_path / events).write_text("oom_kill 7\n")
    assert run(f"echo >> {tmp_path}/tries; test $CONCORD_TRY = 2 || exit 75", cgroup=tmp_path) == 0


def test_the_memory_cgroup_is_found_from_inside_a_container_and_outside(tmp_path: Path) -> None:
    """Inside, it is the root, whatever the host's path."""
    membership = tmp_path / "membership"
    assert memory_cgroup(membership, tmp_path) is None
    membership.write_text("5:cpu:/a\n0::/kubepods/pod1\n")
    assert memory_cgroup(membership, tmp_path) is None
    (tmp_path / "memory.events").write_text("oom_kill 2\n")
    (tmp_path / "memory.max").write_text("max\n")
    found = memory_cgroup(membership, tmp_path)
    assert (found, processes_killed(found), limit_bytes(found)) == (tmp_path, 2, None)
    deep = tmp_path / "kubepods" / "pod1"
    deep.mkdir(parents=True)
    (deep / "memory.events").write_text("oom_kill 3\n")
    assert processes_killed(memory_cgroup(membership, tmp_path)) == 3
    membership.write_text("4:memory:/docker/x\n0::/\n")
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 4\n")
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    found = memory_cgroup(membership, tmp_path)
    assert (processes_killed(found), limit_bytes(found)) == (4, None)
    assert (processes_killed(None), limit_bytes(None)) == (0, None)


def test_the_settings_travel_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONCORD_TRIES", raising=False)
    assert Tries.from_environment().retries == 0
    monkeypatch.setenv("CONCORD_TRIES", TWO.to_json())
    assert Tries.from_environment() == TWO
    for value in ("", "3", '{"retries": 3}'):
        monkeypatch.setenv("CONCORD_TRIES", value)
        with pytest.raises(ConcordError, match=r"CONCORD_TRIES=.*not what `pipelines compile` writes"):
            Tries.from_environment()


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def begin(script: str, seconds: float = 0.01) -> "subprocess.Popen[str]":
        words = [sys.executable, "-c", PARENT, script, str(seconds)]
        process = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait()


def wait_for(file: Path, process: "subprocess.Popen[str]") -> str:
    deadline = time.monotonic() + 120
    while not (file.exists() and file.read_text()):
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline, file
        time.sleep(0.02)
    return file.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_passed_on_once_and_the_step_is_not_retried(
    number: signal.Signals, start: Start, tmp_path: Path
) -> None:
    name = number.name.removeprefix("SIG")
    trap = f"trap 'echo got >> {tmp_path}/got; exit 75' {name}"
    process = start(f"{trap}; echo $$ > {tmp_path}/ready; while true; do sleep 0.05; done")
    wait_for(tmp_path / "ready", process)
    process.send_signal(number)
    assert process.wait(timeout=120) == 75
    assert (tmp_path / "got").read_text() == "got\n"
    assert "retry" not in (process.stderr.read() if process.stderr else "")


def test_a_step_that_dies_of_the_signal_is_not_retried(start: Start, tmp_path: Path) -> None:
    process = start(f"echo $$ >> {tmp_path}/ready; exec sleep 600")
    wait_for(tmp_path / "ready", process)
    process.terminate()
    assert process.wait(timeout=120) == 143
    assert len((tmp_path / "ready").read_text().split()) == 1


def test_a_second_signal_reaches_the_step(start: Start, tmp_path: Path) -> None:
    """The step decides what it means; the parent stays as long as the step."""
    trap = f"trap 'echo got >> {tmp_path}/got' TERM; trap 'exit 9' INT"
    process = start(f"{trap}; echo $$ > {tmp_path}/ready; while true; do sleep 0.05; done")
    wait_for(tmp_path / "ready", process)
    process.terminate()
    wait_for(tmp_path / "got", process)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=120) == 9


def test_a_signal_between_two_tries_ends_the_wait(start: Start, tmp_path: Path) -> None:
    process = start(f"echo $$ >> {tmp_path}/ready; exit 75", seconds=500)
    assert process.stderr
    assert "retry 1 of 2 in 500 s" in process.stderr.readline()
    process.terminate()
    assert process.wait(timeout=120) == 143
    assert len((tmp_path / "ready").read_text().split()) == 1


def test_the_step_is_in_a_session_of_its_own(tmp_path: Path) -> None:
    """Otherwise a signal to the container's process group would reach it twice."""
    assert run(f"echo $$ > {tmp_path}/step; cut -d ' ' -f 6 /proc/$$/stat >> {tmp_path}/step") == 0
    process, session = (tmp_path / "step").read_text().split()
    assert process == session != str(os.getsid(0))
