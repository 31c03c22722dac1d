"""Which trainings could teach nothing, from their log entries."""

from pathlib import Path

import pytest

from components.errors import ConcordError
from components.grpo.signal import check_signal
from tests.support.gauge_world import write_params

History = list[dict[str, float]]


def sampled(invalid: list[float], spread: list[float]) -> History:
    return [{"invalid": i, "spread/ccc": s, "reward/ccc": 0.5} for i, s in zip(invalid, spread, strict=True)]


@pytest.mark.parametrize(
    ("history", "message"),
    [
        (sampled([1, 1, 1], [0, 0, 0]), "all answers of all 3 steps are invalid"),
        (sampled([0, 0.5], [0, 0]), "in all 2 steps, all answers to an image got the same reward ccc"),
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
