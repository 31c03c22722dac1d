"""The rewards of GRPO as pure functions of predictions and targets."""

import numpy as np
from numpy.typing import ArrayLike

from components.grpo.concordance import Array, slot_concordance, slot_pearson
from components.settings import RewardName

INVALID = -1.0
FORMAT = 0.5


def regression_reward(
    name: RewardName,
    predictions: ArrayLike,
    targets: ArrayLike,
    low: float,
    high: float,
    anchors: ArrayLike | None = None,
) -> Array:
    """Computes the reward called `name` for each generation.

    Args:
        predictions: `(B, G)`, NaN where a completion holds no valid answer.
        targets: `(B,)`, finite.
        low, high: the task's range. Errors are divided by its width, so that every reward lies in [-1, 1].
        anchors: `(B,)` for `ccc` and `pearson`, in place of the groups' means.

    Returns:
        `(B, G)`; an invalid generation gets -1, the lowest reward that a valid one can get (`crps`: see `crps_credit`).
    """
    if name == "ccc":
        return slot_concordance(predictions, targets, anchors)
    if name == "pearson":
        return slot_pearson(predictions, targets, anchors)
    if name == "crps":
        return crps_credit(predictions, targets) / (high - low)
    p, t = np.asarray(predictions, np.float64), np.asarray(targets, np.float64)
    error = np.abs(p - t[:, None]) / (high - low)
    reward = -error if name == "mae" else -(error**2)
    return np.where(np.isfinite(p), np.maximum(reward, INVALID), INVALID)


def crps_credit(predictions: ArrayLike, targets: ArrayLike) -> Array:
    """Computes by how much each generation improves its group's distribution: leave-one-out credit of the CRPS.

    CRPS(F without the generation, y) - CRPS(F, y), F being the empirical distribution of the group's valid answers, and
    CRPS(F, y) = E|X - y| - E|X - X'| / 2 (Gneiting and Raftery 2007, JASA 102:359-378). So a spread that matches the
    uncertainty is rewarded, which no reward of single answers does.

    Args:
        predictions: `(B, G)`, NaN where a completion holds no valid answer.
        targets: `(B,)`, finite.

    Returns:
        `(B, G)` in the unit of the targets. An invalid generation gets the lowest credit of its group; a group with
        fewer than two valid answers gets 0.
    """
    p, t = np.asarray(predictions, np.float64), np.asarray(targets, np.float64)
    valid = np.isfinite(p)
    x = np.where(valid, p, t[:, None])  # finite; masked below
    far = np.abs(x - t[:, None]) * valid
    apart = (np.abs(x[:, :, None] - x[:, None, :]) * valid[:, None, :]).sum(axis=2) * valid
    m = np.maximum(valid.sum(axis=1, keepdims=True), 2)
    total, pairs = far.sum(axis=1, keepdims=True), apart.sum(axis=1, keepdims=True)
    whole = total / m - pairs / (2 * m**2)
    without = (total - far) / (m - 1) - (pairs - 2 * apart) / (2 * (m - 1) ** 2)
    credit = np.where(valid, without - whole, np.inf)
    credit = np.where(valid, credit, credit.min(axis=1, keepdims=True))
    return np.where(valid.sum(axis=1, keepdims=True) >= 2, credit, 0.0)


def format_reward(predictions: ArrayLike) -> Array:
    """Returns 0.5 where the completion holds a valid answer within the range, else 0; same shape as `predictions`."""
    return np.where(np.isfinite(np.asarray(predictions, np.float64)), FORMAT, 0.0)
