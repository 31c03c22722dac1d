"""Computes DVC's content hashes, so that MLflow runs and dvc.lock identify data by the same hashes."""

import hashlib
import json
import os
import time
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
_SETTLED = 2.0  # seconds; a file that was written later may change again within one tick of the file system's clock
_known: dict[str, tuple[str, "Content"]] = {}  # absolute path -> state of its files before they were read, content


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


def dvc_content(path: Path, hidden: bool = True) -> Content:
    """Computes the hash, size and number of files that DVC 3 writes for a file or a folder.

    Reads every byte once: files that have kept their size, times and inode since this process read them are not read
    again, so that inputs can be compared at the end of a step with those at its start.

    Args:
        path: a file, or a folder, which is hashed recursively. Times, modes and empty folders do not count.
            `.dvcignore` is not read, because the inputs and outputs of steps contain none. What has no content does not
            count either: links to nothing, pipes, sockets and devices.
        hidden: whether files and folders whose names begin with a dot count.

    Raises:
        ConcordError: `path` does not exist, or a file cannot be read.
    """
    try:
        return _content(path, hidden)
    except OSError as error:
        raise ConcordError(f"{error.filename or path}: cannot be read ({error.strerror}). Make it readable.") from None


def _content(path: Path, hidden: bool) -> Content:
    if not path.is_file() and not path.is_dir():
        raise ConcordError(f"{path}: missing, so its DVC hash cannot be computed. Run the step that writes it.")
    files = sorted(_files(os.fspath(path), "", hidden)) if path.is_dir() else None
    place, state = os.path.abspath(path), _state(path, files)
    if state is not None and (known := _known.get(place)) is not None and known[0] == state:
        return known[1]
    content = _read(path, files)
    if state is not None:
        _known[place] = state, content
    return content


def _state(path: Path, files: list[str] | None) -> str | None:
    """Digest of names, sizes, times and inodes; None while a file is so new that it could change unnoticed.

    Args:
        files: those in the folder `path`; None for a file.
    """
    digest, newest = hashlib.sha256(), 0
    for name in [os.fspath(path)] if files is None else (f"{path}/{name}" for name in files):
        found = os.stat(name)
        newest = max(newest, found.st_mtime_ns, found.st_ctime_ns)
        digest.update(repr((name, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)).encode())
    return digest.hexdigest() if newest < (time.time() - _SETTLED) * 1e9 else None


def _read(path: Path, files: list[str] | None) -> Content:
    if files is None:
        return Content(*_md5(os.fspath(path)))
    hashed = list(_md5s([f"{path}/{name}" for name in files]))
    entries = [{"md5": md5, "relpath": name} for name, (md5, _) in zip(files, hashed, strict=True)]
    listing = json.dumps(entries, sort_keys=True).encode()
    return Content(
        f"{hashlib.md5(listing, usedforsecurity=False).hexdigest()}.dir", sum(size for _, size in hashed), len(entries)
    )


def dvc_hash(path: Path, hidden: bool = True) -> str:
    """Returns only the MD5 of `dvc_content`."""
    return dvc_content(path, hidden).md5


def _md5s(paths: list[str]) -> Iterator[tuple[str, int]]:
    """Hash and size of each file, computed in threads; in processes for very many files, where threads would block."""
    if len(paths) <= _MANY_FILES:
        yield from prefetch(_md5, paths, batch=min(max(len(paths) // 64, 1), 64))  # few files are large ones
        return
    with process_pool(THREADS) as pool:
        yield from pool.map(_md5, paths, chunksize=1000)


def _files(folder: str, prefix: str, hidden: bool) -> Iterator[str]:
    """Yields the relative paths of all regular files, each with `prefix`; links to folders are not followed."""
    for entry in os.scandir(folder):
        if entry.name in _IGNORED_FOLDERS or (entry.name.startswith(".") and not hidden):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _files(entry.path, f"{prefix}{entry.name}/", hidden)
        elif os.path.isfile(entry.path):
            yield prefix + entry.name


def _md5(path: str) -> tuple[str, int]:
    """Hash and size in bytes of a file."""
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if size <= _SMALL_FILE:  # avoids the buffer that file_digest allocates
            return hashlib.md5(file.read(), usedforsecurity=False).hexdigest(), size
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest(), size
