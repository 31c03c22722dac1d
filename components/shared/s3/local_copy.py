"""Copies a folder of an S3 bucket to a local folder: lists it, fetches its objects into the cache, and links them.

    with local_copy(parse_s3("s3://bucket/prefix")) as folder: ...

boto3 takes endpoint, region and credentials from the environment. Memory depends only on the number of threads, not on
the number and size of the objects: the listing is stored on disk, and content is copied in chunks.
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
from itertools import zip_longest
from pathlib import Path
from threading import Event
from typing import Any

from components.console import console
from components.errors import ConcordError
from components.s3_address import S3Address
from components.shared.io.atomic import new_folder
from components.shared.io.disk_full import disk_full_errors, disk_full_message
from components.shared.io.locks import output_lock
from components.shared.io.progress import transfer_progress
from components.shared.io.text import quoted
from components.shared.s3.cache import LIMIT_VARIABLE, ContentCache, cache_folder, cache_limit
from components.shared.s3.cache_index import CacheIndex, S3Object, Totals, open_index
from components.shared.s3.download import DownloadContext, Downloaded, download
from components.shared.s3.errors import endpoint
from components.shared.s3.listing import RETRY_SECONDS, connect, list_objects, listing_hash

THREADS = 16


@contextmanager
def local_copy(address: S3Address, retry_seconds: float = RETRY_SECONDS) -> Iterator[Path]:
    """Gives a local folder with the objects below the address; no other process changes it during the block.

    Content that the cache already has is verified and not fetched again, so the same call resumes after a kill. The
    folder's files are links into the cache: never write to them.

    Args:
        retry_seconds: how long requests are retried when the server does not respond.

    Raises:
        ConcordError: the bucket does not exist, is empty or refuses access; the server stays unreachable; an object has
            changed, is damaged or has a name that is not a valid file name; the disk is full.
    """
    cache = ContentCache(cache_folder())
    folder = _folder_of(address, cache.folder)
    with output_lock(folder):
        with disk_full_errors(cache.folder), open_index(folder.with_name(f"{folder.name}.sqlite")) as index:
            _fetch(address, cache, index, folder, retry_seconds)
        yield folder


def check_listing(address: S3Address, retry_seconds: float = RETRY_SECONDS) -> None:
    """Lists the bucket again within a `local_copy` of the address.

    Raises:
        ConcordError: an object was added, removed or replaced since, or the server stays unreachable.
    """
    folder = _folder_of(address, cache_folder())
    with open_index(folder.with_name(f"{folder.name}.sqlite")) as index:
        before = iter(index.objects())
        now = sorted(list_objects(connect(str(address)), address, retry_seconds), key=lambda item: item.name)
        for old, new in zip_longest(before, now):
            if old is None or new is None or (old.name, old.size, old.etag) != (new.name, new.size, new.etag):
                name = min(item.name for item in (old, new) if item)
                raise ConcordError(f"input {address}: the object {quoted(name)} was added, removed or replaced")


def fetched_listing(address: S3Address) -> str:
    """The hash of the listing of a `local_copy` of the address, see `listing_hash`."""
    folder = _folder_of(address, cache_folder())
    with open_index(folder.with_name(f"{folder.name}.sqlite")) as index:
        return listing_hash(index.objects())


def _folder_of(address: S3Address, cache: Path) -> Path:
    """`CACHE/s3/bucket-prefix-HASH`, unique for an endpoint and an address."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", f"{address.bucket}-{address.prefix}")[:60].strip("-")
    return cache / "s3" / f"{name}-{_short_hash(endpoint(), address.bucket, address.prefix)}"


def _fetch(address: S3Address, cache: ContentCache, index: CacheIndex, folder: Path, retry_seconds: float) -> None:
    start = time.monotonic()
    client = connect(str(address))
    index.set_listing(list_objects(client, address, retry_seconds))
    totals = index.totals()
    if not totals.objects:
        raise ConcordError(
            f"{address}: empty: no object in bucket {address.bucket} has a key that begins with "
            f"{quoted(address.folder)}. Correct the address; it must name a folder."
        )
    console.print(
        f"{address}: {totals.objects:,} objects, {_mib(totals.size)}; to fetch: {totals.missing:,}, "
        f"{_mib(totals.missing_size)}",
        markup=False,
    )
    partial = cache.folder / "partial" / folder.name
    partial.mkdir(parents=True, exist_ok=True)
    _check_free_space(address, totals, cache, partial)
    with transfer_progress("fetching", totals.size) as advance, new_folder(folder, flush=False) as links:
        context = DownloadContext(client, address, Event(), retry_seconds, advance)
        counts = _fetch_all(context, cache, index, partial, links)
    shutil.rmtree(partial)  # what is left belongs to old versions
    _report(address, *counts, time.monotonic() - start)


def _check_free_space(address: S3Address, totals: Totals, cache: ContentCache, partial: Path) -> None:
    """Raises ConcordError if the missing objects do not fit, before hours are spent on fetching them."""
    missing = totals.missing_size - sum(file.stat().st_size for file in partial.iterdir())
    limit = cache_limit()
    if limit is not None and missing > (left := max(limit - cache.size(), 0)):
        raise ConcordError(
            f"{address}: {_mib(missing)} must be fetched, but the cache {cache.folder} has {_mib(left)} left of the "
            f"{_mib(limit)} that {LIMIT_VARIABLE} allows. Raise the limit; on Kubeflow it follows from `scratch` in "
            "the cluster file."
        )
    if missing > shutil.disk_usage(partial).free:
        raise ConcordError(f"{disk_full_message(partial)} {_mib(missing)} are still to be fetched.")


def _fetch_all(
    context: DownloadContext, cache: ContentCache, index: CacheIndex, partial: Path, links: Path
) -> tuple[int, int, int]:
    """Gets every object into the cache and links it into `links`.

    Returns:
        Number of fetched objects, of cached objects, and of fetched objects without a checksum to compare with.
    """
    fetched = cached = unverified = 0

    def fetch(item: S3Object) -> tuple[S3Object, Downloaded, bool]:
        if item.digest and cache.verify(item.digest):
            context.advance(item.size)
            return item, Downloaded(item.digest, True), False
        file = partial / _short_hash(item.name, item.etag, str(item.size))
        result = download(context, item, file)
        cache.add(file, result.digest)
        index.set_digest(item.name, result.digest)
        return item, result, True

    with ThreadPoolExecutor(THREADS, thread_name_prefix="s3") as pool:
        try:
            for item, result, new in _map_unordered(pool, fetch, index.objects()):
                _link(cache.path(result.digest), links / item.name, context.location(item))
                fetched, cached, unverified = fetched + new, cached + (not new), unverified + (not result.verified)
        except BaseException:
            context.stop.set()
            pool.shutdown(cancel_futures=True)  # waits for running downloads, so that finished ones are indexed
            raise
    return fetched, cached, unverified


def _map_unordered(
    pool: ThreadPoolExecutor, work: Any, items: Iterator[S3Object]
) -> Iterator[tuple[S3Object, Downloaded, bool]]:
    """Results of `work` in the order in which they finish; queues just enough items to keep all threads busy."""
    waiting: set[Future[tuple[S3Object, Downloaded, bool]]] = set()
    for item in items:
        waiting.add(pool.submit(work, item))
        if len(waiting) >= 4 * THREADS:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    while waiting:
        done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
        yield from (future.result() for future in done)


def _link(content: Path, file: Path, location: str) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(content, file)
        except OSError as error:
            # The disk has no hard links, or allows no more of them to this file.
            if error.errno not in (errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP):
                raise
            shutil.copyfile(content, file)
    except (FileExistsError, NotADirectoryError):
        raise ConcordError(
            f"{location}: cannot be stored as a file: on this disk its path is that of another object or of a folder. "
            "Rename one of them in the bucket."
        ) from None


def _report(address: S3Address, fetched: int, cached: int, unverified: int, seconds: float) -> None:
    note = f"; {unverified:,} of the fetched have no MD5 at the server, so only their length was compared"
    console.print(
        f"{address}: {fetched:,} fetched, {cached:,} already in the cache, in {seconds:.0f} s"
        f"{note if unverified else ''}",
        markup=False,
    )


def _short_hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
