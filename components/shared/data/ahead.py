"""Slow calls made a little ahead of their use, in threads: reading files, above all, while others are packed."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

BATCH = 16  # calls of one task: a task of its own for each would cost more than to read a file
THREADS = 2


def ahead(call: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """`map(call, items)`, where up to 64 results are there before they are asked for.

    An error of a call is raised in its place in the order.
    """
    rest = iter(items)
    waiting: deque[Future[list[R]]] = deque()
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            while batch := list(islice(rest, BATCH)):
                waiting.append(pool.submit(_all, call, batch))
                if len(waiting) > 3:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            for task in waiting:
                task.cancel()


def _all(call: Callable[[T], R], batch: list[T]) -> list[R]:
    return [call(item) for item in batch]
