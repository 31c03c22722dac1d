"""A folder of a bucket -> a folder here: listed, fetched by many threads into the cache, and linked together.

    with local_copy(parse_s3("s3://bucket/prefix")) as folder: ...

Endpoint, region and credentials are boto3's own, from the environment. Memory is bounded by the number of threads,
whatever the number and size of the objects: the listing goes to disk, and bytes pass in chunks.
"""

import errno
import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

from components.console import console
from components.errors import ConcordError
from components.shared.io.atomic import new_folder
from components.shared.io.disk_full import disk_full_errors, disk_full_message
from components.shared.io.locks import output_lock
from components.shared.io.progress import transferred
from components.shared.io.text import shown
from components.shared.s3.address import S3Address
from components.shared.s3.cache import LIMIT, ContentCache, cache_folder, cache_limit
from components.shared.s3.cache_index import Amount, CacheIndex, Listed, open_index
from components.shared.s3.download import Fetched, Source, download
from components.shared.s3.faults import RetryTimer, endpoint, endpoint_url, s3_error

THREADS = 16
RETRY_SECONDS = 60.0  # seconds in which a server may be started again
PAGE = 1000  # objects that one answer lists; no server gives more
SILENCE = 20.0  # seconds without a byte after which a connection is given up


@contextmanager
def local_copy(address: S3Address, patience: float = RETRY_SECONDS) -> Iterator[Path]:
    """The objects below the address as files below a folder, which nobody else changes while the block lasts.

    What is in the cache already is checked and not fetched again, so that after a kill the same call goes on. The
    folder's files are links into the cache: read them, never write there.

    Args:
        patience: seconds for which a server that does not answer is asked again.

    Raises:
        ConcordError: the bucket refuses, is not there or is empty; the server stays away; an object has changed, is
            damaged or has a name that no file can have; the disk is full.
    """
    cache = ContentCache(cache_folder())
    folder = _folder_of(address, cache.folder)
    with output_lock(folder):
        with disk_full_errors(cache.folder), open_index(folder.with_name(f"{folder.name}.sqlite")) as index:
            _fetch(address, cache, index, folder, patience)
        yield folder


def _folder_of(address: S3Address, cache: Path) -> Path:
    """`CACHE/s3/bucket-prefix-0123456789ab`: one for an address and an endpoint."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", f"{address.bucket}-{address.prefix}")[:60].strip("-")
    return cache / "s3" / f"{name}-{_short_hash(endpoint(), address.bucket, address.prefix)}"


def _fetch(address: S3Address, cache: ContentCache, index: CacheIndex, folder: Path, patience: float) -> None:
    start = time.monotonic()
    client = _client(address)
    index.replace(_listing(client, address, patience))
    amount = index.amount()
    if not amount.objects:
        raise ConcordError(
            f"{address}: nothing there: no object of bucket {address.bucket} has a key that begins with "
            f"{shown(address.folder)}. Correct the address; it names a folder."
        )
    console.print(
        f"{address}: {amount.objects:,} objects, {_mib(amount.size)}; to fetch: {amount.missing:,}, "
        f"{_mib(amount.missing_size)}",
        markup=False,
    )
    beginnings = cache.folder / "partial" / folder.name
    beginnings.mkdir(parents=True, exist_ok=True)
    _check_room(address, amount, cache, beginnings)
    with transferred("fetching", amount.size) as advance, new_folder(folder) as links:
        source = Source(client, address, Event(), patience, advance)
        counts = _obtain_all(source, cache, index, beginnings, links)
    shutil.rmtree(beginnings)  # of versions that are no more
    _report(address, *counts, time.monotonic() - start)


def _client(address: S3Address) -> Any:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    config = Config(
        max_pool_connections=THREADS,
        connect_timeout=SILENCE,
        read_timeout=SILENCE,
        retries={"total_max_attempts": 1},  # what is tried again, and for how long, is decided here
        # Servers of one's own seldom have a name for each bucket.
        s3={"addressing_style": "path"} if endpoint_url() else None,
    )
    try:
        return boto3.session.Session(region_name=os.environ.get("AWS_REGION")).client("s3", config=config)
    except (BotoCoreError, ValueError) as error:  # ValueError: an endpoint that is no URL
        raise s3_error(error, str(address), 0) from None


def _listing(client: Any, address: S3Address, seconds: float) -> Iterator[Listed]:
    """Every object below the address, a page in memory at a time."""
    patience = RetryTimer(seconds, Event())
    more: dict[str, str] = {}
    while True:
        try:
            page = client.list_objects_v2(Bucket=address.bucket, Prefix=address.folder, MaxKeys=PAGE, **more)
        except Exception as error:
            patience.wait(error, str(address))
            continue
        patience.renew()
        for item in page.get("Contents", ()):
            name = item["Key"].removeprefix(address.folder)
            if item["Size"] or not item["Key"].endswith("/"):  # else a console's mark of an empty folder
                _check_name(address, name)
                yield Listed(name, item["Size"], item.get("ETag", "").strip('"'))
        if not page.get("IsTruncated"):
            return
        more = {"ContinuationToken": page["NextContinuationToken"]}


def _check_name(address: S3Address, name: str) -> None:
    """Raises ConcordError where a key names no file, or one outside the folder."""
    parts = name.split("/")
    if {"", ".", ".."} & set(parts) or "\0" in name or max(len(os.fsencode(part)) for part in parts) > 255:
        raise ConcordError(
            f"{address}: its object {shown(name)} cannot be a file of that name. Name it otherwise in the bucket, or "
            "give the address of a folder without it."
        )


def _check_room(address: S3Address, amount: Amount, cache: ContentCache, beginnings: Path) -> None:
    """Raises ConcordError if the missing objects do not fit, before hours are spent on fetching them."""
    missing = amount.missing_size - sum(file.stat().st_size for file in beginnings.iterdir())
    limit = cache_limit()
    if limit is not None and missing > (left := max(limit - cache.size(), 0)):
        raise ConcordError(
            f"{address}: {_mib(missing)} are to be fetched, and the cache {cache.folder} has {_mib(left)} left of the "
            f"{_mib(limit)} that {LIMIT} allows. Raise it; on Kubeflow it follows from `scratch` in the cluster file."
        )
    if missing > shutil.disk_usage(beginnings).free:
        raise ConcordError(f"{disk_full_message(beginnings)} {_mib(missing)} are still to be fetched.")


def _obtain_all(
    source: Source, cache: ContentCache, index: CacheIndex, beginnings: Path, links: Path
) -> tuple[int, int, int]:
    """Brings every object into the cache and links it: how many were fetched, how many not, and how many of the
    fetched have no checksum of the server's to compare with."""
    fetched = kept = uncompared = 0

    def obtain(item: Listed) -> tuple[Listed, Fetched, bool]:
        if item.digest and cache.holds(item.digest):
            source.advance(item.size)
            return item, Fetched(item.digest, True), False
        file = beginnings / _short_hash(item.name, item.etag, str(item.size))
        got = download(source, item, file)
        cache.take(file, got.digest)
        index.found(item.name, got.digest)
        return item, got, True

    with ThreadPoolExecutor(THREADS, thread_name_prefix="s3") as pool:
        try:
            for item, got, new in _by_threads(pool, obtain, index.objects()):
                _link(cache.path(got.digest), links / item.name, source.place(item))
                fetched, kept, uncompared = fetched + new, kept + (not new), uncompared + (not got.compared)
        except BaseException:
            source.stop.set()
            pool.shutdown(cancel_futures=True)  # what is finished just now is taken down still
            raise
    return fetched, kept, uncompared


def _by_threads(pool: ThreadPoolExecutor, work: Any, items: Iterator[Listed]) -> Iterator[tuple[Listed, Fetched, bool]]:
    """`work` of every item as it is done; only so many are under way that no thread waits."""
    waiting: set[Future[tuple[Listed, Fetched, bool]]] = set()
    for item in items:
        waiting.add(pool.submit(work, item))
        if len(waiting) >= 4 * THREADS:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    while waiting:
        done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
        yield from (future.result() for future in done)


def _link(content: Path, file: Path, place: str) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(content, file)
        except OSError as error:
            # A disk without hard links, or more links to one content than it allows.
            if error.errno not in (errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP):
                raise
            shutil.copyfile(content, file)
    except (FileExistsError, NotADirectoryError):
        raise ConcordError(
            f"{place}: cannot be a file, since another object has the same name to this disk, or is a folder there. "
            "Name one of them otherwise in the bucket."
        ) from None


def _report(address: S3Address, fetched: int, kept: int, uncompared: int, seconds: float) -> None:
    without = f"; {uncompared:,} of them have no MD5 at the server, so only their length was compared"
    console.print(
        f"{address}: {fetched:,} fetched, {kept:,} in the cache already, in {seconds:.0f} s"
        f"{without if uncompared else ''}",
        markup=False,
    )


def _short_hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
