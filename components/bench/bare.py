"""The bare loop that the data steps are held against: one process, no checks but Pillow's, no splits, no hashes.

python -m components.bench.bare FOLDER OUT
"""

import csv
import io
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from components.bench.pictures import TABLE

SCHEMA = pa.schema([("image", pa.string()), ("bytes", pa.binary()), ("target", pa.float64())])
ROWS = 500  # written together: some 8 MB


def main(folder: str, out: str) -> int:
    """Reads every file that the table names, decodes it, and writes the same bytes to one Parquet file.

    Returns:
        The number of rows.
    """
    count = 0
    images: list[str] = []
    contents: list[bytes] = []
    targets: list[float] = []
    with (
        open(f"{folder}/{TABLE}", encoding="utf-8", newline="") as table,
        # The options that our shards are written with; Parquet's own would compress JPEG again, in vain.
        pq.ParquetWriter(out, SCHEMA, compression="none", use_dictionary=False) as writer,
    ):
        lines = csv.reader(table)
        next(lines)
        for name, target in lines:
            with open(f"{folder}/{name}", "rb") as file:
                data = file.read()
            Image.open(io.BytesIO(data)).load()
            images.append(name)
            contents.append(data)
            targets.append(float(target))
            count += 1
            if len(images) == ROWS:
                writer.write_table(pa.table([images, contents, targets], schema=SCHEMA))
                images, contents, targets = [], [], []
        if images:
            writer.write_table(pa.table([images, contents, targets], schema=SCHEMA))
    return count


if __name__ == "__main__":
    print(main(sys.argv[1], str(Path(sys.argv[2]))))
