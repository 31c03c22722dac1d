"""Progress bars for streams of rows or bytes: count, speed and, where the total is known, remaining time."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

T = TypeVar("T")

LINE_SECONDS = 30.0  # between two progress lines in a log


class _Count(ProgressColumn):
    def render(self, task: Task) -> Text:
        of = f"/{task.total:,.0f}" if task.total else ""
        speed = f"  {task.speed:,.0f}/s" if task.speed else ""
        return Text(f"{task.completed:,.0f}{of}{speed}")


def with_progress(items: Iterable[T], title: str, total: int | None = None) -> Iterator[T]:
    """Yields the items and shows a progress bar on stderr meanwhile; without a terminal it shows nothing."""
    columns = (TextColumn("{task.description}"), BarColumn(), _Count(), TimeElapsedColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, refresh_per_second=4, disable=not console.is_terminal
    ) as progress:
        yield from progress.track(items, total=total, description=title)


@contextmanager
def transfer_progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows a progress bar for a transfer of `total` bytes.

    Gives a function to call, from any thread, with the number of bytes that have arrived. A transfer may take hours, so
    without a terminal a line is printed every LINE_SECONDS.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn())
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _ProgressLog(console, title, total).advance
        return
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, refresh_per_second=4
    ) as progress:  # fmt: skip
        task = progress.add_task(title, total=total)
        yield lambda count: progress.update(task, advance=count)


class _ProgressLog:
    """Prints the number of bytes so far as log lines."""

    def __init__(self, console: Console, title: str, total: int) -> None:
        self._console, self._title, self._total = console, title, total
        self._done, self._lock, self._next = 0, Lock(), time.monotonic() + LINE_SECONDS

    def advance(self, count: int) -> None:
        with self._lock:
            self._done += count
            if (now := time.monotonic()) < self._next:
                return
            self._next = now + LINE_SECONDS
            done, total = self._done / 2**20, self._total / 2**20
            self._console.print(f"{self._title}: {done:,.1f} of {total:,.1f} MiB", highlight=False)
