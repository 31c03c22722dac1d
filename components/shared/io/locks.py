"""Locks that keep two runs from writing the same output, such as a rerun while the first run is still alive."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from components.console import console


@contextmanager
def output_lock(out: Path) -> Iterator[None]:
    """Holds an exclusive lock on writing `out`; while another process holds it, prints its process id and waits.

    The kernel releases the lock when the process ends, even if it is killed. The lock file `.NAME.lock` is kept. On a
    file system without locks, such as some network volumes, nothing is locked, which is reported.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(out.parent / f".{out.name}.lock", "a+", encoding="ascii") as file:
        if not _try_lock(file.fileno(), out):
            file.seek(0)
            console.print(f"{out} is being written by process {file.read().strip() or '?'}; waiting for it to finish")
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextmanager
def work_lock(file: Path, what: str) -> Iterator[bool]:
    """Holds an exclusive lock; while another process holds it, possibly on another machine, reports that and waits.

    The kernel releases the lock when the process ends, even if it is killed. On a file system without locks, such as
    some network volumes, nothing is locked, which is reported.

    Args:
        file: the lock file; it is kept.
        what: the work that the lock protects, for the message.

    Yields:
        Whether another process held the lock: it may have done the work.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "a", encoding="ascii") as opened:
        waits = not _try_lock(opened.fileno(), file)
        if waits:
            console.print(f"{file.parent}: another run is executing {what}; waiting for it to finish", soft_wrap=True)
            fcntl.flock(opened, fcntl.LOCK_EX)
        yield waits


@contextmanager
def brief_lock(file: Path) -> Iterator[None]:
    """Holds an exclusive lock for a moment's work; on a file system without locks, none."""
    with open(file, "a", encoding="ascii") as opened:
        with suppress(OSError):
            fcntl.flock(opened, fcntl.LOCK_EX)
        yield


def _try_lock(descriptor: int, path: Path) -> bool:
    """Whether the lock is held now; also True where the file system has no locks, which is reported."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        console.print(
            f"[yellow]warning[/] {path.parent}: its file system has no locks ({error.strerror}). Make sure that no "
            "other run writes there at the same time.",
            soft_wrap=True,
        )
    return True
