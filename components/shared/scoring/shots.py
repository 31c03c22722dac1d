"""Shots: how often the training set has seen a label, and so how hard its test images are.

Yang et al. (2021), "Delving into Deep Imbalanced Regression": many > 100 training samples with the same label, medium
20 to 100, few < 20.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

SHOTS = ("many", "medium", "few")
GROUPS = ("all", *SHOTS)


def label_bins(targets: ArrayLike, width: float, resolution: float) -> NDArray[np.int64]:
    """Index of the bin that holds each target: `(N,) int64`.

    Args:
        targets: `(N,)` in the task's unit.
        width: bin width in the same unit, a whole multiple of `resolution`.
        resolution: the step in which labels come (1 for whole years, 0.1 for tenths). Counting in whole steps keeps
            0.3 / 0.1 = 2.9999999999999996 out of the wrong bin.
    """
    steps = np.rint(np.asarray(targets, np.float64) / resolution).astype(np.int64)
    return steps // max(round(width / resolution), 1)


@dataclass(frozen=True)
class ShotTable:
    """Training samples per label bin, and the limits between the shot groups."""

    counts: dict[int, int]
    width: float
    resolution: float
    many: int = 100
    few: int = 20

    @classmethod
    def of(cls, train: ArrayLike, width: float, resolution: float, many: int = 100, few: int = 20) -> "ShotTable":
        """Counts the labels of the training set, `(N,)`."""
        bins, counts = np.unique(label_bins(train, width, resolution), return_counts=True)
        return cls(dict(zip(bins.tolist(), counts.tolist(), strict=True)), width, resolution, many, few)

    def count(self, targets: ArrayLike) -> NDArray[np.int64]:
        """Training samples in the bin of each target, 0 where training has none: `(N,) int64`."""
        bins = label_bins(targets, self.width, self.resolution)
        return np.array([self.counts.get(int(b), 0) for b in bins], dtype=np.int64)

    def shot(self, targets: ArrayLike) -> NDArray[np.str_]:
        """`many`, `medium` or `few` for each target: `(N,)`."""
        counts = self.count(targets)
        return np.where(counts > self.many, "many", np.where(counts < self.few, "few", "medium")).astype("<U6")
