"""Progress of long work: a bar in a terminal; elsewhere, as in pods, logs and CI, a line every LINE_SECONDS.

Only this module decides which. A line reports the innermost work under way. It comes from whoever advances the work,
or from a thread if nothing advances for so long. Ranks other than 0 show nothing.
"""

import operator
import os
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import Event, Lock, Thread
from typing import TypeVar

from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from components.console import console

T = TypeVar("T")

LINE_SECONDS = 30.0  # between two lines
REFRESH_SECONDS = 0.25  # between two states of a bar
MIB = 2**20


class _Count(ProgressColumn):
    def render(self, task: Task) -> Text:
        of = f"/{task.total:,.0f}" if task.total else ""
        speed = f"  {task.speed:,.0f}/s" if task.speed else ""
        return Text(f"{task.completed:,.0f}{of}{speed}")


class Work:
    """A piece of work whose progress is shown while it is under way: between `start` and `stop`, or in a `with` block.

    Attributes:
        title: what is done.
    """

    def __init__(
        self,
        title: str,
        total: int | None = None,
        *,
        done: int = 0,
        unit: str = "",
        columns: Sequence[ProgressColumn] = (),
    ) -> None:
        """Shows nothing yet.

        Args:
            total: how much there is to do; None if that is unknown.
            done: how much of it was done before.
            unit: `step`, stands before the numbers of a line; `MiB`: the numbers are bytes.
            columns: of the bar, after the title; without columns, a terminal shows nothing.
        """
        self.title = title
        self._total, self._done, self._before, self._unit, self._detail = total, done, done, unit, ""
        self._columns = columns
        self._began = self._refreshed = time.monotonic()
        self._lock = Lock()
        self._bar: Progress | None = None

    def start(self) -> "Work":
        """Opens the bar, or has lines printed from now on."""
        self._began = time.monotonic()
        if os.environ.get("RANK", "0") != "0":
            return self
        if not console.is_terminal:
            _lines.begin(self)
        elif self._columns:
            self._bar = Progress(
                TextColumn("{task.description}"),
                *self._columns,
                TextColumn("{task.fields[detail]}"),
                console=console,
                transient=True,
                refresh_per_second=4,
            )
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self._total, completed=self._done, detail="")
        return self

    def advance(self, count: int = 1) -> None:
        """Adds to what is done; any thread may call it."""
        with self._lock:
            self._done += count
        self._changed()

    def show(self, done: int, detail: str | None = None) -> None:
        """Sets what is done, and what else there is to report, such as figures; None leaves that as it is."""
        with self._lock:
            self._done = done
            self._detail = self._detail if detail is None else detail
        self._changed()

    def stop(self) -> None:
        """Closes the bar, or ends the lines. Calling it twice is harmless."""
        _lines.end(self)
        if self._bar is not None:
            self._bar.stop()

    def line(self) -> str:
        """Returns `title: 30 of 400, figures, 2 min left`."""
        seconds, done = time.monotonic() - self._began, self._done - self._before
        parts = [self._amount()] if self._done or self._total else []
        parts += [self._detail] if self._detail else []
        if self._total and self._done >= self._total:
            parts.append(f"in {_duration(seconds)}")
        elif self._total and done:
            parts.append(f"{_duration(seconds / done * (self._total - self._done))} left")
        else:
            parts.append(f"{'' if parts else 'working '}for {_duration(seconds)}")
        return f"{self.title}: {', '.join(parts)}"

    def _amount(self) -> str:
        numbers = [self._done] if self._total is None else [self._done, self._total]
        if self._unit == "MiB":
            return f"{' of '.join(f'{number / MIB:,.1f}' for number in numbers)} MiB"
        return f"{self._unit} {' of '.join(f'{number:,.0f}' for number in numbers)}".strip()

    def _changed(self) -> None:
        if self._bar is None:
            _lines.print_if_due()
        elif (now := time.monotonic()) - self._refreshed >= REFRESH_SECONDS:
            self._refreshed = now
            self._bar.update(self._task, completed=self._done, detail=self._detail)

    def __enter__(self) -> "Work":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def with_progress(items: Iterable[T], title: str, total: int | None = None) -> Iterator[T]:
    """Yields the items and shows meanwhile how many have been taken; `total` is their number if it is known."""
    columns = (BarColumn(), _Count(), TimeElapsedColumn(), TimeRemainingColumn())
    with Work(title, total or operator.length_hint(items) or None, columns=columns) as work:
        for item in items:
            yield item
            work.advance()


@contextmanager
def transfer_progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows the progress of a transfer of `total` bytes.

    Gives a function to call, from any thread, with the number of bytes that have arrived.
    """
    columns = (BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn())
    with Work(title, total, unit="MiB", columns=columns) as work:
        yield work.advance


def training_progress(total: int, done: int) -> Work:
    """Returns the progress of a training of `total` steps, of which a resumed one has `done` some before."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Work("training", total, done=done, unit="step", columns=columns)


@contextmanager
def lines_elsewhere() -> Iterator[None]:
    """Prints no lines in the block, since processes that this one starts print their own."""
    _lines.paused = True
    try:
        yield
    finally:
        _lines.paused = False


class _Lines:
    """Prints the lines of this process.

    Attributes:
        paused: whether other processes print.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forgets everything; a forked process inherits no thread."""
        self.paused = False
        self._lock = Lock()
        self._works: list[weakref.ref[Work]] = []  # a failed training does not stop its own
        self._due = 0.0
        self._ended = Event()

    def begin(self, work: Work) -> None:
        with self._lock:
            self._works = [each for each in self._works if each() is not None]
            if not self._works:
                self._due = time.monotonic() + LINE_SECONDS
                self._ended = Event()
                Thread(target=self._watch, args=(self._ended,), daemon=True, name="progress-lines").start()
            self._works.append(weakref.ref(work))

    def end(self, work: Work) -> None:
        """Ends the work and what was begun inside it."""
        with self._lock:
            works = [each() for each in self._works]
            if work in works:
                del self._works[works.index(work) :]
            if not self._works:
                self._ended.set()

    def print_if_due(self) -> None:
        if time.monotonic() < self._due or self.paused:
            return
        with self._lock:
            works = [work for each in self._works if (work := each()) is not None]
            if time.monotonic() < self._due or not works:
                return
            self._due = time.monotonic() + LINE_SECONDS
        line = works[-1].line()
        within = f"{works[0].title}: " if len(works) > 1 else ""
        with suppress(OSError, ValueError):  # the output may be closed
            console.print(f"{within}{line}", markup=False, soft_wrap=True)

    def _watch(self, ended: Event) -> None:
        while not ended.wait(LINE_SECONDS if self.paused else max(self._due - time.monotonic(), 0.1)):
            if all(each() is None for each in self._works):
                return
            self.print_if_due()


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes <= 90 else f"{minutes // 60} h {minutes % 60} min"


_lines = _Lines()
os.register_at_fork(after_in_child=_lines.reset)
