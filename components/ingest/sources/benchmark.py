"""Reads the published tables of the benchmark: AgeDB-DIR, IMDB-WIKI-DIR, BoneAge-DIR and IMDB-Movie-DIR.

Each data set is a CSV and image files. Their values are converted and then read as the source `folder` does: image
paths may be relative to another folder, or be numbers; scores may be multiplied by ten. The settings name the columns,
and the recipes have the settings for the published files:

- AgeDB, IMDB-WIKI (Yang et al. 2021, "Delving into Deep Imbalanced Regression"): age, path, split
- bone age (RSNA's challenge of 2017): id, boneage, male; the file of id 1377 is 1377.png
- movie posters (Du, Song and Li, arXiv 2605.01402): path, score, label, split; label is ten times score
"""

from collections.abc import Iterator
from contextlib import suppress
from decimal import Decimal
from pathlib import Path

from components.ingest.quarantine import BadValueError, Quarantine
from components.ingest.sources.folder import read_folder
from components.ingest.sources.tables import map_column, read_records
from components.ingest.sources.targets import parse_target
from components.settings import Settings
from components.shared.rows.rows import Row

MAX_SCORE = 10  # IMDb's scores are 1 to 10


def read_faces(folder: Path, settings: Settings, *, quarantine: Quarantine | None = None) -> Iterator[tuple[str, Row]]:
    """Reads AgeDB or IMDB-WIKI: yields split and row of every image, as `read_folder` does."""
    return read_folder(folder, settings, read_records, quarantine=quarantine)


def read_bone_age(
    folder: Path, settings: Settings, *, quarantine: Quarantine | None = None
) -> Iterator[tuple[str, Row]]:
    """Reads bone age: the image column has the number of a PNG file, or its name."""
    read = map_column(read_records, settings.ingest.image_column, png_name)
    return read_folder(folder, settings, read, quarantine=quarantine)


def read_movies(folder: Path, settings: Settings, *, quarantine: Quarantine | None = None) -> Iterator[tuple[str, Row]]:
    """Reads movie posters: converts scores to the task's scale, 0 to 10 or 0 to 100, from either scale in the table."""
    column, high = settings.ingest.target_column, settings.task.high

    def read(table: Path) -> Iterator[tuple[int, list[str]]]:
        shift = int(high > MAX_SCORE) - int(_largest_number(table, column) > MAX_SCORE)
        return map_column(read_records, column, lambda text: scale_decimal(text, shift))(table)

    return read_folder(folder, settings, read, quarantine=quarantine)


def png_name(id: str) -> str:
    """The file name of a numbered image: 1377 -> 1377.png. File names and empty values are unchanged."""
    name = id.strip()
    return name if not name or name.lower().endswith(".png") else f"{name}.png"


def scale_decimal(text: str, shift: int) -> str:
    """A decimal number times 10 to the power of `shift`, exactly; a text that is not a number is unchanged."""
    try:
        parse_target(text)
    except BadValueError:
        return text
    return f"{Decimal(text.strip()).scaleb(shift):f}" if shift else text


def _largest_number(table: Path, column: str) -> float:
    """The largest number in the column; 0 if there are none."""
    rows = read_records(table)
    header = next(rows, (0, [""]))[1]
    at = header.index(column) if column in header else len(header)
    largest = 0.0
    for _, fields in rows:
        for text in fields[at : at + 1]:
            with suppress(BadValueError):  # reported with its line when the table is read
                largest = max(largest, parse_target(text))
    return largest
