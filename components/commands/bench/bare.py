"""The bare loop that the data steps are held against: one process, no checks but Pillow's, no splits, no hashes.

`python -m components.commands.bench.bare TABLE OUT`
"""

import csv
import io
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

ROWS = 1000  # written together


def main(table: Path, out: Path) -> int:
    """Reads every file that the table names, decodes it, and writes the same bytes to one Parquet file.

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
            if len(rows) == ROWS:
                writer.write_table(pa.Table.from_pylist(rows, schema))
                rows = []
        if rows:
            writer.write_table(pa.Table.from_pylist(rows, schema))
    return count


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), Path(sys.argv[2])))
