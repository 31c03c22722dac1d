"""Downloads one S3 object to a file: resumes a partial download and verifies the server's checksum."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any, BinaryIO

from components.errors import ConcordError
from components.s3_address import S3Address
from components.shared.s3.cache_index import S3Object
from components.shared.s3.errors import RetryTimer, StoppedError

CHUNK = 1 << 16

_MD5 = re.compile(r"[0-9a-f]{32}")
_MD5_OF_PARTS = re.compile(r"([0-9a-f]{32})-(\d+)")


@dataclass(frozen=True)
class DownloadContext:
    """What all downloads of one run share.

    Attributes:
        client: boto3's S3 client; threads may share it.
        address: the folder that contains the objects.
        stop: ends every download when it is set.
        retry_seconds: time without a byte after which a download fails.
        advance: called with the number of new bytes; negative if bytes turned out to be wrong.
    """

    client: Any
    address: S3Address
    stop: Event
    retry_seconds: float
    advance: Callable[[int], object]

    def location(self, item: S3Object) -> str:
        """The object's address, for messages."""
        return f"s3://{self.address.bucket}/{self.key(item)}"

    def key(self, item: S3Object) -> str:
        """The object's key in the bucket."""
        return self.address.folder + item.name


@dataclass(frozen=True)
class Downloaded:
    """The content's SHA-256, and whether it was compared with a checksum of the server."""

    digest: str
    verified: bool


def download(context: DownloadContext, item: S3Object, file: Path) -> Downloaded:
    """Downloads an object to `file`, and resumes if the file has the beginning from an earlier attempt.

    Args:
        file: only ever used for this version of the object.

    Raises:
        ConcordError: the server refuses access, has another version, sends bytes that do not match its checksum, or
            does not respond for too long. Unless the checksum was wrong, the downloaded part stays in `file`.
        StoppedError: `context.stop` is set.
        OSError: the file cannot be written.
    """
    for _ in range(2):  # the part from an earlier attempt may be what is wrong
        content = _PartialFile(context, item, file).complete()
        matches = _matches_etag(context, item, file, content)
        if matches is not False:
            return Downloaded(content.sha256.hexdigest(), matches is not None)
        file.unlink()
        context.advance(-item.size)
    raise ConcordError(
        f"{context.location(item)}: the downloaded bytes do not match the MD5 in the server's ETag ({item.etag}), "
        "twice. Something on the way changes them, or the object is damaged: upload it again."
    )


class _PartialFile:
    """A partly downloaded object and the hashes of its bytes so far."""

    def __init__(self, context: DownloadContext, item: S3Object, file: Path) -> None:
        self._context, self._item, self._file = context, item, file
        self._reset()
        self.encrypted = self.damaged = False

    def _reset(self) -> None:
        self.size, self.md5, self.sha256 = 0, hashlib.md5(usedforsecurity=False), hashlib.sha256()

    def complete(self) -> "_PartialFile":
        """Downloads what is missing, with retries."""
        from botocore.exceptions import FlexibleChecksumError

        timer = RetryTimer(self._context.retry_seconds, self._context.stop)
        with open(self._file, "a+b") as file:
            self._hash_existing(file)
            furthest = self.size
            while self.size < self._item.size:
                try:
                    self._resume(file)
                except FlexibleChecksumError:  # raised only by the last read of a whole object
                    self.damaged = True
                except (ConcordError, StoppedError, OSError):
                    raise
                except Exception as error:
                    if self.size > furthest:
                        furthest = self.size
                        timer.reset()
                    timer.wait(error, self._context.location(self._item))
        return self

    def _hash_existing(self, file: BinaryIO) -> None:
        """Hashes the bytes from an earlier attempt."""
        file.seek(0)
        while chunk := file.read(CHUNK):
            self._add_to_hashes(chunk)
        if self.size > self._item.size:
            self._restart(file)
        self._context.advance(self.size)

    def _restart(self, file: BinaryIO) -> None:
        file.truncate(0)
        self._reset()

    def _resume(self, file: BinaryIO) -> None:
        """Requests the missing bytes; all that arrive are in the file, also when this raises."""
        from botocore.exceptions import IncompleteReadError

        request: dict[str, Any] = {"IfMatch": f'"{self._item.etag}"'} if self._item.etag else {}
        if self.size:
            request["Range"] = f"bytes={self.size}-"
        context = self._context
        reply = context.client.get_object(Bucket=context.address.bucket, Key=context.key(self._item), **request)
        body = reply["Body"]
        try:
            if self.size and reply["ResponseMetadata"]["HTTPStatusCode"] != 206:  # the server ignores ranges
                context.advance(-self.size)
                self._restart(file)
            left = self._item.size - self.size
            if reply.get("ETag", "").strip('"') != self._item.etag or reply.get("ContentLength", left) != left:
                raise self._replaced_error()
            self.encrypted = "SSECustomerAlgorithm" in reply or "kms" in reply.get("ServerSideEncryption", "")
            while chunk := body.read(CHUNK):
                if context.stop.is_set():
                    raise StoppedError
                if self.size + len(chunk) > self._item.size:
                    raise self._replaced_error()
                file.write(chunk)
                self._add_to_hashes(chunk)
                context.advance(len(chunk))
            if self.size < self._item.size:  # the server did not send a length, so boto3 could not notice
                raise IncompleteReadError(actual_bytes=self.size, expected_bytes=self._item.size)
        finally:
            file.flush()
            body.close()

    def _add_to_hashes(self, chunk: bytes) -> None:
        self.size += len(chunk)
        self.md5.update(chunk)
        self.sha256.update(chunk)

    def _replaced_error(self) -> ConcordError:
        return ConcordError(
            f"{self._context.location(self._item)}: replaced since it was listed. Run again when nobody writes there: "
            "all rows must come from one version."
        )


def _matches_etag(context: DownloadContext, item: S3Object, file: Path, content: _PartialFile) -> bool | None:
    """Whether the content has the MD5 in the ETag.

    None if the ETag is not an MD5: the object is encrypted with a key of KMS or of the customer, or the server computes
    ETags in another way.
    """
    if content.damaged:
        return False
    if content.encrypted:
        return None
    if _MD5.fullmatch(item.etag):
        return content.md5.hexdigest() == item.etag
    parts = _MD5_OF_PARTS.fullmatch(item.etag)
    sizes = _part_sizes(context, item, int(parts[2])) if parts else None
    if not parts or not sizes:
        return None
    digests = b""
    with open(file, "rb") as opened:
        for size in sizes:
            digests += _md5_of(opened, size)
    return hashlib.md5(digests, usedforsecurity=False).hexdigest() == parts[1]


def _md5_of(file: BinaryIO, size: int) -> bytes:
    digest = hashlib.md5(usedforsecurity=False)
    while size and (chunk := file.read(min(CHUNK, size))):
        digest.update(chunk)
        size -= len(chunk)
    return digest.digest()


def _part_sizes(context: DownloadContext, item: S3Object, count: int) -> list[int] | None:
    """Size in bytes of each part of a multipart upload; None if the server does not report them."""
    sizes: list[int] = []
    timer = RetryTimer(context.retry_seconds, context.stop)
    while len(sizes) < count:
        request = {"Bucket": context.address.bucket, "Key": context.key(item), "PartNumber": len(sizes) + 1}
        try:
            reply = context.client.head_object(**request)
        except Exception as error:
            timer.wait(error, context.location(item))
            continue
        if reply.get("PartsCount") != count:
            return None
        sizes.append(int(reply["ContentLength"]))
        timer.reset()
    return sizes if sum(sizes) == item.size else None
