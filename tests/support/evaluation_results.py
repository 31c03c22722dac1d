"""Builds evaluation results from hand-written answers, without a model."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from components.evaluate.results import MODELS, EvaluationResults, ModelResults, differences
from components.settings import Settings
from components.shared.reporting import metrics
from components.shared.reporting.predictions import (
    predictions_file,
    read_predictions,
    to_predictions,
    write_predictions,
)
from components.shared.scoring.shots import ShotTable

TITLES = {"base": "untrained", "sft": "SFT", "grpo": "CCC-GRPO"}


def evaluation_results(
    settings: Settings, folder: Path, train: Sequence[float], targets: Sequence[float], **answers: Sequence[float]
) -> EvaluationResults:
    """Evaluates the answers of `base`, `sft` and `grpo`; NaN is an unparseable answer."""
    task = settings.task
    train_targets = np.array(train, float)
    shots = ShotTable.of(train_targets, task.bin_width, task.resolution, task.many, task.few)
    truth = np.array(targets, float)
    models = []
    for name in MODELS:
        values = np.array(answers[name], float)
        ids = [f"image-{k}" for k in range(len(truth))]
        texts = [f"<answer> {value:g} </answer>" if value == value else "no <b>idea</b>" for value in values]
        path = predictions_file(folder, name)
        write_predictions(path, ids, truth, shots.shot(truth).tolist(), texts, values)
        table = read_predictions(path)
        predictions = to_predictions(table, task)
        models.append(ModelResults(name, TITLES[name], table, predictions, metrics.evaluate(predictions, 50, 0)))
    return EvaluationResults(settings, train_targets, shots, models, differences(models, settings.evaluate))
