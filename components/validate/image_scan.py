"""Probes all images of the shards on all cores. Pixels stay in the worker processes; only descriptions return."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from components.errors import ConcordError
from components.shared.io.process_pool import process_pool
from components.shared.rows.images import load_decoders
from components.shared.rows.rows import SPLITS, shards
from components.validate.image_probe import ImageProbe, probe_image
from components.validate.perceptual_hash import perceptual_hashes

T = TypeVar("T")
R = TypeVar("R")
MIN_ROWS_FOR_PROCESSES = 2048  # fewer rows are probed before worker processes have started
MAX_PROCESSES = 8  # each takes about 150 MB
SCAN_COLUMNS = pa.schema(
    [
        ("width", pa.int64()),
        ("height", pa.int64()),
        ("mode", pa.string()),
        ("format", pa.string()),
        ("content", pa.string()),
        ("reduced", pa.bool_()),
        ("peak", pa.float64()),
        ("frames", pa.int64()),
        ("fault", pa.string()),
        ("hash", pa.binary()),
    ]
)


@dataclass(frozen=True)
class RowGroup:
    """A row group of a shard, about 8 MB or 1,024 rows.

    Attributes:
        split: the split of the shard.
        path: the shard.
        index: of the row group in the shard.
        rows: number of rows.
    """

    split: str
    path: Path
    index: int
    rows: int


def row_groups(folder: Path) -> list[RowGroup]:
    """Returns all row groups of the shards in a folder, in order."""
    groups = []
    for split in SPLITS:
        for path in shards(folder, split):
            metadata = pq.read_metadata(path)
            indices = range(metadata.num_row_groups)
            groups += [RowGroup(split, path, index, metadata.row_group(index).num_rows) for index in indices]
    return groups


def scan_images(groups: list[RowGroup], grey_bits: int | None = None) -> Iterator[pa.Table]:
    """Yields one table per row group, in order: split, id, origin, target, subject (if the shards have it), and
    `SCAN_COLUMNS`, which are the fields of `ImageProbe` with the perceptual hash instead of the thumbnail.

    Args:
        groups: of one or more shards.
        grey_bits: the task's, see `decode_image`.

    Raises:
        ConcordError: a shard is damaged, or a worker process was killed.
    """
    yield from _map(partial(scan_row_group, grey_bits=grey_bits), groups, sum(group.rows for group in groups))


def full_resolution_hashes(
    selected: list[tuple[RowGroup, list[int]]], grey_bits: int | None = None
) -> Iterator[list[str | None]]:
    """Yields the full-resolution content hashes of the selected rows of each row group.

    Args:
        selected: row groups, each with the indices of rows in it.
        grey_bits: the task's, see `decode_image`.

    Raises:
        ConcordError: see `scan_images`.
    """
    yield from _map(partial(_hash_rows, grey_bits=grey_bits), selected, sum(len(indices) for _, indices in selected))


def _map(function: Callable[[T], R], items: list[T], rows: int) -> Iterator[R]:
    """`map(function, items)`, in worker processes if the number of rows is large enough."""
    if rows <= MIN_ROWS_FOR_PROCESSES:
        yield from map(function, items)
        return
    with process_pool(min(len(os.sched_getaffinity(0)), MAX_PROCESSES)) as pool:
        try:
            yield from pool.map(function, items)
        except BrokenProcessPool:
            raise ConcordError(
                "a worker process was killed while it decoded images, probably because memory ran out. Free memory, or "
                "remove images of many million pixels, and run the step again."
            ) from None


def scan_row_group(group: RowGroup, grey_bits: int | None = None) -> pa.Table:
    """Returns the rows of a row group with `SCAN_COLUMNS`; decodes one image at a time.

    Raises:
        ConcordError: the shard is damaged.
    """
    load_decoders()
    table = _read(group)
    probes = [probe_image(data.as_py(), reduce=True, grey_bits=grey_bits) for data in _images(table)]
    table = table.drop_columns("image").add_column(0, "split", pa.repeat(group.split, group.rows))
    for field in SCAN_COLUMNS:
        values = _hashes(probes) if field.name == "hash" else [getattr(probe, field.name) for probe in probes]
        table = table.append_column(field, pa.array(values, field.type))
    return table


def _hash_rows(selected: tuple[RowGroup, list[int]], grey_bits: int | None) -> list[str | None]:
    load_decoders()
    group, indices = selected
    images = _images(_read(group))
    return [probe_image(images[index].as_py(), grey_bits=grey_bits).content for index in indices]


def _images(table: pa.Table) -> pa.Array:
    return table.column("image").combine_chunks().field("bytes")


def _read(group: RowGroup) -> pa.Table:
    try:
        with pq.ParquetFile(group.path) as file:
            names = [name for name in ("id", "origin", "target", "subject") if name in file.schema_arrow.names]
            return file.read_row_group(group.index, columns=[*names, "image.bytes"])
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0][:120]
        message = f"{group.path.parent}: a {group.split} shard is damaged ({group.path.name}: {reason})"
        raise ConcordError(f"{message}. Run the ingest step again.") from None


def _hashes(probes: list[ImageProbe]) -> list[bytes | None]:
    """Perceptual hashes; None for images without a thumbnail or of one shade."""
    hashes = iter(perceptual_hashes([probe.thumbnail for probe in probes if probe.thumbnail]))
    return [next(hashes) if probe.thumbnail else None for probe in probes]
