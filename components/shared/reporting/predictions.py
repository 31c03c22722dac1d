"""Predictions files: one model's answers to a split as Parquet, written by evaluate and ablation, read by register."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from components.errors import ConcordError
from components.settings import Task
from components.shared.scoring.errors import Array, Predictions

# value is null if the text has no valid answer.
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("target", pa.float64()),
        pa.field("shot", pa.string()),
        pa.field("text", pa.string()),
        pa.field("value", pa.float64()),
    ]
)


def predictions_file(evaluate: Path, model: str) -> Path:
    """Path of the predictions of `base`, `sft` or `grpo` in evaluate's output folder."""
    return evaluate / f"predictions-{model}.parquet"


def write_predictions(
    path: Path, ids: Sequence[str], targets: Array, shots: Sequence[str], texts: Sequence[str], values: Array
) -> None:
    """Writes one model's answers; all columns are `(N,)` in the order of the split, NaN for an invalid answer."""
    value = pa.array(values, pa.float64(), mask=~np.isfinite(values))
    columns = [pa.array(ids), pa.array(targets), pa.array(shots, pa.string()), pa.array(texts), value]
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


def to_predictions(table: pa.Table, task: Task) -> Predictions:
    """Converts the table to arrays for the metrics."""
    return Predictions(
        targets=table["target"].to_numpy(),
        values=table["value"].to_numpy(zero_copy_only=False),
        shots=np.array(table["shot"].to_pylist(), dtype="<U6"),
        low=task.low,
        high=task.high,
        resolution=task.resolution,
    )
