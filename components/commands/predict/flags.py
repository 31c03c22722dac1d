"""Flags numbers that are doubtful: those with little mass, and those with an unusually wide interval."""

import math
from dataclasses import dataclass

import numpy as np

from components.shared.scoring.answer_rule import AnswerRule, Readings

LOW_MASS = 0.9
WIDER_THAN = 0.95  # share of the validation images
_EPSILON = 1e-9  # widths are differences of binary fractions


@dataclass(frozen=True)
class Flags:
    """Which numbers are flagged.

    Attributes:
        width: `interval` is the flag of a wider interval.
    """

    width: float

    @classmethod
    def of(cls, rule: AnswerRule | None) -> "Flags":
        """The flags of a rule; intervals are compared with those of its validation images. None: text has no flags."""
        if rule is None or not len(rule.validation.log_p):
            return cls(math.inf)
        known = rule.read(rule.validation.log_p)
        widths = np.sort(known.high - known.low)
        return cls(float(widths[math.ceil(WIDER_THAN * len(widths) - _EPSILON) - 1]))

    def flag(self, read: Readings, at: int) -> str | None:
        """Of one image: `mass` where numbers together are unlikely, `interval` where it is wide, both, or None."""
        low_mass = read.mass[at] < LOW_MASS  # False for NaN
        wide = read.high[at] - read.low[at] > self.width + _EPSILON
        return ", ".join(name for name, is_set in (("mass", low_mass), ("interval", wide)) if is_set) or None
