"""Recent anchors: the comparison follows the definition, age and number are bounded, and the state is saved exactly."""

import json

import numpy as np
import pytest

from components.grpo.concordance import concordance, slot_concordance
from components.grpo.recent_anchors import RecentAnchors

NAN = float("nan")


def test_slots_are_compared_with_the_batch_and_the_recent_anchors() -> None:
    recent = RecentAnchors(inputs=10, steps=5)
    recent.add(0, np.array([[10, 20], [NAN, 30], [NAN, NAN]]), [12, 33, 70])
    predictions, targets = np.array([[1.0, 3.0], [50.0, NAN]]), np.array([0.0, 60.0])
    rewards = slot_concordance(*recent.joined(1, predictions, targets))[:2]
    reference = [0, 60, 12, 33]  # the input without an answer is not kept
    expected = [
        [concordance([1, 50, 15, 30], reference), concordance([3, 50, 15, 30], reference)],
        [concordance([2, 50, 15, 30], reference), -1],
    ]
    np.testing.assert_allclose(rewards, expected, atol=1e-12)


def test_without_recent_anchors_the_batch_is_unchanged() -> None:
    predictions, targets = np.array([[1.0, 3.0], [50.0, NAN]]), np.array([0.0, 60.0])
    joined = RecentAnchors(8, 8).joined(0, predictions, targets)
    np.testing.assert_array_equal(joined[0], predictions)
    np.testing.assert_array_equal(joined[1], targets)


def test_recent_anchors_supply_the_tail_that_a_small_batch_lacks() -> None:
    """Two inputs with equal targets: alone, no answer agrees with a constant; with the tail, the right one is best."""
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
    kept = {step: recent.joined(step, np.empty((0, 2)), np.empty(0))[1].tolist() for step in (3, 4, 5, 6)}
    assert kept == {3: [1, 2, 3], 4: [2, 3], 5: [3], 6: []}


def test_the_state_is_restored_exactly() -> None:
    recent = RecentAnchors(5, 5)
    assert recent.joined(0, np.ones((1, 2)), [1.0])[0].shape == (1, 2)
    recent.add(3, np.random.default_rng(0).normal(size=(4, 3)), [0.1, 1 / 3, 1e-17, 4.0])
    restored = RecentAnchors.from_state(json.loads(json.dumps(recent.state())))
    assert restored.state() == recent.state()
    batch = np.ones((1, 2)), [1.0]
    for ours, theirs in zip(restored.joined(3, *batch), recent.joined(3, *batch), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("answers", [[[NAN, NAN]], np.empty((0, 2))])
def test_a_batch_without_a_valid_answer_adds_nothing(answers: list[list[float]]) -> None:
    recent = RecentAnchors(5, 5)
    recent.add(0, answers, [1.0][: len(answers)])
    assert recent.rows == []
