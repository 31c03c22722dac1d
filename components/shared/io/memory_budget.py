"""A limit on the memory that threads and worker processes use at one time for decoded images."""

import multiprocessing.context
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import c_longlong
from typing import Any

DECODING_BYTES = 512 << 20


class MemoryBudget:
    """Lets users take bytes of a common budget, in the order of their requests, and wait until enough are free.

    Args:
        total: bytes. Who needs more than that waits until nobody else has any, and goes on alone.
        context: of the processes that share the budget; None: the threads of this process share it.
    """

    def __init__(self, total: int, context: multiprocessing.context.BaseContext | None = None) -> None:
        self.total = total
        self._turn: Any = context.Lock() if context else threading.Lock()  # of the one who waits for free bytes
        self._freed: Any = context.Condition() if context else threading.Condition()
        self._used: Any = context.Value(c_longlong, 0, lock=False) if context else c_longlong(0)

    def counts(self, count: int) -> bool:
        """Whether so many bytes are counted."""
        return count >= self.total // 64

    @contextmanager
    def taken(self, count: int) -> Iterator[None]:
        """Holds `count` bytes; waits before for users who came earlier. A user must not ask again while it holds some.

        Less than a 64th of the budget is not counted, since ordinary images would only wait for each other.
        """
        if not self.counts(count):
            yield
            return
        count = min(count, self.total)
        with self._turn, self._freed:
            self._freed.wait_for(lambda: self._used.value + count <= self.total)
            self._used.value += count
        try:
            yield
        finally:
            with self._freed:
                self._used.value -= count
                self._freed.notify_all()


_decoding = MemoryBudget(DECODING_BYTES)


def decoding_budget() -> MemoryBudget:
    """The budget for the images that this process decodes; the processes of a pool have one together."""
    return _decoding


def share_decoding_budget(budget: MemoryBudget) -> None:
    """Makes this process take from a budget that it shares with others."""
    global _decoding
    _decoding = budget


# A forked process has copies of locks that nobody there releases.
os.register_at_fork(after_in_child=lambda: share_decoding_budget(MemoryBudget(DECODING_BYTES)))
