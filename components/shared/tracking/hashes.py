"""DVC's content hashes, so that an MLflow run names the very data that dvc.lock names."""

import hashlib
import json
import os
from pathlib import Path

from components.shared.errors import ConcordError

_NEVER_HASHED = {".git", ".hg", ".dvc"}  # what DVC ignores without a .dvcignore


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
        return _md5(path)
    if not path.is_dir():
        raise ConcordError(f"{path}: missing, so its DVC hash cannot be taken. Run the step that makes it.")
    entries = []
    for folder, folders, files in os.walk(path):
        folders[:] = [name for name in folders if name not in _NEVER_HASHED]
        for name in files:
            if name not in _NEVER_HASHED:
                file = Path(folder, name)
                entries.append({"md5": _md5(file), "relpath": file.relative_to(path).as_posix()})
    entries.sort(key=lambda entry: entry["relpath"])
    listing = json.dumps(entries, sort_keys=True).encode()
    return f"{hashlib.md5(listing, usedforsecurity=False).hexdigest()}.dir"


def _md5(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
