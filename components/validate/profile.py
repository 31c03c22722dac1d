"""What a data version looks like in numbers: what is kept of it with the run, for later versions to be held against.

{"version": 1, "unit": "%", "splits": {"train": {"rows": 3, "labels": [[20.0, 2], [21.0, 1]],
 "sizes": {"64x64": 3}, "modes": {"RGB": 3}}, "val": ..., "test": ...}}
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from components.settings import Task
from components.shared.rows.histogram import LabelBin
from components.shared.rows.rows import SPLITS

VERSION = 1


def profile(rows: pd.DataFrame, histogram: Sequence[LabelBin], task: Task) -> dict[str, Any]:
    """Counts per split: rows, labels (lower end of the bin, ascending), sizes (see `size_classes`), Pillow's modes.

    Args:
        rows: as `row_table` gives it.
        histogram: of the valid targets in it.
    """
    known = rows[rows["width"].notna()]
    looks = known.assign(size=size_classes(known["width"].to_numpy(float), known["height"].to_numpy(float)))
    return {
        "version": VERSION,
        "unit": task.unit,
        "splits": {
            split: {
                "rows": int((rows["split"] == split).sum()),
                "labels": [[bin.label, bin.rows[split]] for bin in histogram if bin.rows[split]],
                "sizes": _counts(looks.loc[looks["split"] == split, "size"]),
                "modes": _counts(looks.loc[looks["split"] == split, "mode"]),
            }
            for split in SPLITS
        },
    }


def size_classes(width: np.ndarray, height: np.ndarray) -> list[str]:
    """`WIDTHxHEIGHT` of each image, both to the nearest half octave (45, 64, 91, 128, ...): of photographs, few have
    one size to the pixel, and some pixels more are no change."""
    rounded = [np.rint(2 ** (np.rint(2 * np.log2(side)) / 2)).astype(int) for side in (width, height)]
    return [f"{wide}x{high}" for wide, high in zip(*rounded, strict=True)]


def _counts(values: "pd.Series[str]") -> dict[str, int]:
    return {str(name): int(count) for name, count in values.value_counts().sort_index().items()}
