"""Predicts a split with every model of a study and compares the models by paired differences of their errors."""

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


def predict_split(task: tuple[Settings, Path, str, Path, Path, int]) -> None:
    """Writes one model's greedy answers to a split, unless the file exists.

    Args:
        task: settings, row shards, split, model folder, predictions file, CPU threads; one tuple, for a process pool.
    """
    settings, ingest, split, model_folder, path, threads = task
    if path.exists():
        return
    import torch

    from components.shared.model.generation import collect_answers
    from components.shared.model.loading import load

    torch.set_num_threads(threads)
    model, processor = load(model_folder, settings.model)
    limits = settings.evaluate
    rows = read_rows(ingest, split, limits.batch_size)
    ids, texts, values = collect_answers(
        model, processor, rows, limits.batch_size, limits.max_new_tokens, settings.task
    )
    targets, shots = _targets_and_shots(settings, ingest, split)
    partial = path.with_suffix(".partial")
    write_predictions(partial, ids, targets, shots.tolist(), texts, values)
    partial.replace(path)


def compare(
    settings: Settings, study: Study, ingest: Path, split: str, files: dict[str, Path], seeds: list[int]
) -> dict[str, Any]:
    """Computes the metrics of every model and the paired differences that the study asks for.

    Args:
        files: predictions files of `warm` and of every VARIANT-SEED.

    Raises:
        ConcordError: a predictions file is for other images.
    """
    rows = read_table(ingest, split, ["id"])["id"].to_pylist()

    def load(path: Path) -> Predictions:
        table = read_predictions(path)
        if table["id"].to_pylist() != rows:
            raise ConcordError(
                f"{path}: its answers are for other images than this {split} split. Delete it and retry."
            )
        return to_predictions(table, settings.task)

    predictions = {name: load(path) for name, path in files.items()}
    limits = settings.evaluate
    models = {name: evaluate(p, limits.bootstrap, limits.seed) for name, p in predictions.items()}
    warm = predictions["warm"]
    errors = {name: [predictions[f"{name}-{seed}"].errors for seed in seeds] for name in study.variants}
    errors["warm"] = [warm.errors] * len(seeds)
    paired = {
        f"{ours} - {theirs}": {
            group: paired_difference(errors[ours], errors[theirs], warm.members(group), 2000, limits.seed)
            for group in GROUPS
        }
        for ours, theirs in study.pairs
    }
    return {"split": split, "seeds": seeds, "models": models, "paired": paired}


def _targets_and_shots(settings: Settings, ingest: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    task = settings.task
    train = read_table(ingest, "train", ["target"])["target"].to_numpy()
    targets = read_table(ingest, split, ["target"])["target"].to_numpy()
    return targets, ShotTable.of(train, task.bin_width, task.resolution, task.many, task.few).shot(targets)
