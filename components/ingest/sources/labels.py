"""Reads a CSV of labels for image files, and reports all its errors together with line, value and remedy."""

import csv
import difflib
import math
import os
import posixpath
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from components.errors import ConcordError
from components.ingest.quarantine import BadValueError, Quarantine, TableErrors
from components.settings import Ingest
from components.shared.io.prefetch import prefetch
from components.shared.io.progress import with_progress
from components.shared.io.text import quoted
from components.shared.rows.images import BadImageError, check_image, load_decoders
from components.shared.rows.rows import SPLITS

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+", re.ASCII)
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
T = TypeVar("T")

# Yields line number and fields of every record of a table, the header first.
RecordReader = Callable[[Path], Iterator[tuple[int, list[str]]]]


@dataclass(frozen=True, slots=True)
class Label:
    """One record of the table.

    Attributes:
        id: unique in the table.
        image: path below the table's folder, with forward slashes and without `.` or `..`.
        target: in the task's unit, finite.
        split: train, val or test; empty if the source gives no split.
        line: line of the file on which the record begins; the header is line 1.
        subject: person or device; None if unknown.
    """

    id: str
    image: str
    target: float
    split: str
    line: int
    subject: str | None = None


def table_path(folder: Path, settings: Ingest) -> Path:
    """The path of the CSV that the settings name.

    Raises:
        ConcordError: the file does not exist, or is outside the folder, where the hash of the data does not cover it.
    """
    table = folder / settings.csv
    inside = posixpath.normpath(settings.csv)
    if posixpath.isabs(inside) or inside.split("/")[0] == "..":
        raise ConcordError(f"ingest.csv: {settings.csv} is outside {folder}; name a file inside it.")
    if not table.is_file():
        csv_files = sorted(path.name for path in folder.glob("*.csv"))[:10]
        hint = f"CSV files there: {', '.join(csv_files)}" if csv_files else f"{folder} contains no CSV file"
        raise ConcordError(f"{table}: no such file. {hint}. Correct ingest.csv or add the file.")
    return table


def read_records(table: Path) -> Iterator[tuple[int, list[str]]]:
    """Yields line number and fields of every record, the header first; skips blank lines.

    Raises:
        ConcordError: the file cannot be read, is not UTF-8 (a byte order mark is accepted), or is not well-formed CSV.
    """
    start = 1
    try:
        # surrogateescape lets `_check_utf8` report an invalid byte with its line.
        with open(table, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.reader(_check_utf8(file, table), strict=True)
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


def _check_utf8(lines: Iterator[str], table: Path) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        try:
            line.encode()
        except UnicodeEncodeError as error:
            byte = ord(line[error.start]) - 0xDC00
            raise ConcordError(
                f"{table}:{number}: not UTF-8 (byte 0x{byte:02x}). Save the file as UTF-8: choose "
                '"CSV UTF-8" in the spreadsheet, or run iconv -f CP1252 -t UTF-8 (-f UTF-16 for files that begin with '
                "0xff or 0xfe)."
            ) from None
        yield line


def column_indices(location: str, header: Sequence[str], required: Mapping[str, str]) -> dict[str, int]:
    """Column -> index in the header.

    Args:
        location: file and line of the header.
        header: names of all columns.
        required: column -> the setting that names it.

    Raises:
        ConcordError: columns are missing or occur twice; reports all of them, and the existing columns.
    """
    errors = []
    for column, setting in required.items():
        if header.count(column) > 1:
            errors.append(f"  column {quoted(column)} ({setting}) occurs {header.count(column)} times; rename one")
        elif column not in header:
            close = difflib.get_close_matches(column, header[:1000], n=1)
            hint = f"; did you mean {quoted(close[0])}?" if close else ""
            errors.append(f"  no column {quoted(column)} ({setting}){hint}")
    if not errors:
        return {column: header.index(column) for column in required}
    existing = ", ".join(quoted(name) for name in header[:20]) + (", ..." if len(header) > 20 else "")
    separator = next((mark for mark in (";", "\t", "|") if len(header) == 1 and mark in header[0]), None)
    remedy = (
        f"The columns seem to be separated by {separator!r}; separate them by commas."
        if separator
        else "Correct the setting in the params file, or the header."
    )
    lines = [f"{location}: the header does not match the settings", *errors, f"  existing columns: {existing}", remedy]
    raise ConcordError("\n".join(lines))


def read_labels(
    table: Path, settings: Ingest, read: RecordReader = read_records, *, quarantine: Quarantine | None = None
) -> list[Label]:
    """Reads and checks the whole table: columns, numbers, image files, ids, splits.

    An enabled quarantine also takes rows whose image does not decode or whose target is outside the task's range; they
    would otherwise stop the run in the validate step. Without a quarantine, no image is opened. Of two rows with the
    same id, the first is kept. Memory holds the labels (about 300 bytes per row), but no images.

    Args:
        table: the CSV.
        settings: names of the columns.
        read: yields the table's records, the header first; a source may convert values there.
        quarantine: takes rows with errors; None: any error ends the step.

    Raises:
        ConcordError: more rows have errors than the quarantine takes; reports all errors.
    """
    quarantine = quarantine or Quarantine()
    reader = read(table)
    line, header = next(reader, (0, []))
    if not line:
        raise ConcordError(f"{table}: empty. It needs a header and a row for each image.")
    required = {settings.image_column: "ingest.image_column", settings.target_column: "ingest.target_column"}
    if settings.id_column:
        required.setdefault(settings.id_column, "ingest.id_column")
    if settings.split in ("given", "given-test") and settings.split_column:
        required.setdefault(settings.split_column, "ingest.split_column")
    if settings.subject_column:
        required.setdefault(settings.subject_column, "ingest.subject_column")
    parser = _RowParser(table, settings, column_indices(f"{table}:{line}", header, required), len(header))
    labels: list[Label] = []
    count = 0
    for line, fields in with_progress(reader, f"checking {table.name}"):
        count += 1
        if label := parser.parse(line, fields):
            labels.append(label)
    if not count:
        raise ConcordError(f"{table}: a header but no rows. Add a row for each image.")
    if quarantine.enabled:
        labels = drop_unusable_labels(
            labels,
            quarantine,
            read=lambda label: (table.parent / label.image).read_bytes(),
            report=lambda label, bad: parser.errors.add(label.line, *_column_and_value(label, bad, settings), bad),
        )
    quarantine.add(count, [parser.errors])
    if not labels:
        raise ConcordError(f"{table}: {count} rows, and none of them can be used. See ingest.max_quarantined.")
    return labels


def drop_unusable_labels(
    labels: list[Label],
    quarantine: Quarantine,
    read: Callable[[Label], bytes],
    report: Callable[[Label, "BadValueError"], None],
) -> list[Label]:
    """The labels whose image decodes and whose target is in the task's range.

    Args:
        labels: of rows without errors so far.
        quarantine: has the task's range.
        read: reads the image's bytes; called in the caller's thread, a few dozen images ahead.
        report: called with each error and its label.
    """
    bad_ids: set[str] = set()

    def drop(label: Label, bad: BadValueError) -> None:
        bad_ids.add(label.id)
        report(label, bad)

    for label in labels:
        if not quarantine.low <= label.target <= quarantine.high:
            span = f"{quarantine.low:g} to {quarantine.high:g}"
            drop(label, OutOfRangeError("target out of range", f"correct it, or widen task.low and task.high ({span})"))
    load_decoders()
    image_errors = prefetch(_image_error, (_read_or_error(label, read) for label in labels))
    for label, bad in zip(with_progress(labels, "decoding images"), image_errors, strict=True):
        if bad:
            drop(label, bad)
    return [label for label in labels if label.id not in bad_ids]


class OutOfRangeError(BadValueError):
    """A target outside the task's range."""


def _column_and_value(label: Label, bad: BadValueError, settings: Ingest) -> tuple[str, str]:
    """Column and value that an error from `drop_unusable_labels` is about."""
    if isinstance(bad, OutOfRangeError):
        return settings.target_column, f"{label.target:g}"
    return settings.image_column, label.image


def _read_or_error(label: Label, read: Callable[[Label], bytes]) -> bytes | BadValueError:
    try:
        return read(label)
    except OSError as error:
        return BadValueError("image cannot be read", f"{error.strerror}: make it readable")


def _image_error(data: bytes | BadValueError) -> BadValueError | None:
    if isinstance(data, BadValueError):
        return data
    try:
        check_image(data)
    except BadImageError as bad:
        return BadValueError("image does not decode", f"{bad}: replace the file or remove the row")
    return None


class _RowParser:
    """Parses records into labels, and records all errors."""

    def __init__(self, table: Path, settings: Ingest, columns: Mapping[str, int], width: int) -> None:
        self._settings, self._columns, self._width = settings, columns, width
        self._root = os.fspath(table.parent)
        self._images: dict[str, int] = {}  # value -> line
        self._ids: dict[str, int] = {}
        self.errors = TableErrors(table)

    def parse(self, line: int, fields: Sequence[str]) -> Label | None:
        """The label, or None if the record has errors."""
        if len(fields) != self._width:
            self.errors.add(line, None, None, _wrong_width(len(fields), self._width))
            return None
        names, before = self._settings, self.errors.count
        image = self._value(line, fields, names.image_column, lambda text: parse_image(text, self._root))
        target = self._value(line, fields, names.target_column, parse_target)
        split: str | None = ""
        if names.split in ("given", "given-test") and names.split_column:
            split = self._value(line, fields, names.split_column, parse_split)
        subject: str | None = None
        if names.subject_column:
            needed = names.split == "subject"
            subject = self._value(line, fields, names.subject_column, lambda text: parse_subject(text, needed))
        # Compares normalised paths, so that a.png and ./a.png count as the same image.
        self._check_unique(line, names.image_column, image, self._images, "image listed twice")
        id = image
        if names.id_column and names.id_column != names.image_column:
            id = self._value(line, fields, names.id_column, parse_id)
            self._check_unique(line, names.id_column, id, self._ids, "duplicate id")
        if self.errors.count > before or id is None or image is None or target is None or split is None:
            return None
        return Label(id, image, target, split, line, subject)

    def _check_unique(self, line: int, column: str, value: str | None, seen: dict[str, int], kind: str) -> None:
        if value is not None and (first := seen.setdefault(value, line)) != line:
            self.errors.add(line, column, value, BadValueError(kind, f"line {first} has it too; remove one of them"))

    def _value(self, line: int, fields: Sequence[str], column: str, parse: Callable[[str], T]) -> T | None:
        text = fields[self._columns[column]]
        try:
            return parse(text)
        except BadValueError as bad:
            self.errors.add(line, column, text, bad)
            return None


def _wrong_width(count: int, expected: int) -> BadValueError:
    remedy = "give every column a value"
    if count > expected:
        remedy = "put values with a comma in quotes; write decimals with a point (12.5)"
    return BadValueError(f"{count} values where the header has {expected} columns", remedy)


def parse_target(text: str) -> float:
    """Parses a finite decimal number with a decimal point; spaces around it are allowed.

    Raises:
        BadValueError: anything else: empty, text, NaN, infinite, a decimal comma, a unit.
    """
    value = text.strip()
    if not value:
        raise BadValueError("empty target", "fill in the number or remove the row")
    if not _NUMBER.fullmatch(value):
        if _DECIMAL_COMMA.fullmatch(value):
            raise BadValueError("decimal comma", f"write {value.replace(',', '.')}, with a point")
        if value.lower().lstrip("+-") in ("nan", "na", "inf", "infinity", "null", "none"):
            raise BadValueError("target not finite", "fill in the number or remove the row")
        raise BadValueError("target is not a number", "write a plain number such as 12.5, without a unit")
    number = float(value)
    if not math.isfinite(number):
        raise BadValueError("target not finite", "it is too large for a double; correct it")
    return number


def parse_id(text: str) -> str:
    """Accepts any non-empty text.

    Raises:
        BadValueError: the text is empty.
    """
    if not text.strip():
        raise BadValueError("empty id", "give the row a unique id")
    return text


def parse_subject(text: str, needed: bool) -> str | None:
    """Accepts any text; returns None for an empty one.

    Raises:
        BadValueError: the text is empty and `needed` is set.
    """
    if not text.strip() and needed:
        raise BadValueError("empty subject", "name the person or device in the image, or remove the row")
    return text.strip() or None


def parse_split(text: str) -> str:
    """Accepts train, val or test.

    Raises:
        BadValueError: anything else.
    """
    if text not in SPLITS:
        raise BadValueError("unknown split", "write train, val or test")
    return text


def parse_image(text: str, root: str) -> str:
    """Checks and normalises an image path: it must name an existing, non-empty file below `root`.

    Symbolic links are followed, since DVC may replace files with links to its cache.

    Raises:
        BadValueError: the path is empty or outside `root`, or the file is missing or empty.
    """
    if not text.strip():
        raise BadValueError("empty image path", "fill in the path or remove the row")
    path = posixpath.normpath(text)
    if posixpath.isabs(path) or _DRIVE.match(path) or path.split("/")[0] == "..":
        raise BadValueError("image outside the folder", "put the file below the CSV's folder")
    try:
        status = os.stat(f"{root}/{path}")
    except (OSError, ValueError):  # ValueError: a null character in the path
        remedy = "write paths with /, not \\" if "\\" in text else "add the file or remove the row"
        raise BadValueError("missing file", remedy) from None
    if not stat.S_ISREG(status.st_mode):
        raise BadValueError("not a file", "give the path of an image file")
    if status.st_size == 0:
        raise BadValueError("empty file", "it has 0 bytes: copy it again or remove the row")
    return path
