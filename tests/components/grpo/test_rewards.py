"""The rewards of the ablation beside the concordance: values by hand, and the rule for invalid answers."""

from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from components.grpo.concordance import slot_concordance, slot_pearson
from components.grpo.rewards import RewardName, format_reward, regression_reward

NAN = float("nan")
EACH_REWARD = pytest.mark.parametrize("name", get_args(RewardName))


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


@EACH_REWARD
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


def test_format_reward() -> None:
    np.testing.assert_array_equal(format_reward([[0.0, NAN], [-3.0, np.inf]]), [[0.5, 0], [0.5, 0]])
