"""Writes results as a stream to a CSV, JSON lines or Parquet file, which appears when all of them are written."""

import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from components.errors import ConcordError
from components.shared.io.disk_full import disk_full_errors
from components.shared.io.text import cell

if TYPE_CHECKING:
    from components.commands.predict.results import Result

Write = Callable[["Result"], object]

NUMBERS = ("value", "low", "high", "mass")
COLUMNS = ("image", *NUMBERS, "error", "flag")
RANK = "rank"
BATCH = 1024  # rows of Parquet that are written at once


@contextmanager
def new_output(path: Path | None, ranked: bool) -> Iterator[Write]:
    """Gives a function that writes a result. The file replaces `path` when the block ends without an error.

    Until then the results are in `.NAME.PROCESS.partial` beside it, which an error removes and a kill leaves.

    Args:
        path: its ending is the format, a key of `FORMATS`; None: nothing is written.
        ranked: whether there is a column `rank`.

    Raises:
        ConcordError: the file cannot be written, or the disk is full.
    """
    if path is None:
        yield lambda result: None
        return
    columns = (RANK, *COLUMNS) if ranked else COLUMNS
    partial = path.parent / f".{path.name}.{os.getpid()}.partial"
    with _opened(path, partial) as file:
        try:
            with disk_full_errors(path), file:
                with FORMATS[path.suffix.lower()](file, columns) as write:
                    yield write
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def _opened(path: Path, partial: Path) -> BinaryIO:
    try:
        if path.is_dir():
            raise ConcordError(f"{path}: is a folder. Give the path of a file with --out FILE.")
        path.parent.mkdir(parents=True, exist_ok=True)
        return open(partial, "wb")
    except OSError as error:
        raise ConcordError(
            f"{path}: cannot be written ({error.strerror}). Give another path with --out FILE."
        ) from None


@contextmanager
def _csv(file: BinaryIO, columns: Sequence[str]) -> Iterator[Write]:
    import io

    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(columns)

    def write(result: "Result") -> None:
        values = [getattr(result, column) for column in columns]
        rows.writerow([cell(value) if isinstance(value, str) else value for value in values])

    yield write
    text.detach()


@contextmanager
def _json_lines(file: BinaryIO, columns: Sequence[str]) -> Iterator[Write]:
    def write(result: "Result") -> None:
        row = {column: getattr(result, column) for column in columns}
        file.write(f"{json.dumps(row, ensure_ascii=False, allow_nan=False)}\n".encode())

    yield write


@contextmanager
def _parquet(file: BinaryIO, columns: Sequence[str]) -> Iterator[Write]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = dict.fromkeys(NUMBERS, pa.float64()) | {RANK: pa.int64()}
    schema = pa.schema([(column, types.get(column, pa.string())) for column in columns])
    rows: list[dict[str, Any]] = []
    with pq.ParquetWriter(file, schema) as writer:

        def flush() -> None:
            writer.write_table(pa.Table.from_pylist(rows, schema))
            rows.clear()

        def write(result: "Result") -> None:
            rows.append({column: getattr(result, column) for column in columns})
            if len(rows) == BATCH:
                flush()

        yield write
        flush()


# Ending -> what opens a writer on a file.
FORMATS: Mapping[str, Callable[[BinaryIO, Sequence[str]], AbstractContextManager[Write]]] = {
    ".csv": _csv,
    ".jsonl": _json_lines,
    ".parquet": _parquet,
}
