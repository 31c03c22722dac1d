"""An SQLite index per S3 folder: its last listing, and the cached content of each object.

The index is only a hint: without it all objects are fetched again, and the cache verifies content itself.
"""

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from components.errors import ConcordError
from components.shared.io.disk_full import is_disk_full

PAGE = 1000

_TABLE = """
CREATE TABLE IF NOT EXISTS objects (
  name TEXT PRIMARY KEY, size INTEGER, etag TEXT, digest TEXT, listing INTEGER
) WITHOUT ROWID
"""
# A new version of an object has new content, so its digest is unknown.
_UPSERT = """
INSERT INTO objects VALUES (:name, :size, :etag, NULL, :listing) ON CONFLICT (name) DO UPDATE SET
  digest = CASE WHEN size = excluded.size AND etag = excluded.etag THEN digest END,
  size = excluded.size, etag = excluded.etag, listing = excluded.listing
"""
_TOTALS = """
SELECT count(*), coalesce(sum(size), 0), coalesce(sum(digest IS NULL), 0),
  coalesce(sum(CASE WHEN digest IS NULL THEN size END), 0) FROM objects
"""


@dataclass(frozen=True, slots=True)
class S3Object:
    """An object from a listing.

    Attributes:
        name: path below the S3 folder, with forward slashes.
        size: in bytes.
        etag: the ETag from the server, without quotes; it identifies the version.
        digest: SHA-256 of this version's content; None if it was never fetched.
    """

    name: str
    size: int
    etag: str
    digest: str | None = None


@dataclass(frozen=True)
class Totals:
    """Number and size (bytes) of all objects, and of those that were never fetched."""

    objects: int
    size: int
    missing: int
    missing_size: int


class CacheIndex:
    """The index of one S3 folder, used by one process."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Use `open_index` instead."""
        self._db = connection
        self._lock = Lock()

    def set_listing(self, objects: Iterable[S3Object]) -> None:
        """Stores a new listing; removes objects that it lacks, and the digests of objects that have changed."""
        (last,) = self._db.execute("SELECT max(listing) FROM objects").fetchone()
        listing = (last or 0) + 1
        for item in objects:
            self._db.execute(_UPSERT, {"name": item.name, "size": item.size, "etag": item.etag, "listing": listing})
        self._db.execute("DELETE FROM objects WHERE listing != ?", [listing])
        self._db.commit()

    def totals(self) -> Totals:
        """Counts and sizes."""
        return Totals(*self._db.execute(_TOTALS).fetchone())

    def objects(self) -> Iterator[S3Object]:
        """All objects, sorted by name, one page in memory at a time; digests may be set meanwhile."""
        query, last = "SELECT name, size, etag, digest FROM objects WHERE name > ? ORDER BY name LIMIT ?", ""
        while page := self._page(query, last):
            yield from page
            last = page[-1].name

    def _page(self, query: str, last: str) -> list[S3Object]:
        with self._lock:
            return [S3Object(*row) for row in self._db.execute(query, [last, PAGE])]

    def set_digest(self, name: str, digest: str) -> None:
        """Stores the digest of an object's content and commits, so that a kill cannot undo it. Thread-safe."""
        with self._lock:
            self._db.execute("UPDATE objects SET digest = ? WHERE name = ?", [digest, name])
            self._db.commit()


@contextmanager
def open_index(file: Path) -> Iterator[CacheIndex]:
    """Opens the index of one S3 folder, for one process at a time; changes are committed even after an error.

    Raises:
        ConcordError: the file is damaged.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        connection = sqlite3.connect(file, timeout=60, check_same_thread=False)
        try:
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")  # makes the write-ahead log work on network disks
            connection.execute(
                "PRAGMA journal_mode = WAL"
            )  # a commit takes microseconds and does not wait for the disk
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(_TABLE)
            yield CacheIndex(connection)
            connection.commit()
        except BaseException as error:
            if not isinstance(error, sqlite3.Error):
                connection.commit()
            raise
        finally:
            connection.close()
    except sqlite3.Error as error:
        if is_disk_full(file, error):
            raise
        raise ConcordError(f"{file}: damaged ({error}). Remove it; its objects are then fetched again.") from None
