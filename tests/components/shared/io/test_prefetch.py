"""`prefetch`: order and errors are those of `map`, and the number of results held ahead is limited."""

import threading
from collections.abc import Generator, Iterator

import pytest

from components.shared.io.prefetch import THREADS, prefetch


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 1000])
def test_results_come_in_order(count: int) -> None:
    assert list(prefetch(lambda k: 3 * k, range(count))) == [3 * k for k in range(count)]


def test_calls_run_in_other_threads() -> None:
    threads = set(prefetch(lambda _: threading.get_ident(), range(200)))
    assert threading.get_ident() not in threads


def test_only_a_few_batches_of_items_are_taken_ahead() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for k in range(10_000):
            taken.append(k)
            yield k

    results = prefetch(lambda k: k, items(), batch=5)
    assert isinstance(results, Generator)
    for _ in range(6):
        next(results)
    assert len(taken) <= 5 * (THREADS + 4)
    results.close()
    assert len(taken) < 100


def test_an_error_is_raised_in_place_of_its_batch() -> None:
    results = prefetch(lambda k: 1 / (50 - k), range(100), batch=10)
    assert [next(results) for _ in range(50)] == [1 / (50 - k) for k in range(50)]
    with pytest.raises(ZeroDivisionError):
        next(results)
