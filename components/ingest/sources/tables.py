"""Reads the records of a table by its ending: CSV, TSV, JSON lines or Parquet, which may hold the images too."""

import csv
import json
import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from components.errors import ConcordError
from components.ingest.sources.image_files import IMAGE_SUFFIXES, ImageFiles
from components.ingest.sources.plain_text import check_plain_text

# Yields line number and fields of every record of a table, the header first.
RecordReader = Callable[[Path], Iterator[tuple[int, list[str]]]]
Records = Iterator[tuple[int, list[str]]]

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
IMAGE_COLUMN = "image"  # of rows that are image files
_DELIMITERS = (";", "\t", "|")  # of a CSV whose header has no comma
_BATCH = 16  # rows of a Parquet table that are in memory at once, with their images


def table_reader(images: ImageFiles) -> RecordReader:
    """A reader for tables of every ending. Images inside Parquet tables are added to `images`."""

    def read(table: Path) -> Records:
        suffix = table.suffix.lower()
        if suffix == ".jsonl":
            return read_json_lines(table)
        if suffix == ".parquet":
            return read_parquet(table, images)
        return read_records(table)

    return read


def read_records(table: Path) -> Records:
    """Yields line number and fields of every record of a CSV or TSV, the header first; skips blank lines.

    Values are separated by tabs in a .tsv. In other files they are separated by commas; if the header has none, by the
    semicolons, tabs or bars that it has.

    Raises:
        ConcordError: the file cannot be read, is not UTF-8 (a byte order mark is accepted), or is not well-formed CSV.
    """
    check_plain_text(table)
    start = 1
    delimiter = delimiter_of(table)
    try:
        # surrogateescape lets `_check_utf8` report an invalid byte with its line.
        with open(table, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.reader(_check_utf8(file, table), delimiter=delimiter, strict=True)
            for fields in reader:
                if fields:
                    yield start, fields
                start = reader.line_num + 1
    except OSError as error:
        raise ConcordError(f"{table}: cannot be read: {error.strerror}. Make it readable.") from None
    except csv.Error as error:
        raise ConcordError(
            f"{table}:{start}: not well-formed CSV: {error}. Look for an unclosed quote on this line; a quote inside a "
            'quoted value must be doubled ("").'
        ) from None


def delimiter_of(table: Path) -> str:
    """The character between the values of a CSV or TSV, by its ending and its header."""
    if table.suffix.lower() == ".tsv":
        return "\t"
    try:
        with open(table, encoding="utf-8-sig", errors="replace", newline="") as file:
            header = next((line for line in file if line.strip()), "")
    except OSError:  # reported by the reader
        return ","
    if "," in header:
        return ","
    return next((mark for mark in _DELIMITERS if mark in header), ",")


def _check_utf8(lines: Iterator[str], table: Path) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        try:
            line.encode()
        except UnicodeEncodeError as error:
            byte = ord(line[error.start]) - 0xDC00
            raise ConcordError(
                f"{table}:{number}: not UTF-8 (byte 0x{byte:02x}). Save the file as UTF-8: choose "
                '"CSV UTF-8" in the spreadsheet, or run '
                f"iconv -f CP1252 -t UTF-8 {table.name} > new-{table.name} and name the new file."
            ) from None
        yield line


def read_json_lines(table: Path) -> Records:
    """Yields line number and fields of every object; the header has the keys of all objects.

    Numbers become text; null and a missing key become an empty field.

    Raises:
        ConcordError: the file cannot be read, is not UTF-8, or a line is not a JSON object.
    """
    check_plain_text(table)
    columns = list(dict.fromkeys(key for _, row in _json_objects(table) for key in row))
    if columns:
        yield 1, columns
    for line, row in _json_objects(table):
        yield line, [_text(row.get(column)) for column in columns]


def _json_objects(table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with open(table, encoding="utf-8-sig", errors="surrogateescape") as file:
            for number, line in enumerate(_check_utf8(file, table), start=1):
                if line.strip():
                    yield number, _json_object(table, number, line)
    except OSError as error:
        raise ConcordError(f"{table}: cannot be read: {error.strerror}. Make it readable.") from None


def _json_object(table: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConcordError(f"{table}:{number}: not JSON ({error}). Write one object per line.") from None
    if not isinstance(row, dict):
        raise ConcordError(f"{table}:{number}: {line.strip()[:40]!r} is not an object. Write one object per line.")
    return row


def read_parquet(table: Path, images: ImageFiles) -> Records:
    """Yields row number and fields of every row, the header first.

    A binary column, or one with the struct {bytes, path} that the library datasets writes, holds images. They are
    added to `images` as TABLE/ROW, such as train.parquet/17, and this path is their field. A struct without bytes gives
    its path.

    Raises:
        ConcordError: the file is not Parquet.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(table) as file:
            yield 1, [str(name) for name in file.schema_arrow.names]
            number = 0
            for batch in file.iter_batches(batch_size=_BATCH):
                columns = [_values(batch.column(k)) for k in range(batch.num_columns)]
                for values in zip(*columns, strict=True):
                    number += 1
                    name = f"{table.relative_to(images.root).as_posix()}/{number}"
                    yield number, [_field(value, name, images) for value in values]
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        remedy = "Write the file again, or if it is a CSV, rename it so that its name ends in .csv"
        raise ConcordError(f"{table}: cannot be read as Parquet ({reason}). {remedy}.") from None


def _values(column: Any) -> list[Any]:
    """The column's values. Floats of 32 bits keep their short form: 5.9 and not 5.900000095367432."""
    import pyarrow as pa

    values: list[Any] = column.to_pylist()
    if pa.types.is_float32(column.type) or pa.types.is_float16(column.type):
        short = column.to_numpy(zero_copy_only=False)
        return [None if value is None else float(str(short[k])) for k, value in enumerate(values)]
    return values


def _field(value: Any, name: str, images: ImageFiles) -> str:
    data = value
    if isinstance(value, dict) and "bytes" in value:
        if value["bytes"] is None:
            return _text(value.get("path"))
        data = value["bytes"]
    if not isinstance(data, bytes):
        return _text(value)
    images.add(name, data)
    return name


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return str(value)


def read_image_files(folder: Path) -> Records:
    """Yields number and path of every image below the folder, in the order of the paths; the header first.

    What is named like an image and is no file, such as a link to nothing, is a row too, so that it is reported.
    """
    found = (path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    names = sorted(path.relative_to(folder).as_posix() for path in found)
    if names:
        yield 1, [IMAGE_COLUMN]
    for number, name in enumerate(names, start=1):
        if not any(part.startswith(".") for part in name.split("/")):
            yield number, [name]


def map_column(read: RecordReader, column: str, change: Callable[[str], str]) -> RecordReader:
    """A reader that applies `change` to the values of a column; a table without the column is unchanged."""

    def read_mapped(table: Path) -> Records:
        rows = read(table)
        for line, header in rows:
            yield line, header
            at = header.index(column) if column in header else len(header)
            for line, fields in rows:
                # `fields` may be too short or too long; `read_labels` reports that.
                yield line, [*fields[:at], *(change(text) for text in fields[at : at + 1]), *fields[at + 1 :]]

    return read_mapped


def with_groups(read: RecordReader, column: str, pattern: str | None) -> RecordReader:
    """A reader that adds the named groups of a regular expression as columns.

    The expression is searched in the image paths of `column`. A path without a match gives empty fields.
    """
    if pattern is None:
        return read
    expression = re.compile(pattern)
    names = list(expression.groupindex)

    def read_with_groups(table: Path) -> Records:
        rows = read(table)
        for line, header in rows:
            yield line, [*header, *names]
            at = header.index(column) if column in header else len(header)
            for line, fields in rows:
                match = expression.search(posixpath.normpath(fields[at])) if at < len(fields) else None
                yield line, [*fields, *((match[name] or "") if match else "" for name in names)]

    return read_with_groups
