"""The row type that every source produces and every step reads, and its Parquet shards, which contain the images."""

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

# `datasets` reads a struct of bytes and path as its Image feature if the schema's metadata says so.
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
    """`SCHEMA`; with `subjects` it has one more column, `subject` (string, null where the subject is unknown)."""
    if not subjects:
        return SCHEMA
    features = json.dumps({"info": {"features": _FEATURES | _SUBJECT}})
    return SCHEMA.append(pa.field("subject", pa.string())).with_metadata({"huggingface": features})


@dataclass(frozen=True, slots=True)
class Row:
    """One labelled image.

    Attributes:
        id: unique over all splits.
        image: the bytes of the encoded image file, unchanged.
        target: in the task's unit.
        question: what the model is asked.
        origin: source file and row, for error messages.
        subject: the person or device in the image, if known.
    """

    id: str
    image: bytes
    target: float
    question: str
    origin: str
    subject: str | None = None


class ShardWriter:
    """Context manager that writes one split to `FOLDER/SPLIT-00000.parquet` and so on, each within a size limit."""

    def __init__(self, folder: Path, split: str, shard_mb: int, subjects: bool = False) -> None:
        """Creates no file before the first row.

        Args:
            subjects: whether the shards have the column `subject`.
        """
        self._schema = schema(subjects)
        self._folder, self._split, self._limit = folder, split, shard_mb * 2**20
        self._rows: list[Row] = []
        self._buffered = self._written = self._shards = 0
        self._writer: pq.ParquetWriter | None = None
        self._executor = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None
        self.count = 0

    def __enter__(self) -> "ShardWriter":
        """Returns the writer."""
        return self

    def __exit__(self, *_: object) -> None:
        """Writes the buffered rows and closes the shard."""
        with self._executor:
            self._flush()
            self._wait()
        if self._writer:
            self._writer.close()

    def add(self, row: Row) -> None:
        """Appends a row. A thread hashes and writes the previous rows meanwhile; about 16 MB of images are buffered.

        Raises:
            OSError: previous rows could not be written.
        """
        self._rows.append(row)
        self._buffered += len(row.image) + 256
        self.count += 1
        if self._buffered >= min(8 * 2**20, self._limit // 2) or len(self._rows) >= 1024:
            self._flush()

    def _flush(self) -> None:
        self._wait()
        if self._rows:
            self._writing = self._executor.submit(self._write, self._rows, self._buffered)
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
            # Images are already compressed; dictionary pages and codecs would only cost time.
            self._writer = pq.ParquetWriter(path, self._schema, compression="none", use_dictionary=False)
            self._shards += 1
        self._writer.write_table(_table(rows, self._schema))
        self._written += size


def _table(rows: list[Row], schema: pa.Schema) -> pa.Table:
    """The rows as a table, with the SHA-256 of each image."""
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
        ConcordError: there are none.
    """
    paths = sorted(folder.glob(f"{split}-*.parquet"))
    if not paths:
        raise ConcordError(f"{folder}: no {split} shards ({split}-*.parquet). Run the ingest step first.")
    return paths


def read_rows(folder: Path, split: str, batch_size: int = 256) -> Iterator[pa.RecordBatch]:
    """The rows of a split as a stream of record batches with the columns of `SCHEMA`, and `subject` if it is stored."""
    for path in shards(folder, split):
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(batch_size=batch_size)


def slice_rows(rows: Iterable[pa.RecordBatch], start: int, count: int) -> Iterator[pa.RecordBatch]:
    """At most `count` rows from row `start` on; no batch after the last of these rows is read."""
    for batch in rows:
        if start < batch.num_rows:
            part = batch.slice(start, count)
            yield part
            count -= part.num_rows
            if count <= 0:
                return
        start = max(start - batch.num_rows, 0)


def read_subjects(folder: Path, split: str) -> list[str | None]:
    """The person or device in each image of a split, in order; None where it is unknown."""
    with pq.ParquetFile(shards(folder, split)[0]) as file:
        if "subject" in file.schema_arrow.names:
            return read_table(folder, split, ["subject"])["subject"].to_pylist()
    return [None] * sum(pq.read_metadata(path).num_rows for path in shards(folder, split))


def read_table(
    folder: Path, split: str, columns: Iterable[str] = ("id", "target", "image_sha256", "origin")
) -> pa.Table:
    """The named columns of a split as a table; the default leaves out the images."""
    names = list(columns)
    return pa.concat_tables([pq.read_table(path, columns=names) for path in shards(folder, split)])
