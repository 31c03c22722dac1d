"""Judgements made by hand: the answers are given, no model is asked."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from components.evaluate.results import MODELS, Judged, Judgement, differences
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


def judgement(
    settings: Settings, folder: Path, train: Sequence[float], targets: Sequence[float], **answers: Sequence[float]
) -> Judgement:
    """What the models called `base`, `sft` and `grpo` come to; NaN is an unparseable answer."""
    task = settings.task
    counted = np.array(train, float)
    shots = ShotTable.of(counted, task.bin_width, task.resolution, task.many, task.few)
    truth = np.array(targets, float)
    models = []
    for name in MODELS:
        values = np.array(answers[name], float)
        ids = [f"image-{k}" for k in range(len(truth))]
        texts = [f"<answer> {value:g} </answer>" if value == value else "no <b>idea</b>" for value in values]
        path = predictions_file(folder, name)
        write_predictions(path, ids, truth, shots.shot(truth).tolist(), texts, values)
        table = read_predictions(path)
        found = to_predictions(table, task)
        models.append(Judged(name, TITLES[name], table, found, metrics.evaluate(found, 50, 0)))
    return Judgement(settings, counted, shots, models, differences(models, settings.evaluate))
