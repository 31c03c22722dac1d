"""DVC's content hashes, so that an MLflow run names the very data that dvc.lock names."""

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

_NEVER_HASHED = {".git", ".hg", ".dvc"}  # what DVC ignores without a .dvcignore
_SMALL = 2**20  # bytes
_MANY = 20_000  # files that take longer than processes take to start


@dataclass(frozen=True)
class Content:
    """What a file or a folder holds, as dvc.lock writes it.

    Attributes:
        md5: of a file: of its bytes. Of a folder: of the JSON list of its files' md5 and relative path, sorted by path,
            with `.dir` at the end (36 characters).
        size: bytes, of all files together.
        nfiles: a folder's files; None for a file.
    """

    md5: str
    size: int
    nfiles: int | None = None

    @property
    def folder(self) -> bool:
        """Whether it is a folder's."""
        return self.md5.endswith(".dir")

    def to_json(self) -> dict[str, Any]:
        """As in dvc.lock: without `nfiles` where it is a file."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def dvc_content(path: Path) -> Content:
    """Hash, size and number of files that DVC 3 writes for a file or a folder.

    Args:
        path: a file, or a folder, which is hashed with everything below it. Times and modes do not count, nor do empty
            folders. A `.dvcignore` is not read: steps' inputs and outputs have none.

    Raises:
        ConcordError: there is nothing at `path`.
    """
    if path.is_file():
        return Content(*_md5(os.fspath(path)))
    if not path.is_dir():
        raise ConcordError(f"{path}: missing, so its DVC hash cannot be taken. Run the step that makes it.")
    files = sorted(_files(os.fspath(path), ""))
    hashed = list(_md5s([f"{path}/{name}" for name in files]))
    entries = [{"md5": md5, "relpath": name} for name, (md5, _) in zip(files, hashed, strict=True)]
    listing = json.dumps(entries, sort_keys=True).encode()
    return Content(
        f"{hashlib.md5(listing, usedforsecurity=False).hexdigest()}.dir", sum(size for _, size in hashed), len(entries)
    )


def dvc_hash(path: Path) -> str:
    """The md5 alone; see `dvc_content`."""
    return dvc_content(path).md5


def _md5s(paths: list[str]) -> Iterator[tuple[str, int]]:
    """Hash and bytes of each file, in threads; of very many in processes, which do not wait for each other."""
    if len(paths) <= _MANY:
        yield from prefetch(_md5, paths, batch=min(max(len(paths) // 64, 1), 64))  # few files are large ones
        return
    with process_pool(THREADS) as pool:
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


def _md5(path: str) -> tuple[str, int]:
    """A file's hash and its bytes."""
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if size <= _SMALL:  # then without the buffer that the other way makes
            return hashlib.md5(file.read(), usedforsecurity=False).hexdigest(), size
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest(), size
