"""Figures of the evaluation, and their data as tables for `dvc plots`. The same data gives the same bytes."""

import csv
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from components.evaluate.results import EvaluationResults, ModelResults
from components.shared.reporting.figures import INK, save, style
from components.shared.rows.histogram import shot_ranges
from components.shared.scoring.errors import Array
from components.shared.scoring.shots import SHOTS, ShotTable, label_bins

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Distinguishable with any colour vision, and by lightness when printed in grey (after Okabe and Ito).
COLOURS = {"base": "#8c8c8c", "sft": "#0072b2", "grpo": "#c8500a"}
SHADES = {"many": "#ffffff", "medium": "#eef0f3", "few": "#dde1e7"}
FIGURES = {
    "truth": "Answers against true values",
    "bins": "Error along the range, over the training histogram",
    "errors": "Errors by shot group",
}
MAX_BINS = 26
MIN_ANSWERS_PER_MEAN = 5


def write_figures(results: EvaluationResults, folder: Path) -> None:
    """Draws every figure of `FIGURES` as `folder`/NAME.png."""
    with style():
        for name, draw in (("truth", _truth), ("bins", _bins), ("errors", _errors)):
            save(draw(results), folder / f"{name}.png")


def write_plot_data(results: EvaluationResults, folder: Path) -> None:
    """Writes mae_per_bin.csv and predictions.csv for `dvc plots`."""
    folder.mkdir()
    rows = list(mae_per_bin(results))
    _write(folder / "mae_per_bin.csv", list(rows[0]), [list(row.values()) for row in rows])
    lines: list[list[object]] = []
    for model in results.models:
        ids, values = model.table["id"].to_pylist(), model.table["value"].to_pylist()
        for id, target, value, shot in zip(
            ids, model.predictions.targets, values, model.predictions.shots, strict=True
        ):
            error = None if value is None else value - target
            lines.append([model.name, id, str(shot), target, value, error])
    _write(folder / "predictions.csv", ["model", "id", "shot", "target", "value", "error"], lines)


def edges(results: EvaluationResults) -> Array:
    """Edges of the bins in the figures: neighbouring label bins are merged until about `MAX_BINS` remain."""
    task = results.settings.task
    first, last = label_bins([task.low, task.high], task.bin_width, task.resolution)
    merged = -(-(last - first + 1) // MAX_BINS)
    cells = np.append(np.arange(first, last + 1, merged), last + 1)
    return cells * task.bin_width - task.resolution / 2  # so that labels lie inside their bin, not on its edge


def mae_per_bin(results: EvaluationResults) -> Iterator[dict[str, object]]:
    """Yields one row per bin: its middle, its number of training and test images, and each model's MAE."""
    limits = edges(results)
    train, _ = np.histogram(results.train, limits)
    targets = results.models[0].predictions.targets
    index = np.clip(np.digitize(targets, limits) - 1, 0, len(limits) - 2)
    for bin, (low, high) in enumerate(pairwise(limits)):
        inside = index == bin
        row: dict[str, object] = {
            "target": round(float(low + high) / 2, 6),
            "train": int(train[bin]),
            "test": int(inside.sum()),
        }
        for model in results.models:
            row[model.name] = round(float(model.predictions.errors[inside].mean()), 6) if inside.any() else None
        yield row


def _truth(results: EvaluationResults) -> "Figure":
    from matplotlib.figure import Figure

    task, models = results.settings.task, results.models
    figure = Figure(figsize=(10.5, 3.9))
    limits = edges(results)
    panels = figure.subplots(1, len(models), sharex=True, sharey=True, squeeze=False)[0]
    for axes, model in zip(panels, models, strict=True):
        predictions = model.predictions
        valid = ~predictions.unparseable
        _shade(axes, results.shots, task.low, task.high)
        axes.plot([task.low, task.high], [task.low, task.high], color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        targets, values = predictions.targets[valid], predictions.values[valid]
        alpha = min(0.5, max(0.08, 250 / max(len(values), 1)))
        axes.scatter(targets, values, s=7, alpha=alpha, color=COLOURS[model.name], linewidths=0)
        middle, centre = binned_mean(targets, values, limits)
        axes.plot(middle, centre, color=COLOURS[model.name], linewidth=2, label="mean of the answers")
        ratio = model.metrics["sd_ratio"]
        spread = "–" if ratio is None else f"{ratio:.2f}"
        axes.set_title(f"{model.title}\nMAE {model.metrics['groups']['all']['mae']:.2f}, sd ratio {spread}")
        if count := int(predictions.unparseable.sum()):
            note = f"{count} of {len(valid)} answers unparseable"
            axes.text(0.03, 0.96, note, transform=axes.transAxes, va="top", fontsize=8)
        axes.set_xlabel(f"truth{_unit(results)}")
        axes.set_aspect("equal")
        margin = 0.02 * (task.high - task.low)
        axes.set(xlim=(task.low - margin, task.high + margin), ylim=(task.low - margin, task.high + margin))
    panels[0].set_ylabel(f"answer{_unit(results)}")
    return figure


def _bins(results: EvaluationResults) -> "Figure":
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    task = results.settings.task
    rows = list(mae_per_bin(results))
    middle = np.array([row["target"] for row in rows], float)
    figure = Figure(figsize=(10.5, 5.2))
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[2.2, 1])
    for axes in (upper, lower):
        _shade(axes, results.shots, task.low, task.high)
    tops = []
    for model in results.models:
        mae = np.array([np.nan if row[model.name] is None else row[model.name] for row in rows], float)
        style: Any = {"linewidth": 2, "marker": "o", "markersize": 4}
        if model.name == "base":
            style = {"linewidth": 1.2, "linestyle": (0, (2, 2))}
        else:
            tops.append(float(np.nanmax(mae)))
        mean = model.metrics["groups"]["all"]["mae"]
        upper.plot(middle, mae, color=COLOURS[model.name], label=f"{model.title}, MAE {mean:.1f}", **style)
    # The untrained model's error may be far larger; it does not set the scale.
    upper.set(ylim=(0, max(1.15 * max(tops), task.resolution)), ylabel=f"MAE{_unit(results)}")
    patches = [Patch(facecolor=SHADES[shot], edgecolor="#c3c9d1", label=f"{shot}-shot") for shot in SHOTS]
    figure.legend(loc="outside upper left", ncols=len(results.models))
    figure.legend(handles=patches, loc="outside upper right", ncols=3)
    counts = results.shots.counts
    labels = np.array(sorted(counts)) * task.bin_width + (task.bin_width - task.resolution) / 2
    lower.bar(labels, [counts[key] for key in sorted(counts)], width=task.bin_width * 0.9, color="#5b6675")
    for limit in (task.many, task.few):
        lower.axhline(limit, color=INK, linewidth=0.7, linestyle=(0, (4, 3)))
    lower.set_yscale("log")
    lower.set(xlabel=f"truth{_unit(results)}", ylabel="training images")
    lower.set_xlim(task.low - task.bin_width, task.high + task.bin_width)
    return figure


def _errors(results: EvaluationResults) -> "Figure":
    from matplotlib.figure import Figure

    trained = [model for model in results.models if model.name != "base"]
    figure = Figure(figsize=(10.5, 3.2))
    panels = figure.subplots(1, len(SHOTS), squeeze=False)[0]
    for axes, shot in zip(panels, SHOTS, strict=True):
        members = trained[0].predictions.members(shot)
        axes.set_title(f"{shot}-shot, {int(members.sum())} test images")
        axes.set_xlabel(f"away from  ←  error{_unit(results)}  →  towards the mean")
        if not members.any():
            axes.text(0.5, 0.5, "none", transform=axes.transAxes, ha="center")
            continue
        errors = {model.name: error_towards_mean(model, results.train)[members] for model in trained}
        limits = _error_bins(np.concatenate(list(errors.values())), results.settings.task.resolution)
        for model in trained:
            share = np.full(len(errors[model.name]), 1 / members.sum())
            values = np.clip(errors[model.name], limits[0], limits[-1])
            colour = COLOURS[model.name]
            axes.hist(values, limits, weights=share, histtype="stepfilled", color=colour, alpha=0.15)
            axes.hist(values, limits, weights=share, histtype="step", color=colour, linewidth=1.6, label=model.title)
            axes.axvline(float(errors[model.name].mean()), color=colour, linewidth=1.2, linestyle=(0, (2, 2)))
        axes.axvline(0, color=INK, linewidth=0.7)
    panels[0].set_ylabel("share of images")
    figure.legend(*_entries(panels), loc="outside upper right", ncols=2)
    return figure


def _entries(panels: Iterable["Axes"]) -> tuple[list[Any], list[str]]:
    """Legend handles and labels of the first panel that has any."""
    return next((entries for axes in panels if (entries := axes.get_legend_handles_labels())[0]), ([], []))


def error_towards_mean(model: ModelResults, train: Array) -> Array:
    """Signed errors, positive if the answer is shifted towards the mean of the training targets.

    Regression to the mean makes them positive on average.
    """
    predictions = model.predictions
    direction = np.where(predictions.targets < train.mean(), 1.0, -1.0)
    return (predictions.scored - predictions.targets) * direction


def _error_bins(errors: Array, resolution: float) -> Array:
    """Edges of about 41 bins, symmetric around 0, that cover 97.5 % of the errors; widths are whole label steps."""
    reach = max(float(np.quantile(np.abs(errors), 0.975)), 2 * resolution)
    width = max(np.ceil(2 * reach / 41 / resolution), 1) * resolution
    half = np.ceil(reach / width) + 0.5
    return np.arange(-half, half + 1) * width


def binned_mean(targets: Array, values: Array, limits: Array) -> tuple[Array, Array]:
    """Middle and mean value of each bin that has at least `MIN_ANSWERS_PER_MEAN` values."""
    index = np.digitize(targets, limits) - 1
    middle = (limits[:-1] + limits[1:]) / 2
    used = [bin for bin in range(len(middle)) if (index == bin).sum() >= MIN_ANSWERS_PER_MEAN]
    return middle[used], np.array([values[index == bin].mean() for bin in used])


def _shade(axes: "Axes", shots: ShotTable, low: float, high: float) -> None:
    """Shades the parts of the range by shot group."""
    for start, end, shot in shot_ranges(shots, low, high):
        if shot != "many":
            axes.axvspan(start, end, color=SHADES[shot], linewidth=0, zorder=0)


def _unit(results: EvaluationResults) -> str:
    unit = results.settings.task.unit
    return f" ({unit})" if unit else ""


def _write(path: Path, header: list[str], rows: list[list[object]]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(["" if cell is None else cell for cell in row] for row in rows)
