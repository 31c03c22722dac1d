"""Finds identical pictures: candidates by reduced images and perceptual hashes, confirmed at full resolution."""

from collections import defaultdict

import numpy as np
import pandas as pd

from components.validate.image_scan import RowGroup, full_resolution_hashes
from components.validate.perceptual_hash import nearest_in_earlier_split

# The perceptual hashes of a picture and of its reduced form differ in at most 10 bits, even for noise of many sizes.
CANDIDATE_BITS = 16


def confirm_duplicates(table: pd.DataFrame, groups: list[RowGroup], grey_bits: int | None = None) -> pd.DataFrame:
    """Returns the table with a `content` hash that is equal for two rows only if all their pixels are equal.

    Two JPEG files are the same picture if their reduced images are also equal: copies, changed metadata, or another
    order of the same coefficients.

    Args:
        table: one row per image, in the order of the row groups, as from `scan_images`.
        groups: the row groups with the images.
        grey_bits: the task's, see `decode_image`.

    Raises:
        ConcordError: a shard is damaged.
    """
    rows = np.flatnonzero(duplicate_candidates(table))
    starts = np.cumsum([0, *(group.rows for group in groups)])
    indices: dict[int, list[int]] = defaultdict(list)
    for row, group in zip(rows, np.searchsorted(starts, rows, side="right") - 1, strict=True):
        indices[int(group)].append(int(row - starts[group]))
    selected = [(groups[group], in_group) for group, in_group in indices.items()]
    hashes = full_resolution_hashes(selected, grey_bits)
    full = [content for in_group in hashes for content in in_group]
    content = table["content"].to_numpy(object, copy=True)
    # Decoding at full resolution may run out of memory where the reduced image did not: then the old hash stays.
    content[rows] = [new or old for new, old in zip(full, content[rows], strict=True)]
    return table.assign(content=content)


def duplicate_candidates(table: pd.DataFrame) -> np.ndarray:
    """Returns a mask `(N,)` of the rows whose hash is of a reduced image and that may equal another row's picture."""
    reduced = table["reduced"].to_numpy(bool)
    repeated = table["content"].duplicated(keep=False).to_numpy() & table["content"].notna().to_numpy()
    full = table["content"].notna().to_numpy() & ~reduced
    if not (reduced.any() and full.any()):
        return reduced & repeated
    # One picture saved in two formats may be hashed in its reduced and in its full form.
    hashed = table["hash"].notna().to_numpy()
    candidates = repeated | (~hashed & (full & ~hashed).any())  # images of one shade have no perceptual hash
    at = np.flatnonzero(hashed & (reduced | full))
    other, _ = nearest_in_earlier_split(table["hash"].iloc[at].tolist(), reduced[at].astype(np.int64), CANDIDATE_BITS)
    candidates[at[other >= 0]] = True
    return reduced & candidates
