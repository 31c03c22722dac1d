"""The source `folder`: streams rows from a CSV of labels and the image files that it names."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from components.errors import ConcordError
from components.ingest.quarantine import Quarantine
from components.ingest.sources.labels import Label, RecordReader, read_labels, read_records, table_path
from components.ingest.splits import balanced_splits, shuffle_key, subject_splits
from components.settings import Settings, Task
from components.shared.io.prefetch import prefetch
from components.shared.rows.rows import SPLITS, Row
from components.shared.scoring.shots import label_bins


def read_folder(
    folder: Path, settings: Settings, read: RecordReader = read_records, *, quarantine: Quarantine | None = None
) -> Iterator[tuple[str, Row]]:
    """Yields split and row of every image: train first, each split in a shuffled order that depends only on the ids.

    The call itself reads and checks the whole table. Iterating then reads the image files, a few dozen ahead, and gives
    their bytes unchanged.

    Args:
        folder: contains the table.
        settings: name and columns of the table, and the split.
        read: yields the table's records, see `read_labels`.
        quarantine: takes rows with errors; None: any error ends the step.

    Raises:
        ConcordError: more rows have errors than the quarantine takes, a split is empty, or a file cannot be read.
    """
    table = table_path(folder, settings.ingest)
    members = split_labels(table, read_labels(table, settings.ingest, read, quarantine=quarantine), settings)
    return _rows(table, members, settings.task)


def _rows(table: Path, members: Mapping[str, list[Label]], task: Task) -> Iterator[tuple[str, Row]]:
    for split in SPLITS:
        contents = prefetch(lambda label: _read_image(table, label), members[split])
        for label, content in zip(members[split], contents, strict=True):
            origin = f"{table.name}:{label.line} {label.image}"
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


def _read_image(table: Path, label: Label) -> bytes:
    try:
        with open(f"{table.parent}/{label.image}", "rb", buffering=0) as file:
            return file.read()
    except OSError as error:
        raise ConcordError(
            f"{table}:{label.line}: {label.image}: cannot be read ({error.strerror}). Make it readable."
        ) from None
