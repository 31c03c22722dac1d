"""The champion's answers beside the challenger's, on the test images that both can be judged by."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from components.register.seen_images import hashes_of
from components.register.served import Served
from components.register.served_predictions import CannotPredictError, comparable_predictions, served_predictions
from components.settings import Settings
from components.shared.rows.rows import read_table
from components.shared.scoring.errors import Array, Predictions


@dataclass(frozen=True)
class Compared:
    """Two versions' answers to the same images.

    Attributes:
        challenger, baseline: their answers.
        mass: `(N,)`, see `Served`.
        notes: sentences about images that were left out.
    """

    challenger: Predictions
    baseline: Predictions
    mass: Array | None
    notes: tuple[str, ...]


def compare(
    name: str, champion: str, served: Served, settings: Settings, ingest: Path, seen: pa.Array | None
) -> Compared:
    """Asks the champion, and leaves out for both what it was trained on or cannot read.

    Args:
        name: of the registered model.
        champion: its number.
        seen: hashes of the images that the champion has seen; None if they are unknown.

    Raises:
        CannotPredictError: the champion cannot predict the test images, or has seen all that it can read.
        ConcordError: another attempt may succeed.
    """
    ids = served.table["id"].to_pylist()
    known = _seen_mask(ingest, ids, seen)
    if known.all():
        raise CannotPredictError(f"it has seen all {len(ids)} test images in its training or validation data")
    predicted = served_predictions(name, champion, ingest, settings.evaluate.batch_size, ids)
    unreadable = {id: reason for id, reason in zip(ids, predicted["error"].to_pylist(), strict=True) if reason}
    limit = settings.evaluate.max_unreadable
    if len(unreadable) > limit * len(ids):
        first = next(iter(unreadable))
        raise CannotPredictError(
            f"it cannot read {len(unreadable)} of {len(ids)} test images (first {first}: {unreadable[first]}), and a "
            f"share of {limit:g} is allowed (evaluate.max_unreadable)"
        )
    kept = ~known & ~np.isin(ids, list(unreadable))
    if not kept.any():
        raise CannotPredictError(
            f"none of the {len(ids)} test images is left to compare: it has seen {int(known.sum())} of them in its "
            f"training or validation data, and cannot read {len(unreadable)}"
        )
    baseline = comparable_predictions(predicted, served.predictions, settings.task)
    return Compared(
        served.predictions.subset(kept),
        baseline.subset(kept),
        None if served.mass is None else served.mass[kept],
        tuple(_notes(known, seen is not None, unreadable)),
    )


def _seen_mask(ingest: Path, ids: list[str], seen: pa.Array | None) -> np.ndarray:
    """Which test images the champion has seen, `(N,)`."""
    if seen is None:
        return np.zeros(len(ids), bool)
    table = read_table(ingest, "test", ["id", "image_sha256"])
    found = pc.is_in(hashes_of(table["image_sha256"]), seen)
    known = set(table["id"].filter(found).to_pylist())
    return np.array([id in known for id in ids], bool)


def _notes(known: np.ndarray, told: bool, unreadable: dict[str, str]) -> list[str]:
    notes = []
    if not told:
        notes.append("Which of the test images the champion was trained on is unknown.")
    if count := int(known.sum()):
        notes.append(
            f"Left out for both: {count} of {len(known)} test images, which were in the champion's training or "
            "validation data."
        )
    if unreadable:
        first = next(iter(unreadable))
        notes.append(
            f"Left out for both: {len(unreadable)} test images that the champion cannot read (first {first}: "
            f"{unreadable[first]})."
        )
    return notes
