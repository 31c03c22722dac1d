"""Lin's concordance correlation, whole and slot by slot in closed form.

Lin (1989), "A concordance correlation coefficient to evaluate reproducibility", Biometrics 45:255-268. The slot-wise
use as a reward is that of Du, Song and Li (arXiv 2605.01402): each generation replaces its own input's anchor in the
batch of anchors, and is rewarded with the concordance of the whole batch.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def concordance(predictions: ArrayLike, targets: ArrayLike) -> float:
    """CCC of two vectors, population moments (1/N); 0 where both are constant and equal.

    Args:
        predictions, targets: `(N,)`, the same unit.
    """
    p, t = np.asarray(predictions, np.float64), np.asarray(targets, np.float64)
    p, t = _common_frame(p, t)
    covariance = np.mean((p - p.mean()) * (t - t.mean()))
    denominator = p.var() + t.var() + (p.mean() - t.mean()) ** 2
    return float(2 * covariance / denominator) if denominator > 0 else 0.0


def slot_concordance(predictions: ArrayLike, targets: ArrayLike) -> Array:
    """CCC of the batch of anchors with one generation in its input's slot, for every generation.

    Args:
        predictions: `(B, G)`, NaN where a completion holds no valid answer.
        targets: `(B,)`, finite.

    Returns:
        `(B, G)` in [-1, 1]. An invalid generation gets -1. It takes no part in its group's anchor (the mean of the
        group's valid answers), and a group without a valid answer takes no part in anybody's comparison.

    Replacing one slot changes three running sums, so the cost is O(B*G).
    """
    return _slotwise(predictions, targets, _lin)


def slot_pearson(predictions: ArrayLike, targets: ArrayLike) -> Array:
    """As `slot_concordance`, with Pearson's correlation: blind to scale and mean. For ablations."""
    return _slotwise(predictions, targets, _pearson)


def _lin(cov: Array, var_v: Array, var_t: float, gap: Array) -> tuple[Array, Array]:
    return 2 * cov, var_v + var_t + gap**2


def _pearson(cov: Array, var_v: Array, var_t: float, gap: Array) -> tuple[Array, Array]:
    return cov, np.sqrt(var_v * var_t)


def _slotwise(predictions: ArrayLike, targets: ArrayLike, ratio) -> Array:  # type: ignore[no-untyped-def]
    p, t = np.asarray(predictions, np.float64), np.asarray(targets, np.float64)
    if p.ndim != 2 or t.shape != p.shape[:1]:
        raise ValueError(f"predictions must be (B, G) and targets (B,), got {p.shape} and {t.shape}")
    if not np.isfinite(t).all():
        raise ValueError("targets must be finite")
    valid = np.isfinite(p)
    rewards = np.full(p.shape, -1.0)
    group = valid.any(axis=1)
    n = int(group.sum())
    if n == 0:
        return rewards
    t = t[group]
    p, t = _common_frame(np.where(valid[group], p[group], np.nan), t)
    anchor = np.nanmean(p, axis=1)
    change = p - anchor[:, None]
    mean = (anchor.sum() + change) / n
    square = (np.sum(anchor**2) + p**2 - anchor[:, None] ** 2) / n
    product = (np.sum(anchor * t) + change * t[:, None]) / n
    # Where all are equal, the difference of the sums is rounding noise, which a correlation would divide by itself.
    var_v = square - mean**2
    var_v = np.where(var_v > 1e-13 * square, var_v, 0.0)
    var_t = t.var() if np.ptp(t) > 0 else 0.0
    numerator, denominator = ratio(product - mean * t.mean(), var_v, var_t, mean - t.mean())
    with np.errstate(invalid="ignore", divide="ignore"):
        score = np.where(denominator > 0, numerator / denominator, 0.0)
    rewards[group] = np.where(valid[group], np.clip(score, -1.0, 1.0), -1.0)
    return rewards


def _common_frame(p: Array, t: Array) -> tuple[Array, Array]:
    """Both, shifted by the targets' mean and divided by the largest magnitude: CCC and Pearson stay as they are, and
    sums of squares neither overflow nor cancel."""
    # Half first: the difference of two values near the largest float overflows, that of their halves does not.
    centre = np.mean(t * 0.5 / len(t)) * len(t)
    p, t = p * 0.5 - centre, t * 0.5 - centre
    size = max(float(np.nanmax(np.abs(p))), float(np.max(np.abs(t))))
    return (p / size, t / size) if size > 0 else (p, t)
