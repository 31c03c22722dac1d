"""Every image of the shards looked at, on all cores: the pixels stay where they are decoded, the findings come back."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from components.errors import ConcordError
from components.shared.io.process_pool import process_pool
from components.shared.rows.images import prepare
from components.shared.rows.rows import SPLITS, shards
from components.validate.image_probe import Look, look
from components.validate.perceptual_hash import perceptual_hashes

T = TypeVar("T")
R = TypeVar("R")
FEW = 2048  # rows that are looked at sooner than processes are up
MOST_PROCESSES = 8  # each holds some 150 MB
FOUND = pa.schema(
    [
        ("width", pa.int64()),
        ("height", pa.int64()),
        ("mode", pa.string()),
        ("format", pa.string()),
        ("content", pa.string()),
        ("reduced", pa.bool_()),
        ("fault", pa.string()),
        ("hash", pa.binary()),
    ]
)


@dataclass(frozen=True)
class Part:
    """A row group of a shard: what was written at one go, some 8 MB or 1,024 rows.

    Attributes:
        rows: how many it has.
    """

    split: str
    path: Path
    group: int
    rows: int


def parts(folder: Path) -> list[Part]:
    """All of them, in order."""
    found = []
    for split in SPLITS:
        for path in shards(folder, split):
            metadata = pq.read_metadata(path)
            groups = range(metadata.num_row_groups)
            found += [Part(split, path, group, metadata.row_group(group).num_rows) for group in groups]
    return found


def looks(of: list[Part]) -> Iterator[pa.Table]:
    """For each part, in order, its rows: split, id, origin, target, subject (if the shards have it), and `FOUND`: as in
    `Look`, with the perceptual hash (see near.py) in place of the thumbnail.

    Raises:
        ConcordError: a shard is damaged, or a process ended while it decoded.
    """
    yield from _each(look_at, of, sum(part.rows for part in of))


def contents(of: list[tuple[Part, list[int]]]) -> Iterator[list[str | None]]:
    """Of some rows of each part, `Look.content` by every pixel.

    Args:
        of: parts, and the places of the rows in each.

    Raises:
        ConcordError: as `looks`.
    """
    yield from _each(_contents, of, sum(len(places) for _, places in of))


def _each(call: Callable[[T], R], of: list[T], rows: int) -> Iterator[R]:
    """`map(call, of)`, in processes where `rows` are worth it."""
    if rows <= FEW:
        yield from map(call, of)
        return
    with process_pool(min(len(os.sched_getaffinity(0)), MOST_PROCESSES)) as pool:
        try:
            yield from pool.map(call, of)
        except BrokenProcessPool:
            raise ConcordError(
                "a process ended while it decoded images; mostly memory ran out. Free some, or "
                "remove images of many million pixels, and run the step again."
            ) from None


def look_at(part: Part) -> pa.Table:
    """One part's rows and what was found in their images, one image decoded at a time.

    Raises:
        ConcordError: the shard is damaged.
    """
    prepare()
    table = _read(part)
    seen = [look(data.as_py(), reduce=True) for data in _images(table)]
    table = table.drop_columns("image").add_column(0, "split", pa.repeat(part.split, part.rows))
    for field in FOUND:
        values = _hashes(seen) if field.name == "hash" else [getattr(one, field.name) for one in seen]
        table = table.append_column(field, pa.array(values, field.type))
    return table


def _contents(some: tuple[Part, list[int]]) -> list[str | None]:
    prepare()
    part, places = some
    images = _images(_read(part))
    return [look(images[place].as_py()).content for place in places]


def _images(table: pa.Table) -> pa.Array:
    return table.column("image").combine_chunks().field("bytes")


def _read(part: Part) -> pa.Table:
    try:
        with pq.ParquetFile(part.path) as file:
            names = [name for name in ("id", "origin", "target", "subject") if name in file.schema_arrow.names]
            return file.read_row_group(part.group, columns=[*names, "image.bytes"])
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0][:120]
        place = f"{part.path.parent}: a {part.split} shard is damaged ({part.path.name}: {reason})"
        raise ConcordError(f"{place}. Run the ingest step again.") from None


def _hashes(seen: list[Look]) -> list[bytes | None]:
    """None where there is no thumbnail too."""
    known = iter(perceptual_hashes([one.thumbnail for one in seen if one.thumbnail]))
    return [next(known) if one.thumbnail else None for one in seen]
