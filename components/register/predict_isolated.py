"""Predicts the test images with a registered model, as a user would who has only the registry.

    python -I predict_isolated.py MODEL_URI ROWS_FOLDER BATCH_SIZE OUT.parquet

This script imports nothing from this repository, so the predictions come from the code that is stored with the model
version, which may be older than this checkout.
"""

import sys
from pathlib import Path


def main(uri: str, rows: str, batch_size: str, out: str) -> None:
    """Writes `id` and the model's numbers (null where it gives none) of every test image to `out`."""
    import mlflow
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    model = mlflow.pyfunc.load_model(uri)
    ids: list[str] = []
    parts: list[pd.DataFrame] = []
    for shard in sorted(Path(rows).glob("test-*.parquet")):
        with pq.ParquetFile(shard) as file:
            # The same batches as in evaluate, because the batch affects rounding.
            for batch in file.iter_batches(int(batch_size), columns=["id", "image", "question"]):
                images = [image["bytes"] for image in batch.column("image").to_pylist()]
                inputs = pd.DataFrame({"image": images, "question": batch.column("question").to_pylist()})
                parts.append(model.predict(inputs))
                ids += batch.column("id").to_pylist()
    columns = {"id": pa.array(ids, pa.string())}
    for name in parts[0].columns.drop("error", errors="ignore"):  # an older version gives the value alone
        numbers = np.concatenate([part[name].to_numpy(np.float64) for part in parts])
        columns[name] = pa.array(numbers, mask=~np.isfinite(numbers))
    pq.write_table(pa.table(columns), out)


if __name__ == "__main__":
    main(*sys.argv[1:])
