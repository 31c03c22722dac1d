"""One object of a bucket -> one file: gone on with where it broke off, and compared with the server's checksum."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any, BinaryIO

from components.errors import ConcordError
from components.shared.s3.address import S3Address
from components.shared.s3.cache_index import Listed
from components.shared.s3.faults import RetryTimer, StoppedError

CHUNK = 1 << 16

_MD5 = re.compile(r"[0-9a-f]{32}")
_MD5_OF_PARTS = re.compile(r"([0-9a-f]{32})-(\d+)")


@dataclass(frozen=True)
class Source:
    """Where objects come from, and how.

    Attributes:
        client: boto3's for S3; threads may share it.
        stop: ends every download.
        patience: seconds without a byte after which a download fails.
        advance: told of bytes as they come; negative where some turned out to be wrong.
    """

    client: Any
    address: S3Address
    stop: Event
    patience: float
    advance: Callable[[int], object]

    def place(self, item: Listed) -> str:
        """The object as a person is told of it."""
        return f"s3://{self.address.bucket}/{self.key(item)}"

    def key(self, item: Listed) -> str:
        """The object's key."""
        return self.address.folder + item.name


@dataclass(frozen=True)
class Fetched:
    """The content's SHA-256, and whether the server has a checksum that could be compared."""

    digest: str
    compared: bool


def download(source: Source, item: Listed, file: Path) -> Fetched:
    """Completes `file`, which may hold the beginning from an earlier try.

    Args:
        file: of this very version of the object.

    Raises:
        ConcordError: the server refuses it, has another version, sends other bytes than its checksum says, or is
            silent for too long. Except for the wrong bytes, what has come stays in `file`.
        StoppedError: `source.stop` is set.
        OSError: the file cannot be written.
    """
    for _ in range(2):  # the beginning may be what is wrong
        got = _Content(source, item, file).complete()
        agrees = _agrees(source, item, file, got)
        if agrees is not False:
            return Fetched(got.sha256.hexdigest(), agrees is not None)
        file.unlink()
        source.advance(-item.size)
    raise ConcordError(
        f"{source.place(item)}: what came does not have the MD5 that the server's ETag tells ({item.etag}), twice. "
        "Something on the way changes it, or it is damaged in the bucket: put it there again."
    )


class _Content:
    """A file that grows to an object's content, hashed as it grows."""

    def __init__(self, source: Source, item: Listed, file: Path) -> None:
        self._source, self._item, self._file = source, item, file
        self._reset()
        self.encrypted = self.damaged = False

    def _reset(self) -> None:
        self.size, self.md5, self.sha256 = 0, hashlib.md5(usedforsecurity=False), hashlib.sha256()

    def complete(self) -> "_Content":
        from botocore.exceptions import FlexibleChecksumError

        patience = RetryTimer(self._source.patience, self._source.stop)
        with open(self._file, "a+b") as file:
            self._read_again(file)
            furthest = self.size
            while self.size < self._item.size:
                try:
                    self._go_on(file)
                except FlexibleChecksumError:  # only the last read of a whole object tells
                    self.damaged = True
                except (ConcordError, StoppedError, OSError):
                    raise
                except Exception as error:
                    if self.size > furthest:
                        furthest = self.size
                        patience.renew()
                    patience.wait(error, self._source.place(self._item))
        return self

    def _read_again(self, file: BinaryIO) -> None:
        """Takes in what an earlier try has left."""
        file.seek(0)
        while chunk := file.read(CHUNK):
            self._take_in(chunk)
        if self.size > self._item.size:
            self._begin_anew(file)
        self._source.advance(self.size)

    def _begin_anew(self, file: BinaryIO) -> None:
        file.truncate(0)
        self._reset()

    def _go_on(self, file: BinaryIO) -> None:
        """Asks for the rest; returns or raises with whatever has come in the file."""
        from botocore.exceptions import IncompleteReadError

        wanted: dict[str, Any] = {"IfMatch": f'"{self._item.etag}"'} if self._item.etag else {}
        if self.size:
            wanted["Range"] = f"bytes={self.size}-"
        source = self._source
        reply = source.client.get_object(Bucket=source.address.bucket, Key=source.key(self._item), **wanted)
        body = reply["Body"]
        try:
            if self.size and reply["ResponseMetadata"]["HTTPStatusCode"] != 206:  # it knows no ranges
                source.advance(-self.size)
                self._begin_anew(file)
            left = self._item.size - self.size
            if reply.get("ETag", "").strip('"') != self._item.etag or reply.get("ContentLength", left) != left:
                raise self._changed()
            self.encrypted = "SSECustomerAlgorithm" in reply or "kms" in reply.get("ServerSideEncryption", "")
            while chunk := body.read(CHUNK):
                if source.stop.is_set():
                    raise StoppedError
                if self.size + len(chunk) > self._item.size:
                    raise self._changed()
                file.write(chunk)
                self._take_in(chunk)
                source.advance(len(chunk))
            if self.size < self._item.size:  # a server that does not tell the length
                raise IncompleteReadError(actual_bytes=self.size, expected_bytes=self._item.size)
        finally:
            file.flush()
            body.close()

    def _take_in(self, chunk: bytes) -> None:
        self.size += len(chunk)
        self.md5.update(chunk)
        self.sha256.update(chunk)

    def _changed(self) -> ConcordError:
        return ConcordError(
            f"{self._source.place(self._item)}: replaced since it was listed. Run again when nobody writes there: the "
            "rows must be of one version."
        )


def _agrees(source: Source, item: Listed, file: Path, got: _Content) -> bool | None:
    """Whether the content has the MD5 that the ETag tells; None where the ETag is no MD5 (encrypted by a key of KMS's
    or the customer's, or a server with a way of its own)."""
    if got.damaged:
        return False
    if got.encrypted:
        return None
    if _MD5.fullmatch(item.etag):
        return got.md5.hexdigest() == item.etag
    parts = _MD5_OF_PARTS.fullmatch(item.etag)
    sizes = _part_sizes(source, item, int(parts[2])) if parts else None
    if not parts or not sizes:
        return None
    digests = b""
    with open(file, "rb") as content:
        for size in sizes:
            digests += _md5_of(content, size)
    return hashlib.md5(digests, usedforsecurity=False).hexdigest() == parts[1]


def _md5_of(content: BinaryIO, size: int) -> bytes:
    digest = hashlib.md5(usedforsecurity=False)
    while size and (chunk := content.read(min(CHUNK, size))):
        digest.update(chunk)
        size -= len(chunk)
    return digest.digest()


def _part_sizes(source: Source, item: Listed, count: int) -> list[int] | None:
    """Bytes of each part that the object was uploaded in; None where the server does not tell."""
    sizes: list[int] = []
    patience = RetryTimer(source.patience, source.stop)
    while len(sizes) < count:
        wanted = {"Bucket": source.address.bucket, "Key": source.key(item), "PartNumber": len(sizes) + 1}
        try:
            reply = source.client.head_object(**wanted)
        except Exception as error:
            patience.wait(error, source.place(item))
            continue
        if reply.get("PartsCount") != count:
            return None
        sizes.append(int(reply["ContentLength"]))
        patience.renew()
    return sizes if sum(sizes) == item.size else None
