"""Slow calls made a little ahead of their use, in threads: reading files, above all, while others are hashed."""

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
    """`map(call, items)`, for calls that leave Python's lock alone most of the time.

    An error of a call is raised in place of its batch's results.

    Args:
        items: taken in the caller's thread.
        batch: calls of one task: a task for each would cost more than to read a small file. Up to `THREADS + 2` batches
            of items and results are there before they are asked for.
    """
    rest = iter(items)
    waiting: deque[Future[list[R]]] = deque()
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            while some := list(islice(rest, batch)):
                waiting.append(pool.submit(_all, call, some))
                if len(waiting) > THREADS + 1:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            for task in waiting:
                task.cancel()


def _all(call: Callable[[T], R], some: list[T]) -> list[R]:
    return [call(item) for item in some]
