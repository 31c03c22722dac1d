"""Skill against the best constant: hand-worked values, and whether its interval keeps its promise."""

import math

import numpy as np
import pytest

from components.shared.scoring.skill import Skill, best_constant


def test_skill_of_hand_worked_answers() -> None:
    """Gains 5, -1, 8, 6 of the constant's errors 10, 0, 10, 10: mean 4.5 of 7.5; Student's t of 3 is 3.182."""
    skill = Skill.of([5.0, 1.0, 2.0, 4.0], [0.0, 10.0, 20.0, 20.0])
    constant = 15.0
    gains = np.abs(np.array([0.0, 10.0, 20.0, 20.0]) - constant) - [5.0, 1.0, 2.0, 4.0]
    half = 3.182446 * gains.std(ddof=1) / 2
    assert skill.constant == constant
    assert (skill.mae, skill.constant_mae, skill.images) == (3.0, 7.5, 4)
    assert skill.value == pytest.approx(1 - 3 / 7.5)
    assert (skill.low, skill.high) == pytest.approx(
        ((gains.mean() - half) / 7.5, (gains.mean() + half) / 7.5), rel=1e-5
    )


def test_the_best_constant_has_the_lowest_mae() -> None:
    targets = np.random.default_rng(0).gamma(2, 20, 101)
    mae = [np.abs(targets - c).mean() for c in np.linspace(0, 200, 2001)]
    assert np.abs(targets - best_constant(targets)).mean() <= min(mae)


@pytest.mark.parametrize(
    ("errors", "targets"),
    [([0.0], [5.0]), ([0.0, 0.0], [5.0, 5.0]), ([1.0, 2.0], [5.0, 5.0])],
    ids=["one image", "equal targets, right", "equal targets, wrong"],
)
def test_nothing_is_shown_where_a_constant_cannot_be_wrong(errors: list[float], targets: list[float]) -> None:
    skill = Skill.of(errors, targets)
    assert skill.value == 0
    assert not skill.is_shown
    assert math.isfinite(skill.mae)


def test_a_constant_or_noise_is_rarely_called_skill_and_a_weak_signal_is_found() -> None:
    rng = np.random.default_rng(1)
    noise, weak = 0, 0
    for _ in range(200):
        targets = rng.uniform(0, 228, 500)
        assert not Skill.of(np.abs(targets - 80), targets).is_shown
        noise += Skill.of(np.abs(targets - rng.normal(114, 10, 500)), targets).is_shown
        weak += Skill.of(np.abs(targets - (0.4 * targets + 0.6 * rng.uniform(0, 228, 500))), targets).is_shown
    assert noise <= 5
    assert weak >= 195
