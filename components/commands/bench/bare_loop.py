"""The baseline of the data benchmark: one process that reads, decodes and packs images, without checks or splits.

`python -m components.commands.bench.bare_loop TABLE OUT`
"""

import csv
import io
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

ROWS_PER_WRITE = 1000


def main(table: Path, out: Path) -> int:
    """Reads and decodes every file in the table, and writes the same bytes to one Parquet file.

    Returns:
        The number of rows.
    """
    count = 0
    rows: list[dict[str, object]] = []
    schema = pa.schema([("image", pa.string()), ("bytes", pa.binary()), ("target", pa.float64())])
    with open(table, encoding="utf-8", newline="") as file, pq.ParquetWriter(out, schema) as writer:
        lines = csv.reader(file)
        next(lines)
        for image, target in lines:
            data = (table.parent / image).read_bytes()
            Image.open(io.BytesIO(data)).load()
            rows.append({"image": image, "bytes": data, "target": float(target)})
            count += 1
            if len(rows) == ROWS_PER_WRITE:
                writer.write_table(pa.Table.from_pylist(rows, schema))
                rows = []
        if rows:
            writer.write_table(pa.Table.from_pylist(rows, schema))
    return count


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), Path(sys.argv[2])))
