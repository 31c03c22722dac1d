"""One writer at a time: a step that outlived the `make run` that started it must not meet its own second run."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from components.console import console
from components.errors import ConcordError

LOCK_SECONDS = 60.0  # seconds: a container that is being ended has thirty


@contextmanager
def output_lock(out: Path) -> Iterator[None]:
    """Holds the only right to make `out`; waits, and says for whom, while another process has it.

    The lock is the kernel's and ends with its process, however that ends. The file `.NAME.lock` beside `out` stays.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(out.parent / f".{out.name}.lock", "a+", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            console.print(f"{out} is being made by process {file.read().strip() or '?'}; waiting for it to end")
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextmanager
def timed_lock(file: Path, what: str) -> Iterator[None]:
    """Holds the only right to `what`, or refuses; the lock is the kernel's and ends with its process.

    A volume in a network may know no locks. Then nothing is held, and nothing refused.

    Args:
        file: of the lock; it stays.
        what: for people: what another process may be at.

    Raises:
        ConcordError: another process, perhaps on another machine, has it for a minute.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "a", encoding="ascii") as opened:
        last = time.monotonic() + LOCK_SECONDS
        while not _locked_or_lockless(opened.fileno()):
            if time.monotonic() >= last:
                raise ConcordError(
                    f"{file.parent}: another run is at {what}, with the same code and settings, and they would share "
                    "its training state. Let it end, or end it, and start this one again: it takes or makes the same."
                )
            time.sleep(1.0)
        yield


def _locked_or_lockless(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # the file system has no locks
        return True
    return True
