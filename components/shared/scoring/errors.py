"""One model's answers to a set of images, and their absolute errors.

An unparseable answer is never dropped: it is scored as the end of the range farther from the target, which is the worst
possible answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Subjects = NDArray[np.intp]


@dataclass(frozen=True)
class Predictions:
    """One model's answers to a test set. All arrays are `(N,)`.

    Attributes:
        values: NaN where an answer is unparseable.
        subjects: a number from 0 for each subject (the person or device in the image), without gaps; an image of an
            unknown subject has a number of its own. None: all are unknown.
    """

    targets: Array
    values: Array
    shots: NDArray[np.str_]
    low: float
    high: float
    resolution: float
    subjects: Subjects | None = None

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

    def subset(self, mask: NDArray[np.bool_]) -> "Predictions":
        """The answers to the masked images."""
        subjects = None if self.subjects is None else np.unique(self.subjects[mask], return_inverse=True)[1]
        return replace(
            self, targets=self.targets[mask], values=self.values[mask], shots=self.shots[mask], subjects=subjects
        )


def subject_numbers(names: Sequence[str | None]) -> Subjects | None:
    """The `subjects` of `Predictions`, from a name for each image or None.

    >>> subject_numbers(["eve", None, "adam", "eve"]).tolist()
    [2, 0, 1, 2]
    """
    if all(name is None for name in names):
        return None
    keys = [(name is not None, name or "", 0 if name is not None else row) for row, name in enumerate(names)]
    number = {key: place for place, key in enumerate(sorted(set(keys)))}
    return np.array([number[key] for key in keys], np.intp)
