"""A registered version, asked about the test images in an interpreter of its own."""

import os
import subprocess
import sys
import tempfile
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

PREDICT = Path(__file__).with_name("predict_isolated.py")


def ask(name: str, number: str, ingest: Path, batch_size: int) -> pa.Table:
    """`id` and `value` of every test image; null where there is no valid answer.

    The other interpreter has the model's own code and not this repository's: that of a champion may be older.

    Args:
        name, number: of the registered version.
        ingest: row shards.
        batch_size: images that are answered together.

    Raises:
        ConcordError: the version cannot be loaded or does not answer.
    """
    shards(ingest, "test")
    uri = f"models:/{name}/{number}"
    console.print(f"asking {uri} about the test images")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "answers.parquet")
        words = [sys.executable, "-I", str(PREDICT), uri, str(ingest.resolve()), str(batch_size), str(out)]
        environment = os.environ | {"MLFLOW_TRACKING_URI": absolute_tracking_uri()}
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise ConcordError(f"{uri} could not be loaded and asked: {masked(lines[-1])[:500]}")
        return pq.read_table(out)


def as_answers(found: pa.Table, like: Predictions, task: Task) -> Predictions:
    """Answers of another version, judged under today's task on the images of `like`."""
    values = found["value"].to_numpy(zero_copy_only=False)
    inside = (values >= task.low) & (values <= task.high)
    values = np.where(inside, values, np.nan)
    return Predictions(like.targets, values, like.shots, task.low, task.high, task.resolution)
