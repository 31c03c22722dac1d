"""The table of labels beside an image folder: a CSV, checked whole, every fault told with line, value and remedy."""

import csv
import difflib
import math
import os
import posixpath
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from components.settings import Ingest
from components.shared.data.progress import counted
from components.shared.data.rows import SPLITS
from components.shared.errors import ConcordError

FAULTS_TOLD = 10
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
        line: line of the file on which the record begins; the header's is 1.
    """

    id: str
    image: str
    target: float
    split: str
    line: int


class BadValueError(ValueError):
    """A value that cannot be used: its kind of fault (a short noun), and what to do about it."""

    def __init__(self, kind: str, remedy: str) -> None:
        """Both are shown to a person."""
        super().__init__(kind)
        self.kind, self.remedy = kind, remedy


class Faults:
    """Faults of one table, collected so that all are told at once: the first ten in full, the rest by kind."""

    def __init__(self, table: Path) -> None:
        """None so far."""
        self._table = table
        self._told: list[str] = []
        self._untold: Counter[str] = Counter()
        self.count = 0

    def add(self, line: int, column: str | None, value: str | None, bad: BadValueError) -> None:
        """Takes a fault down; `column` and `value` are None where the whole record is meant."""
        self.count += 1
        if len(self._told) == FAULTS_TOLD:
            self._untold[bad.kind] += 1
            return
        place = f"{self._table.name}:{line}" + (f": {column}" if column else "")
        found = f" {shown(value)}" if value is not None else ""
        self._told.append(f"  {place}: {bad.kind}{found}; {bad.remedy}")

    def tell(self) -> None:
        """Ends the step where a fault was found.

        Raises:
            ConcordError: there is at least one.
        """
        if not self.count:
            return
        lines = [f"{self._table}: {self.count} {'fault' if self.count == 1 else 'faults'}", *self._told]
        if self._untold:
            kinds = ", ".join(f"{kind}: {count}" for kind, count in self._untold.most_common())
            lines.append(f"  and {self._untold.total()} more ({kinds})")
        raise ConcordError("\n".join(lines))


def shown(value: str) -> str:
    """A value from a file as a person may see it: quoted, at most 60 characters, no control characters."""
    return repr(value if len(value) <= 60 else value[:59] + "…")


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
            close = difflib.get_close_matches(column, header, n=1)
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


def read_labels(table: Path, settings: Ingest, read: Read = records) -> list[Label]:
    """The whole table, checked: columns, numbers, image files, ids, splits. Images are not opened.

    Labels are held in memory (some 300 bytes a row), images never are.

    Args:
        table: the CSV.
        settings: which columns.
        read: gives its records, the header first; a source with values of another form puts them right here.

    Raises:
        ConcordError: with every fault found; nothing is dropped silently.
    """
    reader = read(table)
    line, header = next(reader, (0, []))
    if not line:
        raise ConcordError(f"{table}: empty. It needs a header line and a row for each image.")
    wanted = {settings.image_column: "ingest.image_column", settings.target_column: "ingest.target_column"}
    if settings.id_column:
        wanted.setdefault(settings.id_column, "ingest.id_column")
    if settings.split != "balanced" and settings.split_column:
        wanted.setdefault(settings.split_column, "ingest.split_column")
    row = _RowReader(table, settings, positions(f"{table}:{line}", header, wanted), len(header))
    rows = counted(reader, f"checking {table.name}")
    labels = [label for line, fields in rows if (label := row.read(line, fields))]
    row.faults.tell()
    if not labels:
        raise ConcordError(f"{table}: a header and no rows. Add a row for each image.")
    return labels


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
        if names.split != "balanced" and names.split_column:
            split = self._value(line, fields, names.split_column, parse_split)
        # The path as it is resolved, so that a.png and ./a.png are seen to be one image.
        self._once(line, names.image_column, image, self._images, "image listed twice")
        id = image
        if names.id_column and names.id_column != names.image_column:
            id = self._value(line, fields, names.id_column, parse_id)
            self._once(line, names.id_column, id, self._ids, "duplicate id")
        if self.faults.count > before or id is None or image is None or target is None or split is None:
            return None
        return Label(id, image, target, split, line)

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
