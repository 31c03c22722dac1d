"""Guesses which columns of a table hold the image, the target, the split and the subject."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from components.commands.init.ask import choose
from components.commands.init.discover import is_split
from components.errors import ConcordError
from components.ingest.quarantine import BadValueError
from components.ingest.sources.image_files import IMAGE_SUFFIXES, ImageFiles
from components.ingest.sources.labels import parse_split
from components.ingest.sources.targets import parse_target

IMAGE_NAMES = ("image", "file_name", "filename", "image_path", "img", "path", "file", "photo", "picture")
TARGET_NAMES = ("target", "label", "age", "reading", "value", "score", "rating", "boneage", "answer", "y")
SPLIT_NAMES = ("split", "set", "subset", "partition", "fold")
SUBJECT_NAMES = ("subject", "person", "patient", "identity", "participant", "individual", "device", "meter", "camera")
_INDEX_NAMES = ("", "id", "index", "idx", "row", "no", "nr")
_NUMBERS = 0.9  # share of a column's values that must be numbers
_FOLDERS = 200  # folders in which the images of a table are looked for


@dataclass(frozen=True)
class Sample:
    """The first rows of a table.

    Attributes:
        source: how messages call the table.
        header: its columns.
        rows: fields of the rows; each has as many as the header.
    """

    source: str
    header: list[str]
    rows: list[list[str]]

    def values(self, column: str) -> list[str]:
        """The column's values that are not empty."""
        at = self.header.index(column)
        return [text for fields in self.rows if (text := fields[at].strip())]

    def check(self, column: str, flag: str) -> str:
        """The column, which the user has named.

        Raises:
            ConcordError: there is no such column.
        """
        if column not in self.header:
            raise ConcordError(f"{self.source}: no column {column!r} ({flag}). Columns: {', '.join(self.header)}")
        return column


@dataclass(frozen=True)
class Images:
    """Where the images of a table are.

    Attributes:
        column: names the images, or holds them.
        folder: of the images, relative to the table; None for the table's own folder.
    """

    column: str
    folder: str | None


def guess_images(sample: Sample, images: ImageFiles, beside: Path, named: str | None) -> Images:
    """The column of the images, and the folder that its paths are relative to.

    Args:
        sample: the first rows.
        images: those inside the table.
        beside: folder of the table.
        named: the column that the user names.

    Raises:
        ConcordError: no column names images that exist, or several do and nobody can be asked.
    """
    columns = [sample.check(named, "--image")] if named else sample.header
    found = [Images(column, folder) for column in columns for folder in _folders(sample, column, images, beside)[:1]]
    if not found:
        example = f" (it has {sample.values(named)[:1]})" if named else ""
        raise ConcordError(
            f"{sample.source}: {f'column {named!r}{example}' if named else 'no column'} names image files below "
            f"{beside}. Write paths relative to the table, with their ending, or name the column with --image."
        )
    if len(found) > 1:
        known = [images for images in found if images.column.lower() in IMAGE_NAMES]
        found = known if len(known) == 1 else found
    if len(found) > 1:
        column = choose("the image column", [images.column for images in found], "--image", sample.source)
        return next(images for images in found if images.column == column)
    return found[0]


def _folders(sample: Sample, column: str, images: ImageFiles, beside: Path) -> list[str | None]:
    """Folders, relative to the table, in which most of the first images of the column are; usually one or none."""
    values = sample.values(column)[:20]
    if values and all(value in images for value in values):
        return [None]
    names = [value for value in values if value.lower().endswith(IMAGE_SUFFIXES)]
    if len(names) < len(values) / 2 or not names:
        return []
    if _existing(beside, names) > 0:
        return [None]
    below = [folder for folder in _subfolders(beside) if _existing(beside / folder, names) > len(names) / 2]
    return list(below)


def _existing(folder: Path, names: Sequence[str]) -> int:
    return sum((folder / name).is_file() for name in names if not os.path.isabs(name))


def _subfolders(folder: Path) -> list[str]:
    found = []
    for parent, folders, _ in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [(Path(parent) / name).relative_to(folder).as_posix() for name in folders]
        if len(found) >= _FOLDERS:
            break
    return found[:_FOLDERS]


def guess_target(sample: Sample, taken: Sequence[str | None], named: str | None) -> str:
    """The column of numbers that the model is to read.

    A column with a well-known name wins over others; numbered rows and columns with fewer than three values never are
    the target.

    Args:
        sample: the first rows.
        taken: columns that have another role.
        named: the column that the user names.

    Raises:
        ConcordError: no column has numbers, or several do and nobody can be asked.
    """
    if named:
        return sample.check(named, "--target")
    candidates = [column for column in sample.header if column not in taken and _is_target(sample, column)]
    if not candidates:
        columns = ", ".join(column for column in sample.header if column not in taken) or "none"
        raise ConcordError(
            f"{sample.source}: no column has different numbers (other columns: {columns}). Add one, or name it with "
            "--target."
        )
    known = [column for column in candidates if column.lower() in TARGET_NAMES]
    candidates = known if len(known) == 1 else candidates
    return candidates[0] if len(candidates) == 1 else choose("the target", candidates, "--target", sample.source)


def _is_target(sample: Sample, column: str) -> bool:
    values = sample.values(column)
    numbers = [number for number in map(as_number, values) if number is not None]
    if column.lower() in _INDEX_NAMES or len(numbers) < _NUMBERS * len(values) or len(set(numbers)) < 3:
        return False
    steps = {round(after - before, 9) for before, after in pairwise(numbers)}
    return steps != {1.0}  # else the rows are numbered


def as_number(text: str) -> float | None:
    """The number that ingest reads; None if it reads none."""
    try:
        return parse_target(text)
    except BadValueError:
        return None


def guess_split(sample: Sample, taken: Sequence[str | None]) -> str | None:
    """The column whose values are names of splits, train and test among them; None if there is none."""
    found = []
    for column in sample.header:
        values = sample.values(column)
        if column in taken or len(values) < len(sample.rows) or not all(map(is_split, set(values))):
            continue
        if "train" in map(parse_split, set(values)):
            found.append(column)
    known = [column for column in found if column.lower() in SPLIT_NAMES]
    found = known if len(known) == 1 else found
    if len(found) > 1:
        return choose("the split", found, "--split", sample.source)
    return found[0] if found else None


def guess_subject(sample: Sample, taken: Sequence[str | None]) -> str | None:
    """The column that names the person or device in the image, by its name; None if there is none."""
    found = [column for column in sample.header if column not in taken and is_subject(column) and sample.values(column)]
    if len(found) > 1:
        return choose("the subject", found, "--subject", sample.source)
    return found[0] if found else None


def is_subject(name: str) -> bool:
    """Whether a column of this name holds the person or device: subject, patient_id, PersonID."""
    bare = re.sub(r"[^a-z]", "", name.lower())
    return any(bare in (word, f"{word}id", f"{word}s", f"{word}name", f"{word}number") for word in SUBJECT_NAMES)
