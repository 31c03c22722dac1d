"""Asks a registered model about images, in an interpreter of its own: as anybody would who has only the registry.

    python -I outside.py MODEL_URI ROWS_FOLDER BATCH_SIZE OUT.parquet

It imports nothing of ours, so that the model's own code is what answers: that of the version that is loaded, which may
be older than what stands here.
"""

import sys
from pathlib import Path


def main(uri: str, rows: str, batch_size: str, out: str) -> None:
    """Writes `id` and `value` (null for no valid answer) of every test image to `out`."""
    import mlflow
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    model = mlflow.pyfunc.load_model(uri)
    ids: list[str] = []
    values: list[float] = []
    for shard in sorted(Path(rows).glob("test-*.parquet")):
        with pq.ParquetFile(shard) as file:
            # The very batches of evaluate: the same neighbours, the same rounding.
            for batch in file.iter_batches(int(batch_size), columns=["id", "image", "question"]):
                images = [image["bytes"] for image in batch.column("image").to_pylist()]
                asked = pd.DataFrame({"image": images, "question": batch.column("question").to_pylist()})
                values += model.predict(asked)["value"].tolist()
                ids += batch.column("id").to_pylist()
    found = np.array(values, np.float64)
    table = pa.table({"id": pa.array(ids, pa.string()), "value": pa.array(found, mask=~np.isfinite(found))})
    pq.write_table(table, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
