"""Parses and checks addresses `s3://bucket/prefix`, without access to the bucket."""

import re
from dataclasses import dataclass
from pathlib import Path

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}", re.ASCII)
# MinIO implements S3, but Kubeflow writes its addresses with the scheme minio://.
_SCHEMES = ("s3://", "minio://")
_ANY_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_SIGNED = re.compile(r"X-Amz-|[?&](Signature|AWSAccessKeyId)=", re.IGNORECASE)


@dataclass(frozen=True)
class S3Address:
    """A folder in a bucket.

    Attributes:
        bucket: the bucket's name.
        prefix: without leading or trailing slashes; empty for the whole bucket.
    """

    bucket: str
    prefix: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    @property
    def is_pattern(self) -> bool:
        """Whether a `*` in the prefix makes it name several folders, for those who look for one of them."""
        return "*" in self.prefix

    @property
    def folder(self) -> str:
        """What the keys in the folder begin with: `data/` for the prefix `data`, which excludes `data2/x`."""
        return f"{self.prefix}/" if self.prefix else ""


def is_s3(text: str) -> bool:
    """Whether `text` is meant as an S3 address, even if it is malformed."""
    return text.lower().startswith(("s3:", "minio:"))


def parse_location(text: str) -> "Path | S3Address":
    """Parses a local path or an S3 address.

    Raises:
        ValueError: the address has an unsupported scheme (`gs://...`), or is malformed.
    """
    if is_s3(text):
        return parse_s3(text)
    if scheme := _ANY_SCHEME.match(text):
        raise ValueError(f"{scheme[0]}... is not supported; give a folder, or copy the data to s3://bucket/prefix")
    return Path(text)


def parse_s3(text: str) -> S3Address:
    """Parses an S3 address; `minio://` is read as `s3://`.

    Raises:
        ValueError: not an S3 address, or one with credentials. The message does not repeat the text, which may contain
            a secret.
    """
    scheme = next((scheme for scheme in _SCHEMES if text.startswith(scheme)), "")
    bucket, _, prefix = text[len(scheme or "s3://") :].partition("/")
    if "@" in bucket or _SIGNED.search(text):
        raise ValueError(
            "an S3 address must not contain credentials; write s3://bucket/prefix, and set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY in the environment"
        )
    if not scheme or not _BUCKET.fullmatch(bucket):
        raise ValueError("not an S3 address; write s3://bucket/prefix")
    return S3Address(bucket, prefix.strip("/"))
