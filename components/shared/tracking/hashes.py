"""Computes DVC's content hashes, so that MLflow runs and dvc.lock identify data by the same hashes."""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from components.errors import ConcordError
from components.shared.io.prefetch import THREADS, prefetch
from components.shared.io.process_pool import process_pool

_IGNORED_FOLDERS = {".git", ".hg", ".dvc"}  # ignored by DVC without a .dvcignore
_SMALL_FILE = 2**20  # bytes
_MANY_FILES = 20_000  # above this, processes pay for their start


@dataclass(frozen=True)
class Content:
    """Hash and size of a file or a folder, as in dvc.lock.

    Attributes:
        md5: for a file: MD5 of its bytes. For a folder: MD5 of the JSON list of its files' hashes and relative paths,
            sorted by path, followed by `.dir` (36 characters).
        size: total bytes of all files.
        nfiles: number of files in a folder; None for a file.
    """

    md5: str
    size: int
    nfiles: int | None = None

    @property
    def folder(self) -> bool:
        """Whether this is the content of a folder."""
        return self.md5.endswith(".dir")

    def to_json(self) -> dict[str, Any]:
        """Returns the entry of dvc.lock, without `nfiles` for a file."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def dvc_content(path: Path) -> Content:
    """Computes the hash, size and number of files that DVC 3 writes for a file or a folder.

    Args:
        path: a file, or a folder, which is hashed recursively. Times, modes and empty folders do not count.
            `.dvcignore` is not read, because the inputs and outputs of steps contain none. What has no content does not
            count either: links to nothing, pipes, sockets and devices.

    Raises:
        ConcordError: `path` does not exist, or a file cannot be read.
    """
    try:
        return _content(path)
    except OSError as error:
        raise ConcordError(f"{error.filename or path}: cannot be read ({error.strerror}). Make it readable.") from None


def _content(path: Path) -> Content:
    if path.is_file():
        return Content(*_md5(os.fspath(path)))
    if not path.is_dir():
        raise ConcordError(f"{path}: missing, so its DVC hash cannot be computed. Run the step that writes it.")
    files = sorted(_files(os.fspath(path), ""))
    hashed = list(_md5s([f"{path}/{name}" for name in files]))
    entries = [{"md5": md5, "relpath": name} for name, (md5, _) in zip(files, hashed, strict=True)]
    listing = json.dumps(entries, sort_keys=True).encode()
    return Content(
        f"{hashlib.md5(listing, usedforsecurity=False).hexdigest()}.dir", sum(size for _, size in hashed), len(entries)
    )


def dvc_hash(path: Path) -> str:
    """Returns only the MD5 of `dvc_content`."""
    return dvc_content(path).md5


def _md5s(paths: list[str]) -> Iterator[tuple[str, int]]:
    """Hash and size of each file, computed in threads; in processes for very many files, where threads would block."""
    if len(paths) <= _MANY_FILES:
        yield from prefetch(_md5, paths, batch=min(max(len(paths) // 64, 1), 64))  # few files are large ones
        return
    with process_pool(THREADS) as pool:
        yield from pool.map(_md5, paths, chunksize=1000)


def _files(folder: str, prefix: str) -> Iterator[str]:
    """Yields the relative paths of all regular files, each with `prefix`; links to folders are not followed."""
    for entry in os.scandir(folder):
        if entry.name in _IGNORED_FOLDERS:
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _files(entry.path, f"{prefix}{entry.name}/")
        elif os.path.isfile(entry.path):
            yield prefix + entry.name


def _md5(path: str) -> tuple[str, int]:
    """Hash and size in bytes of a file."""
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if size <= _SMALL_FILE:  # avoids the buffer that file_digest allocates
            return hashlib.md5(file.read(), usedforsecurity=False).hexdigest(), size
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest(), size
