"""Images that the input names, and the bytes of their files."""

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

MAX_BYTES = 1 << 30  # of a file; no image that can be decoded is larger


@dataclass(frozen=True, slots=True)
class Image:
    """An image that is named in the input.

    Attributes:
        name: as results name it.
        path: of its file; None where the image is not a file.
        data: the bytes of the file, once they are read.
        error: why it cannot be read.
    """

    name: str
    path: Path | None = None
    data: bytes | None = None
    error: str | None = None


@dataclass(frozen=True)
class Source:
    """Images that belong together, such as a folder.

    Attributes:
        images: yields them in order.
        count: how many they are.
    """

    images: Callable[[], Iterator[Image]]
    count: Callable[[], int]


def with_data(image: Image) -> Image:
    """The image with the bytes of its file, or with the reason why it cannot be read."""
    if image.path is None or image.error is not None:
        return image
    try:
        with open(image.path, "rb", buffering=0, opener=_open_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                return replace(image, error="not a file")
            if status.st_size > MAX_BYTES:
                return replace(image, error=f"larger than {MAX_BYTES >> 20:,} MiB")
            return replace(image, data=file.read())
    except FileNotFoundError:
        return replace(image, error="no such file")
    except (OSError, ValueError) as error:  # ValueError: a null character in a table's path
        return replace(image, error=reason(error))


def _open_without_waiting(path: str, flags: int) -> int:
    """Opens a named pipe too, which would otherwise wait for someone who writes to it."""
    return os.open(path, flags | os.O_NONBLOCK)


def reason(error: OSError | ValueError) -> str:
    """Why a file or a folder cannot be read."""
    return f"cannot be read ({getattr(error, 'strerror', None) or error})"


def printable_name(name: str) -> str:
    """The name as valid Unicode: bytes of a file name that are not UTF-8 are escaped."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")
