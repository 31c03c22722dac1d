"""The answer rule: choice, total balance, intervals with their guarantee."""

from dataclasses import replace

import numpy as np
import pytest

from components.shared.scoring.answer_rule import (
    AnswerRule,
    ValidationDistributions,
    fit_stretch,
    plain_means,
    stretch,
)
from components.shared.scoring.choice import BALANCES, label_weights
from components.shared.scoring.distribution import answer, smoothed_prior

VALUES = np.arange(40.0)
COUNTS = np.rint(400 * np.exp(-VALUES / 8))
SHOTS = np.where(COUNTS > 100, "many", np.where(COUNTS < 20, "few", "medium"))
LOG_PRIOR = np.log(smoothed_prior(COUNTS, 1.0))


def draw(rows: int, seed: int, sure: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Targets, every number equally often, and log posteriors under the training prior.

    Args:
        sure: 1 for the true posterior; more for one that is surer than it may be.
    """
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, len(VALUES), rows).astype(float)
    seen = targets + rng.normal(0, 4, rows)
    log_p = -0.5 * sure * ((VALUES - seen[:, None]) / 4) ** 2 + LOG_PRIOR
    return targets, log_p - np.log(np.exp(log_p).sum(axis=1, keepdims=True)) - 0.05


def known(rows: int = 1200, seed: int = 0, sure: float = 1.0) -> ValidationDistributions:
    """Every other image is for choices; the warm start reads the mode, and its first text is invalid."""
    targets, log_p = draw(rows, seed, sure)
    warm_start = VALUES[log_p.argmax(axis=1)]
    warm_start[0] = np.nan
    return ValidationDistributions(
        VALUES, COUNTS, SHOTS, 1.0, 0.0, np.arange(rows) % 2 == 0, targets, log_p, warm_start
    )


def test_the_tune_set_has_the_tune_rows_and_counts_an_invalid_text_as_the_worst() -> None:
    validation = known(100)
    tune = validation.tune_set
    np.testing.assert_array_equal(tune.targets, validation.targets[::2])
    first = validation.targets[0]
    assert tune.reference[0] == max(first - 0, 39 - first)
    np.testing.assert_array_equal(tune.shots, SHOTS[tune.targets.astype(int)])


def test_auto_is_the_best_allowed_balance_on_tune_alone() -> None:
    validation = known()
    rule = AnswerRule.fit(validation, "median", "auto", 0.9, np.inf)
    tune = validation.tune_set
    losses = []
    for balance in BALANCES:
        q = np.exp(tune.log_p - balance * LOG_PRIOR)
        errors = np.abs(answer(q / q.sum(axis=1, keepdims=True), VALUES, "median") - tune.targets)
        losses.append(float(label_weights(tune.targets) @ errors))
    assert rule.balance.value == BALANCES[int(np.argmin(losses))]
    assert 0.7 <= rule.balance.value <= 1.2
    spoilt = replace(validation, log_p=np.where(validation.tune[:, None], validation.log_p, -1.0))
    assert AnswerRule.fit(spoilt, "median", "auto", 0.9, np.inf).balance == rule.balance, "calibrate chooses nothing"


def test_a_given_balance_is_taken_and_judged_even_off_the_grid() -> None:
    validation = known(200)
    rule = AnswerRule.fit(validation, "median", 0.33, 0.9, 0.5)
    assert (rule.balance.value, rule.balance.reason) == (0.33, "given")
    values = [point.value for point in rule.balance.curve]
    assert values == sorted({*BALANCES, 0.33})
    errors = np.abs(rule.answers(validation.tune_set.log_p) - validation.tune_set.targets)
    assert rule.balance.chosen.mae == pytest.approx(float(label_weights(validation.tune_set.targets) @ errors))
    again = AnswerRule.fit(validation, "median", "auto", 0.9, 0.5).with_balance(0.33)
    assert again.balance == rule.balance
    assert len(rule.with_balance(0.5).balance.curve) == 26


def test_balance_is_the_total_of_training_and_answer() -> None:
    validation = known(400)
    tilted = replace(validation, trained=0.5, log_p=validation.log_p - 0.5 * LOG_PRIOR)
    _, log_p = draw(50, 7)
    for balance in (0.0, 0.4, 1.0):
        plain = AnswerRule.fit(validation, "median", balance, 0.9, 0.5)
        trained = AnswerRule.fit(tilted, "median", balance, 0.9, 0.5)
        other = log_p - 0.5 * LOG_PRIOR
        np.testing.assert_allclose(plain.distribution(log_p), trained.distribution(other), atol=1e-12)
        np.testing.assert_array_equal(plain.answers(log_p), trained.answers(other))
        assert plain.thresholds["few"].score == pytest.approx(trained.thresholds["few"].score)


def test_coverage_holds_in_each_group_although_the_model_is_too_sure() -> None:
    covered: dict[str, list[float]] = {group: [] for group in ("many", "medium", "few")}
    own: list[float] = []
    for seed in range(60):
        rule = AnswerRule.fit(known(400, seed, sure=3.0), "median", "auto", 0.9, 0.5)
        targets, log_p = draw(200, 1000 + seed, sure=3.0)
        found, groups = rule.read(log_p), SHOTS[targets.astype(int)]
        inside = (found.low <= targets) & (targets <= found.high)
        for group, shares in covered.items():
            assert rule.thresholds[group].guaranteed
            shares.append(inside[groups == group].mean())
        q = rule.distribution(log_p).cumsum(axis=1)
        own.append(
            ((q[np.arange(200), targets.astype(int)] > 0.05) & (q[np.arange(200), targets.astype(int)] < 0.95)).mean()
        )
    assert {group: np.mean(shares) > 0.89 for group, shares in covered.items()} == dict.fromkeys(covered, True)
    assert np.mean(own) < 0.8, "its own interval is too narrow"


def test_the_coverage_changes_the_intervals_and_nothing_else() -> None:
    validation, (_, log_p) = known(), draw(100, 5)
    wide = AnswerRule.fit(validation, "median", "auto", 0.95, 0.5)
    narrow = AnswerRule.fit(validation, "median", "auto", 0.6, 0.5)
    assert wide.balance == narrow.balance
    a, b = wide.read(log_p), narrow.read(log_p)
    np.testing.assert_array_equal(a.value, b.value)
    np.testing.assert_array_equal(a.mass, b.mass)
    assert np.all((a.low <= b.low) & (b.high <= a.high))
    assert (a.high - a.low).mean() > (b.high - b.low).mean() + 2
    np.testing.assert_allclose(a.mass, np.exp(-0.05))


def test_groups_with_too_few_calibration_rows_are_flagged_and_take_the_widest_threshold() -> None:
    validation = known(600)
    few = SHOTS[validation.targets.astype(int)] == "few"
    eight = ~few | validation.tune | (np.cumsum(few & ~validation.tune) <= 8)
    fewer = ValidationDistributions(
        VALUES, COUNTS, SHOTS, 1.0, 0.0, validation.tune[eight], validation.targets[eight], validation.log_p[eight],
        validation.warm_start[eight],
    )  # fmt: skip
    found = AnswerRule.fit(fewer, "median", "auto", 0.9, 0.5).thresholds
    assert [found[group].guaranteed for group in ("many", "medium", "few")] == [True, True, False]
    assert found["few"].score == max(found["many"].score, found["medium"].score)


def test_an_image_without_any_number_is_read_as_the_prior() -> None:
    rule = AnswerRule.fit(known(200), "median", 0.0, 0.9, 0.5)
    found = rule.read(np.full((1, 40), -np.inf))
    assert found.mass[0] == 0
    assert found.value[0] == answer(np.exp(LOG_PRIOR)[None], VALUES, "median")[0]
    assert found.low[0] <= found.value[0] <= found.high[0]


def test_the_stretch_is_chosen_on_tune_around_the_training_mean() -> None:
    validation = known()
    centre = float(COUNTS @ VALUES / COUNTS.sum())
    assert validation.centre == pytest.approx(centre)
    means = plain_means(validation, validation.log_p)
    np.testing.assert_allclose(means, np.exp(validation.log_p + 0.05) @ VALUES)
    np.testing.assert_allclose(stretch(validation, means, 1.2), np.clip(centre + 1.2 * (means - centre), 0, 39))
    chosen = fit_stretch(validation, np.inf)
    assert chosen.value > 1, "the means shrink towards the training mean"
    assert chosen.chosen.mae == min(point.mae for point in chosen.curve)
    assert fit_stretch(validation, -10.0).value == 1
