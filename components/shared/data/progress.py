"""A progress line for a stream of rows or bytes: how many, how fast, and, where the number is known, how long still."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
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


class _Count(ProgressColumn):
    def render(self, task: Task) -> Text:
        of = f"/{task.total:,.0f}" if task.total else ""
        speed = f"  {task.speed:,.0f}/s" if task.speed else ""
        return Text(f"{task.completed:,.0f}{of}{speed}")


def counted(items: Iterable[T], title: str, total: int | None = None) -> Iterator[T]:
    """The items, with a line on stderr while they pass, gone at the end; without a terminal there is none."""
    columns = (TextColumn("{task.description}"), BarColumn(), _Count(), TimeElapsedColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, refresh_per_second=4, disable=not console.is_terminal
    ) as progress:
        yield from progress.track(items, total=total, description=title)


@contextmanager
def transferred(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """The same line for `total` bytes: gives what is to be called, by any thread, with the bytes that have come."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn())
    console = Console(stderr=True)
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, refresh_per_second=4,
        disable=not console.is_terminal,
    ) as progress:  # fmt: skip
        task = progress.add_task(title, total=total)
        yield lambda count: progress.update(task, advance=count)
