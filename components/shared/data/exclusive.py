"""One writer at a time: a step that outlived the `make run` that started it must not meet its own second run."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

console = Console(stderr=True, highlight=False)


@contextmanager
def exclusive(out: Path) -> Iterator[None]:
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
