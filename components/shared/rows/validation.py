"""The two halves of the validation split: `tune` for every choice, `calibrate` for the thresholds of intervals alone.

An interval keeps its promise only for images that chose nothing, neither the settings nor the checkpoint. The halves
follow from the content of the images, so they are the same in every run and on every machine.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from components.errors import ConcordError
from components.shared.rows.rows import read_rows, read_subjects, read_table
from components.shared.scoring.skill import best_constant


def tune_mask(ingest: Path) -> NDArray[np.bool_]:
    """Mask of the validation rows that choices are made on, `(N,)` in the order of the split."""
    table = read_table(ingest, "val", ["target", "image_sha256"])
    return halves(table["image_sha256"].to_pylist(), table["target"].to_pylist(), read_subjects(ingest, "val"))


def halves(hashes: Sequence[str], targets: Sequence[float], subjects: Sequence[str | None]) -> NDArray[np.bool_]:
    """Mask `(N,)` of the first of two halves of equally distributed labels.

    Within a label, images alternate in the order of their hashes. All images of a subject, and equal images, are in the
    same half. Where subjects are known, they alternate within the label of their first image.

    Args:
        hashes: `(N,)` SHA-256 of each image.
        targets: `(N,)`.
        subjects: `(N,)` the person or device in the image; None if unknown.
    """
    keys = [
        digest if subject is None else hashlib.sha256(subject.encode()).hexdigest()
        for digest, subject in zip(hashes, subjects, strict=True)
    ]
    role: dict[str, bool] = {}
    following: dict[float, bool] = {}
    for target, key in sorted(zip(targets, keys, strict=True)):
        if key not in role:
            role[key] = following.get(target, int(key[-1], 16) % 2 == 0)  # a single image of a label falls by its hash
            following[target] = not role[key]
    return np.array([role[key] for key in keys], bool)


def tune_table(ingest: Path) -> pa.Table:
    """Columns id and target of the tune half, in the order of the split.

    Raises:
        ConcordError: the half is empty.
    """
    table = read_table(ingest, "val", ["id", "target"]).filter(pa.array(tune_mask(ingest)))
    if not table.num_rows:
        raise ConcordError(f"{ingest}: no val images to choose by. Add rows to the split val.")
    return table


def tune_constant(ingest: Path) -> float:
    """The best constant answer to the tune half; a model must beat it."""
    return best_constant(tune_table(ingest)["target"].to_numpy())


def tune_rows(ingest: Path, batch_size: int = 256) -> Iterator[pa.RecordBatch]:
    """The rows of the tune half as a stream of record batches; those without any such row are left out."""
    mask, start = tune_mask(ingest), 0
    for batch in read_rows(ingest, "val", batch_size):
        part = batch.filter(pa.array(mask[start : start + batch.num_rows]))
        start += batch.num_rows
        if part.num_rows:
            yield part
