"""One picture in several rows: found by a quick look at each, settled by every pixel of those that may be one."""

from collections import defaultdict

import numpy as np
import pandas as pd

from components.validate.image_scan import Part, contents
from components.validate.perceptual_hash import nearest_in_earlier_split

# The hashes of a picture looked at in part and in full differ in 10 bits at most in noise of many sizes.
ALIKE = 16


def settle(table: pd.DataFrame, parts: list[Part]) -> pd.DataFrame:
    """The table with a `content` that two rows share where every pixel of theirs is the same, and nowhere else.

    Two JPEG files are one picture where they also are in the reduced form that was looked at: copies, other metadata,
    another order of the same coefficients.

    Args:
        table: a row for each image, in the parts' order, as `looks` gives it.
        parts: where the images are.

    Raises:
        ConcordError: a shard is damaged.
    """
    rows = np.flatnonzero(suspects(table))
    starts = np.cumsum([0, *(part.rows for part in parts)])
    places: dict[int, list[int]] = defaultdict(list)
    for row, part in zip(rows, np.searchsorted(starts, rows, side="right") - 1, strict=True):
        places[int(part)].append(int(row - starts[part]))
    found = contents([(parts[part], some) for part, some in places.items()])
    settled = [content for some in found for content in some]
    content = table["content"].to_numpy(object, copy=True)
    # Every pixel may be more than there is memory for where the reduced ones were not.
    content[rows] = [new or old for new, old in zip(settled, content[rows], strict=True)]
    return table.assign(content=content)


def suspects(table: pd.DataFrame) -> np.ndarray:
    """Which rows `(N,)` were looked at in a reduced form, and may be of a picture that another row has too."""
    reduced = table["reduced"].to_numpy(bool)
    again = table["content"].duplicated(keep=False).to_numpy() & table["content"].notna().to_numpy()
    whole = table["content"].notna().to_numpy() & ~reduced
    if not (reduced.any() and whole.any()):
        return reduced & again
    # Saved in two formats: one of them in full.
    hashed = table["hash"].notna().to_numpy()
    suspect = again | (~hashed & (whole & ~hashed).any())  # flat ones have no hash
    at = np.flatnonzero(hashed & (reduced | whole))
    other, _ = nearest_in_earlier_split(table["hash"].iloc[at].tolist(), reduced[at].astype(np.int64), ALIKE)
    suspect[at[other >= 0]] = True
    return reduced & suspect
