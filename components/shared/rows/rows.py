"""The one row that every source gives and every step reads, and its Parquet shards with the image bytes inside."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from components.errors import ConcordError

SPLITS = ("train", "val", "test")

# What `datasets` reads as its Image feature: a struct of bytes and path, announced in the schema's metadata.
_FEATURES: dict[str, dict[str, str]] = {
    "id": {"dtype": "string", "_type": "Value"},
    "image": {"_type": "Image"},
    "target": {"dtype": "float64", "_type": "Value"},
    "question": {"dtype": "string", "_type": "Value"},
    "image_sha256": {"dtype": "string", "_type": "Value"},
    "origin": {"dtype": "string", "_type": "Value"},
}
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("image", pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])),
        pa.field("target", pa.float64()),
        pa.field("question", pa.string()),
        pa.field("image_sha256", pa.string()),
        pa.field("origin", pa.string()),
    ],
    metadata={"huggingface": json.dumps({"info": {"features": _FEATURES}})},
)

_SUBJECT = {"subject": {"dtype": "string", "_type": "Value"}}


def schema(subjects: bool) -> pa.Schema:
    """`SCHEMA`, and with `subjects` one column more, `subject` (string, null where it is not known)."""
    if not subjects:
        return SCHEMA
    features = json.dumps({"info": {"features": _FEATURES | _SUBJECT}})
    return SCHEMA.append(pa.field("subject", pa.string())).with_metadata({"huggingface": features})


@dataclass(frozen=True, slots=True)
class Row:
    """One labelled image.

    Attributes:
        id: unique over all splits.
        image: the encoded file, as it was found or rendered.
        target: in the task's unit.
        question: what the model is asked.
        origin: file and row that it came from, for error messages.
        subject: the person or device that it shows, where that is known.
    """

    id: str
    image: bytes
    target: float
    question: str
    origin: str
    subject: str | None = None


class ShardWriter:
    """Writes rows of one split to `FOLDER/SPLIT-00000.parquet` and on, each under a size limit. A context manager."""

    def __init__(self, folder: Path, split: str, shard_mb: int, subjects: bool = False) -> None:
        """Starts at shard 0; nothing is written before the first row.

        Args:
            subjects: whether the shards have the column `subject`.
        """
        self._schema = schema(subjects)
        self._folder, self._split, self._limit = folder, split, shard_mb * 2**20
        self._rows: list[Row] = []
        self._buffered = self._written = self._shards = 0
        self._writer: pq.ParquetWriter | None = None
        self._aside = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None
        self.count = 0

    def __enter__(self) -> "ShardWriter":
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Writes what is buffered and closes the shard."""
        with self._aside:
            self._flush()
            self._wait()
        if self._writer:
            self._writer.close()

    def add(self, row: Row) -> None:
        """Appends a row; memory stays under some 16 MB of images: while some are hashed and written, more come in.

        Raises:
            OSError: what came before could not be written.
        """
        self._rows.append(row)
        self._buffered += len(row.image) + 256
        self.count += 1
        if self._buffered >= min(8 * 2**20, self._limit // 2) or len(self._rows) >= 1024:
            self._flush()

    def _flush(self) -> None:
        self._wait()
        if self._rows:
            self._writing = self._aside.submit(self._write, self._rows, self._buffered)
            self._rows, self._buffered = [], 0

    def _wait(self) -> None:
        if self._writing:
            self._writing.result()
            self._writing = None

    def _write(self, rows: list[Row], size: int) -> None:
        if self._writer and self._written + size > self._limit:
            self._writer.close()
            self._writer, self._written = None, 0
        if self._writer is None:
            path = self._folder / f"{self._split}-{self._shards:05d}.parquet"
            # Images are compressed already; dictionary pages and codecs would only cost time.
            self._writer = pq.ParquetWriter(path, self._schema, compression="none", use_dictionary=False)
            self._shards += 1
        self._writer.write_table(_table(rows, self._schema))
        self._written += size


def _table(rows: list[Row], schema: pa.Schema) -> pa.Table:
    """The rows as columns, with the hash of each image."""
    images = [pa.array([row.image for row in rows], pa.binary()), pa.nulls(len(rows), pa.string())]
    columns: dict[str, pa.Array] = {
        "image": pa.StructArray.from_arrays(images, fields=list(schema.field("image").type)),
        "image_sha256": pa.array([hashlib.sha256(row.image).hexdigest() for row in rows]),
    }
    for field in schema:
        if field.name not in columns:
            columns[field.name] = pa.array([getattr(row, field.name) for row in rows], field.type)
    return pa.table([columns[name] for name in schema.names], schema=schema)


def shards(folder: Path, split: str) -> list[Path]:
    """The shards of a split, in order.

    Raises:
        ConcordError: there is none.
    """
    found = sorted(folder.glob(f"{split}-*.parquet"))
    if not found:
        raise ConcordError(f"{folder}: no {split} shards ({split}-*.parquet). Run the ingest step first.")
    return found


def read_rows(folder: Path, split: str, batch_size: int = 256) -> Iterator[pa.RecordBatch]:
    """The split as a stream of record batches with `SCHEMA`, or with the subjects too."""
    for path in shards(folder, split):
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(batch_size=batch_size)


def stretch(rows: Iterable[pa.RecordBatch], start: int, count: int) -> Iterator[pa.RecordBatch]:
    """The rows from `start` on, `count` of them at most; nothing is read beyond."""
    for batch in rows:
        if start < batch.num_rows:
            part = batch.slice(start, count)
            yield part
            count -= part.num_rows
            if count <= 0:
                return
        start = max(start - batch.num_rows, 0)


def read_table(
    folder: Path, split: str, columns: Iterable[str] = ("id", "target", "image_sha256", "origin")
) -> pa.Table:
    """Some columns of a split, without the images unless asked."""
    names = list(columns)
    return pa.concat_tables([pq.read_table(path, columns=names) for path in shards(folder, split)])
