"""The profile of a data version: counts that are stored with the run, so that later versions can be compared with it.

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
    """Counts rows, labels (lower ends of bins, ascending), sizes (see `size_classes`) and Pillow's modes per split.

    Args:
        rows: as from `row_table`.
        histogram: of the valid targets in `rows`.
        task: its unit is stored.
    """
    known = rows[rows["width"].notna()]
    images = known.assign(size=size_classes(known["width"].to_numpy(float), known["height"].to_numpy(float)))
    return {
        "version": VERSION,
        "unit": task.unit,
        "splits": {
            split: {
                "rows": int((rows["split"] == split).sum()),
                "labels": [[bin.label, bin.rows[split]] for bin in histogram if bin.rows[split]],
                "sizes": _counts(images.loc[images["split"] == split, "size"]),
                "modes": _counts(images.loc[images["split"] == split, "mode"]),
            }
            for split in SPLITS
        },
    }


def size_classes(width: np.ndarray, height: np.ndarray) -> list[str]:
    """Returns `WIDTHxHEIGHT` of each image, both rounded to half octaves (45, 64, 91, 128, ...), because photographs
    rarely have equal sizes and a few pixels more are not a change."""
    rounded = [np.rint(2 ** (np.rint(2 * np.log2(side)) / 2)).astype(int) for side in (width, height)]
    return [f"{wide}x{high}" for wide, high in zip(*rounded, strict=True)]


def _counts(values: "pd.Series[str]") -> dict[str, int]:
    return {str(name): int(count) for name, count in values.value_counts().sort_index().items()}
