"""Threads and processes hold no more than a budget together, and everyone gets a turn."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest

from components.shared.io.memory_budget import DECODING_BYTES, MemoryBudget, decoding_budget
from components.shared.io.process_pool import process_pool


def test_threads_hold_no_more_than_the_budget_together() -> None:
    budget, lock = MemoryBudget(100), threading.Lock()
    held, most, alone = 0, 0, []

    def use(count: int) -> None:
        nonlocal held, most
        with budget.taken(count):
            with lock:
                held += count
                most = max(most, held)
            time.sleep(0.002)
            with lock:
                alone.append(count <= 100 or held == count)
                held -= count

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(use, [30, 50, 40, 250, 10] * 10))
    assert most == 250
    assert len(alone) == 50
    assert all(alone)


def test_a_large_user_is_not_overtaken_for_ever() -> None:
    budget, order = MemoryBudget(100), []

    def use(name: str, count: int) -> None:
        with budget.taken(count):
            order.append(name)

    with budget.taken(60):
        large = threading.Thread(target=use, args=("large", 100))
        large.start()
        waits_until(lambda: budget._turn.locked())
        small = threading.Thread(target=use, args=("small", 30))
        small.start()
        time.sleep(0.05)
        assert order == []
    for thread in (large, small):
        thread.join(10)
    assert order == ["large", "small"]


def waits_until(reached: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_little_is_not_counted_and_an_error_gives_back() -> None:
    budget = MemoryBudget(640)
    with budget.taken(640), budget.taken(9):
        pass
    with pytest.raises(ZeroDivisionError), budget.taken(640):
        raise ZeroDivisionError
    with budget.taken(640):
        pass


def hold(_: int) -> tuple[float, float]:
    with decoding_budget().taken(DECODING_BYTES * 6 // 10):
        start = time.monotonic()
        time.sleep(0.1)
        return start, time.monotonic()


def test_the_processes_of_a_pool_share_one_budget() -> None:
    with process_pool(3) as pool:
        times = sorted(pool.map(hold, range(6)))
    assert all(end <= start for (_, end), (start, _) in pairwise(times))
