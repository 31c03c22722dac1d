"""Lists objects of an S3 bucket. boto3 takes endpoint, region and credentials from the environment."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from threading import Event
from typing import Any

from components.errors import ConcordError
from components.s3_address import S3Address
from components.shared.io.text import quoted
from components.shared.s3.cache_index import S3Object
from components.shared.s3.errors import RetryTimer, as_concord_error, endpoint_url

RETRY_SECONDS = 60.0  # enough time to restart a server
PAGE = 1000  # objects per page of a listing; S3 returns no more
TIMEOUT_SECONDS = 20.0  # without a byte for this long, a connection is closed
CONNECTIONS = 16
LISTING = "listing:"  # what the hash of a listing begins with; other hashes of raw input are DVC's


def connect(location: str) -> Any:
    """boto3's client of S3.

    Args:
        location: what is read, for the error message.

    Raises:
        ConcordError: the endpoint is not a URL, or a profile does not exist.
    """
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    config = Config(
        max_pool_connections=CONNECTIONS,
        connect_timeout=TIMEOUT_SECONDS,
        read_timeout=TIMEOUT_SECONDS,
        retries={"total_max_attempts": 1},  # RetryTimer decides on retries
        # Self-hosted servers seldom have a host name per bucket.
        s3={"addressing_style": "path"} if endpoint_url() else None,
    )
    try:
        return boto3.session.Session(region_name=os.environ.get("AWS_REGION")).client("s3", config=config)
    except (BotoCoreError, ValueError) as error:  # ValueError: the endpoint is not a URL
        raise as_concord_error(error, location, 0) from None


def list_objects(client: Any, address: S3Address, retry_seconds: float = RETRY_SECONDS) -> Iterator[S3Object]:
    """Yields every object below the address, one page in memory at a time.

    Raises:
        ConcordError: access is refused, the server stays unreachable, or a key is not a valid file name.
    """
    for item in list_keys(client, address.bucket, address.folder, str(address), retry_seconds):
        name = item["Key"].removeprefix(address.folder)
        if item["Size"] or not item["Key"].endswith("/"):  # else a web console's marker of an empty folder
            check_name(address, name)
            yield S3Object(name, item["Size"], item.get("ETag", "").strip('"'))


def list_keys(
    client: Any, bucket: str, prefix: str, location: str, retry_seconds: float = RETRY_SECONDS
) -> Iterator[Mapping[str, Any]]:
    """Yields every entry of a listing as S3 has it: Key, Size, ETag, LastModified.

    Args:
        location: what is read, for the error message.
        retry_seconds: how long a request is repeated while the server does not respond.

    Raises:
        ConcordError: access is refused, or the server stays unreachable.
    """
    timer = RetryTimer(retry_seconds, Event())
    next_page: dict[str, str] = {}
    while True:
        try:
            page = client.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=PAGE, **next_page)
        except Exception as error:
            timer.wait(error, location)
            continue
        timer.reset()
        yield from page.get("Contents", ())
        if not page.get("IsTruncated"):
            return
        next_page = {"ContinuationToken": page["NextContinuationToken"]}


def listing_hash(objects: Iterable[S3Object]) -> str:
    """`listing:` and 32 hexadecimal digits: of all names, sizes and ETags. No content is read."""
    digest = hashlib.sha256()
    for item in sorted(objects, key=lambda item: item.name):
        digest.update(f"{item.name}\0{item.size}\0{item.etag}\n".encode())
    return LISTING + digest.hexdigest()[:32]


def check_name(address: S3Address, name: str) -> None:
    """Raises ConcordError if a key is not a valid file name, or names a file outside the folder."""
    parts = name.split("/")
    if {"", ".", ".."} & set(parts) or "\0" in name or max(len(os.fsencode(part)) for part in parts) > 255:
        raise ConcordError(
            f"{address}: the key {quoted(name)} is not a valid file name. Rename the object in the bucket, or give the "
            "address of a folder without it."
        )
