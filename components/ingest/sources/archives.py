"""Images in tar archives that strangers packed: found in one pass over the headers, and read where they lie.

Nothing is written by a name that an archive gives. An archive with a link, a device, a path that leads out, or two
members of one name is refused whole; so is one that is cut short, or that unpacks to far more than images can.
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
from components.shared.io.text import shown

MOST_BYTES = 256 << 20  # of one member
MOST_RATIO = 100  # unpacked over packed; images hardly shrink, tar's own padding of small ones by a factor of 20
SUFFIXES = (".tar", ".tar.gz", ".tgz")
_OPEN = 32  # files at once
_CHUNK = 1 << 20
_REMEDY = "It is no archive that this project would read: get it anew from where it was published."


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive.

    Attributes:
        archive: the archive's place in the list.
        name: normalised path in the archive.
        offset, size: where its bytes are in the unpacked archive.
    """

    archive: int
    name: str
    offset: int
    size: int


class Archives:
    """Tar archives, plain or gzipped, to be read at any place. A context manager: it holds files open.

    A plain archive is read where it lies. A gzipped one is unpacked, as one stream, to a temporary file without a name.
    """

    def __init__(self, paths: list[Path]) -> None:
        """Opens nothing yet.

        Args:
            paths: of the archives; members refer to their places in it.
        """
        self.paths = paths
        self._open: OrderedDict[int, IO[bytes]] = OrderedDict()
        self._unpacked: dict[int, IO[bytes]] = {}

    def __enter__(self) -> "Archives":
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """As `close`."""
        self.close()

    def close(self) -> None:
        """Closes what is open; what was unpacked is gone."""
        for file in (*self._open.values(), *self._unpacked.values()):
            file.close()

    def members(self, archive: int) -> Iterator[Member]:
        """The regular files of an archive, by their headers alone.

        Raises:
            ConcordError: the archive cannot be read, is cut short, or holds what no data set holds.
        """
        path, file = self.paths[archive], self._file(archive)
        seen: set[str] = set()
        try:
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while info := tar.next():
                    tar.members = []  # type: ignore[attr-defined]  # else it keeps them all
                    if info.isdir():
                        continue
                    member = Member(archive, _name(path, info), info.offset_data, info.size)
                    if member.name in seen:
                        raise _refused(path, info.name, "is there twice")
                    seen.add(member.name)
                    yield member
                end = tar.offset
            file.seek(end)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise ConcordError(f"{path}: cut short, or damaged, at byte {end}. Get it anew.")
        except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
            raise ConcordError(f"{path}: not a whole tar archive ({error}). Get it anew.") from None

    def read(self, member: Member) -> bytes:
        """The bytes of a member.

        Raises:
            ConcordError: the archive has changed since its headers were read.
        """
        data = os.pread(self._file(member.archive).fileno(), member.size, member.offset)
        if len(data) != member.size:
            raise ConcordError(f"{self.paths[member.archive]}: {shown(member.name)} is cut short. Get it anew.")
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
        if len(self._open) > _OPEN:
            self._open.popitem(last=False)[1].close()
        return self._open[archive]


def _name(path: Path, info: tarfile.TarInfo) -> str:
    """The member's path, where it is a regular file inside the archive.

    Raises:
        ConcordError: it is anything else.
    """
    if info.issym() or info.islnk():
        raise _refused(path, info.name, "is a link")
    if not info.isfile() or info.issparse():
        raise _refused(path, info.name, "is neither a plain file nor a folder")
    name = posixpath.normpath(info.name)
    if posixpath.isabs(name) or name.split("/")[0] == ".." or "\\" in name or re.match("[A-Za-z]:", name):
        raise _refused(path, info.name, "leads out of the archive")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise _refused(path, info.name, "is not named in UTF-8") from None
    if info.size > MOST_BYTES:
        raise _refused(path, info.name, f"has {info.size:,} bytes, more than {MOST_BYTES:,}")
    return name


def _refused(path: Path, name: str, why: str) -> ConcordError:
    return ConcordError(f"{path}: {shown(name)} {why}. {_REMEDY}")


def _unpack(path: Path) -> IO[bytes]:
    """A gzipped archive as a plain one, in a file that is gone when it is closed. One stream, checked to its end."""
    most = max(path.stat().st_size * MOST_RATIO, _CHUNK)
    target = TemporaryFile()  # noqa: SIM115  # whoever gets it closes it
    try:
        with disk_full_errors(Path(gettempdir())), gzip.open(path) as source:
            while part := source.read(_CHUNK):
                if target.tell() + len(part) > most:
                    raise ConcordError(f"{path}: unpacks to more than {MOST_RATIO} times its size. {_REMEDY}")
                target.write(part)
            target.flush()
    except (zlib.error, EOFError, OSError) as error:
        target.close()
        raise ConcordError(f"{path}: not a whole gzipped archive ({error}). Get it anew.") from None
    except BaseException:
        target.close()
        raise
    return target
