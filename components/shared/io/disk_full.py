"""Detects and reports a full disk: libraries signal it in different ways, and some raise an unrelated error."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from components.errors import ConcordError

MIN_FREE_BYTES = 1 << 20  # with less free space than this, any failure to write counts as a full disk


def is_disk_full(path: Path, error: BaseException) -> bool:
    """Whether `error` was caused by a full disk or an exceeded quota while `path` was written."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        cause = cause.__cause__ or cause.__context__
    return shutil.disk_usage(_existing_parent(path)).free < MIN_FREE_BYTES


@contextmanager
def disk_full_errors(path: Path) -> Iterator[None]:
    """Turns errors that a full disk causes while `path` is written into a ConcordError.

    Raises:
        ConcordError: the disk is full. Any other error passes through unchanged.
    """
    try:
        yield
    except ConcordError:
        raise
    except Exception as error:
        if not is_disk_full(path, error):
            raise
        raise ConcordError(disk_full_message(path)) from error


def disk_full_message(path: Path) -> str:
    """The error message for a full disk, with the free space and the remedy."""
    disk = shutil.disk_usage(_existing_parent(path))
    return (
        f"{path}: no space left on its disk ({disk.free >> 20} of {disk.total >> 20} MiB free). Free some space and "
        "run again: finished outputs are kept, and training resumes from its last checkpoint."
    )


def _existing_parent(path: Path) -> Path:
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())
