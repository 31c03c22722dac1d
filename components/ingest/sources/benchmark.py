"""The published tables of the benchmark: AgeDB-DIR, IMDB-WIKI-DIR, BoneAge-DIR and IMDB-Movie-DIR.

Each is a CSV and image files, read as the source `folder` reads them once its values are put right: a file is named by
its path in a folder that lies elsewhere, or by a number; a score is in tenths or not. The columns are in the settings;
the recipes have those of the published files:

- AgeDB, IMDB-WIKI (Yang et al. 2021, "Delving into Deep Imbalanced Regression"): age, path, split
- bone age (RSNA's challenge of 2017): id, boneage, male; the file of id 1377 is 1377.png
- movie posters (Du, Song and Li, arXiv 2605.01402): path, score, label, split; label is ten times score
"""

import posixpath
from collections.abc import Callable, Iterator
from contextlib import suppress
from decimal import Decimal
from pathlib import Path

from components.ingest.quarantine import BadValueError, Quarantine
from components.ingest.sources.folder import read_folder
from components.ingest.sources.labels import Read, parse_target, records
from components.settings import Ingest, Settings
from components.shared.rows.rows import Row

TOP_SCORE = 10  # IMDb's scores are 1 to 10


def read_faces(folder: Path, settings: Settings, *, quarantine: Quarantine | None = None) -> Iterator[tuple[str, Row]]:
    """AgeDB and IMDB-WIKI: split and row of every image, as `read_folder` gives them."""
    return read_folder(folder, settings, _in_folder(records, settings.ingest), quarantine=quarantine)


def read_bone_age(
    folder: Path, settings: Settings, *, quarantine: Quarantine | None = None
) -> Iterator[tuple[str, Row]]:
    """Bone age: the image column holds the number of a PNG file, or its name."""
    named = changed(records, settings.ingest.image_column, png_of)
    return read_folder(folder, settings, _in_folder(named, settings.ingest), quarantine=quarantine)


def read_movies(folder: Path, settings: Settings, *, quarantine: Quarantine | None = None) -> Iterator[tuple[str, Row]]:
    """Movie posters: scores in the scale of the task, 0 to 10 or 0 to 100, whichever the target column has."""
    column, high = settings.ingest.target_column, settings.task.high

    def read(table: Path) -> Iterator[tuple[int, list[str]]]:
        shift = int(high > TOP_SCORE) - int(_largest(table, column) > TOP_SCORE)
        return changed(records, column, lambda text: scaled(text, shift))(table)

    return read_folder(folder, settings, _in_folder(read, settings.ingest), quarantine=quarantine)


def changed(read: Read, column: str, change: Callable[[str], str]) -> Read:
    """Reads as `read` does, with the values of a column changed; a table without the column stays as it is."""

    def changing(table: Path) -> Iterator[tuple[int, list[str]]]:
        rows = read(table)
        for line, header in rows:
            yield line, header
            at = header.index(column) if column in header else len(header)
            for line, fields in rows:
                # Whatever is wrong with the record is told by who reads it on.
                yield line, [*fields[:at], *(change(text) for text in fields[at : at + 1]), *fields[at + 1 :]]

    return changing


def png_of(id: str) -> str:
    """The file of an image that is known by number: 1377 -> 1377.png. Names, and nothing, stay as they are."""
    name = id.strip()
    return name if not name or name.lower().endswith(".png") else f"{name}.png"


def scaled(text: str, shift: int) -> str:
    """A decimal number times 10 to the power of `shift`, without error; what is no number stays as it is."""
    try:
        parse_target(text)
    except BadValueError:
        return text
    return f"{Decimal(text.strip()).scaleb(shift):f}" if shift else text


def _in_folder(read: Read, settings: Ingest) -> Read:
    folder = settings.image_folder
    if folder is None:
        return read
    # An absolute path stays one, and is refused; what is empty stays empty, and is told as that.
    return changed(read, settings.image_column, lambda path: posixpath.join(folder, path) if path.strip() else path)


def _largest(table: Path, column: str) -> float:
    """Of the numbers in the column; 0 where there is none."""
    rows = records(table)
    header = next(rows, (0, [""]))[1]
    at = header.index(column) if column in header else len(header)
    largest = 0.0
    for _, fields in rows:
        for text in fields[at : at + 1]:
            with suppress(BadValueError):  # it is told with its line when the table is read
                largest = max(largest, parse_target(text))
    return largest
