"""Predicts the test images with a registered version in a separate Python process."""

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from components.console import console
from components.errors import ConcordError, RetryableError
from components.register.predict_isolated import RETRY, may_pass
from components.settings import Task
from components.shared.io.bare_environment import bare_environment
from components.shared.io.progress import Work
from components.shared.io.secrets import masked
from components.shared.rows.rows import shards
from components.shared.scoring.errors import Predictions
from components.shared.tracking.connection import is_server
from components.shared.tracking.registered import download

MASS_TOLERANCE = 1e-3
COULD_NOT_ASK = "{uri} could not be asked: {reason}. Run register again when this has passed."
SCRIPT = Path(__file__).with_name("predict_isolated.py")


class CannotPredictError(ConcordError):
    """A version that cannot be loaded or cannot predict, however often it is asked."""


def served_predictions(name: str, number: str, ingest: Path, batch_size: int, ids: Sequence[str]) -> pa.Table:
    """Returns `id`, `value` and, where the version has them, `low`, `high` and `mass` of test images, and `error`.

    A value is null if the answer is invalid. `error` says why an image cannot be read, else it is null.

    The other process uses the code stored with the version, which for a champion may be older than this checkout. It
    gets the version's files and what computing needs of the environment, but no login to the registry nor any other
    secret (`bare_environment`).

    Args:
        name: registered model.
        number: its version.
        ingest: row shards.
        batch_size: images per batch.
        ids: of the images to predict, in the order of the test split.

    Raises:
        CannotPredictError: the version cannot be loaded or fails to predict.
        ConcordError: another attempt may succeed: MLflow does not answer, or memory is short. Or the test split does
            not have these images.
    """
    shards(ingest, "test")
    uri = f"models:/{name}/{number}"
    console.print(f"predicting the test images with {uri}")
    with tempfile.TemporaryDirectory() as folder:
        asked, out = Path(folder, "ids.parquet"), Path(folder, "answers.parquet")
        pq.write_table(pa.table({"id": pa.array(ids, pa.string())}), asked)
        package, rows = _fetched(uri, Path(folder, "version")), ingest.resolve()
        command: list[str | Path] = [sys.executable, "-I", SCRIPT, package, rows, str(batch_size), asked, out]
        with Work(f"predicting {len(ids):,} test images with {uri}"):
            process = subprocess.run(
                command, cwd=folder, env=bare_environment(), capture_output=True, text=True, check=False
            )
        if process.returncode:
            raise _error(uri, process)
        table = pq.read_table(out)
    if table["id"].to_pylist() != list(ids):
        raise ConcordError(f"{ingest}: its test images are not those that evaluate read. Run the evaluate step again.")
    return table


def _fetched(uri: str, target: Path) -> Path:
    """Downloads the version to `target`, unless it is on this machine; returns its folder, absolute."""
    from mlflow.exceptions import MlflowException

    try:
        target.mkdir()
        return download(uri, target if is_server() else None).resolve()
    except (MlflowException, OSError) as error:
        reason = masked(str(error).partition("\n")[0])[:500]
        if may_pass(error):
            raise RetryableError(COULD_NOT_ASK.format(uri=uri, reason=reason)) from None
        raise CannotPredictError(f"{uri} could not be fetched: {reason}") from None


def _error(uri: str, process: "subprocess.CompletedProcess[str]") -> ConcordError:
    lines = process.stderr.strip().splitlines() or [f"exit code {process.returncode}"]
    reason = masked(lines[-1])[:500]
    if process.returncode == RETRY:
        return RetryableError(COULD_NOT_ASK.format(uri=uri, reason=reason))
    if process.returncode < 0:  # a signal; SIGKILL comes from the kernel when memory is short
        reason = f"the process was ended by signal {-process.returncode}"
        return RetryableError(f"{uri} could not be asked: {reason}, perhaps for memory. Run register again.")
    return CannotPredictError(f"{uri} could not be loaded or could not predict: {reason}")


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
    return replace(reference, values=values)
