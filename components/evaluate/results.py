"""The results of the evaluation, as the report, the plots and the output files use them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa

from components.settings import Evaluate, Model, RewardName, Settings
from components.shared.reporting.metrics import paired_difference
from components.shared.scoring.errors import Array, Predictions
from components.shared.scoring.shots import GROUPS, ShotTable
from components.steps import metrics_file

MODELS = ("base", "sft", "grpo")


@dataclass(frozen=True)
class ModelResults:
    """One model's answers and metrics.

    Attributes:
        name: `base`, `sft` or `grpo`.
        title: name shown to users.
        table: the predictions, see `components.shared.reporting.predictions.SCHEMA`.
        predictions: the same as arrays.
        metrics: result of `components.shared.reporting.metrics.evaluate`.
    """

    name: str
    title: str
    table: pa.Table
    predictions: Predictions
    metrics: dict[str, Any]


@dataclass(frozen=True)
class EvaluationResults:
    """The results of all models.

    Attributes:
        train: training targets `(N,)`.
        models: in the order of `MODELS`, for the same test images.
        differences: shot group -> paired difference of absolute errors, GRPO minus SFT.
    """

    settings: Settings
    train: Array
    shots: ShotTable
    models: Sequence[ModelResults]
    differences: dict[str, dict[str, Any]]


def titles(settings: Model, grpo: Path) -> dict[str, str]:
    """Names of the models shown to users.

    Args:
        grpo: its model folder; the metrics file in it says which reward it was trained with.
    """
    with open(metrics_file(grpo), encoding="utf-8") as file:
        metrics = json.load(file)
    reward = next((name for name in get_args(RewardName) if f"reward/{name}" in metrics), None)
    return {
        "base": "untrained" if settings.name == "tiny" else "base model",
        "sft": "SFT",
        "grpo": "CCC-GRPO" if reward == "ccc" else f"GRPO ({reward.upper()})" if reward else "GRPO",
    }


def differences(models: Sequence[ModelResults], settings: Evaluate) -> dict[str, dict[str, Any]]:
    """Paired differences GRPO minus SFT by shot group; below 0, GRPO is better."""
    ours, theirs = (next(m.predictions for m in models if m.name == name) for name in ("grpo", "sft"))
    return {
        group: paired_difference([ours.errors], [theirs.errors], ours.members(group), settings.bootstrap, settings.seed)
        for group in GROUPS
    }
