"""Evaluates the greedy answers of the untrained, the SFT and the GRPO model on the test set, by shot group."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from components.errors import ConcordError
from components.evaluate.plots import write_figures, write_plot_data
from components.evaluate.report import TAIL, write_report
from components.evaluate.results import MODELS, EvaluationResults, ModelResults, differences, titles
from components.settings import Settings
from components.shared.io.atomic import new_folder, write_json
from components.shared.io.progress import with_progress
from components.shared.model.device import device
from components.shared.model.generation import collect_answers
from components.shared.model.loading import base_model, load
from components.shared.reporting import metrics
from components.shared.reporting.predictions import (
    predictions_file,
    read_predictions,
    to_predictions,
    write_predictions,
)
from components.shared.reporting.tail import write_tail
from components.shared.rows.histogram import label_histogram
from components.shared.rows.rows import SPLITS, read_rows, read_table
from components.shared.scoring.shots import ShotTable
from components.shared.tracking.step_run import StepRun


def run(settings: Settings, track: StepRun, *, ingest: Path, sft: Path, grpo: Path, out: Path, report: Path) -> None:
    """Evaluates the three models and writes two folders.

    Args:
        ingest: row shards; shot groups come from train, images from test; the report shows the labels of all splits.
        sft, grpo: model folders.
        out: predictions-{base,sft,grpo}.parquet, metrics.json, differences.json, titles.json, shots.json,
            plots/*.csv for DVC.
        report: report.html, a self-contained file, and its figures as PNG.

    Raises:
        ConcordError: the test split is empty, or a model cannot be loaded.
    """
    task = settings.task
    loaders: dict[str, Callable[[], tuple[Any, Any]]] = {
        "base": lambda: base_model(settings, ingest),
        "sft": lambda: load(sft, settings.model),
        "grpo": lambda: load(grpo, settings.model),
    }
    targets = {split: read_table(ingest, split, ["target"])["target"].to_numpy() for split in SPLITS}
    train, histogram = targets["train"], label_histogram(targets, task)
    model_titles = titles(settings.model, grpo)
    shots = ShotTable.of(train, task.bin_width, task.resolution, task.many, task.few)
    with new_folder(out) as folder:
        models = []
        for name in MODELS:
            path = predictions_file(folder, name)
            _predict(settings, model_titles[name], loaders[name], ingest, shots, path)
            table = read_predictions(path)
            predictions = to_predictions(table, task)
            figures = metrics.evaluate(predictions, settings.evaluate.bootstrap, settings.evaluate.seed)
            models.append(ModelResults(name, model_titles[name], table, predictions, figures))
        results = EvaluationResults(settings, train, shots, models, differences(models, settings.evaluate))
        write_json(folder / "metrics.json", {model.name: model.metrics for model in models})
        write_json(folder / "differences.json", results.differences)
        write_json(folder / "titles.json", model_titles)
        write_json(folder / "shots.json", asdict(shots))
        write_plot_data(results, folder / "plots")
        with new_folder(report) as pages:
            write_figures(results, pages)
            write_tail(histogram, task, pages / TAIL)
            write_report(results, histogram, ingest, pages)
    track.attach(report, "report")


def _predict(
    settings: Settings, title: str, loader: Callable[[], tuple[Any, Any]], ingest: Path, shots: ShotTable, path: Path
) -> None:
    """Writes one model's answers to every test image; the model is freed when the function returns."""
    test = read_table(ingest, "test", ["id", "target"])
    if not test.num_rows:
        raise ConcordError(f"{ingest}: the test split has no rows. See ingest.split in params.yaml.")
    model, processor = loader()
    model.to(device())
    size = settings.evaluate.batch_size
    # The same batches as `register` sends to the registered model, so that rounding and answers are identical.
    rows = with_progress(read_rows(ingest, "test", size), f"{title} answers", -(-test.num_rows // size))
    length = settings.evaluate.max_new_tokens
    ids, texts, values = collect_answers(model, processor, rows, size, length, settings.task)
    if ids != test["id"].to_pylist():
        raise RuntimeError("the answers are not in the order of the test set")
    targets = test["target"].to_numpy()
    write_predictions(path, ids, targets, np.asarray(shots.shot(targets)).tolist(), texts, values)
