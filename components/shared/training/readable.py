"""Finds the images that cannot be read before a training begins, not not hours later when it is their turn."""

from itertools import islice
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object

from components.errors import ConcordError
from components.shared.io.prefetch import prefetch
from components.shared.io.progress import with_progress
from components.shared.model.generation import refusals
from components.shared.rows.images import (
    REMEDY,
    BadImageError,
    decode_image,
    decoded_size,
    load_decoders,
)
from components.shared.rows.rows import read_rows
from components.shared.training.ranks import ranks

NAMED = 20  # images in a message


def check_readable(processor: Any, ingest: Path) -> None:
    """Decodes every image of train and val, and has the processor take one image of each size.

    The images are divided among the ranks; all of them raise the same error.

    Raises:
        ConcordError: some images cannot be read; the message names them.
    """
    ranks()  # joins the process group
    found: list[str] = []
    for split in ("train", "val"):
        found += gather_object(_unreadable(processor, ingest, split))
    if found:
        named = "".join(f"\n  {line}" for line in islice(found, NAMED))
        more = f"\n  and {len(found) - NAMED} more" if len(found) > NAMED else ""
        raise ConcordError(
            f"{ingest}: {len(found)} images of train and val cannot be read, so no training was started:{named}{more}\n"
            f"{REMEDY}"
        )


def _unreadable(processor: Any, ingest: Path, split: str) -> list[str]:
    """`SPLIT image ID: reason` of the images in this rank's share that cannot be read."""
    load_decoders()
    found: list[str] = []
    of_size: dict[tuple[int, int], str | None] = {}
    for number, batch in enumerate(with_progress(read_rows(ingest, split), f"reading the images of {split}")):
        if number % ranks().num_processes != ranks().process_index:
            continue
        rows = batch.select(["id", "image", "question"]).to_pylist()
        for row, size in zip(rows, prefetch(_size, [row["image"]["bytes"] for row in rows]), strict=True):
            if isinstance(size, BadImageError):
                found.append(f"{split} image {row['id']}: {size}")
                continue
            if size not in of_size:
                of_size[size] = refusals(processor, [decode_image(row["image"]["bytes"])], [row["question"]]).get(0)
            if of_size[size]:
                found.append(f"{split} image {row['id']}: {of_size[size]}")
    return found


def _size(data: bytes) -> tuple[int, int] | BadImageError:
    """Width and height of the decoded image, or why it does not decode."""
    try:
        return decoded_size(data)
    except BadImageError as error:
        return error
