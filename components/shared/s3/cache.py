"""A content-addressed file cache: files are stored once, under their SHA-256, and verified before they are used."""

import hashlib
import os
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

from components.errors import ConcordError

LIMIT_VARIABLE = "CONCORD_CACHE_LIMIT"


def cache_folder() -> Path:
    """The folder that CONCORD_CACHE names, or .cache in the working directory."""
    return Path(os.environ.get("CONCORD_CACHE") or ".cache")


def cache_limit() -> int | None:
    """The largest size of the cache in bytes, from CONCORD_CACHE_LIMIT; None: no limit but the disk's size.

    Raises:
        ConcordError: the variable is not a number of bytes.
    """
    limit = os.environ.get(LIMIT_VARIABLE)
    if not limit:
        return None
    if not limit.isdecimal():
        raise ConcordError(
            f"{LIMIT_VARIABLE}: {limit!r} is not a number of bytes. Correct it, or unset it for no limit."
        )
    return int(limit)


class ContentCache:
    """Read-only files `FOLDER/objects/ab/cdef...`, named by the SHA-256 of their content.

    Any number of processes may use the cache at once: files are added by an atomic rename and never changed.
    """

    def __init__(self, folder: Path) -> None:
        """Creates the folder if it does not exist.

        Raises:
            ConcordError: the folder cannot be created.
        """
        self.folder = folder
        self._objects = folder / "objects"
        try:
            self._objects.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConcordError(
                f"{folder}: cannot be used as the cache ({error.strerror}). Set CONCORD_CACHE to a writable folder."
            ) from None

    def size(self) -> int:
        """Size of all its files in bytes, including partial downloads; hard links count once."""
        files = {(stat.st_dev, stat.st_ino): stat.st_size for stat in map(os.lstat, _files(self.folder))}
        return sum(files.values())

    def path(self, digest: str) -> Path:
        """The path of the content with this SHA-256, whether or not it exists."""
        return self._objects / digest[:2] / digest[2:]

    def verify(self, digest: str) -> bool:
        """Whether the cache has this content undamaged: reads and hashes the whole file, and removes a damaged one."""
        path = self.path(digest)
        try:
            with open(path, "rb") as file:
                if sha256(file) == digest:
                    return True
        except FileNotFoundError:
            return False
        path.unlink(missing_ok=True)
        return False

    def add(self, file: Path, digest: str) -> None:
        """Moves a complete file, which must be on the same disk, into the cache."""
        path = self.path(digest)
        path.parent.mkdir(exist_ok=True)
        file.chmod(0o444)  # hard links point to it, and an edit through one would change the cache
        os.replace(file, path)


def _files(folder: Path) -> Iterator[str]:
    for parent, _, names in os.walk(folder):
        yield from (os.path.join(parent, name) for name in names)


def sha256(file: BufferedReader) -> str:
    """SHA-256 of the rest of an open file, in hexadecimal."""
    return hashlib.file_digest(file, "sha256").hexdigest()
