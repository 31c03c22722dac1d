"""The source `folder`: streams rows from tables of labels and their images, or from image files named by label."""

import hashlib
import posixpath
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
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
from components.shared.io.progress import with_progress
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
    members = split_labels(source.tables[0], labels, settings, partial(_read_image, source))
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
        contents = prefetch(partial(_read_image, source), members[split])
        for label, content in zip(members[split], contents, strict=True):
            origin = f"{label.table}:{label.line} {label.image}"
            yield split, Row(label.id, content, label.target, task.question, origin, label.subject)


def split_labels(
    table: Path, labels: list[Label], settings: Settings, read: Callable[[Label], bytes] | None = None
) -> dict[str, list[Label]]:
    """Assigns the labels to splits by the rule in the settings, and shuffles each split.

    Args:
        table: source of the labels, for the error message.
        labels: each with the split that the source gives, if any.
        settings: the rule and the label bins.
        read: reads a label's image, whose hash decides where no subject does; None: the ids decide, which gives about
            the same counts and reads nothing.

    Raises:
        ConcordError: a split is empty.
    """
    ingest, rule = settings.ingest, _SplitRule(settings.task, settings.ingest.max_per_label, read)
    if ingest.split == "given":
        splits = [label.split for label in labels]
        remedy = "Add rows, or set ingest.split: balanced, or given-test (takes val from train)."
    elif ingest.split == "given-test":
        splits = rule.val_from_train(labels)
        remedy = "Add test rows, or train rows (a label needs three to give one to val), or widen task.bin_width."
    elif ingest.split == "subject":
        splits = rule.by_subject(labels)
        remedy = "Too few subjects share a label: widen task.bin_width, or add subjects."
    else:
        splits = rule.balanced(labels)
        remedy = "No label has three rows, one per split: widen task.bin_width, or add images."
    members: dict[str, list[Label]] = {split: [] for split in SPLITS}
    for label, split in zip(labels, splits, strict=True):
        members[split].append(label)
    if empty := [split for split in SPLITS if not members[split]]:
        raise ConcordError(f"{table}: {len(labels)} rows, none of them in {' or '.join(empty)}. {remedy}")
    for rows in members.values():
        rows.sort(key=lambda label: shuffle_key(label.id, "order"))
    return members


@dataclass(frozen=True)
class _SplitRule:
    """The rules of `components.ingest.splits` for labels of a task; see `split_labels`."""

    task: Task
    max_per_label: int
    read: Callable[[Label], bytes] | None

    def balanced(self, labels: list[Label]) -> list[str]:
        return balanced_splits(self._contents(labels), self._bins(labels), self.max_per_label)

    def by_subject(self, labels: list[Label]) -> list[str]:
        return subject_splits([label.subject or "" for label in labels], self._bins(labels), self.max_per_label)

    def val_from_train(self, labels: list[Label]) -> list[str]:
        """The given splits, except that the balanced rule moves rows from train to val."""
        train = [label for label in labels if label.split == "train"]
        moved = dict(zip((label.id for label in train), self.balanced(train), strict=True))
        return ["val" if moved.get(label.id) == "val" else label.split for label in labels]

    def _contents(self, labels: list[Label]) -> list[bytes]:
        if self.read is None:
            return [label.id.encode() for label in labels]
        images = map(self.read, labels)  # in this thread, since archives are read by one thread at a time
        hashes = prefetch(lambda image: hashlib.sha256(image).digest(), images)
        return list(with_progress(hashes, "splitting rows", total=len(labels)))

    def _bins(self, labels: list[Label]) -> list[int]:
        targets = [label.target for label in labels]
        # A target too large for an integer is left to the validate step, which finds it out of range.
        with np.errstate(invalid="ignore"):
            return list(label_bins(targets, self.task.bin_width, self.task.resolution).tolist())


def _read_image(source: Folder, label: Label) -> bytes:
    try:
        return source.images.read(label.image)
    except OSError as error:
        table = source.images.root / label.table
        raise ConcordError(
            f"{table}:{label.line}: {label.image}: cannot be read ({error.strerror}). Make it readable."
        ) from None
