"""Readings of hand-made distributions, and their errors at equal many-shot MAE."""

import numpy as np
import pytest

from components.commands.ablation.answers import Answers
from components.commands.ablation.judging import crossing, judge
from components.settings import Settings, Task
from components.shared.scoring.answer_rule import AnswerRule, ValidationDistributions
from components.shared.scoring.distribution import smoothed_prior
from components.shared.scoring.errors import Array


@pytest.fixture
def task(settings: Settings) -> Task:
    return settings.task.model_copy(update={"low": 0, "high": 3, "resolution": 1, "bin_width": 1})


def rule_of(values: Array, counts: Array, shots: np.ndarray, log_p: Array, targets: Array) -> AnswerRule:
    """Median with `auto`, fitted on these images; the warm start answered 0 to each."""
    known = ValidationDistributions(
        values=values,
        counts=counts,
        shots=shots,
        per_bin=1,
        trained=0.0,
        tune=np.ones(len(targets), bool),
        targets=targets,
        log_p=log_p,
        warm_start=np.zeros(len(targets)),
    )
    return AnswerRule.fit(known, "median", "auto", 0.9, tolerance=10)


def test_readings_of_a_model_by_hand(task: Task) -> None:
    """Every number is equally frequent, so no balance changes anything; the centre of the stretch is 1.5."""
    # Means 1 and 2, labels 0 and 3: stretched by 2 they are 0.5 and 2.5, the best that any factor reaches.
    tune = np.log([[0.5, 0.25, 1e-300, 0.25], [0.25, 1e-300, 0.25, 0.5]])
    rule = rule_of(np.arange(4.0), np.full(4, 5.0), np.full(4, "few"), tune, np.array([0.0, 3.0]))
    # Means 1.25 and 2, medians 1 and 2.
    log_p = np.log([[0.25, 0.25, 0.5, 1e-300], [1e-300, 0.25, 0.5, 0.25]])
    found = judge(Answers(np.array(["a", "b"]), np.array([1.0, 3.0]), np.array([2.0, np.nan]), log_p), rule, task, 10)
    assert found["text"].errors.tolist() == [1, 3], "an unparseable answer is the worst possible one"
    assert found["text"].figures["unparseable"] == 0.5
    assert found["median"].errors.tolist() == [0, 1]
    assert found["mean"].errors == pytest.approx([0.25, 1])
    assert found["mean"].figures["sd ratio"] == pytest.approx(0.375)
    assert found["stretched"].errors == pytest.approx([0, 0.5])  # 1.5 + 2 (1.25 - 1.5) = 1 and 1.5 + 2 * 0.5 = 2.5
    assert found["stretched"].figures["factor"] == 2
    assert found["auto"].figures["balance"] == 0
    assert found["auto"].errors.tolist() == [0, 1]
    # On tune: means 1 and 2 are off by 1; stretched, by 0.5; the medians are 0 and 2.
    on_tune = {name: reading.tune.mae for name, reading in found.items() if reading.tune}
    assert on_tune == pytest.approx({"median": 0.5, "auto": 0.5, "mean": 1, "stretched": 0.5})
    assert "equal" not in found, "no image is many-shot"


def test_equal_many_shot_mae_is_reached_between_two_balances(settings: Settings) -> None:
    """Numbers below 10 are common: dividing the prior out moves answers away from them."""
    values, rng = np.arange(40.0), np.random.default_rng(0)
    counts = np.where(values < 10, 50.0, 1.0)
    targets = np.repeat(values, 5)
    seen = targets + rng.normal(0, 3, len(targets))
    log_p = -np.abs(values - seen[:, None]) / 4 + np.log(smoothed_prior(counts, 1))
    rule = rule_of(values, counts, np.where(values < 10, "many", "few"), log_p, targets)
    common = targets < 10
    answers = Answers(targets.astype(str), targets, targets, log_p)
    task = settings.task.model_copy(update={"low": 0, "high": 39})
    plain = judge(answers, rule, task, 10)["median"].errors[common].mean()
    for many in (plain + 0.1, plain + 0.25):
        equal = judge(answers, rule, task, 10, many)["equal"]
        assert equal.errors[common].mean() == pytest.approx(many)
    # Without a given MAE, it is that of the model's own text.
    written = Answers(answers.ids, targets, targets + np.where(common, plain + 0.1, 0), log_p)
    assert judge(written, rule, task, 10)["equal"].errors[common].mean() == pytest.approx(plain + 0.1)
    assert "equal" not in judge(answers, rule, task, 10, many=30.0)


@pytest.mark.parametrize(
    ("many", "balance", "errors"),
    [
        (2.5, 0.625, [2.5, 2.5, 0.75]),  # a quarter of the way from the second to the third balance
        (2.0, 0.5, [2, 2, 1]),  # exactly at the second
        (1.5, 0.25, [1, 2, 3]),  # half-way from [0, 2, 5] to [2, 2, 1]
        (4.0, None, None),  # above all but the last
        (0.5, None, None),
    ],
)
def test_crossing_is_interpolated_for_each_image(
    many: float, balance: float | None, errors: list[float] | None
) -> None:
    curve = [np.array(row) for row in ([0.0, 2.0, 5.0], [2.0, 2.0, 1.0], [4.0, 4.0, 0.0])]
    found = crossing((0.0, 0.5, 1.0), curve, np.array([True, True, False]), many)
    if balance is None:
        assert found is None
    else:
        assert found is not None
        assert found[0] == pytest.approx(balance)
        assert found[1] == pytest.approx(errors)


def test_highest_crossing_counts() -> None:
    """Many-shot MAE 1, 3, 1, 3: it rises through 2 twice."""
    curve = [np.array([value]) for value in (1.0, 3.0, 1.0, 3.0)]
    found = crossing((0.0, 1.0, 2.0, 3.0), curve, np.array([True]), 2.0)
    assert found is not None
    assert found[0] == 2.5
