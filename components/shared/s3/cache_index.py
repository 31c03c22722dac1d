"""What a place was last seen to hold, and which content of the cache each object of it is: an SQLite file a place.

It is a memory, no truth: without it everything is fetched again, and the cache checks what it hands out by itself.
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
# Another version of an object is another content, which nobody knows yet.
_SEEN = """
INSERT INTO objects VALUES (:name, :size, :etag, NULL, :listing) ON CONFLICT (name) DO UPDATE SET
  digest = CASE WHEN size = excluded.size AND etag = excluded.etag THEN digest END,
  size = excluded.size, etag = excluded.etag, listing = excluded.listing
"""
_AMOUNT = """
SELECT count(*), coalesce(sum(size), 0), coalesce(sum(digest IS NULL), 0),
  coalesce(sum(CASE WHEN digest IS NULL THEN size END), 0) FROM objects
"""


@dataclass(frozen=True, slots=True)
class Listed:
    """An object as a listing has it.

    Attributes:
        name: below the place, with forward slashes.
        size: bytes.
        etag: the version that the server tells, without quotes.
        digest: SHA-256 of this version's content; None where it was never fetched.
    """

    name: str
    size: int
    etag: str
    digest: str | None = None


@dataclass(frozen=True)
class Amount:
    """How much a place holds, and how much of it was never fetched; sizes in bytes."""

    objects: int
    size: int
    missing: int
    missing_size: int


class CacheIndex:
    """The objects of one place, for one process."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """`open_index` opens it."""
        self._db = connection
        self._lock = Lock()

    def replace(self, objects: Iterable[Listed]) -> None:
        """Takes down a new listing. What is no longer listed is forgotten; so is the digest of what has changed."""
        (last,) = self._db.execute("SELECT max(listing) FROM objects").fetchone()
        listing = (last or 0) + 1
        for found in objects:
            self._db.execute(_SEEN, {"name": found.name, "size": found.size, "etag": found.etag, "listing": listing})
        self._db.execute("DELETE FROM objects WHERE listing != ?", [listing])
        self._db.commit()

    def amount(self) -> Amount:
        """Counts and sizes."""
        return Amount(*self._db.execute(_AMOUNT).fetchone())

    def objects(self) -> Iterator[Listed]:
        """All of them by name, a page in memory at a time; digests may be added meanwhile."""
        query, last = "SELECT name, size, etag, digest FROM objects WHERE name > ? ORDER BY name LIMIT ?", ""
        while page := self._page(query, last):
            yield from page
            last = page[-1].name

    def _page(self, query: str, last: str) -> list[Listed]:
        with self._lock:
            return [Listed(*row) for row in self._db.execute(query, [last, PAGE])]

    def found(self, name: str, digest: str) -> None:
        """Takes down the digest of an object's content, for good: a kill does not undo it. Any thread may call it."""
        with self._lock:
            self._db.execute("UPDATE objects SET digest = ? WHERE name = ?", [digest, name])
            self._db.commit()


@contextmanager
def open_index(file: Path) -> Iterator[CacheIndex]:
    """Opens the index of one place, for one process at a time; what was found is kept, whatever happens.

    Raises:
        ConcordError: the file is damaged.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        connection = sqlite3.connect(file, timeout=60, check_same_thread=False)
        try:
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")  # the log below then works on network disks as well
            connection.execute("PRAGMA journal_mode = WAL")  # a commit costs microseconds, and waits for no disk
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
        raise ConcordError(f"{file}: damaged ({error}). Remove it; what it knew of is fetched again then.") from None
