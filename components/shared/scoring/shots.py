"""Shot groups: groups test images by how many training samples have the same label.

Defaults of Yang et al. (2021), "Delving into Deep Imbalanced Regression": many > 100 training samples, medium 20 to
100, few < 20.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

SHOTS = ("many", "medium", "few")
GROUPS = ("all", *SHOTS)


def label_bins(targets: ArrayLike, width: float, resolution: float) -> NDArray[np.int64]:
    """Returns the index of each target's bin, `(N,) int64`.

    Args:
        targets: `(N,)` in the task's unit.
        width: bin width in the same unit, a whole multiple of `resolution`.
        resolution: step of the labels (1 for whole years, 0.1 for tenths). Targets are converted to whole steps first,
            so that rounding (0.3 / 0.1 = 2.9999999999999996) does not put them into the wrong bin.
    """
    steps = np.rint(np.asarray(targets, np.float64) / resolution).astype(np.int64)
    return steps // max(round(width / resolution), 1)


@dataclass(frozen=True)
class ShotTable:
    """Number of training samples per label bin, and the limits between the shot groups."""

    counts: dict[int, int]
    width: float
    resolution: float
    many: int = 100
    few: int = 20

    @classmethod
    def of(cls, train: ArrayLike, width: float, resolution: float, many: int = 100, few: int = 20) -> "ShotTable":
        """Builds the table from the training targets, `(N,)`."""
        bins, counts = np.unique(label_bins(train, width, resolution), return_counts=True)
        return cls(dict(zip(bins.tolist(), counts.tolist(), strict=True)), width, resolution, many, few)

    def count(self, targets: ArrayLike) -> NDArray[np.int64]:
        """Number of training samples in each target's bin, `(N,) int64`; 0 if there are none."""
        bins, position = np.unique(label_bins(targets, self.width, self.resolution), return_inverse=True)
        return np.array([self.counts.get(bin, 0) for bin in bins.tolist()], dtype=np.int64)[position]

    def shot(self, targets: ArrayLike) -> NDArray[np.str_]:
        """Shot group of each target, `many`, `medium` or `few`: `(N,)`."""
        return self.group(self.count(targets))

    def group(self, counts: NDArray[np.int64]) -> NDArray[np.str_]:
        """Shot group of bins with so many training samples, `(N,)`."""
        return np.where(counts > self.many, "many", np.where(counts < self.few, "few", "medium")).astype("<U6")
