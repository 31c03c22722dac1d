"""Advantages: values by hand, and outcomes with probabilities against samples with those frequencies."""

import numpy as np
import pytest

from components.grpo.advantages import Scale, group_advantages, group_spread

# Two rewards of two groups; the first reward has no spread in the second group.
REWARDS = np.array([[[1, 3], [2, 2]], [[0, 0.5], [0.5, 0]]])


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        ("none", [[-1 - 0.25, 1 + 0.25], [0.25, -0.25]]),
        ("group", [[-2, 2], [1, -1]]),
        ("batch", [[-(2**0.5) - 1, 2**0.5 + 1], [1, -1]]),
    ],
)
def test_by_hand(scale: Scale, expected: list) -> None:
    np.testing.assert_allclose(group_advantages(REWARDS, [1, 1], scale), expected, atol=1e-12)
    np.testing.assert_allclose(group_spread(REWARDS), [[1.0, 0.0], [0.25, 0.25]], atol=1e-12)


@pytest.mark.parametrize("scale", ["none", "group", "batch"])
def test_probabilities_weigh_like_frequencies(scale: Scale) -> None:
    rng = np.random.default_rng(0)
    rewards, counts = rng.normal(size=(2, 3, 4)), np.array([[1, 2, 3, 4], [7, 1, 1, 1], [0, 5, 5, 0]])
    outcomes = np.array([np.repeat(np.arange(4), row) for row in counts])  # (3, 10)
    samples = np.take_along_axis(rewards, np.broadcast_to(outcomes, (2, 3, 10)), axis=2)
    expected = group_advantages(samples, [0.7, 0.3], scale)
    found = group_advantages(rewards, [0.7, 0.3], scale, counts / 10)
    np.testing.assert_allclose(np.take_along_axis(found, outcomes, axis=1), expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(group_spread(rewards, counts / 10), group_spread(samples), rtol=1e-12)
