"""Choosing on validation images how much of the training prior to divide out, without harm to common numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from components.shared.scoring.distribution import Statistic, answer, balanced
from components.shared.scoring.errors import Array

BALANCES: tuple[float, ...] = tuple(np.round(np.arange(0, 1.2001, 0.05), 2).tolist())
STRETCHES: tuple[float, ...] = tuple(np.round(np.arange(1, 2.0001, 0.05), 2).tolist())


def label_weights(targets: ArrayLike) -> Array:
    """Weights `(U,)` with sum 1 that give every label the same total weight."""
    _, place, counts = np.unique(np.asarray(targets, np.float64), return_inverse=True, return_counts=True)
    weights = 1.0 / counts[place]
    return np.asarray(weights / weights.sum(), np.float64)


def upper_bound(differences: ArrayLike) -> float:
    """One-sided 95 % bound of the mean of paired differences `(M,)`: mean plus 1.645 standard errors."""
    d = np.asarray(differences, np.float64)
    return float(d.mean() + 1.645 * d.std(ddof=1) / math.sqrt(len(d))) if len(d) > 1 else math.inf


@dataclass(frozen=True)
class Point:
    """One candidate of a choice, judged on the images that choices are made on. Errors are in the task's unit.

    Attributes:
        value: the candidate.
        mae: MAE with every label weighing the same.
        many, few: MAE of these shot groups; None for an empty group.
        bound: one-sided 95 % bound of the many-shot loss against the reference; None without many-shot images.
    """

    value: float
    mae: float
    many: float | None
    few: float | None
    bound: float | None


@dataclass(frozen=True)
class Choice:
    """The chosen value, and what it was chosen from.

    Attributes:
        value: the candidate that was chosen.
        reason: for people.
        curve: all candidates.
    """

    value: float
    reason: str
    curve: tuple[Point, ...]

    @property
    def chosen(self) -> Point:
        """The point of the chosen value."""
        return next(point for point in self.curve if point.value == self.value)


@dataclass(frozen=True)
class TuneSet:
    """The images that choices are made on.

    Attributes:
        log_p: `(U, N)` log-probabilities of all numbers.
        targets: `(U,)`.
        shots: `(U,)` shot groups.
        reference: `(U,)` absolute errors of the warm start's greedy text.
    """

    log_p: Array
    targets: Array
    shots: NDArray[np.str_]
    reference: Array

    def point(self, value: float, answers: Array) -> Point:
        """Judges the answers `(U,)` of one candidate."""
        errors = np.abs(answers - self.targets)
        group = {name: self.shots == name for name in ("many", "few")}
        mae = {name: float(errors[mask].mean()) if mask.any() else None for name, mask in group.items()}
        bound = upper_bound((errors - self.reference)[group["many"]]) if group["many"].any() else None
        return Point(value, float(label_weights(self.targets) @ errors), mae["many"], mae["few"], bound)


def choose(curve: Sequence[Point], tolerance: float, neutral: float) -> Choice:
    """The point with the lowest MAE, every label weighing the same, that does not harm common numbers.

    A point qualifies if the bound of its many-shot loss is at most `tolerance`. The point estimate alone would not do:
    its error is often as large as the tolerance.

    Args:
        tolerance: largest allowed many-shot loss, in the task's unit.
        neutral: the value to take if none qualifies.
    """
    allowed = [point for point in curve if point.bound is None or point.bound <= tolerance]
    if not allowed:
        reason = f"{neutral:g}: no value keeps the many-shot loss within {tolerance:g}"
        return Choice(neutral, reason, tuple(curve))
    best = min(allowed, key=lambda point: point.mae)
    reason = (
        f"{best.value:g}: lowest MAE with every label weighing the same ({best.mae:.3g}) among {len(allowed)} of "
        f"{len(curve)} values that keep the many-shot loss within {tolerance:g}"
    )
    return Choice(best.value, reason, tuple(curve))


def balance_curve(
    tune: TuneSet,
    values: ArrayLike,
    log_prior: ArrayLike,
    trained: float,
    statistic: Statistic,
    balances: Sequence[float] = BALANCES,
) -> list[Point]:
    """Balances, judged.

    Args:
        values, log_prior: `(N,)`.
        trained: the balance that the model was trained with, and so lacks already.
    """
    return [
        tune.point(value, answer(balanced(tune.log_p, log_prior, value - trained), values, statistic))
        for value in balances
    ]


def stretched(means: ArrayLike, centre: float, factor: float, low: float, high: float) -> Array:
    """Means `(U,)` moved away from `centre` by `factor` and clipped to the range.

    The largest concordance that a function of the image can reach is that of its conditional mean, stretched to the
    spread of the targets; so a training for concordance must do better than this.
    """
    return np.clip(centre + factor * (np.asarray(means, np.float64) - centre), low, high)
