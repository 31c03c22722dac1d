"""The errors of one model's answers by each reading, and the readings' comparison at equal many-shot MAE."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from components.commands.ablation.answers import Answers
from components.settings import Task
from components.shared.scoring.answer_rule import AnswerRule, fit_stretch, plain_means, stretch
from components.shared.scoring.choice import BALANCES, Point
from components.shared.scoring.distribution import Statistic, answer, balanced
from components.shared.scoring.errors import Array, Predictions

# Below 0 the prior counts more than in training: models whose many-shot MAE is above the warm start's need it.
EQUAL_BALANCES: tuple[float, ...] = (*(-balance for balance in reversed(BALANCES[1:])), *BALANCES)


@dataclass(frozen=True)
class Reading:
    """The answers of one model by one reading.

    Attributes:
        errors: `(U,)` absolute errors, in the task's unit.
        figures: name -> figure for the table, such as the balance that was chosen.
        tune: the reading judged on the images that choices are made on; None for text and for `equal`.
    """

    errors: Array
    figures: Mapping[str, float] = field(default_factory=dict)
    tune: Point | None = None


def judge(
    answers: Answers, rule: AnswerRule, task: Task, tolerance: float, many: float | None = None
) -> dict[str, Reading]:
    """Readings by name; `equal` is missing if no balance has that many-shot MAE.

    Args:
        rule: median with `balance: auto`, fitted on the model's own validation images.
        tolerance: largest many-shot loss that the stretch may cause, in the task's unit.
        many: the many-shot MAE of `equal`; None: that of this model's own text.
    """
    known, tune = rule.validation, rule.validation.tune_set
    shots, factor = known.shots_of(answers.targets), fit_stretch(known, tolerance)

    def reading(values: Array, point: Point | None = None, **figures: float) -> Reading:
        given = Predictions(answers.targets, values, shots, task.low, task.high, task.resolution)
        spread = float(given.scored.std() / max(given.targets.std(), 1e-12))
        return Reading(given.errors, {"sd ratio": spread, **figures}, point)

    def plain(statistic: Statistic) -> Reading:
        on_tune, here = (
            answer(balanced(log_p, known.log_prior, 0.0), known.values, statistic)
            for log_p in (tune.log_p, answers.log_p)
        )
        return reading(here, tune.point(known.trained, on_tune))

    means = stretch(known, plain_means(known, answers.log_p), factor.value)
    found = {
        "text": reading(answers.text, unparseable=float(np.isnan(answers.text).mean())),
        "median": plain("median"),
        "auto": reading(rule.answers(answers.log_p), rule.balance.chosen, balance=rule.balance.value),
        "mean": plain("mean"),
        "stretched": reading(means, factor.chosen, factor=factor.value),
    }
    common = shots == "many"
    if not common.any():
        return found
    curve = [
        np.abs(
            answer(balanced(answers.log_p, known.log_prior, b - known.trained), known.values, "median")
            - answers.targets
        )
        for b in EQUAL_BALANCES
    ]
    wanted = float(found["text"].errors[common].mean()) if many is None else many
    at = crossing(EQUAL_BALANCES, curve, common, wanted)
    return found | ({"equal": Reading(at[1], {"balance": at[0]})} if at else {})


def crossing(
    balances: tuple[float, ...], curve: list[Array], common: NDArray[np.bool_], many: float
) -> tuple[float, Array] | None:
    """The balance at which the MAE of common numbers rises through `many`, and the errors there.

    Between two balances of the grid, every image's error is interpolated linearly. If the MAE rises through `many` more
    than once, the highest balance counts.

    Args:
        balances: ascending.
        curve: for each balance the absolute errors `(U,)`.
        common: `(U,)` mask of the many-shot images.

    Returns:
        Balance and errors `(U,)`; None if the MAE does not rise through `many`.
    """
    costs = [float(errors[common].mean()) for errors in curve]
    rises = [i for i in range(len(costs) - 1) if costs[i] <= many < costs[i + 1]]
    if not rises:
        return None
    i = rises[-1]
    part = (many - costs[i]) / (costs[i + 1] - costs[i])
    balance = balances[i] + part * (balances[i + 1] - balances[i])
    return balance, (1 - part) * curve[i] + part * curve[i + 1]
