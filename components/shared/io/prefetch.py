"""Runs slow calls, such as file reads, ahead of their use in threads."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

THREADS = min(os.cpu_count() or 1, 8)


def prefetch(call: Callable[[T], R], items: Iterable[T], batch: int = 16) -> Iterator[R]:
    """`map(call, items)` in threads and in order, for calls that release Python's global interpreter lock.

    If a call raises, its error is raised in place of its batch's results.

    Args:
        items: consumed in the caller's thread.
        batch: calls per task; one task per call would cost more than reading a small file. Up to `THREADS + 2` batches
            of items and results are held in memory ahead of their use.
    """
    remaining = iter(items)
    waiting: deque[Future[list[R]]] = deque()
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            while items_of_batch := list(islice(remaining, batch)):
                waiting.append(pool.submit(_run_batch, call, items_of_batch))
                if len(waiting) > THREADS + 1:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            for task in waiting:
                task.cancel()


def _run_batch(call: Callable[[T], R], items: list[T]) -> list[R]:
    return [call(item) for item in items]
