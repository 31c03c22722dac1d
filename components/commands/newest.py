"""`python -m components newest 's3://bucket/gauges-*'`: the newest version of raw input in a bucket, and its hash.

The first step of a pipeline on a schedule: it writes both to files, which Kubeflow hands on to ingest.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from components.errors import ConcordError
from components.s3_address import parse_s3
from components.shared.io.atomic import write_text
from components.shared.s3.newest import newest_version


def main(arguments: Sequence[str]) -> None:
    """Prints the address and the hash of its listing.

    Raises:
        ConcordError: the address is malformed, nothing matches, or the bucket cannot be read.
    """
    parser = argparse.ArgumentParser(
        prog="python -m components newest", description="Finds the newest version of raw input in a bucket."
    )
    parser.add_argument("address", help="s3://bucket/gauges-*: the folder with the object that was written last")
    parser.add_argument("--uri", type=Path, metavar="FILE", help="also write the address to this file")
    parser.add_argument("--hash", type=Path, metavar="FILE", help="also write the hash of its listing to this file")
    parser.add_argument("--executor-input", help=argparse.SUPPRESS)  # Kubeflow's
    options = parser.parse_args(arguments)
    try:
        pattern = parse_s3(options.address)
    except ValueError as error:
        raise ConcordError(f"{options.address}: {error}.") from None
    address, digest = newest_version(pattern)
    print(address, digest)
    for path, text in ((options.uri, str(address)), (options.hash, digest)):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, text)
