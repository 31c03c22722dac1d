"""A cache of files by the SHA-256 of their content: nothing is kept twice, and nothing damaged is handed out."""

import hashlib
import os
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

from components.errors import ConcordError

LIMIT = "CONCORD_CACHE_LIMIT"


def cache_folder() -> Path:
    """CONCORD_CACHE, or .cache in the working directory."""
    return Path(os.environ.get("CONCORD_CACHE") or ".cache")


def cache_limit() -> int | None:
    """CONCORD_CACHE_LIMIT: bytes that the cache may take up; None for as much as its disk holds.

    Raises:
        ConcordError: it is no number of bytes.
    """
    limit = os.environ.get(LIMIT)
    if not limit:
        return None
    if not limit.isdecimal():
        raise ConcordError(f"{LIMIT}: {limit!r} is no number of bytes. Correct it, or unset it for no limit.")
    return int(limit)


class ContentCache:
    """`FOLDER/objects/ab/cdef...`: read-only files under the SHA-256 of their content.

    Any number of processes may use it at once: a file appears whole, by renaming, and is never changed.
    """

    def __init__(self, folder: Path) -> None:
        """Makes the folder where there is none.

        Raises:
            ConcordError: it cannot be made.
        """
        self.folder = folder
        self._objects = folder / "objects"
        try:
            self._objects.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConcordError(
                f"{folder}: cannot be the cache ({error.strerror}). Let CONCORD_CACHE name a folder to write in."
            ) from None

    def size(self) -> int:
        """Bytes that its files take up, partial downloads included; a hard link counts once."""
        files = {(stat.st_dev, stat.st_ino): stat.st_size for stat in map(os.lstat, _files(self.folder))}
        return sum(files.values())

    def path(self, digest: str) -> Path:
        """Where the content with this SHA-256 is, or would be."""
        return self._objects / digest[:2] / digest[2:]

    def holds(self, digest: str) -> bool:
        """Whether the content is there and undamaged: every byte is read and hashed. What is damaged is removed."""
        path = self.path(digest)
        try:
            with open(path, "rb") as file:
                if sha256(file) == digest:
                    return True
        except FileNotFoundError:
            return False
        path.unlink(missing_ok=True)
        return False

    def take(self, file: Path, digest: str) -> None:
        """Moves a finished file in; it must lie on the same disk."""
        path = self.path(digest)
        path.parent.mkdir(exist_ok=True)
        file.chmod(0o444)  # it is linked to from elsewhere, and an edit there would change it here
        os.replace(file, path)


def _files(folder: Path) -> Iterator[str]:
    for parent, _, names in os.walk(folder):
        yield from (os.path.join(parent, name) for name in names)


def sha256(file: BufferedReader) -> str:
    """Hex digest of what is left of an open file."""
    return hashlib.file_digest(file, "sha256").hexdigest()
