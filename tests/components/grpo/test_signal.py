"""Which trainings could teach nothing, from their log entries."""

from pathlib import Path

import numpy as np
import pytest

from components.errors import ConcordError
from components.grpo.batch_rewards import BatchScores
from components.grpo.signal import check_signal
from tests.support.gauge_world import write_params

History = list[dict[str, float]]


def sampled(invalid: list[float], spread: list[float]) -> History:
    return [{"invalid": i, "spread/ccc": s, "reward/ccc": 0.5} for i, s in zip(invalid, spread, strict=True)]


@pytest.mark.parametrize(
    ("history", "message"),
    [
        (sampled([1, 1, 1], [0, 0, 0]), "all answers of all 3 steps are invalid"),
        (sampled([0, 0.5], [0, 0]), "in all 2 steps, all valid answers to an image got the same reward ccc"),
        ([{"reward/ccc": 0.0, "mass": 0.9}] * 2, "the reward ccc is 0 in all 2 steps"),
    ],
)
def test_a_training_without_a_signal_is_an_error(history: History, message: str, tmp_path: Path) -> None:
    grpo = write_params(tmp_path / "params.yaml", grpo={"no_signal": "error"}).grpo
    with pytest.raises(ConcordError, match=message) as error:
        check_signal(grpo, [*history, {"val_score": 3.0}], ".checkpoints/x")
    assert ".checkpoints/x" in str(error.value)


@pytest.mark.parametrize(
    "history",
    [
        sampled([1, 0.99], [0, 0.1]),
        sampled([0, 0], [0, 1e-9]),
        [{"reward/ccc": 0.1}, {"reward/ccc": 0.2}],
        [{"reward/ccc": 0.1}],
        [],
    ],
)
def test_one_step_with_a_signal_is_enough(history: History, tmp_path: Path) -> None:
    check_signal(write_params(tmp_path / "params.yaml", grpo={"no_signal": "error"}).grpo, history, "x")


def test_invalid_answers_are_no_signal() -> None:
    """Both valid answers to the first image get the same reward; the lower one of the third answer says nothing."""
    assert spread([[0.5, 0.5, -1], [0.5, -1, -1], [-1, -1, -1]]) == 0
    assert spread([[0.5, 0.3, -1], [0.5, -1, -1], [-1, -1, -1]]) == pytest.approx(0.1 / 2), "of images with an answer"
    assert spread([[-1, -1, -1]]) == 0


def spread(rewards: list[list[float]]) -> float:
    """Of the rewards of three answers to each image, of which those with -1 are invalid."""
    given = np.array(rewards)
    predictions = np.where(given == -1, np.nan, 10.0)
    targets, shots = np.full(len(given), 10.0), np.array(["many"] * len(given))
    return BatchScores(predictions, targets, shots, np.stack([given, given])).metrics("ccc")["spread/ccc"]
