"""Reads images from untrusted tar archives in place, after one pass over the headers.

No member name is ever used as a path to write to. An archive is refused as a whole if it is truncated, if it unpacks to
far more than its size, or if it contains a link, a device, a path outside the archive or two members of the same name.
"""

import gzip
import os
import posixpath
import re
import tarfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from typing import IO

from components.errors import ConcordError
from components.shared.io.disk_full import disk_full_errors
from components.shared.io.text import quoted

MAX_MEMBER_BYTES = 256 << 20
# Unpacked over packed size. Images hardly compress, but tar's padding of small ones compresses by a factor of 20.
MAX_RATIO = 100
SUFFIXES = (".tar", ".tar.gz", ".tgz")
_MAX_OPEN = 32  # files open at once
_CHUNK = 1 << 20
_REMEDY = "Such an archive is not read: download it again from its publisher."


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive.

    Attributes:
        archive: the archive's index in the list of archives.
        name: normalised path in the archive.
        offset, size: position of its bytes in the uncompressed archive.
    """

    archive: int
    name: str
    offset: int
    size: int


class Archives:
    """Random access to tar archives, plain or gzipped. A context manager, since it keeps files open.

    A plain archive is read in place. A gzipped one is decompressed to an unnamed temporary file.
    """

    def __init__(self, paths: list[Path]) -> None:
        """Opens no file yet.

        Args:
            paths: of the archives; members refer to them by index.
        """
        self.paths = paths
        self._open: OrderedDict[int, IO[bytes]] = OrderedDict()
        self._unpacked: dict[int, IO[bytes]] = {}

    def __enter__(self) -> "Archives":
        """Returns the archives."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes all files."""
        self.close()

    def close(self) -> None:
        """Closes all files; temporary ones are deleted by that."""
        for file in (*self._open.values(), *self._unpacked.values()):
            file.close()

    def members(self, archive: int) -> Iterator[Member]:
        """Yields the regular files of an archive; reads only the headers.

        Raises:
            ConcordError: the archive cannot be read, is truncated, or has a member that is refused.
        """
        path, file = self.paths[archive], self._file(archive)
        seen: set[str] = set()
        try:
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while info := tar.next():
                    tar.members = []  # type: ignore[attr-defined]  # else tarfile keeps all of them in memory
                    if info.isdir():
                        continue
                    member = Member(archive, _name(path, info), info.offset_data, info.size)
                    if member.name in seen:
                        raise _refusal(path, info.name, "occurs twice")
                    seen.add(member.name)
                    yield member
                end = tar.offset
            file.seek(end)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise ConcordError(f"{path}: truncated or damaged at byte {end}. Download it again.")
        except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
            raise ConcordError(f"{path}: not a complete tar archive ({error}). Download it again.") from None

    def read(self, member: Member) -> bytes:
        """Reads the bytes of a member.

        Raises:
            ConcordError: the archive has changed since its headers were read.
        """
        data = os.pread(self._file(member.archive).fileno(), member.size, member.offset)
        if len(data) != member.size:
            raise ConcordError(f"{self.paths[member.archive]}: {quoted(member.name)} is truncated. Download it again.")
        return data

    def _file(self, archive: int) -> IO[bytes]:
        path = self.paths[archive]
        if not path.name.endswith(".tar"):
            if archive not in self._unpacked:
                self._unpacked[archive] = _unpack(path)
            return self._unpacked[archive]
        if archive not in self._open:
            try:
                self._open[archive] = open(path, "rb")  # noqa: SIM115  # closed by __exit__, or below
            except OSError as error:
                raise ConcordError(f"{path}: cannot be read ({error.strerror}). Make it readable.") from None
        self._open.move_to_end(archive)
        if len(self._open) > _MAX_OPEN:
            self._open.popitem(last=False)[1].close()
        return self._open[archive]


def _name(path: Path, info: tarfile.TarInfo) -> str:
    """The member's normalised path.

    Raises:
        ConcordError: the member is not a regular file inside the archive, or is too large.
    """
    if info.issym() or info.islnk():
        raise _refusal(path, info.name, "is a link")
    if not info.isfile() or info.issparse():
        raise _refusal(path, info.name, "is neither a regular file nor a folder")
    name = posixpath.normpath(info.name)
    if posixpath.isabs(name) or name.split("/")[0] == ".." or "\\" in name or re.match("[A-Za-z]:", name):
        raise _refusal(path, info.name, "is a path outside the archive")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise _refusal(path, info.name, "is not named in UTF-8") from None
    if info.size > MAX_MEMBER_BYTES:
        raise _refusal(path, info.name, f"has {info.size:,} bytes, more than {MAX_MEMBER_BYTES:,}")
    return name


def _refusal(path: Path, name: str, reason: str) -> ConcordError:
    return ConcordError(f"{path}: {quoted(name)} {reason}. {_REMEDY}")


def _unpack(path: Path) -> IO[bytes]:
    """Decompresses a gzipped archive to a temporary file that is deleted when it is closed."""
    limit = max(path.stat().st_size * MAX_RATIO, _CHUNK)
    target = TemporaryFile()  # noqa: SIM115  # Archives.close closes it
    try:
        with disk_full_errors(Path(gettempdir())), gzip.open(path) as source:
            while part := source.read(_CHUNK):
                if target.tell() + len(part) > limit:
                    raise ConcordError(f"{path}: unpacks to more than {MAX_RATIO} times its size. {_REMEDY}")
                target.write(part)
            target.flush()
    except (zlib.error, EOFError, OSError) as error:
        target.close()
        raise ConcordError(f"{path}: not a complete gzipped archive ({error}). Download it again.") from None
    except BaseException:
        target.close()
        raise
    return target
