"""Test images for the report and its figures: which to show, and their thumbnails."""

import base64
import io
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from components.evaluate.results import EvaluationResults
from components.shared.rows.rows import read_rows

if TYPE_CHECKING:
    from PIL.Image import Image

THUMBNAIL_SIDE = 128  # pixels


def worst_rows(results: EvaluationResults, shot: str, count: int) -> list[int]:
    """Row numbers of the `count` largest errors in a shot group, largest first; ties in test set order."""
    return _by_error(results, shot)[:count]


def spread_rows(results: EvaluationResults, shot: str, count: int) -> list[int]:
    """Row numbers at evenly spread quantiles of a shot group's errors, smallest error first; none is picked by hand."""
    rows = _by_error(results, shot)[::-1]
    middles = (np.arange(min(count, len(rows))) + 0.5) / max(min(count, len(rows)), 1)
    return [rows[int(middle * len(rows))] for middle in middles]


def _by_error(results: EvaluationResults, shot: str) -> list[int]:
    rows = np.flatnonzero(results.members(shot))
    order = np.argsort(-results.served_answers.predictions.errors[rows], kind="stable")
    return [int(row) for row in rows[order]]


def thumbnails(ingest: Path, ids: Collection[str], grey_bits: int | None) -> dict[str, "Image"]:
    """Small versions of test images, by id, decoded as the model sees them."""
    from PIL import Image

    from components.shared.rows.images import decode_image

    found: dict[str, Image.Image] = {}
    for batch in read_rows(ingest, "test"):
        for row, id in enumerate(batch.column("id").to_pylist()):
            if id in ids:
                image = decode_image(batch.column("image")[row].as_py()["bytes"], grey_bits)
                image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
                found[id] = image
    return found


def inline(image: "Image") -> str:
    """The image as a data URI."""
    out = io.BytesIO()
    image.save(out, "PNG")
    return inline_png(out.getvalue())


def inline_png(png: bytes) -> str:
    """A PNG file as a data URI."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
