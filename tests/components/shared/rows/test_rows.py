"""Slices of a stream of rows."""

from collections.abc import Iterator

import pyarrow as pa
import pytest

from components.shared.rows.rows import slice_rows


def batches() -> Iterator[pa.RecordBatch]:
    """The rows 0 to 9 in batches of 4, 1 and 5; reading beyond them raises an error."""
    for part in (range(4), range(4, 5), range(5, 10)):
        yield pa.RecordBatch.from_pydict({"n": list(part)})
    raise AssertionError("read beyond the slice")


@pytest.mark.parametrize(
    ("start", "count"), [(0, 1), (0, 4), (0, 5), (3, 1), (3, 2), (3, 4), (4, 1), (5, 2), (9, 1), (0, 10)]
)
def test_a_slice_has_its_rows_and_nothing_beyond_is_read(start: int, count: int) -> None:
    numbers = [n for batch in slice_rows(batches(), start, count) for n in batch.column("n").to_pylist()]
    assert numbers == list(range(start, start + count))


def test_a_slice_ends_with_the_last_row() -> None:
    rows = [pa.RecordBatch.from_pydict({"n": [0, 1, 2]})]
    assert [batch.num_rows for batch in slice_rows(rows, 2, 5)] == [1]
