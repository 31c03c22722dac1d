"""A distribution over all numbers of a task: prior, balance, answers, intervals, CRPS.

Arrays: `p` and `q` `(U, N)` are probabilities of U images over N numbers, `values` `(N,)` the numbers in ascending
order with equal steps, `targets` `(U,)` the labels, all in the task's unit.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from components.shared.scoring.errors import Array

Statistic = Literal["median", "mean", "mode"]


def smoothed_prior(counts: ArrayLike, per_bin: float) -> Array:
    """The training prior over the numbers, smoothed so that rare numbers keep some probability.

    The counts are convolved with a Gaussian of two bin widths, reflected at the ends of the range, and half a row per
    bin is added.

    Args:
        counts: `(N,)` training rows with each number.
        per_bin: numbers in a bin (bin width over resolution).

    Returns:
        `(N,)`, positive, with sum 1.
    """
    rows = np.asarray(counts, np.float64)
    sigma = 2.0 * per_bin
    reach = min(math.ceil(4 * sigma), 4 * len(rows))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    padded = np.pad(rows, reach, mode="symmetric") if len(rows) > 1 else np.repeat(rows, 2 * reach + 1)
    smooth = np.convolve(padded, kernel, mode="valid") + 0.5 / per_bin
    return np.asarray(smooth / smooth.sum(), np.float64)


def balanced(log_p: ArrayLike, log_prior: ArrayLike, balance: float) -> Array:
    """The distribution with a part of the prior divided out: q proportional to p * prior^(-balance).

    `balance` 0 leaves the training distribution; 1 answers for a world in which every number is equally likely. Logit
    adjustment (Menon et al. 2021, arXiv 2007.07314), applied to the numbers of a task.

    Args:
        log_p: `(U, N)`; -inf where a number is impossible. The rows need not be normalised. A row without any possible
            number counts as the prior itself.
        log_prior: `(N,)`.

    Returns:
        `(U, N)`, each row with sum 1.
    """
    given, prior = np.asarray(log_p, np.float64), np.asarray(log_prior, np.float64)
    tilted = np.where(np.isfinite(given).any(axis=1, keepdims=True), given, prior) - balance * prior
    weights = np.exp(tilted - tilted.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float64)


def answer(q: ArrayLike, values: ArrayLike, statistic: Statistic) -> Array:
    """One number per image, `(U,)`.

    The median minimises the expected absolute error, the mean the expected squared error (Lukasik et al. 2024, arXiv
    2403.04182); the mode is the most likely number.
    """
    probabilities, numbers = np.asarray(q, np.float64), np.asarray(values, np.float64)
    if statistic == "mean":
        return np.asarray(probabilities @ numbers, np.float64)
    if statistic == "mode":
        return np.asarray(numbers[probabilities.argmax(axis=1)], np.float64)
    reached = probabilities.cumsum(axis=1) >= 0.5 - 1e-12
    return np.asarray(numbers[np.where(reached.any(axis=1), reached.argmax(axis=1), len(numbers) - 1)], np.float64)


def crps(q: ArrayLike, values: ArrayLike, targets: ArrayLike) -> Array:
    """Continuous ranked probability score of each image, `(U,)` in the task's unit; lower is better.

    resolution * sum over n of (F(n) - 1[n >= y])^2 (Gneiting and Raftery 2007, "Strictly Proper Scoring Rules", JASA
    102:359-378, for a distribution on a grid).
    """
    numbers = np.asarray(values, np.float64)
    step = _step(numbers)
    reached = numbers >= np.asarray(targets, np.float64)[:, None] - step / 4
    return np.asarray(step * ((np.asarray(q, np.float64).cumsum(axis=1) - reached) ** 2).sum(axis=1), np.float64)


def conformity(q: ArrayLike) -> Array:
    """How far each number lies from the middle of the distribution: `(U, N)` in [0, 1], 2 |F(n) - q(n)/2 - 1/2|."""
    probabilities = np.asarray(q, np.float64)
    return np.asarray(2 * np.abs(probabilities.cumsum(axis=1) - probabilities / 2 - 0.5), np.float64)


def nearest(values: ArrayLike, targets: ArrayLike) -> NDArray[np.int64]:
    """Index of the number nearest to each target, `(U,)`."""
    numbers = np.asarray(values, np.float64)
    steps = np.rint((np.asarray(targets, np.float64) - numbers[0]) / _step(numbers)).astype(np.int64)
    return np.clip(steps, 0, len(numbers) - 1)


def at_targets(table: ArrayLike, values: ArrayLike, targets: ArrayLike) -> Array:
    """The entry of each row of `table` `(U, N)` at the number nearest to its target: `(U,)`."""
    columns = nearest(values, targets)
    return np.asarray(table, np.float64)[np.arange(len(columns)), columns]


def _step(numbers: Array) -> float:
    """The distance between neighbouring numbers; 1 for a single number."""
    return float(numbers[1] - numbers[0]) if len(numbers) > 1 else 1.0


@dataclass(frozen=True)
class Threshold:
    """The largest conformity score that an interval admits for one group.

    Attributes:
        score: in [0, 1]; infinite if nothing is known.
        guaranteed: whether the group had enough calibration rows for the coverage.
    """

    score: float
    guaranteed: bool


def thresholds(scores: Mapping[str, ArrayLike], coverage: float) -> dict[str, Threshold]:
    """Label-conditional split conformal prediction: a threshold for each shot group (Vovk 2012, arXiv 1209.2673).

    An interval of all numbers whose score is at most the threshold of the number's own group covers the truth of each
    group with probability `coverage` or more, if the calibration rows chose nothing else.

    Args:
        scores: group -> conformity scores of its calibration rows at their labels.
        coverage: 0.9 for 90 % intervals.

    Returns:
        Group -> threshold: the ceil((m + 1) * coverage)-th smallest of its m scores. A group with fewer rows than that
        takes the largest threshold of the others, without a guarantee.
    """
    found: dict[str, Threshold] = {}
    for group, given in scores.items():
        ordered = np.sort(np.asarray(given, np.float64))
        rank = math.ceil((len(ordered) + 1) * coverage - 1e-9)
        if rank <= len(ordered):
            found[group] = Threshold(float(ordered[rank - 1]), True)
    largest = max((threshold.score for threshold in found.values()), default=math.inf)
    return {group: found.get(group, Threshold(largest, False)) for group in scores}


def intervals(q: ArrayLike, values: ArrayLike, limits: ArrayLike, answers: ArrayLike) -> tuple[Array, Array]:
    """Ends of each image's interval, `(U,)` and `(U,)`: the hull of the admitted numbers and the answer.

    Args:
        limits: `(N,)` for each number the threshold of its group.
        answers: `(U,)`, always inside.
    """
    numbers, given = np.asarray(values, np.float64), np.asarray(answers, np.float64)
    admitted = conformity(q) <= np.asarray(limits, np.float64)
    low = np.where(admitted.any(axis=1), numbers[admitted.argmax(axis=1)], np.inf)
    high = np.where(admitted.any(axis=1), numbers[len(numbers) - 1 - admitted[:, ::-1].argmax(axis=1)], -np.inf)
    return np.minimum(low, given), np.maximum(high, given)


def central_interval(q: ArrayLike, values: ArrayLike, coverage: float) -> tuple[Array, Array]:
    """The distribution's own central interval, without calibration: `(U,)` and `(U,)`."""
    cumulated, numbers = np.asarray(q, np.float64).cumsum(axis=1), np.asarray(values, np.float64)
    tail = (1 - coverage) / 2
    low = (cumulated > tail).argmax(axis=1)
    high = np.minimum((cumulated < 1 - tail - 1e-12).sum(axis=1), len(numbers) - 1)
    return numbers[low], numbers[high]


def interval_score(low: ArrayLike, high: ArrayLike, targets: ArrayLike, coverage: float) -> Array:
    """Width plus a penalty for each miss, `(U,)` in the task's unit; lower is better (Gneiting and Raftery 2007)."""
    a, b, y = (np.asarray(each, np.float64) for each in (low, high, targets))
    return np.asarray((b - a) + 2 / (1 - coverage) * (np.maximum(a - y, 0) + np.maximum(y - b, 0)), np.float64)
