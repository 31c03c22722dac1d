"""`s3://bucket/prefix`: parsed and checked, without asking the bucket."""

import re
from dataclasses import dataclass
from pathlib import Path

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}", re.ASCII)
# MinIO speaks S3; Kubeflow writes its addresses with a scheme of their own.
_SCHEMES = ("s3://", "minio://")
_OTHER = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_SIGNED = re.compile(r"X-Amz-|[?&](Signature|AWSAccessKeyId)=", re.IGNORECASE)


@dataclass(frozen=True)
class S3Address:
    """A folder of a bucket.

    Attributes:
        bucket: its name.
        prefix: without slashes at its ends; empty for the whole bucket.
    """

    bucket: str
    prefix: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    @property
    def folder(self) -> str:
        """What the keys of its objects begin with: data/ for the prefix data, so that data2/x is no part of it."""
        return f"{self.prefix}/" if self.prefix else ""


def is_s3(text: str) -> bool:
    """Whether `text` is meant as an address of S3, well-formed or not."""
    return text.lower().startswith(("s3:", "minio:"))


def parse_location(text: str) -> "Path | S3Address":
    """A local folder, or an address of S3.

    Raises:
        ValueError: an address that nothing here can read (`gs://...`), or a malformed one.
    """
    if is_s3(text):
        return parse_s3(text)
    if scheme := _OTHER.match(text):
        raise ValueError(f"{scheme[0]}... cannot be read; give a folder, or copy the data to s3://bucket/prefix")
    return Path(text)


def parse_s3(text: str) -> S3Address:
    """The address; `minio://` is read as `s3://`.

    Raises:
        ValueError: it is none, or holds credentials. The message never repeats the text, which may hold a secret.
    """
    scheme = next((scheme for scheme in _SCHEMES if text.startswith(scheme)), "")
    bucket, _, prefix = text[len(scheme or "s3://") :].partition("/")
    if "@" in bucket or _SIGNED.search(text):
        raise ValueError(
            "an S3 address holds no credentials; write s3://bucket/prefix, and give them by the environment "
            "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
        )
    if not scheme or not _BUCKET.fullmatch(bucket):
        raise ValueError("not an S3 address; write s3://bucket/prefix")
    return S3Address(bucket, prefix.strip("/"))
