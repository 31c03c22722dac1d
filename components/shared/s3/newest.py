"""Finds the newest version of raw input that is uploaded again and again, each time into a folder of its own."""

from datetime import datetime
from fnmatch import fnmatchcase

from components.errors import ConcordError
from components.s3_address import S3Address
from components.shared.s3.listing import RETRY_SECONDS, connect, list_keys, list_objects, listing_hash


def newest_version(pattern: S3Address, retry_seconds: float = RETRY_SECONDS) -> tuple[S3Address, str]:
    """Finds the folder with the object that was written last; of several, the last by name.

    Args:
        pattern: `s3://bucket/gauges-*`: a `*` in the last part of the prefix stands for any text without a slash.

    Returns:
        The folder's address, and the hash of its listing, see `listing_hash`.

    Raises:
        ConcordError: no folder matches, access is refused, or the server stays unreachable.
    """
    parent, slash, last = pattern.prefix.rpartition("/")
    if "*" in parent:
        raise ConcordError(f"{pattern}: a * may only be in the last part of the address.")
    client, above = connect(str(pattern)), parent + slash
    written: dict[str, datetime] = {}
    for item in list_keys(client, pattern.bucket, above + last.partition("*")[0], str(pattern), retry_seconds):
        name, in_folder, rest = item["Key"].removeprefix(above).partition("/")
        if in_folder and rest and fnmatchcase(name, last):
            written[name] = max(item["LastModified"], written.get(name, item["LastModified"]))
    if not written:
        raise ConcordError(
            f"{pattern}: no folder of bucket {pattern.bucket} matches. Correct the address, or upload a first version."
        )
    name = max(written, key=lambda name: (written[name], name))
    address = S3Address(pattern.bucket, above + name)
    return address, listing_hash(list_objects(client, address, retry_seconds))
