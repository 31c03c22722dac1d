"""The rewards of the ablation beside the concordance: values by hand, and the rule for invalid answers."""

from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from components.grpo.concordance import slot_concordance, slot_pearson
from components.grpo.rewards import RewardName, crps_credit, format_reward, regression_reward

NAN = float("nan")
EACH_REWARD = pytest.mark.parametrize("name", get_args(RewardName))
OF_ONE_ANSWER = pytest.mark.parametrize("name", [name for name in get_args(RewardName) if name != "crps"])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mae", [[0, -0.1, -1], [-1, -0.05, -0.95]]),
        ("mse", [[0, -0.01, -1], [-1, -0.0025, -0.9025]]),
    ],
)
def test_per_sample_rewards_by_hand(name: RewardName, expected: list) -> None:
    predictions = [[30, 50, NAN], [NAN, 220, 20]]
    rewards = regression_reward(name, predictions, [30, 210], low=10, high=210)
    np.testing.assert_allclose(rewards, expected, atol=1e-12)


def test_batch_rewards_are_the_slotwise_ones() -> None:
    predictions, targets = np.array([[1.0, 2.0], [NAN, 7.0], [3.0, 3.5]]), np.array([1.0, 9.0, 3.0])
    np.testing.assert_array_equal(
        regression_reward("ccc", predictions, targets, 0, 10), slot_concordance(predictions, targets)
    )
    np.testing.assert_array_equal(
        regression_reward("pearson", predictions, targets, 0, 10), slot_pearson(predictions, targets)
    )


@OF_ONE_ANSWER
@given(
    predictions=arrays(np.float64, (5, 3), elements=st.one_of(st.floats(0, 10), st.just(NAN))),
    targets=arrays(np.float64, 5, elements=st.floats(0, 10)),
)
def test_invalid_answers_get_the_lowest_reward_and_all_rewards_are_bounded(
    name: RewardName, predictions: np.ndarray, targets: np.ndarray
) -> None:
    rewards = regression_reward(name, predictions, targets, low=0, high=10)
    valid = np.isfinite(predictions)
    assert rewards.shape == predictions.shape
    assert (rewards[~valid] == -1).all()
    assert ((rewards >= -1) & (rewards <= 1)).all()


@EACH_REWARD
def test_perfect_answers_get_the_highest_reward(name: RewardName) -> None:
    targets = np.array([1.0, 5.0, 9.0])
    rewards = regression_reward(name, targets[:, None], targets, low=0, high=10)
    np.testing.assert_allclose(rewards, 1 if name in ("ccc", "pearson") else 0, atol=1e-12)


def test_crps_credit_by_hand() -> None:
    """Target 2; F of the answers 1, 2, 4 is 1/3 from 1, 2/3 from 2, 1 from 4."""
    whole = 1 / 9 + 2 * 1 / 9  # (1/3)^2 on [1, 2), (1/3)^2 on [2, 4)
    without = [2 * 1 / 4, 1 / 4 + 2 * 1 / 4, 1 / 4]  # of {2, 4}, {1, 4} and {1, 2}
    expected = [value - whole for value in without]
    np.testing.assert_allclose(crps_credit([[1, 2, 4]], [2]), [expected], atol=1e-12)
    assert expected[2] < 0 < expected[0] < expected[1]  # leaving out the farthest answer helps
    rewards = regression_reward("crps", [[1, 2, 4]], [2], low=0, high=10)
    np.testing.assert_allclose(rewards, [np.array(expected) / 10], atol=1e-12)


def test_crps_credit_of_invalid_answers_and_small_groups() -> None:
    credit = crps_credit([[1, NAN, 2, 4], [NAN, NAN, NAN, 3], [NAN] * 4], [2, 0, 1])
    np.testing.assert_allclose(credit[0, [0, 2, 3]], crps_credit([[1, 2, 4]], [2])[0])
    assert credit[0, 1] == credit[0].min()
    assert (credit[1:] == 0).all()


@given(
    answers=arrays(np.int64, (3, 4), elements=st.integers(-1, 20)),
    targets=arrays(np.int64, 3, elements=st.integers(0, 20)),
)
def test_crps_credit_equals_the_integral_over_distribution_functions(answers: np.ndarray, targets: np.ndarray) -> None:
    """Independent of the formula with pairs: the squared distance of two step functions on a grid."""
    grid = np.arange(21)

    def score(group: np.ndarray, target: int) -> float:
        return float((((group[:, None] <= grid).mean(axis=0) - (target <= grid)) ** 2).sum())

    predictions = np.where(answers < 0, NAN, answers)
    for row, (group, target) in enumerate(zip(predictions, targets, strict=True)):
        valid = np.flatnonzero(np.isfinite(group))
        found = crps_credit(predictions, targets)[row]
        if len(valid) < 2:
            assert (found == 0).all()
            continue
        whole = score(group[valid], target)
        expected = np.array([score(np.delete(group[valid], k), target) - whole for k in range(len(valid))])
        np.testing.assert_allclose(found[valid], expected, atol=1e-12)
        assert (np.delete(found, valid) == found[valid].min()).all()


def test_format_reward() -> None:
    np.testing.assert_array_equal(format_reward([[0.0, NAN], [-3.0, np.inf]]), [[0.5, 0], [0.5, 0]])
