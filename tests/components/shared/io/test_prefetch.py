"""Calls made ahead: the order and the errors are those of `map`, and what lies ready is bounded."""

import threading

import pytest

from components.shared.io.prefetch import THREADS, prefetch


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 1000])
def test_results_come_in_order(count: int) -> None:
    assert list(prefetch(lambda k: 3 * k, range(count))) == [3 * k for k in range(count)]


def test_other_threads_do_the_work() -> None:
    threads = set(prefetch(lambda _: threading.get_ident(), range(200)))
    assert threading.get_ident() not in threads


def test_no_more_items_are_taken_than_a_few_batches() -> None:
    taken: list[int] = []
    results = prefetch(lambda k: k, (taken.append(k) or k for k in range(10_000)), batch=5)
    for _ in range(6):
        next(results)
    assert len(taken) <= 5 * (THREADS + 4)
    results.close()
    assert len(taken) < 100


def test_an_error_is_raised_where_its_result_is_due() -> None:
    results = prefetch(lambda k: 1 / (50 - k), range(100), batch=10)
    assert [next(results) for _ in range(50)] == [1 / (50 - k) for k in range(50)]
    with pytest.raises(ZeroDivisionError):
        next(results)
