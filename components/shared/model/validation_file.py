"""validation.parquet of a model folder: the model's distributions over the validation images, and the training counts.

From it the answers' balance and the intervals' thresholds are fitted, so that no training depends on how answers are
read from the model.
"""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from components.errors import ConcordError
from components.settings import Answer, Task
from components.shared.model.answer_tree import task_values
from components.shared.scoring.answer_rule import AnswerRule, ValidationDistributions
from components.shared.scoring.distribution import nearest
from components.shared.scoring.errors import Array
from components.shared.scoring.shots import ShotTable

FILE = "validation.parquet"
_META = b"concord"


def write_validation(folder: Path, ids: list[str], distributions: ValidationDistributions) -> None:
    """Writes `folder`/validation.parquet, one row for each validation image in the order of the split."""
    known = distributions
    meta = {
        "low": float(known.values[0]),
        "high": float(known.values[-1]),
        "counts": known.counts.astype(int).tolist(),
        "shots": known.shots.tolist(),
        "per_bin": known.per_bin,
        "trained": known.trained,
    }
    log_p = pa.FixedSizeListArray.from_arrays(pa.array(known.log_p.ravel(), pa.float32()), len(known.values))
    warm_start = pa.array(known.warm_start, pa.float64(), mask=~np.isfinite(known.warm_start))
    table = pa.table(
        {
            "id": pa.array(ids, pa.string()),
            "target": pa.array(known.targets, pa.float64()),
            "tune": pa.array(known.tune, pa.bool_()),
            "warm_start": warm_start,
            "log_p": log_p,
        }
    )
    pq.write_table(table.replace_schema_metadata({_META: json.dumps(meta).encode()}), folder / FILE)


def read_validation(folder: Path) -> tuple[list[str], ValidationDistributions]:
    """Ids and distributions of a model folder.

    Raises:
        ConcordError: the file is missing, or it is not one of these.
    """
    path = folder / FILE
    remedy = "Train the model with this version of sft and grpo."
    try:
        table = pq.ParquetFile(path).read()  # read_table would import pandas
        meta = json.loads(table.schema.metadata[_META])
    except FileNotFoundError:
        raise ConcordError(f"{path}: missing, so the answers cannot be read from the distribution. {remedy}") from None
    except (OSError, pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
        raise ConcordError(f"{path}: cannot be read ({str(error).splitlines()[0]}). {remedy}") from None
    counts = np.array(meta["counts"], np.float64)
    log_p = table["log_p"].combine_chunks()
    flat = (log_p.flatten() if len(log_p) else pa.array([], pa.float32())).to_numpy(zero_copy_only=False)
    return table["id"].to_pylist(), ValidationDistributions(
        values=np.linspace(meta["low"], meta["high"], len(counts)),
        counts=counts,
        shots=np.array(meta["shots"], "<U6"),
        per_bin=meta["per_bin"],
        trained=meta["trained"],
        tune=table["tune"].to_numpy(zero_copy_only=False).astype(bool),
        targets=table["target"].to_numpy(),
        log_p=flat.astype(np.float64).reshape(-1, len(counts)),
        warm_start=table["warm_start"].to_numpy(zero_copy_only=False),
    )


def fitted_rule(folder: Path, answer: Answer, tolerance: float) -> AnswerRule:
    """The answer rule of a model folder under the settings.

    Raises:
        ConcordError: the folder has no validation.parquet.
    """
    _, validation = read_validation(folder)
    return AnswerRule.fit(validation, answer.statistic, answer.balance, answer.coverage, tolerance)


def label_counts(task: Task, train: Array) -> tuple[Array, np.ndarray, float]:
    """Training images with each number `(N,)`, the shot group of each number `(N,)`, and the numbers in a label bin."""
    values = task_values(task)
    counts = np.bincount(nearest(values, train), minlength=len(values)).astype(np.float64)
    shots = ShotTable.of(train, task.bin_width, task.resolution, task.many, task.few).shot(values)
    return counts, shots, task.bin_width / task.resolution
