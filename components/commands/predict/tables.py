"""Finds the images that a table names or, in Parquet, holds; a row at a time."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from components.commands.predict.images import Image, Source, printable_name
from components.errors import ConcordError
from components.ingest.sources.tables import read_json_lines, read_records
from components.shared.io.text import quoted

COLUMNS = ("image", "path", "file", "file_name")
BATCH = 8  # rows of Parquet that are in memory at once
BUFFER = 1 << 20  # bytes of Parquet that are read at once; by default it would be a whole row group


def table_source(table: Path, column: str | None) -> Source:
    """The images of a table, in the order of its rows.

    Paths are relative to the table's folder. Results name an image by its path as it stands in the table, or where the
    table has none by TABLE#ROW, from 0.

    Args:
        column: of the images; None: the first of `COLUMNS` that the table has.

    Raises:
        ConcordError: the table is no file, cannot be read, or has no such column.
    """
    if table.exists() and not table.is_file():
        raise ConcordError(f"{table}: not a file. Give a table, a folder or images.")
    parquet = table.suffix.lower() == ".parquet"
    chosen = _column(table, _parquet_columns(table) if parquet else _header(table), column)
    if parquet:
        return Source(partial(_parquet_images, table, chosen), partial(_parquet_count, table))
    images = partial(_text_images, table, chosen)
    return Source(images, lambda: sum(1 for _ in images()))


def _column(table: Path, columns: list[str], wanted: str | None) -> str:
    found = next((name for name in ([wanted] if wanted else COLUMNS) if name in columns), None)
    if found is None:
        missing = f"no column {quoted(wanted)}" if wanted else f"no column of images ({', '.join(COLUMNS)})"
        existing = ", ".join(quoted(name) for name in columns[:20]) or "none"
        raise ConcordError(f"{table}: {missing}. Its columns: {existing}. Name the column with --image COLUMN.")
    return found


def _records(table: Path) -> Iterator[tuple[int, list[str]]]:
    return read_json_lines(table) if table.suffix.lower() == ".jsonl" else read_records(table)


def _header(table: Path) -> list[str]:
    return next(_records(table), (0, []))[1]


def _text_images(table: Path, column: str) -> Iterator[Image]:
    records = _records(table)
    at = next(records)[1].index(column)
    for row, (_, fields) in enumerate(records):
        yield _image(table, row, fields[at] if at < len(fields) else "", column)


def _image(table: Path, row: int, value: Any, column: str) -> Image:
    """The image of one field: a path, bytes, or the struct {bytes, path} that the library datasets writes."""
    name, data = f"{table.name}#{row}", value
    if isinstance(value, dict):
        data, path = value.get("bytes"), value.get("path")
        name = printable_name(path) if path else name
        data = path if data is None else data
    if isinstance(data, bytes):
        return Image(name, data=data)
    if not isinstance(data, str) or not data.strip():
        return Image(name, error=f"no image in the column {column}")
    return Image(printable_name(data), table.parent / data)


def _parquet_columns(table: Path) -> list[str]:
    with _parquet(table) as file:
        return [str(name) for name in file.schema_arrow.names]


def _parquet_count(table: Path) -> int:
    with _parquet(table) as file:
        return int(file.metadata.num_rows)


def _parquet_images(table: Path, column: str) -> Iterator[Image]:
    import pyarrow as pa

    row = 0
    with _parquet(table) as file:
        try:
            for batch in file.iter_batches(batch_size=BATCH, columns=[column]):
                for value in batch.column(0).to_pylist():
                    yield _image(table, row, value, column)
                    row += 1
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(table, error) from None


def _parquet(table: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(table, buffer_size=BUFFER)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(table, error) from None


def _unreadable(table: Path, error: Exception) -> ConcordError:
    return ConcordError(f"{table}: cannot be read as Parquet ({str(error).splitlines()[0]}).")
