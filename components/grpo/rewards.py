"""The rewards of GRPO as pure functions of predictions and targets."""

import numpy as np
from numpy.typing import ArrayLike

from components.grpo.concordance import Array, slot_concordance, slot_pearson
from components.settings import RewardName

INVALID = -1.0
FORMAT = 0.5


def regression_reward(name: RewardName, predictions: ArrayLike, targets: ArrayLike, low: float, high: float) -> Array:
    """Computes the reward called `name` for each generation.

    Args:
        predictions: `(B, G)`, NaN where a completion holds no valid answer.
        targets: `(B,)`, finite.
        low, high: the task's range. Errors are divided by its width, so that every reward lies in [-1, 1].

    Returns:
        `(B, G)`; an invalid generation gets -1, the lowest reward that a valid one can get.
    """
    if name == "ccc":
        return slot_concordance(predictions, targets)
    if name == "pearson":
        return slot_pearson(predictions, targets)
    p, t = np.asarray(predictions, np.float64), np.asarray(targets, np.float64)
    error = np.abs(p - t[:, None]) / (high - low)
    reward = -error if name == "mae" else -(error**2)
    return np.where(np.isfinite(p), np.maximum(reward, INVALID), INVALID)


def format_reward(predictions: ArrayLike) -> Array:
    """Returns 0.5 where the completion holds a valid answer within the range, else 0; same shape as `predictions`."""
    return np.where(np.isfinite(np.asarray(predictions, np.float64)), FORMAT, 0.0)
