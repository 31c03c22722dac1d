"""Evaluation: greedy answers of the untrained, the SFT and the GRPO model to the test set, judged by shot group."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from components.errors import ConcordError
from components.evaluate.plots import plot_data, write_figures
from components.evaluate.report import TAIL, write_report
from components.evaluate.results import MODELS, Judged, Judgement, differences, titles
from components.settings import Settings
from components.shared.io.atomic import new_folder, write_json
from components.shared.io.progress import counted
from components.shared.model.device import device
from components.shared.model.generation import answers
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
    """Judges the three models and writes two folders.

    Args:
        ingest: row shards; shots are counted in train, images come from test, the report shows the labels of all.
        sft, grpo: model folders.
        out: predictions-{base,sft,grpo}.parquet, metrics.json, differences.json, titles.json, shots.json,
            plots/*.csv for DVC.
        report: report.html, which needs nothing else, and its figures as PNG.

    Raises:
        ConcordError: a split is empty, or a model cannot be loaded.
    """
    task = settings.task
    loaders: dict[str, Callable[[], tuple[Any, Any]]] = {
        "base": lambda: base_model(settings, ingest),
        "sft": lambda: load(sft, settings.model),
        "grpo": lambda: load(grpo, settings.model),
    }
    targets = {split: read_table(ingest, split, ["target"])["target"].to_numpy() for split in SPLITS}
    train, histogram = targets["train"], label_histogram(targets, task)
    called = titles(settings.model, grpo)
    shots = ShotTable.of(train, task.bin_width, task.resolution, task.many, task.few)
    with new_folder(out) as place:
        models = []
        for name in MODELS:
            path = predictions_file(place, name)
            _predict(settings, called[name], loaders[name], ingest, shots, path)
            table = read_predictions(path)
            found = to_predictions(table, task)
            figures = metrics.evaluate(found, settings.evaluate.bootstrap, settings.evaluate.seed)
            models.append(Judged(name, called[name], table, found, figures))
        judgement = Judgement(settings, train, shots, models, differences(models, settings.evaluate))
        write_json(place / "metrics.json", {model.name: model.figures for model in models})
        write_json(place / "differences.json", judgement.differences)
        write_json(place / "titles.json", called)
        write_json(place / "shots.json", asdict(shots))
        plot_data(judgement, place / "plots")
        with new_folder(report) as pages:
            write_figures(judgement, pages)
            write_tail(histogram, task, pages / TAIL)
            write_report(judgement, histogram, ingest, pages)
    track.attach(report, "report")


def _predict(
    settings: Settings, title: str, loader: Callable[[], tuple[Any, Any]], ingest: Path, shots: ShotTable, path: Path
) -> None:
    """Asks one model about every test image and writes its answers; the model is let go at the end."""
    test = read_table(ingest, "test", ["id", "target"])
    if not test.num_rows:
        raise ConcordError(f"{ingest}: the test split has no rows. See ingest.split in params.yaml.")
    model, processor = loader()
    model.to(device())
    size = settings.evaluate.batch_size
    # Batches as the registered model gets them (register): the same neighbours, so the same rounding, the same answers.
    rows = counted(read_rows(ingest, "test", size), f"{title} answers", -(-test.num_rows // size))
    length = settings.evaluate.max_new_tokens
    ids, texts, values = answers(model, processor, rows, size, length, settings.task)
    if ids != test["id"].to_pylist():
        raise RuntimeError("answers are not in the order of the test set")
    targets = test["target"].to_numpy()
    write_predictions(path, ids, targets, np.asarray(shots.shot(targets)).tolist(), texts, values)
