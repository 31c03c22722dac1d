"""Atomic outputs: written to a temporary sibling, then renamed."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from components.shared.io.disk_full import disk_full_errors


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Gives an empty temporary folder and renames it to `path` when the block ends without an error.

    Until then, the previous content of `path` is untouched. After an error the temporary folder is removed; after a
    kill it stays as `.NAME.partial`, and the next call removes it.

    Raises:
        ConcordError: the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / f".{path.name}.partial"
    _remove(partial)
    partial.mkdir()
    try:
        with disk_full_errors(path):
            yield partial
    except BaseException:
        _remove(partial)
        raise
    replace_folder(partial, path)


def replace_folder(made: Path, path: Path) -> None:
    """Renames the folder `made` to `path`, on the same file system, and removes the previous content of `path`."""
    old = path.parent / f".{path.name}.old"
    _remove(old)
    if path.exists():
        os.replace(path, old)
    os.replace(made, path)
    _remove(old)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file atomically: a reader sees the old content or the new content, never a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / f".{path.name}.partial"
    with open(partial, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_text(path: Path, content: str) -> None:
    """Writes text atomically, in UTF-8."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any) -> None:
    """Writes JSON atomically, with sorted keys, so that the same content gives the same bytes."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
