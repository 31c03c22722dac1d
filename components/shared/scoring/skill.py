"""Skill: by how much answers are better than the best constant, with an interval paired by image.

A model that answers the same number to every picture can have a low MAE; its skill is 0.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from components.shared.scoring.crossed import half_width
from components.shared.scoring.errors import Array

# What a model must beat: numbers that are the answer to every image, by the split that they come from.
CONSTANTS = {"validation": "best constant, val", "training": "training median,"}


def best_constant(targets: ArrayLike) -> float:
    """The number with the lowest MAE as the answer to every image: the median of the targets `(U,)`."""
    return float(np.median(np.asarray(targets, np.float64)))


@dataclass(frozen=True)
class Skill:
    """1 - MAE / MAE of the best constant on the same images: 1 for perfect answers, 0 for a constant.

    >>> Skill.of(errors=[0.0, 1.0, 0.0], targets=[10.0, 20.0, 30.0]).value
    0.95

    Attributes:
        value: 0 where the best constant makes no error.
        low, high: 95 % interval (Student's) for new images, paired by image; -inf and inf where it is unknown.
        mae, constant_mae: in the task's unit.
        constant: the best constant, chosen on the same images; so the skill is rather under- than overestimated.
        images: how many there are.
    """

    value: float
    low: float
    high: float
    mae: float
    constant_mae: float
    constant: float
    images: int

    @classmethod
    def of(cls, errors: ArrayLike, targets: ArrayLike) -> "Skill":
        """From absolute errors `(U,)` and targets `(U,)`, U > 0."""
        own, truth = np.asarray(errors, np.float64), np.asarray(targets, np.float64)
        constant = best_constant(truth)
        gains: Array = np.abs(truth - constant) - own
        mae, against = float(own.mean()), float(np.abs(truth - constant).mean())
        value = float(gains.mean()) / against if against else 0.0
        half = float(half_width(gains[None])[0]) / against if against and len(gains) > 1 else np.inf
        return cls(value, value - half, value + half, mae, against, constant, len(own))

    @property
    def is_shown(self) -> bool:
        """Whether the answers are clearly better than the best constant: the whole interval is above 0."""
        return self.low > 0
