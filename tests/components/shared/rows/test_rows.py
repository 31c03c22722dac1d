"""Stretches of a split that is read as a stream."""

from collections.abc import Iterator

import pyarrow as pa
import pytest

from components.shared.rows.rows import stretch


def batches() -> Iterator[pa.RecordBatch]:
    """0 to 9, in batches of 4, 1 and 5; whoever reads on is told."""
    for part in (range(4), range(4, 5), range(5, 10)):
        yield pa.RecordBatch.from_pydict({"n": list(part)})
    raise AssertionError("read beyond the stretch")


@pytest.mark.parametrize(
    ("start", "count"), [(0, 1), (0, 4), (0, 5), (3, 1), (3, 2), (3, 4), (4, 1), (5, 2), (9, 1), (0, 10)]
)
def test_a_stretch_is_those_rows_and_nothing_is_read_beyond(start: int, count: int) -> None:
    found = [n for batch in stretch(batches(), start, count) for n in batch.column("n").to_pylist()]
    assert found == list(range(start, start + count))


def test_a_stretch_ends_with_the_rows() -> None:
    rows = [pa.RecordBatch.from_pydict({"n": [0, 1, 2]})]
    assert [batch.num_rows for batch in stretch(rows, 2, 5)] == [1]
