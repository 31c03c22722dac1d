"""One model's answers to a set of images, and their absolute errors.

An unparseable answer is never dropped: it is scored as the end of the range farther from the target, which is the worst
possible answer.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Predictions:
    """One model's answers to a test set. All arrays are `(N,)`; `values` has NaN where an answer is unparseable."""

    targets: Array
    values: Array
    shots: NDArray[np.str_]
    low: float
    high: float
    resolution: float

    @property
    def unparseable(self) -> NDArray[np.bool_]:
        """Mask of the images without a valid answer."""
        return ~np.isfinite(self.values)

    @property
    def scored(self) -> Array:
        """The values, with unparseable answers replaced by the end of the range farther from the target."""
        farther = np.where(self.targets - self.low > self.high - self.targets, self.low, self.high)
        return np.where(self.unparseable, farther, self.values)

    @property
    def errors(self) -> Array:
        """Absolute errors, in the task's unit."""
        return np.abs(self.scored - self.targets)

    @property
    def floor(self) -> float:
        """Half the label's resolution: the smallest error that GM counts, since a single error of 0 would make GM 0."""
        return self.resolution / 2

    def members(self, group: str) -> NDArray[np.bool_]:
        """Mask of the images in a shot group; `all` contains every image."""
        return np.ones(len(self.targets), bool) if group == "all" else self.shots == group
