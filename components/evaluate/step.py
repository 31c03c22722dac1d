"""Evaluates the untrained, the SFT and the GRPO model on the test set by shot group: by text and by distribution."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from components.console import console
from components.evaluate.judging import (
    TestReadings,
    TestSet,
    check_unreadable,
    judge,
    judge_constants,
    read_test,
)
from components.evaluate.plot_data import write_plot_data
from components.evaluate.plots import write_figures
from components.evaluate.report import TAIL, write_report
from components.evaluate.results import (
    MODELS,
    EvaluationResults,
    ModelResults,
    choose_served,
    differences,
    model_titles,
)
from components.settings import Settings
from components.shared.io.atomic import new_folder, write_json
from components.shared.model.loading import base_model, load
from components.shared.model.number_reader import why_one_by_one
from components.shared.model.validation_file import fitted_rule
from components.shared.reporting.tail import write_tail
from components.shared.rows.histogram import label_histogram
from components.shared.rows.rows import SPLITS, read_table
from components.shared.scoring.shots import ShotTable
from components.shared.tracking.step_run import StepRun


def run(settings: Settings, track: StepRun, *, ingest: Path, sft: Path, grpo: Path, out: Path, report: Path) -> None:
    """Evaluates the three models and writes two folders.

    Args:
        ingest: row shards; shot groups come from train, images from test; the report shows the labels of all splits.
        sft, grpo: model folders, with the distributions over the validation images from which answers are fitted.
        out: predictions-{base,sft,grpo}.parquet, metrics.json, differences.json, titles.json, served.json, shots.json,
            unreadable.json, plots/*.csv for DVC.
        report: report.html, a self-contained file, and its figures as PNG.

    Raises:
        ConcordError: the test split is empty, a model cannot be loaded, or too many images cannot be read.
    """
    task = settings.task
    loaders: dict[str, Callable[[], tuple[Any, Any]]] = {
        "base": lambda: base_model(settings, ingest),
        "sft": lambda: load(sft, settings.model),
        "grpo": lambda: load(grpo, settings.model),
    }
    folders = {"sft": sft, "grpo": grpo}
    targets = {split: read_table(ingest, split, ["target"])["target"].to_numpy() for split in SPLITS}
    train, histogram = targets["train"], label_histogram(targets, task)
    titles = model_titles(settings.model, grpo)
    shots = ShotTable.of(train, task.bin_width, task.resolution, task.many, task.few)
    test = TestSet.read(ingest, shots)
    rules = {
        name: fitted_rule(folder, settings.answer, settings.registry.tolerance_many) for name, folder in folders.items()
    }
    with new_folder(out) as folder:
        readings: dict[str, TestReadings] = {}
        unreadable: dict[str, str] = {}
        for name in MODELS:
            model, processor = loaders[name]()
            if reason := why_one_by_one(model):
                console.print(f"{titles[name]}: each number is scored in a row of its own: {reason}")
            readings[name] = read_test(settings, titles[name], model, processor, test, unreadable)
            del model  # before the next one is loaded
        check_unreadable(unreadable, test, settings.evaluate.max_unreadable)
        models: dict[str, ModelResults] = {}
        for name, read in readings.items():
            models[name] = judge(
                settings, name, titles[name], read.without(unreadable), test.without(unreadable),
                rules.get(name), models.get("sft"), folder,
            )  # fmt: skip
        judged = list(models.values())
        served = choose_served(judged, settings.answer, settings.registry.tolerance_many)
        results = EvaluationResults(
            settings,
            train,
            shots,
            judged,
            judge_constants(settings, test.without(unreadable), train),
            served,
            differences(judged, served, settings.evaluate),
            unreadable,
        )
        write_json(folder / "metrics.json", results.metrics() | {"unreadable": results.unreadable_share})
        write_json(folder / "unreadable.json", unreadable)
        write_json(folder / "differences.json", results.differences)
        write_json(folder / "titles.json", results.titles())
        write_json(folder / "served.json", asdict(served))
        write_json(folder / "shots.json", asdict(shots))
        write_plot_data(results, folder / "plots")
        with new_folder(report) as pages:
            write_figures(results, ingest, pages)
            write_tail(histogram, task, pages / TAIL)
            write_report(results, histogram, ingest, pages)
    track.attach(report, "report")
