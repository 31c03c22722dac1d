"""Predicts the test images with a registered version in a separate Python process."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from components.console import console
from components.errors import ConcordError
from components.settings import Task
from components.shared.io.secrets import masked
from components.shared.rows.rows import shards
from components.shared.scoring.errors import Predictions
from components.shared.tracking.connection import absolute_tracking_uri

MASS_TOLERANCE = 1e-3
SCRIPT = Path(__file__).with_name("predict_isolated.py")


def served_predictions(name: str, number: str, ingest: Path, batch_size: int) -> pa.Table:
    """Returns `id`, `value` and, where the version has them, `low`, `high` and `mass` of every test image.

    A value is null if the answer is invalid.

    The other process uses the code stored with the version, which for a champion may be older than this checkout.

    Args:
        name: registered model.
        number: its version.
        ingest: row shards.
        batch_size: images per batch.

    Raises:
        ConcordError: the version cannot be loaded or fails to predict.
    """
    shards(ingest, "test")
    uri = f"models:/{name}/{number}"
    console.print(f"predicting the test images with {uri}")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "answers.parquet")
        command = [sys.executable, "-I", str(SCRIPT), uri, str(ingest.resolve()), str(batch_size), str(out)]
        environment = os.environ | {"MLFLOW_TRACKING_URI": absolute_tracking_uri()}
        process = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if process.returncode:
            lines = process.stderr.strip().splitlines() or [f"exit code {process.returncode}"]
            raise ConcordError(f"{uri} could not be loaded or could not predict: {masked(lines[-1])[:500]}")
        return pq.read_table(out)


def different_images(expected: Mapping[str, Sequence[float | None]], served: pa.Table, task: Task) -> dict[int, str]:
    """Finds the images that a version predicts differently from evaluate.

    Another processor or library adds in another order, so probabilities differ in their last digits, and a number whose
    probabilities tie may become its neighbour. Numbers count as equal within half of the resolution, masses within
    `MASS_TOLERANCE`.

    Args:
        expected: column -> evaluate's numbers `(N,)`, None where the answer is invalid.
        served: the version's predictions of the same images.

    Returns:
        Row -> the first column that differs there, with both numbers.
    """
    different: dict[int, str] = {}
    for name, before in expected.items():
        was = np.array(before, dtype=np.float64)
        now = np.array(served[name].to_pylist(), dtype=np.float64)
        tolerance = MASS_TOLERANCE if name == "mass" else task.resolution / 2
        for row in np.flatnonzero(~np.isclose(was, now, rtol=0, atol=tolerance, equal_nan=True)).tolist():
            different.setdefault(row, f"{name} {now[row]:g}, was {was[row]:g}")
    return different


def comparable_predictions(served: pa.Table, reference: Predictions, task: Task) -> Predictions:
    """Returns another version's predictions for the images of `reference`; values outside the task's range are NaN."""
    values = served["value"].to_numpy(zero_copy_only=False)
    in_range = (values >= task.low) & (values <= task.high)
    values = np.where(in_range, values, np.nan)
    return Predictions(reference.targets, values, reference.shots, task.low, task.high, task.resolution)
