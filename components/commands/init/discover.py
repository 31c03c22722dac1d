"""Finds the tables of a data set: what DATA names, as a folder and the table in it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from components.commands.init.ask import choose
from components.errors import ConcordError
from components.ingest.quarantine import BadValueError
from components.ingest.sources.image_files import IMAGE_SUFFIXES
from components.ingest.sources.labels import parse_split
from components.ingest.sources.tables import TABLE_SUFFIXES
from components.s3_address import S3Address, parse_location

_DEEPEST = 2  # folders below DATA in which tables are looked for


@dataclass(frozen=True)
class DataSet:
    """Where a data set is.

    Attributes:
        path: value of ingest.path: a folder or s3://bucket/prefix.
        folder: the same on this machine.
        csv: value of ingest.csv; None if the rows are the image files.
    """

    path: str
    folder: Path
    csv: str | None

    @property
    def name(self) -> str:
        """How messages call the data set."""
        return f"{self.path}/{self.csv}" if self.csv else self.path


@contextmanager
def open_data_set(data: str, root: Path) -> Iterator[DataSet]:
    """Gives the data set that the user names; what is in a bucket is fetched into the cache first.

    Args:
        data: a folder, a table, or an address s3://bucket/prefix of one.
        root: folder of the params file; a path below it is written relative to it.

    Raises:
        ConcordError: there is nothing, or no table and no image.
    """
    try:
        location = parse_location(data)
    except ValueError as error:
        raise ConcordError(f"{data}: {error}.") from None
    if isinstance(location, S3Address):
        from components.shared.s3.local_copy import local_copy

        place, table = table_of(location)
        with local_copy(place) as folder:
            yield DataSet(str(place), folder, table or find_tables(folder, str(place)))
        return
    if not location.exists():
        raise ConcordError(f"{data}: no such file or folder. Give the folder or the table of your data set.")
    folder = location.parent if location.is_file() else location
    if location.is_file() and location.suffix.lower() not in TABLE_SUFFIXES:
        raise ConcordError(f"{data}: not a table ({', '.join(TABLE_SUFFIXES)}). Give a table, or a folder.")
    path = _written_path(folder, root)
    yield DataSet(path, folder, location.name if location.is_file() else find_tables(folder, path))


def table_of(address: S3Address) -> tuple[S3Address, str | None]:
    """The folder in the bucket, and the table if the address names one."""
    folder, _, name = address.prefix.rpartition("/")
    if name.lower().endswith(TABLE_SUFFIXES):
        return S3Address(address.bucket, folder), name
    return address, None


def _written_path(folder: Path, root: Path) -> str:
    """The folder as params.yaml names it: relative to its own folder if it is below, else absolute."""
    absolute = Path(os.path.abspath(folder))
    base = Path(os.path.abspath(root))
    return absolute.relative_to(base).as_posix() if absolute.is_relative_to(base) else absolute.as_posix()


def find_tables(folder: Path, source: str) -> str | None:
    """The value of ingest.csv for a folder: a table, a pattern for several tables, or None for images alone.

    Tables in the folder itself come first, then those below it. Several tables are read as one if they are the parts
    of a data set: Parquet files in one folder, or a metadata file in the folder of each split.

    Args:
        folder: the data set.
        source: how messages call it.

    Raises:
        ConcordError: there is no table and no image, or the tables do not belong together and nobody can be asked.
    """
    names = sorted(_names(folder, TABLE_SUFFIXES), key=lambda name: (name.count("/"), name))
    names = [name for name in names if name.count("/") <= _DEEPEST]
    if not names:
        if next(_names(folder, IMAGE_SUFFIXES), None) is None:
            wanted = f"no table ({', '.join(TABLE_SUFFIXES)}) and no image ({', '.join(IMAGE_SUFFIXES)})"
            raise ConcordError(f"{source}: {wanted}. Give the folder that has them.")
        return None
    highest = [name for name in names if name.count("/") == names[0].count("/")]
    if len(highest) == 1:
        return highest[0]
    if pattern := _pattern_of_parts(highest):
        return pattern
    metadata = [name for name in highest if Path(name).stem == "metadata"]
    return metadata[0] if len(metadata) == 1 else choose("the table", highest, f"init {source}/TABLE, such as", source)


def _names(folder: Path, suffixes: tuple[str, ...]) -> Iterator[str]:
    """Paths of the files with these endings, relative to the folder, without hidden ones."""
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = Path(parent).relative_to(folder)
        for name in sorted(files):
            if name.lower().endswith(suffixes) and not name.startswith("."):
                yield (inside / name).as_posix()


def _pattern_of_parts(names: list[str]) -> str | None:
    """A pattern for tables that are the parts of one data set; None if they are not."""
    paths = [Path(name) for name in names]
    suffixes, parents = {path.suffix for path in paths}, {path.parent for path in paths}
    if len(suffixes) > 1:
        return None
    if suffixes == {".parquet"} and len(parents) == 1:
        return (parents.pop() / "*.parquet").as_posix()
    same_name = len({path.name for path in paths}) == 1
    if same_name and len({path.parent.parent for path in paths}) == 1 and all(is_split(p.parent.name) for p in paths):
        return (paths[0].parent.parent / "*" / paths[0].name).as_posix()
    return None


def is_split(name: str) -> bool:
    """Whether this is a name of train, val or test."""
    try:
        parse_split(name)
    except BadValueError:
        return False
    return True
