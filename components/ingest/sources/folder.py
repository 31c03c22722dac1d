"""The source `folder`: a CSV of labels and the image files that it names, as a stream of rows."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from components.errors import ConcordError
from components.ingest.quarantine import Quarantine
from components.ingest.sources.labels import Label, Read, read_labels, records, table_path
from components.ingest.splits import balanced_splits, shuffle_key, subject_splits
from components.settings import Settings, Task
from components.shared.io.prefetch import prefetch
from components.shared.rows.rows import SPLITS, Row
from components.shared.scoring.shots import label_bins


def read_folder(
    folder: Path, settings: Settings, read: Read = records, *, quarantine: Quarantine | None = None
) -> Iterator[tuple[str, Row]]:
    """Split and row of every image, train first, each split in a shuffled order that the ids alone decide.

    The table is checked whole in this call; then, as rows are asked for, images are read, some dozens ahead, and their
    bytes are passed on as they are.

    Args:
        folder: holds the table.
        settings: its name, its columns, the split.
        read: gives the table's records, see `read_labels`.
        quarantine: takes the rows that cannot be used; None: any fault is an error.

    Raises:
        ConcordError: the table has more faults than the quarantine takes, a split is empty, or a file cannot be read.
    """
    table = table_path(folder, settings.ingest)
    members = split_labels(table, read_labels(table, settings.ingest, read, quarantine=quarantine), settings)
    return _rows(table, members, settings.task)


def _rows(table: Path, members: Mapping[str, list[Label]], task: Task) -> Iterator[tuple[str, Row]]:
    for split in SPLITS:
        contents = prefetch(lambda label: _content(table, label), members[split])
        for label, content in zip(members[split], contents, strict=True):
            origin = f"{table.name}:{label.line} {label.image}"
            yield split, Row(label.id, content, label.target, task.question, origin, label.subject)


def split_labels(table: Path, labels: list[Label], settings: Settings) -> dict[str, list[Label]]:
    """The labels of each split, by the settings' rule, shuffled.

    Args:
        table: where they are from, for the message.
        labels: each with the split that its source gives, if any.
        settings: the rule, and the bins that it counts in.

    Raises:
        ConcordError: a split is empty.
    """
    if settings.ingest.split == "given":
        splits = [label.split for label in labels]
        remedy = "Give it rows, or set ingest.split: balanced, or given-test: val out of train."
    elif settings.ingest.split == "given-test":
        splits = _val_from_train(labels, settings.task, settings.ingest.max_per_label)
        remedy = "Give test rows; and train three of a label, one of them for val, or widen task.bin_width."
    elif settings.ingest.split == "subject":
        splits = _by_subject(labels, settings.task, settings.ingest.max_per_label)
        remedy = "Too few subjects share a label: widen task.bin_width, or add subjects."
    else:
        splits = _balanced(labels, settings.task, settings.ingest.max_per_label)
        remedy = "No label has three rows, one for each split: widen task.bin_width, or add images."
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
    """Splits as given, where train gives up to val what the reference rule takes; val rows that are given stay so."""
    train = [label for label in labels if label.split == "train"]
    rule = dict(zip((label.id for label in train), _balanced(train, task, max_per_label), strict=True))
    return ["val" if rule.get(label.id) == "val" else label.split for label in labels]


def _content(table: Path, label: Label) -> bytes:
    try:
        with open(f"{table.parent}/{label.image}", "rb", buffering=0) as file:
            return file.read()
    except OSError as error:
        raise ConcordError(
            f"{table}:{label.line}: {label.image}: cannot be read ({error.strerror}). Make it readable."
        ) from None
