"""The data of the figures as tables for `dvc plots`, and the bins that figures and tables share."""

import csv
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from components.evaluate.results import MODELS, Answers, EvaluationResults
from components.shared.io.text import cell
from components.shared.scoring.errors import Array
from components.shared.scoring.shots import label_bins

MAX_BINS = 26


def write_plot_data(results: EvaluationResults, folder: Path) -> None:
    """Writes mae_per_bin.csv, predictions.csv and balance.csv for `dvc plots`."""
    folder.mkdir()
    rows = list(mae_per_bin(results))
    _write(folder / "mae_per_bin.csv", list(rows[0]), [list(row.values()) for row in rows])
    _write(folder / "predictions.csv", ["model", "id", "shot", "target", "value", "error"], _predictions(results))
    _write(folder / "balance.csv", ["model", "split", "balance", "mae", "many", "few"], _balances(results))


def columns(results: EvaluationResults) -> dict[str, Answers]:
    """The answers in the tables: the text of every model, and what is served."""
    return {name: results.answers(f"{name}.text") for name in MODELS} | {"served": results.served_answers}


def edges(results: EvaluationResults) -> Array:
    """Edges of the bins in the figures: neighbouring label bins are merged until about `MAX_BINS` remain."""
    task = results.settings.task
    first, last = label_bins([task.low, task.high], task.bin_width, task.resolution)
    merged = -(-(last - first + 1) // MAX_BINS)
    cells = np.append(np.arange(first, last + 1, merged), last + 1)
    return cells * task.bin_width - task.resolution / 2  # so that labels lie inside their bin, not on its edge


def mae_per_bin(results: EvaluationResults) -> Iterator[dict[str, object]]:
    """Yields one row per bin: its middle, its number of training and test images, and the MAE of each of `columns`."""
    limits = edges(results)
    train, _ = np.histogram(results.train, limits)
    index = np.clip(np.digitize(results.targets, limits) - 1, 0, len(limits) - 2)
    for bin, (low, high) in enumerate(pairwise(limits)):
        inside = index == bin
        row: dict[str, object] = {
            "target": round(float(low + high) / 2, 6),
            "train": int(train[bin]),
            "test": int(inside.sum()),
        }
        for name, answers in columns(results).items():
            row[name] = round(float(answers.predictions.errors[inside].mean()), 6) if inside.any() else None
        yield row


def _predictions(results: EvaluationResults) -> Iterator[list[object]]:
    for name, answers in columns(results).items():
        ids, predictions = results.model(answers.model).table["id"].to_pylist(), answers.predictions
        values = [float(value) if np.isfinite(value) else None for value in predictions.values]
        for id, target, value, shot in zip(ids, predictions.targets, values, predictions.shots, strict=True):
            yield [name, cell(id), str(shot), target, value, None if value is None else value - target]


def _balances(results: EvaluationResults) -> Iterator[list[object]]:
    for model, known in results.trained:
        for split, curve in (("tune", known.rule.balance.curve), ("test", known.test_curve)):
            for point in curve:
                yield [model.name, split, point.value, point.mae, point.many, point.few]


def _write(path: Path, header: list[str], rows: Iterator[list[object]] | list[list[object]]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(["" if cell is None else cell for cell in row] for row in rows)
