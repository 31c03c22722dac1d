"""Metrics of distributions and intervals by shot group, with bootstrap intervals over the test images."""

from typing import Any

import numpy as np

from components.shared.reporting.metrics import Statistic, mean_over, median_over, with_intervals
from components.shared.scoring.answer_rule import AnswerRule, Readings
from components.shared.scoring.distribution import central_interval, crps, interval_score
from components.shared.scoring.errors import Array, Predictions
from components.shared.scoring.shots import GROUPS, SHOTS

LOW_MASS = 0.9
INTERVALS = ("conformal", "own")


def evaluate_distribution(
    rule: AnswerRule, log_p: Array, readings: Readings, predictions: Predictions, times: int, seed: int
) -> dict[str, Any]:
    """CRPS, intervals and mass of one model.

    Args:
        rule: gives the distribution, its numbers, and the coverage that is promised.
        log_p: `(U, N)` of the test images.
        readings: of the rule, for the same images.
        predictions: gives targets and shot groups.

    Returns:
        `{"groups": {group: {"n", "crps", "conformal": {"coverage", "width", "score", "guaranteed"}, "own": {...}}},
        "mass": {"mean", "least", "below_0.9"}}`; each figure has its 95 % interval beside it, with the suffix `_ci`.
        `own` is the distribution's central interval, without calibration. CRPS, median width and interval score are in
        the task's unit. An empty group has `n` 0 and None for every figure. `all` is guaranteed if every group that
        has images is.
    """
    statistics = _statistics(rule, log_p, readings, predictions)
    point, spread = with_intervals(
        lambda weights: {name: statistic(weights) for name, statistic in statistics.items()},
        len(predictions.targets), times, seed, predictions.subjects,
    )  # fmt: skip

    def pair(key: str, name: str) -> dict[str, Any]:
        return {key: point.get(name), f"{key}_ci": spread.get(name)}

    groups: dict[str, Any] = {}
    for group in GROUPS:
        groups[group] = {"n": int(predictions.members(group).sum()), **pair("crps", f"{group}.crps")}
        for kind in INTERVALS:
            groups[group][kind] = {
                k: v for key in ("coverage", "width", "score") for k, v in pair(key, f"{group}.{kind}.{key}").items()
            }
        groups[group]["conformal"]["guaranteed"] = _guaranteed(rule, predictions, group)
    mass = pair("mean", "mass.mean") | {"least": float(readings.mass.min())} | pair("below_0.9", "mass.below")
    return {"coverage": rule.coverage, "groups": groups, "mass": mass}


def _statistics(rule: AnswerRule, log_p: Array, readings: Readings, predictions: Predictions) -> dict[str, Statistic]:
    """Functions of the images' weights, by name."""
    values, targets, coverage = rule.validation.values, predictions.targets, rule.coverage
    q = rule.distribution(log_p)
    limits = {"conformal": (readings.low, readings.high), "own": central_interval(q, values, coverage)}
    score, everything = crps(q, values, targets), predictions.members("all")
    found: dict[str, Statistic] = {
        "mass.mean": mean_over(readings.mass, everything),
        "mass.below": mean_over((readings.mass < LOW_MASS).astype(np.float64), everything),
    }
    for group in GROUPS:
        mask = predictions.members(group)
        if not mask.any():
            continue
        found[f"{group}.crps"] = mean_over(score, mask)
        for kind, (low, high) in limits.items():
            inside = ((low <= targets) & (targets <= high)).astype(np.float64)
            found[f"{group}.{kind}.coverage"] = mean_over(inside, mask)
            found[f"{group}.{kind}.width"] = median_over(high - low, mask)
            found[f"{group}.{kind}.score"] = mean_over(interval_score(low, high, targets, coverage), mask)
    return found


def _guaranteed(rule: AnswerRule, predictions: Predictions, group: str) -> bool:
    if group != "all":
        return rule.thresholds[group].guaranteed
    return all(rule.thresholds[shot].guaranteed for shot in SHOTS if predictions.members(shot).any())
