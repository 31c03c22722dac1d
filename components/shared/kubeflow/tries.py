"""The parent of a step in its pod: runs the step as a child process, and again where a retry may help.

Kubeflow's own retries (Argo's policy OnError) are for pods that are lost: it does not retry a step that exits with an
error, and no pipeline can change that. The parent passes signals on, and closes the step's MLflow runs where the step
cannot: a terminated pod is killed 0.65 seconds after SIGTERM. It imports no torch, and MLflow once a run is open.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from components.console import console
from components.errors import ConcordError, RetryableError
from components.shared.io.memory_limit import limit_bytes, memory_cgroup, processes_killed
from components.shared.io.stop import SIGNALS, Stopped, exit_code, forwarding, stop_signal
from components.shared.kubeflow.names import TRIES
from components.shared.tracking.open_runs import RUNS, OpenRuns, open_runs

TRY = "CONCORD_TRY"  # environment variable of the child: 1 for the first try
STOPPED = tuple(128 + number for number in SIGNALS)  # exit codes of a step that was asked to stop
FINAL = (1, 2, *STOPPED)  # exit codes that another try would not change
OUT_OF_MEMORY = 128 + signal.SIGKILL  # the exit code, as Kubernetes gives it
CLOSE_SECONDS = 20.0  # in which the runs of a step that has ended are closed


@dataclass(frozen=True)
class Tries:
    """How often a pod tries its step, with the settings of the cluster file.

    Attributes:
        retries: after the first try.
        seconds: waited before the first retry.
        factor: by which each further wait is longer.
        minutes: of all tries and waits together; the pod is killed then.
    """

    retries: int
    seconds: float
    factor: int
    minutes: float

    @classmethod
    def from_environment(cls) -> "Tries":
        """Reads what `to_json` returned; without the variable there is one try.

        Raises:
            ConcordError: the variable has something else.
        """
        value = os.environ.get(TRIES)
        if value is None:
            return cls(0, 1, 1, 1)
        try:
            return cls(**json.loads(value))
        except (ValueError, TypeError):
            raise ConcordError(f"{TRIES}={value}: not what `pipelines compile` writes. Unset it.") from None

    def to_json(self) -> str:
        """The value of the environment variable."""
        return json.dumps(asdict(self))


def run_tries(step: str, command: Sequence[str], tries: Tries, cgroup: Path | None = None) -> int:
    """Runs the command of a step until it succeeds, or fails in a way that another try would not change.

    Args:
        step: its name, for messages.
        command: the program and its arguments.
        tries: how often, and for how long.
        cgroup: of memory; None: this process's.

    Returns:
        The exit code of the last try; 137 where memory ran out, 128 + its number where a signal ended it.
    """
    end = time.monotonic() + tries.minutes * 60
    try:
        for number in range(1, tries.retries + 2):
            reason, code = _run_try(step, command, number, cgroup or memory_cgroup())
            if reason is None:
                return code
            wait = tries.seconds * tries.factor ** (number - 1)
            if number > tries.retries or time.monotonic() + wait >= end:
                left = "retry" if number > tries.retries else f"time of the {tries.minutes:g} minutes"
                console.print(f"{step}: {reason}, and no {left} is left", soft_wrap=True)
                return code
            console.print(f"{step}: {reason}; retry {number} of {tries.retries} in {wait:g} s", soft_wrap=True)
            time.sleep(wait)
    except Stopped as stop:
        return exit_code(stop)
    raise AssertionError("unreachable")


def _run_try(step: str, command: Sequence[str], number: int, cgroup: Path | None) -> tuple[str | None, int]:
    """Returns why another try may help, None where it would not, and the exit code of this one."""
    killed_before = processes_killed(cgroup)
    with open_runs() as runs:
        code = _run_child(command, number, runs)
        asked = stop_signal()
        lost = not asked and (code < 0 or code == RetryableError.exit_code)
        if lost:  # the step did not close its runs, or not those of a rank that was killed
            runs.close("FAILED")
        runs.finish(CLOSE_SECONDS)
    if asked:
        return None, code if code >= 0 else 128 + asked
    if code and code not in STOPPED and processes_killed(cgroup) > killed_before:
        message = _out_of_memory(step, limit_bytes(cgroup))
        console.print(f"[bold red]error[/] {step}: {message}", soft_wrap=True)
        return None, OUT_OF_MEMORY if lost else code
    if code < 0:
        return f"ended by {signal.Signals(-code).name}", 128 - code
    return (f"ended with exit code {code}" if lost else None), code


def _run_child(command: Sequence[str], number: int, runs: OpenRuns) -> int:
    """Runs the child to its end, passing on signals; returns its exit code, or minus the signal that ended it."""
    children: list[subprocess.Popen[bytes]] = []

    def forward(received: int) -> None:
        runs.close("KILLED")
        for child in children:
            child.send_signal(received)

    with forwarding(forward):
        environment = {**os.environ, TRY: str(number), RUNS: str(runs.pipe)}
        # A session of its own: a signal to the whole group would reach the child twice, and a second one ends it.
        children.append(subprocess.Popen(command, env=environment, start_new_session=True))
        if received := stop_signal():
            children[0].send_signal(received)
        return children[0].wait()


def _out_of_memory(step: str, limit: int | None) -> str:
    at = f" {limit / 2**30:.3g} GiB" if limit else ""
    return (
        f"out of memory: the kernel ended a process of the step at the limit{at}. It is not retried, since it would "
        f"run out again. Raise steps.{step}.memory in the cluster file, or use a smaller batch or more accumulation."
    )
