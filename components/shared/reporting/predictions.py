"""Predictions files: one model's answers to a split as Parquet, written by evaluate and ablation, read by register."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from components.errors import ConcordError
from components.settings import Task
from components.shared.scoring.errors import Array, Predictions, subject_numbers

TEXT = "text"
# Ways to read a number: from the greedy text; from the distribution as it was trained, by its median or mean; from the
# mean, stretched; from the distribution as the settings say (`answer`), usually with a part of the prior divided out.
WAYS = (TEXT, "median", "mean", "stretched", "balanced")
READ = (*WAYS[1:], "low", "high", "mass")  # columns that come from the distribution; null where they are unknown

# subject is null where it is unknown; value is the number in the text, null if the text has no valid answer.
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("target", pa.float64()),
        pa.field("shot", pa.string()),
        pa.field("subject", pa.string()),
        pa.field("text", pa.string()),
        pa.field("value", pa.float64()),
        *(pa.field(name, pa.float64()) for name in READ),
    ]
)


def predictions_file(evaluate: Path, model: str) -> Path:
    """Path of the predictions of `base`, `sft` or `grpo` in evaluate's output folder."""
    return evaluate / f"predictions-{model}.parquet"


def write_predictions(
    path: Path,
    ids: Sequence[str],
    targets: Array,
    shots: Sequence[str],
    subjects: Sequence[str | None],
    texts: Sequence[str],
    values: Array,
    read: Mapping[str, Array],
) -> None:
    """Writes one model's answers; all columns are `(N,)` in the order of the split.

    Args:
        subjects: the person or device in each image; None where it is unknown.
        values: numbers in the texts, NaN for an invalid answer.
        read: columns of `READ` that are known.
    """
    unknown = np.full(len(ids), np.nan)
    numbers = [values, *(read.get(name, unknown) for name in READ)]
    columns = [pa.array(ids), pa.array(targets)]
    columns += [pa.array(each, pa.string()) for each in (shots, subjects, texts)]
    columns += [pa.array(each, pa.float64(), mask=~np.isfinite(each)) for each in numbers]
    pq.write_table(pa.table(columns, schema=SCHEMA), path)


def read_predictions(path: Path) -> pa.Table:
    """Reads a predictions file as a table with `SCHEMA`.

    Raises:
        ConcordError: the file is missing or is not a predictions file.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise ConcordError(
            f"{path}: cannot be read as predictions ({str(error).splitlines()[0]}). Run the evaluate step."
        ) from None
    if not table.schema.equals(SCHEMA):
        raise ConcordError(f"{path}: columns {table.column_names}, expected {SCHEMA.names}. Run the evaluate step.")
    return table


def to_predictions(table: pa.Table, task: Task, way: str = TEXT) -> Predictions:
    """Converts one way of reading numbers, of `WAYS`, to arrays for the metrics."""
    return Predictions(
        targets=table["target"].to_numpy(),
        values=table["value" if way == TEXT else way].to_numpy(zero_copy_only=False),
        shots=np.array(table["shot"].to_pylist(), dtype="<U6"),
        low=task.low,
        high=task.high,
        resolution=task.resolution,
        subjects=subject_numbers(table["subject"].to_pylist()),
    )
