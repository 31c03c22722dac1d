"""`s3://bucket/prefix`: taken apart and checked, without a look at the bucket."""

import re
from dataclasses import dataclass

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}", re.ASCII)
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
    return text.lower().startswith("s3:")


def parse_s3(text: str) -> S3Address:
    """The address.

    Raises:
        ValueError: it is none, or holds credentials. The message never repeats the text, which may hold a secret.
    """
    bucket, _, prefix = text[len("s3://") :].partition("/")
    if "@" in bucket or _SIGNED.search(text):
        raise ValueError(
            "an S3 address holds no credentials; write s3://bucket/prefix, and give them by the environment "
            "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
        )
    if not text.startswith("s3://") or not _BUCKET.fullmatch(bucket):
        raise ValueError("not an S3 address; write s3://bucket/prefix")
    return S3Address(bucket, prefix.strip("/"))
