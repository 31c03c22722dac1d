"""Predicts test images with a registered model, as a user would who has only the registry.

    python -I predict_isolated.py MODEL_FOLDER ROWS_FOLDER BATCH_SIZE IDS.parquet OUT.parquet

This script imports nothing from this repository, so the predictions come from the code that is stored with the model
version, which may be older than this checkout. It exits with 75 where another attempt may succeed.
"""

import sys
import traceback
from pathlib import Path
from typing import Any

RETRY = 75  # EX_TEMPFAIL of sysexits.h
PASSING = {  # MLflow's codes of errors that lie in the server or in the login, not in the model
    "INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED", "PERMISSION_DENIED",
}  # fmt: skip
HOPELESS = 8  # single images that fail, with none that succeeds, before the model is given up


def main(folder: str, rows: str, batch_size: str, ids: str, out: str) -> None:
    """Writes `id`, the model's numbers (null where it gives none) and `error` of the test images to `out`.

    Args:
        folder: all files of a version.
        ids: file with the ids of the images to predict.
    """
    import mlflow
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    wanted = pq.ParquetFile(ids).read()["id"].combine_chunks()
    model = mlflow.pyfunc.load_model(folder)
    found: list[str] = []
    parts: list[pd.DataFrame] = []
    for shard in sorted(Path(rows).glob("test-*.parquet")):
        with pq.ParquetFile(shard) as file:
            # The same batches as in evaluate, because the batch affects rounding.
            for batch in file.iter_batches(int(batch_size), columns=["id", "image", "question"]):
                batch = batch.filter(pc.is_in(batch.column("id"), wanted))
                if batch.num_rows:
                    images = [image["bytes"] for image in batch.column("image").to_pylist()]
                    inputs = pd.DataFrame({"image": images, "question": batch.column("question").to_pylist()})
                    parts.append(_answers(model, inputs, bool(parts)))
                    found += batch.column("id").to_pylist()
    answers = pd.concat(parts, ignore_index=True)
    columns = {"id": pa.array(found, pa.string())}
    for name in answers.columns.drop("error", errors="ignore"):  # an older version gives the value alone
        numbers = answers[name].to_numpy(np.float64)
        columns[name] = pa.array(numbers, mask=~np.isfinite(numbers))
    errors = [None if pd.isna(each) else str(each) for each in answers.get("error", [None] * len(answers))]
    columns["error"] = pa.array(errors, pa.string())
    pq.write_table(pa.table(columns), out)


def _answers(model: Any, inputs: Any, proven: bool) -> Any:
    """The answers to a batch. Where the model refuses it, each image is asked alone, and has an error if refused.

    Args:
        proven: whether the model has answered before. If not, and it refuses every image, the error is raised.
    """
    import pandas as pd

    try:
        return model.predict(inputs).reset_index(drop=True)
    except Exception as error:
        if may_pass(error) or (len(inputs) == 1 and not proven):
            raise
    parts: list[pd.DataFrame] = []
    for row in range(len(inputs)):
        try:
            parts.append(model.predict(inputs.iloc[row : row + 1]).reset_index(drop=True))
            proven = True
        except Exception as error:
            if may_pass(error) or (not proven and row + 1 >= min(len(inputs), HOPELESS)):
                raise
            parts.append(pd.DataFrame({"error": [str(error).partition("\n")[0] or type(error).__name__]}))
    return pd.concat(parts, ignore_index=True)


def may_pass(error: BaseException) -> bool:
    """Whether another attempt may succeed: memory or disk was short, or a server was away or refused the login."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException) and error.error_code in PASSING:
        return True
    if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
        return True
    short = isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate memory" in str(error)
    return short or (error.__cause__ is not None and may_pass(error.__cause__))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Exception as error:
        traceback.print_exc()
        sys.exit(RETRY if may_pass(error) else 1)
