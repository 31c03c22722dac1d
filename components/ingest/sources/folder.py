"""The source `folder`: streams rows from tables of labels and their images, or from image files named by label."""

import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from components.errors import ConcordError
from components.ingest.quarantine import Quarantine
from components.ingest.sources.image_files import ImageFiles
from components.ingest.sources.labels import Label, read_labels
from components.ingest.sources.tables import (
    TABLE_SUFFIXES,
    RecordReader,
    Records,
    map_column,
    read_image_files,
    table_reader,
    with_groups,
)
from components.ingest.splits import balanced_splits, shuffle_key, subject_splits
from components.settings import Ingest, Settings, Task
from components.shared.io.prefetch import prefetch
from components.shared.rows.rows import SPLITS, Row
from components.shared.scoring.shots import label_bins


def read_folder(
    folder: Path, settings: Settings, read: RecordReader | None = None, *, quarantine: Quarantine | None = None
) -> Iterator[tuple[str, Row]]:
    """Yields split and row of every image: train first, each split in a shuffled order that depends only on the ids.

    The call itself reads and checks the tables. Iterating then reads the images, a few dozen ahead, and gives their
    bytes unchanged.

    Args:
        folder: contains the tables, or the images.
        settings: names of tables and columns, and the split.
        read: yields a table's records, see `read_labels`; None: reads tables of every ending.
        quarantine: takes rows with errors; None: any error ends the step.

    Raises:
        ConcordError: more rows have errors than the quarantine takes, a split is empty, or a file cannot be read.
    """
    source = open_folder(folder, settings.ingest, read)
    labels = read_labels(source.tables, settings.ingest, source.read, source.images, quarantine)
    members = split_labels(source.tables[0], labels, settings)
    return _rows(source, members, settings.task)


@dataclass(frozen=True)
class Folder:
    """Tables and images of a folder.

    Attributes:
        tables: paths of the tables; if there are none, the folder, whose image files are the rows.
        read: yields a table's records.
        images: the images by path.
    """

    tables: list[Path]
    read: RecordReader
    images: ImageFiles


def open_folder(folder: Path, settings: Ingest, read: RecordReader | None = None, keep: int | None = None) -> Folder:
    """Finds the tables of a folder, and the readers of their records and images.

    Image paths are relative to the table, or to the folder if `settings.csv` is a pattern that names several tables.

    Args:
        folder, settings, read: see `read_folder`.
        keep: see `ImageFiles`.

    Raises:
        ConcordError: there is no such table.
    """
    tables = table_paths(folder, settings)
    images = ImageFiles(folder if is_glob(settings.csv) or not settings.csv else tables[0].parent, keep)
    plain = read or (table_reader(images) if settings.csv else read_image_files)

    def read_located(table: Path) -> Records:
        # Only for several tables, each of which has its images beside it.
        beside = "" if table.is_dir() else table.parent.relative_to(images.root).as_posix()
        start = posixpath.normpath(posixpath.join(beside, settings.image_folder or ""))

        def locate(path: str) -> str:
            # Absolute and empty paths are left unchanged, so that `read_labels` reports them as such.
            return path if start == "." or not path.strip() or path in images else posixpath.join(start, path)

        return with_groups(map_column(plain, settings.image_column, locate), settings.image_column, settings.pattern)(
            table
        )

    return Folder(tables, read_located, images)


def is_glob(csv: str | None) -> bool:
    """Whether `ingest.csv` names several tables: data/*.parquet."""
    return csv is not None and any(mark in csv for mark in "*?[")


def table_paths(folder: Path, settings: Ingest) -> list[Path]:
    """Paths of the tables that the settings name, or the folder itself if its image files are the rows.

    Raises:
        ConcordError: a file does not exist, or is outside the folder, where the hash of the data does not cover it.
    """
    if settings.csv is None:
        return [folder]
    inside = posixpath.normpath(settings.csv)
    if posixpath.isabs(inside) or inside.split("/")[0] == "..":
        raise ConcordError(f"ingest.csv: {settings.csv} is outside {folder}; name a file inside it.")
    table = folder / settings.csv
    tables = sorted(folder.glob(inside)) if is_glob(settings.csv) else [table]
    if not tables or not all(path.is_file() for path in tables):
        found = sorted(path.name for path in folder.glob("*") if path.suffix.lower() in TABLE_SUFFIXES)[:10]
        hint = f"Tables there: {', '.join(found)}" if found else f"{folder} contains no table"
        raise ConcordError(f"{table}: no such file. {hint}. Correct ingest.csv or add the file.")
    return tables


def _rows(source: Folder, members: Mapping[str, list[Label]], task: Task) -> Iterator[tuple[str, Row]]:
    for split in SPLITS:
        contents = prefetch(lambda label: _read_image(source, label), members[split])
        for label, content in zip(members[split], contents, strict=True):
            origin = f"{label.table}:{label.line} {label.image}"
            yield split, Row(label.id, content, label.target, task.question, origin, label.subject)


def split_labels(table: Path, labels: list[Label], settings: Settings) -> dict[str, list[Label]]:
    """Assigns the labels to splits by the rule in the settings, and shuffles each split.

    Args:
        table: source of the labels, for the error message.
        labels: each with the split that the source gives, if any.
        settings: the rule and the label bins.

    Raises:
        ConcordError: a split is empty.
    """
    if settings.ingest.split == "given":
        splits = [label.split for label in labels]
        remedy = "Add rows, or set ingest.split: balanced, or given-test (takes val from train)."
    elif settings.ingest.split == "given-test":
        splits = _val_from_train(labels, settings.task, settings.ingest.max_per_label)
        remedy = "Add test rows, or train rows (a label needs three to give one to val), or widen task.bin_width."
    elif settings.ingest.split == "subject":
        splits = _by_subject(labels, settings.task, settings.ingest.max_per_label)
        remedy = "Too few subjects share a label: widen task.bin_width, or add subjects."
    else:
        splits = _balanced(labels, settings.task, settings.ingest.max_per_label)
        remedy = "No label has three rows, one per split: widen task.bin_width, or add images."
    members: dict[str, list[Label]] = {split: [] for split in SPLITS}
    for label, split in zip(labels, splits, strict=True):
        members[split].append(label)
    if empty := [split for split in SPLITS if not members[split]]:
        raise ConcordError(f"{table}: {len(labels)} rows, none of them in {' or '.join(empty)}. {remedy}")
    for rows in members.values():
        rows.sort(key=lambda label: shuffle_key(label.id, "order"))
    return members


def _balanced(labels: list[Label], task: Task, max_per_label: int) -> list[str]:
    return balanced_splits([label.id for label in labels], _bins(labels, task), max_per_label)


def _by_subject(labels: list[Label], task: Task, max_per_label: int) -> list[str]:
    return subject_splits([label.subject or "" for label in labels], _bins(labels, task), max_per_label)


def _bins(labels: list[Label], task: Task) -> list[int]:
    with np.errstate(invalid="ignore"):  # a target too large for an integer; the validate step finds it out of range
        return list(label_bins([label.target for label in labels], task.bin_width, task.resolution).tolist())


def _val_from_train(labels: list[Label], task: Task, max_per_label: int) -> list[str]:
    """The given splits, except that the balanced rule moves rows from train to val."""
    train = [label for label in labels if label.split == "train"]
    rule = dict(zip((label.id for label in train), _balanced(train, task, max_per_label), strict=True))
    return ["val" if rule.get(label.id) == "val" else label.split for label in labels]


def _read_image(source: Folder, label: Label) -> bytes:
    try:
        return source.images.read(label.image)
    except OSError as error:
        table = source.images.root / label.table
        raise ConcordError(
            f"{table}:{label.line}: {label.image}: cannot be read ({error.strerror}). Make it readable."
        ) from None
