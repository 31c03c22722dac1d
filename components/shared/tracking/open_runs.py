"""The MLflow runs that a step has open: the step names them to its parent process, which can close them without it.

A step that is killed, or that computes in C while it should stop, cannot close its runs itself.
"""

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from components.errors import ConcordError

RUNS = "CONCORD_RUNS"  # environment variable: the pipe on which a step names its runs
_CLOSE, _END = b"close", b"end"  # what the parent itself writes to the pipe


def announce(*run_ids: str) -> None:
    """Names runs that this process has opened to the parent of the step, if it has one that listens."""
    pipe = os.environ.get(RUNS)
    if pipe is None:
        return
    with suppress(OSError):  # the parent is gone
        descriptor = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        with open(descriptor, "wb") as file:
            file.write("".join(f"run {run_id}\n" for run_id in run_ids).encode())


class OpenRuns:
    """The parent's list of the runs, and its connection to MLflow, which is opened with the first run.

    A thread does the work, since importing MLflow takes seconds in which signals must be answered.

    Attributes:
        pipe: the value of RUNS for the step's process.
    """

    def __init__(self, pipe: Path) -> None:
        """Creates the pipe and starts the thread; see `open_runs`."""
        os.mkfifo(pipe, 0o600)
        self.pipe = pipe
        # Both ends, so that a read waits for the next step where none has the pipe open.
        self._descriptor = os.open(pipe, os.O_RDWR)
        self._thread = threading.Thread(target=self._follow, daemon=True, name="open-runs")
        self._thread.start()

    def close(self, status: str) -> None:
        """Asks the thread to give all runs this status, with one request each. Not after `finish`.

        Returns at once, as the handler of a signal must.
        """
        os.write(self._descriptor, b"%s %s\n" % (_CLOSE, status.encode()))

    def finish(self, seconds: float) -> None:
        """Waits until what was asked is done, at most so many seconds."""
        os.write(self._descriptor, _END + b"\n")
        self._thread.join(seconds)

    def _follow(self) -> None:
        from components.shared.tracking.connection import connect

        runs: list[str] = []
        client = None
        with open(self._descriptor, "rb") as messages:
            for message in messages:
                kind, _, value = message.strip().partition(b" ")
                if kind == _END:
                    return
                if kind != _CLOSE:
                    runs.append(value.decode())
                    with suppress(ConcordError):  # the step itself reports what is wrong with MLflow
                        client = client or connect()
                elif client is not None:
                    for run_id in runs:
                        with suppress(Exception):
                            client.set_terminated(run_id, value.decode())


@contextmanager
def open_runs() -> Iterator[OpenRuns]:
    """Listens for runs while the block lasts."""
    with tempfile.TemporaryDirectory() as folder:
        yield OpenRuns(Path(folder) / "runs")
