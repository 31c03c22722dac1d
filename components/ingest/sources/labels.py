"""Reads the labels of images from tables, and reports all errors together with line, value and remedy."""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from components.errors import ConcordError
from components.ingest.quarantine import BadValueError, Quarantine, TableErrors
from components.ingest.sources.image_files import ImageFiles
from components.ingest.sources.tables import RecordReader, Records
from components.ingest.sources.targets import parse_target
from components.settings import Ingest
from components.shared.io.prefetch import prefetch
from components.shared.io.progress import with_progress
from components.shared.io.text import quoted
from components.shared.rows.images import BadImageError, check_image, load_decoders
from components.shared.rows.rows import SPLITS

T = TypeVar("T")
Seen = dict[str, tuple[str, int]]  # value -> table and line that have it

# Other names of the splits, as published data sets write them.
_SPLIT_NAMES = {"training": "train", "validation": "val", "valid": "val", "dev": "val", "testing": "test"}


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
        table: name of the table; its path, if there are several.
    """

    id: str
    image: str
    target: float
    split: str
    line: int
    subject: str | None = None
    table: str = ""


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
    remedy = "Correct the setting in the params file, or the header."
    lines = [f"{location}: the header does not match the settings", *errors, f"  existing columns: {existing}", remedy]
    raise ConcordError("\n".join(lines))


def read_labels(
    tables: Sequence[Path],
    settings: Ingest,
    read: RecordReader,
    images: ImageFiles,
    quarantine: Quarantine | None = None,
) -> list[Label]:
    """Reads and checks whole tables: columns, numbers, images, ids, splits.

    An enabled quarantine also takes rows whose image does not decode or whose target is outside the task's range; they
    would otherwise stop the run in the validate step. Without a quarantine, no image is opened. Of two rows with the
    same id, the first is kept. Memory holds the labels (about 300 bytes per row), but no images.

    Args:
        tables: files, read in this order; or the folder whose image files are the rows.
        settings: names of the columns.
        read: yields a table's records, the header first; a source may convert values there.
        images: checks and reads images by their paths.
        quarantine: takes rows with errors; None: any error ends the step.

    Raises:
        ConcordError: more rows have errors than the quarantine takes; reports all errors.
    """
    quarantine = quarantine or Quarantine()
    scan = scan_labels(tables, settings, read, images)
    labels = scan.labels
    if quarantine.enabled:
        errors = {table.name: table for table in scan.errors}

        def report(label: Label, bad: BadValueError) -> None:
            errors[label.table].add(label.line, *_column_and_value(label, bad, settings), bad)

        labels = drop_unusable_labels(labels, quarantine, lambda label: images.read(label.image), report)
    quarantine.add(scan.rows, scan.errors)
    if not labels:
        raise ConcordError(f"{tables[0]}: {scan.rows} rows, and none of them can be used. See ingest.max_quarantined.")
    return labels


@dataclass(frozen=True, slots=True)
class Scan:
    """What the tables contain.

    Attributes:
        labels: of the rows without errors.
        errors: of each table.
        rows: number of all rows.
    """

    labels: list[Label]
    errors: list[TableErrors]
    rows: int


def scan_labels(tables: Sequence[Path], settings: Ingest, read: RecordReader, images: ImageFiles) -> Scan:
    """Reads whole tables and collects the errors of their rows; see `read_labels`. Opens no image.

    Raises:
        ConcordError: a table cannot be read, lacks a column, or has no rows.
    """
    seen: tuple[Seen, Seen] = {}, {}
    scan = Scan([], [], 0)
    for table in tables:
        name = table.name if len(tables) == 1 else table.relative_to(images.root).as_posix()
        parser, rows = _open_table(TableErrors(table, name), settings, read, images, seen)
        count = 0
        for line, fields in with_progress(rows, f"checking {table.name}"):
            count += 1
            if label := parser.parse(line, fields):
                scan.labels.append(label)
        if not count:
            raise ConcordError(f"{table}: a header but no rows. Add a row for each image.")
        scan = Scan(scan.labels, [*scan.errors, parser.errors], scan.rows + count)
    return scan


def _open_table(
    errors: TableErrors,
    settings: Ingest,
    read: RecordReader,
    images: ImageFiles,
    seen: tuple[Seen, Seen],
) -> "tuple[_RowParser, Records]":
    """The parser for a table's rows, and its records after the header."""
    table = errors.table
    rows = read(table)
    line, header = next(rows, (0, []))
    if not line:
        what = "contains no image file" if table.is_dir() else "empty"
        raise ConcordError(f"{table}: {what}. It needs a header and a row for each image.")
    required = {settings.image_column: "ingest.image_column", settings.target_column: "ingest.target_column"}
    if settings.id_column:
        required.setdefault(settings.id_column, "ingest.id_column")
    if settings.split in ("given", "given-test") and settings.split_column:
        required.setdefault(settings.split_column, "ingest.split_column")
    if settings.subject_column:
        required.setdefault(settings.subject_column, "ingest.subject_column")
    columns = column_indices(f"{table}:{line}", header, required)
    return _RowParser(errors, settings, columns, len(header), images, seen), rows


def drop_unusable_labels(
    labels: list[Label],
    quarantine: Quarantine,
    read: Callable[[Label], bytes],
    report: Callable[[Label, "BadValueError"], None],
) -> list[Label]:
    """The labels whose image decodes and whose target is in the task's range.

    Args:
        labels: of rows without errors so far.
        quarantine: has the task's range and the bits of its grey images.
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
    check = partial(_image_error, grey_bits=quarantine.grey_bits)
    image_errors = prefetch(check, (_read_or_error(label, read) for label in labels))
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


def _image_error(data: bytes | BadValueError, grey_bits: int | None) -> BadValueError | None:
    if isinstance(data, BadValueError):
        return data
    try:
        check_image(data, grey_bits)
    except BadImageError as bad:
        return BadValueError("image does not decode", f"{bad}: replace the file or remove the row")
    return None


class _RowParser:
    """Parses records into labels, and records all errors."""

    def __init__(
        self,
        errors: TableErrors,
        settings: Ingest,
        columns: Mapping[str, int],
        width: int,
        images: ImageFiles,
        seen: tuple[Seen, Seen],
    ) -> None:
        """`seen` has the images and the ids of the tables before this one, with their places."""
        self._settings, self._columns, self._width, self._check_image = settings, columns, width, images.check
        self._groups = re.compile(settings.pattern).groupindex if settings.pattern else {}
        self._images, self._ids = seen
        self.errors = errors

    def parse(self, line: int, fields: Sequence[str]) -> Label | None:
        """The label, or None if the record has errors."""
        if len(fields) != self._width:
            self.errors.add(line, None, None, _wrong_width(len(fields), self._width))
            return None
        names, before = self._settings, self.errors.count
        image = self._value(line, fields, names.image_column, self._check_image)
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
        return Label(id, image, target, split, line, subject, self.errors.name)

    def _check_unique(self, line: int, column: str, value: str | None, seen: Seen, kind: str) -> None:
        if value is not None and (first := seen.setdefault(value, (self.errors.name, line))) != (
            self.errors.name,
            line,
        ):
            place = f"line {first[1]}" if first[0] == self.errors.name else f"{first[0]}:{first[1]}"
            self.errors.add(line, column, value, BadValueError(kind, f"{place} has it too; remove one of them"))

    def _value(self, line: int, fields: Sequence[str], column: str, parse: Callable[[str], T]) -> T | None:
        text = fields[self._columns[column]]
        try:
            if not text and column in self._groups:
                path = fields[self._columns[self._settings.image_column]]
                remedy = f"{quoted(path)} does not match ingest.pattern: correct the pattern, or move the file away"
                raise BadValueError(f"no {column} in the path", remedy)
            return parse(text)
        except BadValueError as bad:
            self.errors.add(line, column, text, bad)
            return None


def _wrong_width(count: int, expected: int) -> BadValueError:
    remedy = "give every column a value"
    if count > expected:
        remedy = "put values with a comma in quotes; write decimals with a point (12.5), and no thousands marks"
    return BadValueError(f"{count} values where the header has {expected} columns", remedy)


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
    """Accepts train, val or test in any case, and other names of them, such as validation.

    Raises:
        BadValueError: anything else.
    """
    name = text.strip().lower()
    name = _SPLIT_NAMES.get(name, name)
    if name not in SPLITS:
        raise BadValueError("unknown split", "write train, val or test")
    return name
