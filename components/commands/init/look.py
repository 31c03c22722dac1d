"""Finds the columns of a data set and reads all its labels, as ingest will read them."""

import random
import re
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from components.commands.init.columns import Sample, guess_images, guess_split, guess_subject, guess_target
from components.commands.init.discover import DataSet
from components.commands.init.paths import guess_pattern, split_of_parts
from components.commands.init.survey import SAMPLE
from components.errors import ConcordError
from components.ingest.quarantine import TableErrors
from components.ingest.sources.folder import Folder, open_folder
from components.ingest.sources.image_files import ImageFiles
from components.ingest.sources.labels import Label, scan_labels
from components.ingest.sources.tables import IMAGE_COLUMN
from components.settings import Ingest
from components.shared.io.text import quoted

_ROWS = 5000  # from which columns are guessed
_PATHS = 2000  # from which a pattern is guessed, drawn at random
RULES = ("balanced", "subject")  # values of --split that are not columns


@dataclass(frozen=True)
class Found:
    """What a data set contains.

    Attributes:
        ingest: the settings that read it.
        labels: of the rows without errors.
        errors: of each table.
        rows: number of all rows.
        images: the images; of those inside tables, a random sample.
        notes: decisions that the user should know of.
    """

    ingest: Ingest
    labels: list[Label]
    errors: list[TableErrors]
    rows: int
    images: ImageFiles
    notes: list[str]


def look(data: DataSet, template: Ingest, options: Namespace) -> Found:
    """Guesses the columns and reads every row.

    Raises:
        ConcordError: a column cannot be guessed, or no row can be used.
    """
    ingest = template.model_copy(
        update={
            "source": "folder", "path": data.path, "csv": data.csv, "image_column": "", "target_column": "",
            "id_column": None, "image_folder": None, "pattern": options.pattern, "split": "balanced",
            "split_column": None, "subject_column": None, "max_quarantined": 0, "max_per_label": 30,
        }
    )  # fmt: skip
    ingest = _with_columns(_with_images(ingest, data, options), data, options)
    source = open_folder(data.folder, ingest, keep=SAMPLE)
    scan = scan_labels(source.tables, ingest, source.read, source.images)
    if not scan.labels:
        for table in scan.errors:
            table.raise_if_any(f", and none of the {scan.rows} rows can be used")
    split, notes = _split_rule(ingest, scan.labels)
    ingest = ingest.model_copy(update={"split": split} | ({} if split.startswith("given") else {"split_column": None}))
    return Found(ingest, scan.labels, scan.errors, scan.rows, source.images, notes)


def _with_images(ingest: Ingest, data: DataSet, options: Namespace) -> Ingest:
    """The settings with the column of the images, and the pattern for their paths."""
    if data.csv is None:
        ingest = ingest.model_copy(update={"image_column": IMAGE_COLUMN})
        if ingest.pattern:
            return ingest
        paths = _sample(open_folder(data.folder, ingest), data, limit=None).values(IMAGE_COLUMN)
        paths = random.Random(0).sample(paths, min(_PATHS, len(paths)))
        return ingest.model_copy(update={"pattern": guess_pattern(paths, data.path)})
    source = open_folder(data.folder, ingest.model_copy(update={"pattern": None}), keep=0)
    sample = _sample(source, data)
    images = guess_images(sample, source.images, source.tables[0].parent, options.image)
    ingest = ingest.model_copy(update={"image_column": images.column, "image_folder": images.folder})
    if ingest.pattern or options.split in RULES:
        return ingest
    located = open_folder(data.folder, ingest.model_copy(update={"pattern": None}), keep=0)
    paths = _sample(located, data).values(images.column)
    return ingest.model_copy(update={"pattern": split_of_parts(paths)})


def _sample(source: Folder, data: DataSet, limit: int | None = _ROWS) -> Sample:
    """The first rows of every table."""
    header: list[str] = []
    rows: list[list[str]] = []
    for table in source.tables:
        records: Iterator[tuple[int, list[str]]] = source.read(table)
        line, columns = next(records, (0, []))
        if not line:
            raise ConcordError(f"{table}: empty. It needs a header and a row for each image.")
        header = header or columns
        if missing := set(header) ^ set(columns):
            first, names = source.tables[0], ", ".join(map(quoted, sorted(missing)))
            raise ConcordError(f"{table}: it and {first} do not both have {names}. Give both the same columns.")
        order = [columns.index(column) for column in header]
        most = limit and max(limit // len(source.tables), 50)
        rows += [[fields[k] for k in order] for _, fields in islice(records, most) if len(fields) == len(order)]
    if not rows:
        raise ConcordError(f"{data.name}: a header but no rows. Add a row for each image.")
    return Sample(data.name, header, rows)


def _with_columns(ingest: Ingest, data: DataSet, options: Namespace) -> Ingest:
    """The settings with the columns of split, subject and target."""
    sample = _sample(open_folder(data.folder, ingest, keep=0), data)
    split = None if options.split in RULES else options.split and sample.check(options.split, "--split")
    if options.split is None:
        split = guess_split(sample, [ingest.image_column])
    subject = sample.check(options.subject, "--subject") if options.subject else None
    if options.subject is None:
        subject = guess_subject(sample, [ingest.image_column, split])
    in_path = "target" if "target" in re.compile(ingest.pattern or "").groupindex else None
    target = guess_target(sample, [ingest.image_column, split, subject], options.target or in_path)
    if options.split == "subject" and subject is None:
        raise ConcordError(f"{data.name}: --split subject needs a column with the person or device: --subject COLUMN")
    rule = "given" if split else "subject" if subject and options.split != "balanced" else "balanced"
    return ingest.model_copy(
        update={"target_column": target, "subject_column": subject, "split_column": split, "split": rule}
    )


def _split_rule(ingest: Ingest, labels: list[Label]) -> tuple[str, list[str]]:
    """The rule of ingest.split for the splits that the labels have, and a note if the column is not used."""
    if ingest.split != "given":
        return ingest.split, []
    splits = {label.split for label in labels}
    if {"train", "test"} <= splits:
        return ("given" if "val" in splits else "given-test"), _subjects_in_two_splits(labels)
    rule = "subject" if ingest.subject_column else "balanced"
    only = " and ".join(sorted(splits))
    return rule, [f"{ingest.split_column} has only {only}, so all rows are split again ({rule})."]


def _subjects_in_two_splits(labels: list[Label]) -> list[str]:
    """A note if the given splits share subjects, which validate refuses."""
    pairs = {(label.subject, label.split) for label in labels if label.subject is not None}
    shared = sorted(subject for subject, count in Counter(subject for subject, _ in pairs).items() if count > 1)
    if not shared:
        return []
    return [
        f"{len(shared):,} subjects, such as {quoted(shared[0])}, are in more than one split, which validate refuses: a "
        "model could know the subject and not read. --split subject splits the rows again."
    ]
