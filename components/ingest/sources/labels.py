"""The table of labels beside an image folder: a CSV, checked whole, every fault told with line, value and remedy."""

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
from components.ingest.quarantine import BadValueError, Faults, Quarantine
from components.settings import Ingest
from components.shared.io.prefetch import prefetch
from components.shared.io.progress import counted
from components.shared.io.text import shown
from components.shared.rows.images import BadImageError, check_image, prepare
from components.shared.rows.rows import SPLITS

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+", re.ASCII)
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Label:
    """One record of the table.

    Attributes:
        id: unique in the table.
        image: path below the table's folder, with forward slashes and no `.` or `..`.
        target: in the task's unit, finite.
        split: train, val or test; empty where the split is not given.
        subject: person or device, None where it is not known.
        line: line of the file on which the record begins; the header's is 1.
    """

    id: str
    image: str
    target: float
    split: str
    line: int
    subject: str | None = None


def table_path(folder: Path, settings: Ingest) -> Path:
    """The CSV that the settings name.

    Raises:
        ConcordError: it is not there, or lies outside the folder, where the data's version would not cover it.
    """
    table = folder / settings.csv
    inside = posixpath.normpath(settings.csv)
    if posixpath.isabs(inside) or inside.split("/")[0] == "..":
        raise ConcordError(f"ingest.csv: {settings.csv} lies outside {folder}; name a file inside it.")
    if not table.is_file():
        there = sorted(path.name for path in folder.glob("*.csv"))[:10]
        hint = f"CSV files there: {', '.join(there)}" if there else f"{folder} holds no CSV file"
        raise ConcordError(f"{table}: no such file. {hint}. Correct ingest.csv or add the file.")
    return table


def records(table: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of every record, the header first; blank lines are passed over.

    Raises:
        ConcordError: the file cannot be read, is not UTF-8 (a byte order mark is accepted), or is no well-formed CSV.
    """
    start = 1
    try:
        # surrogateescape, so that a byte that is not UTF-8 can be reported with its line.
        with open(table, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.reader(_utf8(file, table), strict=True)
            for fields in reader:
                if fields:
                    yield start, fields
                start = reader.line_num + 1
    except OSError as error:
        raise ConcordError(f"{table}: cannot be read: {error.strerror}. Make it readable.") from None
    except csv.Error as error:
        raise ConcordError(
            f"{table}:{start}: not well-formed CSV: {error}. Look for a quote that is not closed on this line; "
            'a quote inside a quoted value is written twice ("").'
        ) from None


def _utf8(lines: Iterator[str], table: Path) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        try:
            line.encode()
        except UnicodeEncodeError as error:
            byte = ord(line[error.start]) - 0xDC00
            raise ConcordError(
                f"{table}:{number}: not UTF-8 (byte 0x{byte:02x}). Save the file as UTF-8: in a spreadsheet "
                '"CSV UTF-8", or iconv -f CP1252 -t UTF-8 (UTF-16 for files that begin with 0xff or 0xfe).'
            ) from None
        yield line


def positions(place: str, header: Sequence[str], wanted: Mapping[str, str]) -> dict[str, int]:
    """Where the wanted columns stand: column -> index.

    Args:
        place: file and line of the header.
        wanted: column -> the setting that names it.

    Raises:
        ConcordError: a column is missing or there twice; every such column is told, with those that exist.
    """
    faults = []
    for column, setting in wanted.items():
        if header.count(column) > 1:
            faults.append(f"  column {shown(column)} ({setting}) is there {header.count(column)} times; rename one")
        elif column not in header:
            close = difflib.get_close_matches(column, header[:1000], n=1)
            hint = f"; did you mean {shown(close[0])}?" if close else ""
            faults.append(f"  no column {shown(column)} ({setting}){hint}")
    if not faults:
        return {column: header.index(column) for column in wanted}
    there = ", ".join(shown(name) for name in header[:20]) + (", ..." if len(header) > 20 else "")
    separator = next((mark for mark in (";", "\t", "|") if len(header) == 1 and mark in header[0]), None)
    remedy = (
        f"The columns seem to be separated by {separator!r}; separate them by commas."
        if separator
        else "Correct the setting in the params file, or the header."
    )
    raise ConcordError("\n".join([f"{place}: the header does not fit", *faults, f"  columns there: {there}", remedy]))


Read = Callable[[Path], Iterator[tuple[int, list[str]]]]


def read_labels(
    table: Path, settings: Ingest, read: Read = records, *, quarantine: Quarantine | None = None
) -> list[Label]:
    """The whole table, checked: columns, numbers, image files, ids, splits.

    With an open quarantine, images are decoded too and targets held against the task's range: such rows would else stop
    the run in the validate step. Without one, no image is opened. Of two rows with one id the first is kept. Labels are
    held in memory (some 300 bytes a row), images never are.

    Args:
        table: the CSV.
        settings: which columns.
        read: gives its records, the header first; a source with values of another form puts them right here.
        quarantine: takes the rows that cannot be used; None: any fault is an error.

    Raises:
        ConcordError: with every fault found, where they are more than the quarantine takes.
    """
    quarantine = quarantine or Quarantine()
    reader = read(table)
    line, header = next(reader, (0, []))
    if not line:
        raise ConcordError(f"{table}: empty. It needs a header line and a row for each image.")
    wanted = {settings.image_column: "ingest.image_column", settings.target_column: "ingest.target_column"}
    if settings.id_column:
        wanted.setdefault(settings.id_column, "ingest.id_column")
    if settings.split in ("given", "given-test") and settings.split_column:
        wanted.setdefault(settings.split_column, "ingest.split_column")
    if settings.subject_column:
        wanted.setdefault(settings.subject_column, "ingest.subject_column")
    row = _RowReader(table, settings, positions(f"{table}:{line}", header, wanted), len(header))
    labels: list[Label] = []
    count = 0
    for line, fields in counted(reader, f"checking {table.name}"):
        count += 1
        if label := row.read(line, fields):
            labels.append(label)
    if not count:
        raise ConcordError(f"{table}: a header and no rows. Add a row for each image.")
    if quarantine.open:
        labels = screened(
            labels,
            quarantine,
            read=lambda label: (table.parent / label.image).read_bytes(),
            told=lambda label, fault: row.faults.add(label.line, *_where(label, fault, settings), fault),
        )
    quarantine.settle(count, [row.faults])
    if not labels:
        raise ConcordError(f"{table}: {count} rows, and none of them can be used. See ingest.max_quarantined.")
    return labels


def screened(
    labels: list[Label],
    quarantine: Quarantine,
    read: Callable[[Label], bytes],
    told: Callable[[Label, "BadValueError"], None],
) -> list[Label]:
    """The labels whose target is in range and whose image decodes.

    Args:
        labels: of rows without a fault so far.
        quarantine: knows the range.
        read: the image's bytes; called in this thread, some at a time.
        told: gets each fault with its label.
    """
    bad: set[str] = set()

    def fault(label: Label, words: BadValueError) -> None:
        bad.add(label.id)
        told(label, words)

    for label in labels:
        if not quarantine.low <= label.target <= quarantine.high:
            span = f"{quarantine.low:g} to {quarantine.high:g}"
            fault(
                label, OutOfRangeError("target out of range", f"correct it, or widen task.low and task.high ({span})")
            )
    prepare()
    found = prefetch(_image_fault, (_bytes_or_fault(label, read) for label in labels))
    for label, broken in zip(counted(labels, "decoding images"), found, strict=True):
        if broken:
            fault(label, broken)
    return [label for label in labels if label.id not in bad]


class OutOfRangeError(BadValueError):
    """A target that the task does not have."""


def _where(label: Label, fault: BadValueError, settings: Ingest) -> tuple[str, str]:
    """Column and value that a fault of a whole row is about."""
    if isinstance(fault, OutOfRangeError):
        return settings.target_column, f"{label.target:g}"
    return settings.image_column, label.image


def _bytes_or_fault(label: Label, read: Callable[[Label], bytes]) -> bytes | BadValueError:
    try:
        return read(label)
    except OSError as error:
        return BadValueError("image cannot be read", f"{error.strerror}: make it readable")


def _image_fault(data: bytes | BadValueError) -> BadValueError | None:
    if isinstance(data, BadValueError):
        return data
    try:
        check_image(data)
    except BadImageError as bad:
        return BadValueError("image does not decode", f"{bad}: replace the file or remove the row")
    return None


class _RowReader:
    """Reads records into labels and takes every fault down."""

    def __init__(self, table: Path, settings: Ingest, at: Mapping[str, int], width: int) -> None:
        self._settings, self._at, self._width = settings, at, width
        self._root = os.fspath(table.parent)
        self._images: dict[str, int] = {}  # value -> line
        self._ids: dict[str, int] = {}
        self.faults = Faults(table)

    def read(self, line: int, fields: Sequence[str]) -> Label | None:
        """The label, or None where the record has a fault."""
        if len(fields) != self._width:
            self.faults.add(line, None, None, _wrong_width(len(fields), self._width))
            return None
        names, before = self._settings, self.faults.count
        image = self._value(line, fields, names.image_column, lambda text: parse_image(text, self._root))
        target = self._value(line, fields, names.target_column, parse_target)
        split: str | None = ""
        if names.split in ("given", "given-test") and names.split_column:
            split = self._value(line, fields, names.split_column, parse_split)
        subject: str | None = None
        if names.subject_column:
            needed = names.split == "subject"
            subject = self._value(line, fields, names.subject_column, lambda text: parse_subject(text, needed))
        # The path as it is resolved, so that a.png and ./a.png are seen to be one image.
        self._once(line, names.image_column, image, self._images, "image listed twice")
        id = image
        if names.id_column and names.id_column != names.image_column:
            id = self._value(line, fields, names.id_column, parse_id)
            self._once(line, names.id_column, id, self._ids, "duplicate id")
        if self.faults.count > before or id is None or image is None or target is None or split is None:
            return None
        return Label(id, image, target, split, line, subject)

    def _once(self, line: int, column: str, value: str | None, seen: dict[str, int], kind: str) -> None:
        if value is not None and (first := seen.setdefault(value, line)) != line:
            self.faults.add(line, column, value, BadValueError(kind, f"line {first} has it too; remove one of them"))

    def _value(self, line: int, fields: Sequence[str], column: str, parse: Callable[[str], T]) -> T | None:
        text = fields[self._at[column]]
        try:
            return parse(text)
        except BadValueError as bad:
            self.faults.add(line, column, text, bad)
            return None


def _wrong_width(found: int, expected: int) -> BadValueError:
    remedy = "give every column a value"
    if found > expected:
        remedy = "put a value that holds a comma in quotes; decimals take a point (12.5)"
    return BadValueError(f"{found} values where the header has {expected} columns", remedy)


def parse_target(text: str) -> float:
    """A finite decimal number with a point; spaces around it are let pass.

    Raises:
        BadValueError: it is anything else: empty, text, NaN, infinite, a decimal comma, a unit.
    """
    value = text.strip()
    if not value:
        raise BadValueError("empty target", "fill in the number or remove the row")
    if not _NUMBER.fullmatch(value):
        if _DECIMAL_COMMA.fullmatch(value):
            raise BadValueError("decimal comma", f"write {value.replace(',', '.')}, with a point")
        if value.lower().lstrip("+-") in ("nan", "na", "inf", "infinity", "null", "none"):
            raise BadValueError("target not finite", "fill in the number or remove the row")
        raise BadValueError("target is no number", "write a bare number such as 12.5, without unit")
    number = float(value)
    if not math.isfinite(number):
        raise BadValueError("target not finite", "it is beyond what a double holds; correct it")
    return number


def parse_id(text: str) -> str:
    """Any text but an empty one.

    Raises:
        BadValueError: it is empty.
    """
    if not text.strip():
        raise BadValueError("empty id", "give the row an id of its own")
    return text


def parse_subject(text: str, needed: bool) -> str | None:
    """Any text; None for an empty one.

    Raises:
        BadValueError: it is empty, and the split needs one.
    """
    if not text.strip() and needed:
        raise BadValueError("empty subject", "name whom or what the image shows, or remove the row")
    return text.strip() or None


def parse_split(text: str) -> str:
    """train, val or test.

    Raises:
        BadValueError: it is anything else.
    """
    if text not in SPLITS:
        raise BadValueError("unknown split", "write train, val or test")
    return text


def parse_image(text: str, root: str) -> str:
    """The path, normalised, of a file that is there, holds something and lies in `root` by its name.

    Links are followed: DVC may put links to its cache in place of the files.

    Raises:
        BadValueError: it is empty, leaves the folder, or no such file is there.
    """
    if not text.strip():
        raise BadValueError("empty image path", "fill in the path or remove the row")
    path = posixpath.normpath(text)
    if posixpath.isabs(path) or _DRIVE.match(path) or path.split("/")[0] == "..":
        raise BadValueError("image outside the folder", "put the file below the CSV's folder")
    try:
        status = os.stat(f"{root}/{path}")
    except (OSError, ValueError):  # ValueError: a null character in the path
        remedy = "paths take /, not \\" if "\\" in text else "add the file or remove the row"
        raise BadValueError("missing file", remedy) from None
    if not stat.S_ISREG(status.st_mode):
        raise BadValueError("not a file", "give the path of an image file")
    if status.st_size == 0:
        raise BadValueError("empty file", "it has 0 bytes: copy it again or remove the row")
    return path
