"""Lin's concordance correlation coefficient (CCC): of two vectors, and as a reward for every slot of a batch.

Lin (1989), "A concordance correlation coefficient to evaluate reproducibility", Biometrics 45:255-268. Du, Song and Li
(arXiv 2605.01402) use it as a reward: each generation replaces its own input's anchor in the batch of anchors, and its
reward is the CCC of that batch.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def concordance(predictions: ArrayLike, targets: ArrayLike) -> float:
    """Computes the CCC of two vectors with population moments (1/N); 0 where both are constant and equal.

    Args:
        predictions, targets: `(N,)`, in the same unit.
    """
    p, t = np.asarray(predictions, np.float64), np.asarray(targets, np.float64)
    p, t = _common_frame(p, t)
    covariance = np.mean((p - p.mean()) * (t - t.mean()))
    denominator = p.var() + t.var() + (p.mean() - t.mean()) ** 2
    return float(2 * covariance / denominator) if denominator > 0 else 0.0


def slot_concordance(predictions: ArrayLike, targets: ArrayLike, anchors: ArrayLike | None = None) -> Array:
    """Computes, for every generation, the CCC of the batch of anchors with that generation in its input's slot.

    A group's anchor is the mean of its valid answers. Replacing one slot changes three running sums, so the cost is
    O(B*G).

    Args:
        predictions: `(B, G)`, NaN where a completion holds no valid answer.
        targets: `(B,)`, finite.
        anchors: `(B,)` in place of the groups' means, if the generations are not samples but all possible answers.

    Returns:
        `(B, G)` in [-1, 1]. An invalid generation gets -1 and is left out of its group's anchor. A group without a
        valid answer is left out of the batch that the others are compared with.

    Raises:
        ValueError: the shapes do not match, or a target is not finite.
    """
    return _slotwise(predictions, targets, anchors, _lin)


def slot_pearson(predictions: ArrayLike, targets: ArrayLike, anchors: ArrayLike | None = None) -> Array:
    """`slot_concordance` with Pearson's correlation, which ignores scale and mean. For ablations."""
    return _slotwise(predictions, targets, anchors, _pearson)


def _lin(cov: Array, var_v: Array, var_t: float, gap: Array) -> tuple[Array, Array]:
    return 2 * cov, var_v + var_t + gap**2


def _pearson(cov: Array, var_v: Array, var_t: float, gap: Array) -> tuple[Array, Array]:
    return cov, np.sqrt(var_v * var_t)


def _slotwise(
    predictions: ArrayLike,
    targets: ArrayLike,
    anchors: ArrayLike | None,
    ratio: Callable[[Array, Array, float, Array], tuple[Array, Array]],
) -> Array:
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
    given = np.full(len(t), np.nan) if anchors is None else np.asarray(anchors, np.float64)
    answers = np.column_stack([np.where(valid, p, np.nan), given])[group]
    answers, t = _common_frame(answers, t[group])
    p, anchor = answers[:, :-1], answers[:, -1]
    if anchors is None:
        anchor = np.nanmean(p, axis=1)
    change = p - anchor[:, None]
    mean = (anchor.sum() + change) / n
    square = (np.sum(anchor**2) + p**2 - anchor[:, None] ** 2) / n
    product = (np.sum(anchor * t) + change * t[:, None]) / n
    # Where all values are equal, this difference is rounding noise, and a correlation would divide noise by noise.
    var_v = square - mean**2
    var_v = np.where(var_v > 1e-13 * square, var_v, 0.0)
    var_t = t.var() if np.ptp(t) > 0 else 0.0
    numerator, denominator = ratio(product - mean * t.mean(), var_v, var_t, mean - t.mean())
    with np.errstate(invalid="ignore", divide="ignore"):
        score = np.where(denominator > 0, numerator / denominator, 0.0)
    rewards[group] = np.where(valid[group], np.clip(score, -1.0, 1.0), -1.0)
    return rewards


def _common_frame(p: Array, t: Array) -> tuple[Array, Array]:
    """Shifts both by the targets' mean and divides them by the largest magnitude.

    CCC and Pearson's correlation do not change, and sums of squares neither overflow nor cancel.
    """
    # Halved first: the difference of two values near the largest float overflows, the difference of their halves not.
    centre = np.mean(t * 0.5 / len(t)) * len(t)
    p, t = p * 0.5 - centre, t * 0.5 - centre
    size = max(float(np.nanmax(np.abs(p))), float(np.max(np.abs(t))))
    return (p / size, t / size) if size > 0 else (p, t)
