"""The images of a source, by path: files below a folder, and images inside Parquet tables."""

import os
import posixpath
import random
import re
import stat
import tempfile
from pathlib import Path
from typing import IO

from components.ingest.quarantine import BadValueError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_KINDS = (
    (stat.S_ISDIR, "folder"),
    (stat.S_ISFIFO, "pipe"),
    (stat.S_ISSOCK, "socket"),
    (lambda mode: True, "device"),
)
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")


class ImageFiles:
    """Image bytes by path.

    Images of Parquet tables are copied to a temporary file, because a row inside a compressed table cannot be read
    alone, and the rows are written in another order.
    """

    def __init__(self, root: Path, keep: int | None = None) -> None:
        """Starts without images of tables.

        Args:
            root: folder that the paths of files are relative to.
            keep: how many images of tables can be read later, drawn at random; None: all.
        """
        self.root, self._keep = root, keep
        self._random = random.Random(0)
        self._empty: set[str] = set()
        self._added: set[str] = set()
        self._places: dict[str, tuple[int, int]] = {}  # path -> offset and size in the temporary file
        self._file: IO[bytes] | None = None
        self._end = 0

    def __contains__(self, path: str) -> bool:
        """Whether this is the path of an image of a table."""
        return path in self._added

    @property
    def kept(self) -> list[str]:
        """Paths of the images of tables that can be read."""
        return list(self._places)

    def add(self, path: str, data: bytes) -> None:
        """Adds an image of a table."""
        if not data:
            self._empty.add(path)
        self._added.add(path)
        if self._keep is not None and len(self._places) >= self._keep:
            chosen = self._random.randrange(len(self._added))
            if chosen >= self._keep:
                return
            del self._places[list(self._places)[chosen]]
        self._write(path, data)

    def _write(self, path: str, data: bytes) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115  # closed, and so deleted, with this object
        self._file.write(data)
        self._places[path] = (self._end, len(data))
        self._end += len(data)

    def check(self, text: str) -> str:
        """Normalises an image path, which must name an image of a table or a non-empty file below the folder.

        Raises:
            BadValueError: see `parse_image`, or the image is empty.
        """
        if text in self._empty:
            raise BadValueError("empty image", "it has 0 bytes: write the table again or remove the row")
        return text if text in self._added else parse_image(text, os.fspath(self.root))

    def read(self, path: str) -> bytes:
        """The image's bytes, unchanged. May be called from several threads.

        Raises:
            OSError: the file cannot be read.
        """
        if path not in self._places:
            with open(f"{self.root}/{path}", "rb", buffering=0) as file:
                return file.read()
        assert self._file is not None
        self._file.flush()
        offset, size = self._places[path]
        return os.pread(self._file.fileno(), size, offset)


def parse_image(text: str, root: str) -> str:
    """Checks and normalises an image path: it must name an existing, non-empty file below `root`.

    Symbolic links are followed, since DVC may replace files with links to its cache.

    Raises:
        BadValueError: the path is empty or outside `root`, or the file is missing or empty.
    """
    if not text.strip():
        raise BadValueError("empty image path", "fill in the path or remove the row")
    path = posixpath.normpath(text)
    if posixpath.isabs(path) or _DRIVE.match(path) or path.split("/")[0] == "..":
        raise BadValueError("image outside the folder", "put the file below the CSV's folder")
    try:
        status = os.stat(f"{root}/{path}")
    except (OSError, ValueError):  # ValueError: a null character in the path
        if "\0" not in path and os.path.islink(f"{root}/{path}"):
            raise BadValueError("link to nothing", "restore the file that it points to, or remove it") from None
        remedy = "write paths with /, not \\" if "\\" in text else "add the file or remove the row"
        raise BadValueError("missing file", remedy) from None
    if not stat.S_ISREG(status.st_mode):
        kind = next(kind for test, kind in _KINDS if test(status.st_mode))
        raise BadValueError("not a file", f"it is a {kind}: give the path of an image file, or move it away")
    if status.st_size == 0:
        raise BadValueError("empty file", "it has 0 bytes: copy it again or remove the row")
    return path
