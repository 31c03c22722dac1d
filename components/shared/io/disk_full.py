"""A disk that fills up, told in words: every library has its own way of saying it, and some say something else."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from components.errors import ConcordError

LITTLE = 1 << 20  # bytes; with less than this left, a failure to write is taken for a full disk


def is_disk_full(place: Path, error: BaseException) -> bool:
    """Whether `error` came of a full disk, or of a used-up quota, where `place` is or was to be."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        cause = cause.__cause__ or cause.__context__
    return shutil.disk_usage(_standing(place)).free < LITTLE


@contextmanager
def disk_full_errors(place: Path) -> Iterator[None]:
    """Tells of a full disk while `place` is written.

    Raises:
        ConcordError: the disk is full. Any other error goes through as it is.
    """
    try:
        yield
    except ConcordError:
        raise
    except Exception as error:
        if not is_disk_full(place, error):
            raise
        raise ConcordError(disk_full_message(place)) from error


def disk_full_message(place: Path) -> str:
    """What to say of it, and what to do."""
    disk = shutil.disk_usage(_standing(place))
    return (
        f"{place}: no space left on its disk ({disk.free >> 20} of {disk.total >> 20} MiB free). Free some and run "
        "again: what was finished stands, and a training goes on from its last checkpoint."
    )


def _standing(place: Path) -> Path:
    place = place.absolute()
    return next(folder for folder in (place, *place.parents) if folder.exists())
