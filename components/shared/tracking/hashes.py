"""DVC's content hashes, so that an MLflow run names the very data that dvc.lock names."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from components.shared.errors import ConcordError

_NEVER_HASHED = {".git", ".hg", ".dvc"}  # what DVC ignores without a .dvcignore


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
        return Content(_md5(path), path.stat().st_size)
    if not path.is_dir():
        raise ConcordError(f"{path}: missing, so its DVC hash cannot be taken. Run the step that makes it.")
    entries, size = [], 0
    for folder, folders, files in os.walk(path):
        folders[:] = [name for name in folders if name not in _NEVER_HASHED]
        for name in files:
            if name not in _NEVER_HASHED:
                file = Path(folder, name)
                entries.append({"md5": _md5(file), "relpath": file.relative_to(path).as_posix()})
                size += file.stat().st_size
    entries.sort(key=lambda entry: entry["relpath"])
    listing = json.dumps(entries, sort_keys=True).encode()
    return Content(f"{hashlib.md5(listing, usedforsecurity=False).hexdigest()}.dir", size, len(entries))


def dvc_hash(path: Path) -> str:
    """The md5 alone; see `dvc_content`."""
    return dvc_content(path).md5


def _md5(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
