"""Recent anchors: the comparison is that of the definition, age and number are bounded, and state is kept exactly."""

import json

import numpy as np
import pytest

from components.grpo.concordance import concordance, slot_concordance
from components.grpo.recent_anchors import RecentAnchors

NAN = float("nan")


def test_a_slot_is_compared_with_the_batch_and_what_is_remembered() -> None:
    recent = RecentAnchors(inputs=10, steps=5)
    recent.add(0, [[10, 20], [NAN, 30], [NAN, NAN]], [12, 33, 70])
    predictions, targets = np.array([[1.0, 3.0], [50.0, NAN]]), np.array([0.0, 60.0])
    rewards = slot_concordance(*recent.joined(1, predictions, targets))[:2]
    reference = [0, 60, 12, 33]  # the input without an answer is not remembered
    expected = [
        [concordance([1, 50, 15, 30], reference), concordance([3, 50, 15, 30], reference)],
        [concordance([2, 50, 15, 30], reference), -1],
    ]
    np.testing.assert_allclose(rewards, expected, atol=1e-12)


def test_nothing_remembered_is_the_batch_alone() -> None:
    predictions, targets = np.array([[1.0, 3.0], [50.0, NAN]]), np.array([0.0, 60.0])
    joined = RecentAnchors(8, 8).joined(0, predictions, targets)
    np.testing.assert_array_equal(joined[0], predictions)
    np.testing.assert_array_equal(joined[1], targets)


def test_the_tail_that_a_small_batch_lacks_is_seen() -> None:
    """Two inputs alike in target: alone, no answer can agree with a constant; with the tail beside, the right one is
    best."""
    predictions, targets = np.array([[20.0, 21.0, 35.0], [20.0, 20.0, 20.0]]), np.array([20.0, 20.0])
    assert np.ptp(slot_concordance(predictions, targets)[0]) == 0
    recent = RecentAnchors(8, 8)
    recent.add(0, [[80, 90], [10, 12]], [85, 10])
    rewards = slot_concordance(*recent.joined(1, predictions, targets))[0]
    assert rewards[0] > rewards[1] > rewards[2]


def test_number_and_age_are_bounded() -> None:
    recent = RecentAnchors(inputs=3, steps=2)
    for step in range(4):
        recent.add(step, [[step, step]], [step])
    ages = {step: recent.joined(step, np.empty((0, 2)), np.empty(0))[1].tolist() for step in (3, 4, 5, 6)}
    assert ages == {3: [1, 2, 3], 4: [2, 3], 5: [3], 6: []}


def test_state_is_kept_to_the_bit() -> None:
    recent, again = RecentAnchors(5, 5), RecentAnchors(5, 5)
    recent.add(3, np.random.default_rng(0).normal(size=(4, 3)), [0.1, 1 / 3, 1e-17, 4.0])
    again.restore(json.loads(json.dumps(recent.state())))
    assert again.state() == recent.state()
    again.restore([])
    assert again.joined(0, np.ones((1, 2)), [1.0])[0].shape == (1, 2)


@pytest.mark.parametrize("answers", [[[NAN, NAN]], np.empty((0, 2))])
def test_a_batch_without_an_answer_adds_nothing(answers: list[list[float]]) -> None:
    recent = RecentAnchors(5, 5)
    recent.add(0, answers, [1.0][: len(answers)])
    assert recent.state() == []
