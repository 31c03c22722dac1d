"""DVC's content hashes, so that an MLflow run names the very data that dvc.lock names."""

import hashlib
import json
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from components.shared.data.ahead import THREADS, ahead
from components.shared.errors import ConcordError
from components.shared.orphans import end_with

_NEVER_HASHED = {".git", ".hg", ".dvc"}  # what DVC ignores without a .dvcignore
_SMALL = 2**20  # bytes
_MANY = 20_000  # files that take longer than processes take to start


def dvc_hash(path: Path) -> str:
    """The md5 that DVC 3 writes for a file or a folder.

    Args:
        path: a file, or a folder, which is hashed with everything below it. Times and modes do not count, nor do empty
            folders. A `.dvcignore` is not read: steps' inputs and outputs have none.

    Returns:
        A file: the md5 of its bytes. A folder: the md5 of the JSON list of its files' md5 and relative path, sorted by
        path, with `.dir` at the end (36 characters).

    Raises:
        ConcordError: there is nothing at `path`.
    """
    if path.is_file():
        return _md5(os.fspath(path))
    if not path.is_dir():
        raise ConcordError(f"{path}: missing, so its DVC hash cannot be taken. Run the step that makes it.")
    files = sorted(_files(os.fspath(path), ""))
    hashes = _md5s([f"{path}/{name}" for name in files])
    entries = [{"md5": md5, "relpath": name} for name, md5 in zip(files, hashes, strict=True)]
    listing = json.dumps(entries, sort_keys=True).encode()
    return f"{hashlib.md5(listing, usedforsecurity=False).hexdigest()}.dir"


def _md5s(paths: list[str]) -> Iterator[str]:
    """Of each file, in threads; of very many in processes, which do not wait for each other."""
    if len(paths) <= _MANY:
        yield from ahead(_md5, paths, batch=min(max(len(paths) // 64, 1), 64))  # few files are large ones
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(THREADS, spawn, initializer=end_with, initargs=(os.getpid(),)) as pool:
        yield from pool.map(_md5, paths, chunksize=1000)


def _files(folder: str, before: str) -> Iterator[str]:
    """Paths of all files below, `before` in front; a link to a folder is not followed."""
    for entry in os.scandir(folder):
        if entry.name in _NEVER_HASHED:
            continue
        if not entry.is_dir():
            yield before + entry.name
        elif not entry.is_symlink():
            yield from _files(entry.path, f"{before}{entry.name}/")


def _md5(path: str) -> str:
    with open(path, "rb", buffering=0) as file:
        if os.fstat(file.fileno()).st_size <= _SMALL:  # then without the buffer that the other way makes
            return hashlib.md5(file.read(), usedforsecurity=False).hexdigest()
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
