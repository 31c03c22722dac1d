"""Builds evaluation results from hand-written answers and log-probabilities, without a model."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from components.evaluate.judging import TestReadings, TestSet, judge, judge_constants
from components.evaluate.results import MODELS, EvaluationResults, ModelResults, choose_served, differences
from components.settings import Settings, Task
from components.shared.model.answer_tree import task_values
from components.shared.model.validation_file import label_counts
from components.shared.scoring.answer_rule import AnswerRule, ValidationDistributions
from components.shared.scoring.errors import Array
from components.shared.scoring.shots import ShotTable
from components.shared.scoring.skill import best_constant

TITLES = {"base": "untrained", "sft": "SFT", "grpo": "CCC-GRPO"}


def evaluation_results(
    settings: Settings,
    folder: Path,
    train: Sequence[float],
    targets: Sequence[float],
    log_p: Mapping[str, Array] | None = None,
    /,
    **answers: Sequence[float],
) -> EvaluationResults:
    """Evaluates the answers of `base`, `sft` and `grpo`; NaN is an unparseable answer.

    The validation images are the test images twice: once for choices, once for the thresholds of intervals.

    Args:
        log_p: by model, `(U, N)` log-probabilities of all numbers of the task; without them, those of `around`.
    """
    limits = settings.evaluate.model_copy(update={"bootstrap": 50})
    settings = settings.model_copy(update={"evaluate": limits})
    task, truth = settings.task, np.array(targets, float)
    train_targets = np.array(train, float)
    shots = ShotTable.of(train_targets, task.bin_width, task.resolution, task.many, task.few)
    subjects: list[str | None] = [None] * len(truth)
    ids = [f"image-{k}" for k in range(len(truth))]
    test = TestSet(folder, ids, truth, shots.shot(truth), subjects, best_constant(truth))
    models: dict[str, ModelResults] = {}
    for name in MODELS:
        values = np.array(answers[name], float)
        texts = [f"<answer> {value:g} </answer>" if value == value else "no <b>idea</b>" for value in values]
        known = (log_p or {}).get(name, around(values, task))
        readings = TestReadings(test.ids, texts, values, task_values(task), known)
        rule = (
            None if name == "base" else fitted(settings, train_targets, truth, known, np.array(answers["sft"], float))
        )
        models[name] = judge(settings, name, TITLES[name], readings, test, rule, models.get("sft"), folder)
    judged = list(models.values())
    served = choose_served(judged, settings.answer, settings.registry.tolerance_many)
    constants = judge_constants(settings, test, train_targets)
    return EvaluationResults(
        settings, train_targets, shots, judged, constants, served, differences(judged, served, limits)
    )


def fitted(settings: Settings, train: Array, targets: Array, log_p: Array, warm_start: Array) -> AnswerRule:
    """The rule fitted on images that occur twice: once for choices, once for thresholds."""
    counts, shots, per_bin = label_counts(settings.task, train)
    twice = ValidationDistributions(
        task_values(settings.task), counts, shots, per_bin, 0.0, np.repeat([True, False], len(targets)),
        np.tile(targets, 2), np.tile(log_p, (2, 1)), np.tile(warm_start, 2),
    )  # fmt: skip
    answer = settings.answer
    tolerance = settings.registry.tolerance_many
    return AnswerRule.fit(twice, answer.statistic, answer.balance, answer.coverage, tolerance)


def around(values: Array, task: Task) -> Array:
    """Log-probabilities that halve with each step away from the answer; equal ones of mass 1/2 where there is none."""
    steps = np.abs(task_values(task) - np.nan_to_num(values)[:, None]) / task.resolution
    p = np.where(np.isfinite(values)[:, None], 0.5**steps, 1.0)
    p /= p.sum(axis=1, keepdims=True)
    return np.asarray(np.log(np.where(np.isfinite(values)[:, None], p, p / 2)), np.float64)
