"""Choosing balance and stretch: by hand, and on posteriors whose prior is known."""

import numpy as np
import pytest

from components.shared.scoring.choice import (
    BALANCES,
    STRETCHES,
    Point,
    TuneSet,
    balance_curve,
    choose,
    label_weights,
    stretched,
    upper_bound,
)
from components.shared.scoring.distribution import answer, balanced

VALUES = np.arange(20.0)
PRIOR = np.exp(-VALUES / 3) / np.exp(-VALUES / 3).sum()


def test_every_label_weighs_the_same() -> None:
    np.testing.assert_allclose(label_weights([5, 5, 5, 9]), [1 / 6, 1 / 6, 1 / 6, 1 / 2])


def test_the_bound_by_hand_and_by_simulation() -> None:
    assert upper_bound([0.0, 2.0]) == pytest.approx(1 + 1.645 * np.sqrt(2) / np.sqrt(2))
    assert upper_bound([1.0]) == np.inf
    rng = np.random.default_rng(1)
    below = [upper_bound(rng.normal(0.3, 1, 155)) < 0.3 for _ in range(4000)]
    assert 0.03 < np.mean(below) < 0.07, "one-sided, 95 %"


def test_a_point_by_hand() -> None:
    tune = TuneSet(
        np.zeros((4, 2)), np.array([1.0, 1.0, 2.0, 7.0]), np.array(["many", "many", "medium", "few"]),
        np.array([0.0, 1.0, 9.0, 9.0]),
    )  # fmt: skip
    point = tune.point(0.5, np.array([2.0, 4.0, 2.0, 3.0]))  # errors 1, 3, 0, 4
    assert (point.value, point.many, point.few) == (0.5, 2.0, 4.0)
    assert point.mae == pytest.approx((2 + 0 + 4) / 3), "every label weighs the same"
    assert point.bound == pytest.approx(upper_bound([1.0, 2.0]))


def test_a_point_without_many_and_few_images() -> None:
    tune = TuneSet(np.zeros((1, 2)), np.array([1.0]), np.array(["medium"]), np.array([0.0]))
    assert tune.point(0.0, np.array([2.0])) == Point(0.0, 1.0, None, None, None)


def test_the_choice_by_hand() -> None:
    curve = [Point(0.0, 5, 1, 9, 0.0), Point(0.5, 4, 1.4, 7, 0.4), Point(1.0, 3, 2, 5, 0.9)]
    free = choose(curve, 1.0, 0.0)
    assert (free.value, free.chosen) == (1.0, curve[2])
    bounded = choose(curve, 0.5, 0.0)
    assert bounded.value == 0.5
    assert bounded.reason == (
        "0.5: lowest MAE with every label weighing the same (4) among 2 of 3 values that keep the many-shot loss "
        "within 0.5"
    )
    none = choose(curve, -1.0, 0.0)
    assert (none.value, none.reason) == (0.0, "0: no value keeps the many-shot loss within -1")
    assert choose([Point(0.2, 5, None, 9, None)], -1.0, 0.0).value == 0.2, "no many-shot images to harm"


def shrinking_rows(rows: int) -> tuple[np.ndarray, TuneSet]:
    """Log-likelihoods, and posteriors with a strong prior on the low numbers; the reference is their mode."""
    rng = np.random.default_rng(2)
    targets = rng.integers(0, 20, rows).astype(float)
    seen = targets + rng.normal(0, 3, rows)
    likelihood = -0.5 * ((VALUES - seen[:, None]) / 3) ** 2
    log_p = likelihood + np.log(PRIOR)
    reference = np.abs(answer(balanced(log_p, np.log(PRIOR), 0.0), VALUES, "mode") - targets)
    return likelihood, TuneSet(log_p, targets, np.where(targets < 6, "many", "few"), reference)


def test_auto_takes_the_best_balance_that_keeps_the_common_numbers() -> None:
    _, tune = shrinking_rows(800)
    curve = balance_curve(tune, VALUES, np.log(PRIOR), 0.0, "median")
    losses = [
        float(label_weights(tune.targets) @ np.abs(answer(q, VALUES, "median") - tune.targets))
        for q in (balanced(tune.log_p, np.log(PRIOR), balance) for balance in BALANCES)
    ]
    free = choose(curve, np.inf, 0.0)
    assert free.value == BALANCES[int(np.argmin(losses))]
    assert 0.8 <= free.value <= 1.2, "the true posterior without its prior is the likelihood"
    bounded = choose(curve, 0.2, 0.0)
    assert 0 < bounded.value < free.value
    assert bounded.chosen.bound is not None
    assert bounded.chosen.bound <= 0.2


def test_balance_is_the_total_whatever_the_model_was_trained_with() -> None:
    _, whole = shrinking_rows(400)
    half = TuneSet(whole.log_p - 0.5 * np.log(PRIOR), whole.targets, whole.shots, whole.reference)
    plain = balance_curve(whole, VALUES, np.log(PRIOR), 0.0, "median")
    trained = balance_curve(half, VALUES, np.log(PRIOR), 0.5, "median")
    np.testing.assert_allclose([point.mae for point in plain], [point.mae for point in trained])


def test_other_balances_can_be_judged() -> None:
    _, tune = shrinking_rows(50)
    (point,) = balance_curve(tune, VALUES, np.log(PRIOR), 0.0, "median", [0.33])
    assert point == tune.point(0.33, answer(balanced(tune.log_p, np.log(PRIOR), 0.33), VALUES, "median"))


def test_the_stretch_moves_away_from_the_centre_within_the_range() -> None:
    np.testing.assert_allclose(stretched([10, 20, 40], 20.0, 1.5, 8.0, 45.0), [8, 20, 45])
    assert STRETCHES[0] == 1, "no stretch"
