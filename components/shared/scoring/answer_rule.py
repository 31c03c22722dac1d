"""The rule that turns a distribution over numbers into an answer with an interval, fitted on validation images."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from components.shared.scoring.choice import (
    BALANCES,
    STRETCHES,
    Choice,
    Point,
    TuneSet,
    balance_curve,
    choose,
    stretched,
)
from components.shared.scoring.distribution import (
    Statistic,
    Threshold,
    answer,
    at_targets,
    balanced,
    conformity,
    intervals,
    nearest,
    smoothed_prior,
    thresholds,
)
from components.shared.scoring.errors import Array
from components.shared.scoring.shots import SHOTS


@dataclass(frozen=True)
class ValidationDistributions:
    """What a trained model knows about how it reads: its distributions over the validation images.

    Attributes:
        values: `(N,)` the numbers of the task.
        counts: `(N,)` training images with each number.
        shots: `(N,)` shot group of each number.
        per_bin: numbers in a label bin.
        trained: the balance that the model was trained with, and so lacks already.
        tune: `(U,)` images for choices; the others are for the thresholds of intervals.
        targets: `(U,)`.
        log_p: `(U, N)`.
        warm_start: `(U,)` the warm start's greedy answers, NaN where invalid.
    """

    values: Array
    counts: Array
    shots: NDArray[np.str_]
    per_bin: float
    trained: float
    tune: NDArray[np.bool_]
    targets: Array
    log_p: Array
    warm_start: Array

    @cached_property
    def log_prior(self) -> Array:
        """`(N,)` log of the smoothed training prior."""
        return np.log(smoothed_prior(self.counts, self.per_bin))

    @property
    def centre(self) -> float:
        """Mean of the training targets."""
        return float(self.counts @ self.values / self.counts.sum())

    def shots_of(self, targets: Array) -> NDArray[np.str_]:
        """Shot group of each target."""
        return self.shots[nearest(self.values, targets)]

    @cached_property
    def tune_set(self) -> TuneSet:
        """The images that choices are made on. An invalid answer of the warm start counts as the worst possible."""
        targets, warm = self.targets[self.tune], self.warm_start[self.tune]
        worst = np.maximum(targets - self.values[0], self.values[-1] - targets)
        reference = np.where(np.isfinite(warm), np.abs(warm - targets), worst)
        return TuneSet(self.log_p[self.tune], targets, self.shots_of(targets), reference)


@dataclass(frozen=True)
class Readings:
    """What was read off U images; all arrays are `(U,)`, in the task's unit.

    Attributes:
        value: the answer.
        low, high: ends of the interval.
        mass: probability of any number; the rest goes to other texts.
    """

    value: Array
    low: Array
    high: Array
    mass: Array


@dataclass(frozen=True)
class AnswerRule:
    """Answers and intervals from log-probabilities `(U, N)`.

    Attributes:
        validation: the images that it is fitted on.
        statistic: of the distribution.
        balance: the part of the training prior that is divided out.
        coverage: of the intervals, in each shot group.
    """

    validation: ValidationDistributions
    statistic: Statistic
    balance: Choice
    coverage: float

    @classmethod
    def fit(
        cls,
        validation: ValidationDistributions,
        statistic: Statistic,
        balance: float | Literal["auto"],
        coverage: float,
        tolerance: float,
    ) -> "AnswerRule":
        """Chooses the balance if it is `auto`.

        Args:
            tolerance: largest many-shot loss against the warm start's greedy text, in the task's unit.
        """
        curve = tuple(_curve(validation, statistic, BALANCES))
        if balance == "auto":
            return cls(validation, statistic, choose(curve, tolerance, 0.0), coverage)
        return cls(validation, statistic, Choice(balance, "given", curve), coverage).with_balance(balance)

    def with_balance(self, balance: float) -> "AnswerRule":
        """The same rule with a given balance, which need not be one of `BALANCES`."""
        curve = self.balance.curve
        if all(point.value != balance for point in curve):
            added = _curve(self.validation, self.statistic, [balance])
            curve = tuple(sorted((*curve, *added), key=lambda point: point.value))
        return replace(self, balance=Choice(balance, "given", curve))

    def distribution(self, log_p: Array) -> Array:
        """`(U, N)` probabilities with the balance applied; each row has sum 1."""
        known = self.validation
        return balanced(log_p, known.log_prior, self.balance.value - known.trained)

    @cached_property
    def thresholds(self) -> dict[str, Threshold]:
        """Shot group -> threshold of its conformity scores, from the images that chose nothing."""
        known = self.validation
        targets = known.targets[~known.tune]
        q = self.distribution(known.log_p[~known.tune])
        scores, shots = at_targets(conformity(q), known.values, targets), known.shots_of(targets)
        return thresholds({group: scores[shots == group] for group in SHOTS}, self.coverage)

    def answers(self, log_p: Array) -> Array:
        """`(U,)`."""
        return answer(self.distribution(log_p), self.validation.values, self.statistic)

    def read(self, log_p: Array) -> Readings:
        """Answers and intervals."""
        known, q = self.validation, self.distribution(log_p)
        value = answer(q, known.values, self.statistic)
        limits = np.array([self.thresholds[group].score for group in known.shots])
        low, high = intervals(q, known.values, limits, value)
        return Readings(value, low, high, np.exp(log_p).sum(axis=1))


def _curve(known: ValidationDistributions, statistic: Statistic, balances: Sequence[float]) -> list[Point]:
    return balance_curve(known.tune_set, known.values, known.log_prior, known.trained, statistic, balances)


def fit_stretch(validation: ValidationDistributions, tolerance: float) -> Choice:
    """The factor by which the model's means are moved away from the training mean, chosen like the balance."""
    tune = validation.tune_set
    means = plain_means(validation, tune.log_p)
    curve: list[Point] = [tune.point(factor, stretch(validation, means, factor)) for factor in STRETCHES]
    return choose(curve, tolerance, 1.0)


def plain_means(validation: ValidationDistributions, log_p: Array) -> Array:
    """`(U,)` means of the distributions as they were trained."""
    return answer(balanced(log_p, validation.log_prior, 0.0), validation.values, "mean")


def stretch(validation: ValidationDistributions, means: Array, factor: float) -> Array:
    """Means moved away from the training mean, within the range."""
    values = validation.values
    return stretched(means, validation.centre, factor, float(values[0]), float(values[-1]))
