"""Judgement of the arms: predictions once a model, then paired differences over images and seeds."""

from pathlib import Path
from typing import Any

import numpy as np

from components.commands.ablation.studies import Study
from components.errors import ConcordError
from components.settings import Settings
from components.shared.reporting.metrics import evaluate, paired_difference
from components.shared.reporting.predictions import read_predictions, to_predictions, write_predictions
from components.shared.rows.rows import read_rows, read_table
from components.shared.scoring.errors import Predictions
from components.shared.scoring.shots import GROUPS, ShotTable


def predict(work: tuple[Settings, Path, str, Path, Path, int]) -> None:
    """Greedy answers of one model to a split, kept at `place`; what stands there is not made again."""
    settings, ingest, split, model_folder, place, threads = work
    if place.exists():
        return
    import torch

    from components.shared.model.generation import answers
    from components.shared.model.loading import load

    torch.set_num_threads(threads)
    model, processor = load(model_folder, settings.model)
    limits = settings.evaluate
    rows = read_rows(ingest, split, limits.batch_size)
    ids, texts, values = answers(model, processor, rows, limits.batch_size, limits.max_new_tokens, settings.task)
    targets, shots = _labels(settings, ingest, split)
    partial = place.with_suffix(".partial")
    write_predictions(partial, ids, targets, shots.tolist(), texts, values)
    partial.replace(place)


def judge(
    settings: Settings, study: Study, ingest: Path, split: str, places: dict[str, Path], seeds: list[int]
) -> dict[str, Any]:
    """Metrics of every model, and the study's pairs.

    Args:
        places: predictions of `warm` and of ARM-SEED.
    """
    rows = read_table(ingest, split, ["id"])["id"].to_pylist()

    def load(place: Path) -> Predictions:
        table = read_predictions(place)
        if table["id"].to_pylist() != rows:
            raise ConcordError(f"{place}: not the answers to this {split} split. Remove it and run again.")
        return to_predictions(table, settings.task)

    found = {name: load(place) for name, place in places.items()}
    limits = settings.evaluate
    models = {name: evaluate(p, limits.bootstrap, limits.seed) for name, p in found.items()}
    errors = {arm: [found[f"{arm}-{seed}"].errors for seed in seeds] for arm in study.arms}
    errors["warm"] = [found["warm"].errors] * len(seeds)
    paired = {
        f"{ours} - {theirs}": {
            group: paired_difference(errors[ours], errors[theirs], found["warm"].members(group), 2000, limits.seed)
            for group in GROUPS
        }
        for ours, theirs in study.pairs
    }
    return {"split": split, "seeds": seeds, "models": models, "paired": paired}


def _labels(settings: Settings, ingest: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    task = settings.task
    train = read_table(ingest, "train", ["target"])["target"].to_numpy()
    targets = read_table(ingest, split, ["target"])["target"].to_numpy()
    return targets, ShotTable.of(train, task.bin_width, task.resolution, task.many, task.few).shot(targets)
