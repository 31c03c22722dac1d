"""Figures of the judgement, and the same numbers as tables for `dvc plots`. The same numbers give the same bytes."""

import csv
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from components.evaluate.results import Judged, Judgement
from components.shared.reporting.figures import INK, save, style
from components.shared.rows.histogram import stretches
from components.shared.scoring.errors import Array
from components.shared.scoring.shots import SHOTS, ShotTable, label_bins

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Told apart by people with any colour vision, and by their lightness in print (after Okabe and Ito).
COLOURS = {"base": "#8c8c8c", "sft": "#0072b2", "grpo": "#c8500a"}
SHADES = {"many": "#ffffff", "medium": "#eef0f3", "few": "#dde1e7"}
FIGURES = {
    "truth": "Prediction against truth",
    "bins": "Error along the range, over the training histogram",
    "errors": "Errors by shot group",
}
MOST_BINS = 26
FEWEST_FOR_A_MEAN = 5


def write_figures(judgement: Judgement, folder: Path) -> None:
    """Draws FIGURES as `folder`/NAME.png."""
    with style():
        for name, draw in (("truth", _truth), ("bins", _bins), ("errors", _errors)):
            save(draw(judgement), folder / f"{name}.png")


def plot_data(judgement: Judgement, folder: Path) -> None:
    """Writes mae_per_bin.csv and predictions.csv for `dvc plots`."""
    folder.mkdir()
    rows = list(mae_per_bin(judgement))
    _write(folder / "mae_per_bin.csv", list(rows[0]), [list(row.values()) for row in rows])
    lines: list[list[object]] = []
    for model in judgement.models:
        found = model.predictions
        for id, target, value, shot in zip(
            model.table["id"].to_pylist(), found.targets, model.table["value"].to_pylist(), found.shots, strict=True
        ):
            error = None if value is None else value - target
            lines.append([model.name, id, str(shot), target, value, error])
    _write(folder / "predictions.csv", ["model", "id", "shot", "target", "value", "error"], lines)


def edges(judgement: Judgement) -> Array:
    """Limits of the bins that figures use: label bins, so many put together that at most some 26 remain."""
    task = judgement.settings.task
    first, last = label_bins([task.low, task.high], task.bin_width, task.resolution)
    together = -(-(last - first + 1) // MOST_BINS)
    cells = np.append(np.arange(first, last + 1, together), last + 1)
    return cells * task.bin_width - task.resolution / 2  # labels sit inside their bin, not on its edge


def mae_per_bin(judgement: Judgement) -> Iterator[dict[str, object]]:
    """A row a bin: its middle, training and test images in it, each model's MAE."""
    limits = edges(judgement)
    train, _ = np.histogram(judgement.train, limits)
    targets = judgement.models[0].predictions.targets
    index = np.clip(np.digitize(targets, limits) - 1, 0, len(limits) - 2)
    for bin, (low, high) in enumerate(pairwise(limits)):
        inside = index == bin
        row: dict[str, object] = {
            "target": round(float(low + high) / 2, 6),
            "train": int(train[bin]),
            "test": int(inside.sum()),
        }
        for model in judgement.models:
            row[model.name] = round(float(model.predictions.errors[inside].mean()), 6) if inside.any() else None
        yield row


def _truth(judgement: Judgement) -> "Figure":
    from matplotlib.figure import Figure

    task, models = judgement.settings.task, judgement.models
    figure = Figure(figsize=(10.5, 3.9))
    limits = edges(judgement)
    panels = figure.subplots(1, len(models), sharex=True, sharey=True, squeeze=False)[0]
    for axes, model in zip(panels, models, strict=True):
        found = model.predictions
        valid = ~found.unparseable
        _shade(axes, judgement.shots, task.low, task.high)
        axes.plot([task.low, task.high], [task.low, task.high], color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        seen = min(0.5, max(0.08, 250 / max(int(valid.sum()), 1)))
        axes.scatter(
            found.targets[valid], found.values[valid], s=7, alpha=seen, color=COLOURS[model.name], linewidths=0
        )
        middle, centre = binned_mean(found.targets[valid], found.values[valid], limits)
        axes.plot(middle, centre, color=COLOURS[model.name], linewidth=2, label="mean of the answers")
        ratio = model.figures["sd_ratio"]
        spread = "–" if ratio is None else f"{ratio:.2f}"
        axes.set_title(f"{model.title}\nMAE {model.figures['groups']['all']['mae']:.2f}, sd ratio {spread}")
        if lost := int(found.unparseable.sum()):
            note = f"{lost} of {len(valid)} answers unparseable"
            axes.text(0.03, 0.96, note, transform=axes.transAxes, va="top", fontsize=8)
        axes.set_xlabel(f"truth{_unit(judgement)}")
        axes.set_aspect("equal")
        margin = 0.02 * (task.high - task.low)
        axes.set(xlim=(task.low - margin, task.high + margin), ylim=(task.low - margin, task.high + margin))
    panels[0].set_ylabel(f"answer{_unit(judgement)}")
    return figure


def _bins(judgement: Judgement) -> "Figure":
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    task = judgement.settings.task
    rows = list(mae_per_bin(judgement))
    middle = np.array([row["target"] for row in rows], float)
    figure = Figure(figsize=(10.5, 5.2))
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[2.2, 1])
    for axes in (upper, lower):
        _shade(axes, judgement.shots, task.low, task.high)
    tops = []
    for model in judgement.models:
        mae = np.array([np.nan if row[model.name] is None else row[model.name] for row in rows], float)
        style: Any = {"linewidth": 2, "marker": "o", "markersize": 4}
        if model.name == "base":
            style = {"linewidth": 1.2, "linestyle": (0, (2, 2))}
        else:
            tops.append(float(np.nanmax(mae)))
        mean = model.figures["groups"]["all"]["mae"]
        upper.plot(middle, mae, color=COLOURS[model.name], label=f"{model.title}, MAE {mean:.1f}", **style)
    # An untrained model may lie far above: the others decide the scale.
    upper.set(ylim=(0, max(1.15 * max(tops), task.resolution)), ylabel=f"MAE{_unit(judgement)}")
    patches = [Patch(facecolor=SHADES[shot], edgecolor="#c3c9d1", label=f"{shot}-shot") for shot in SHOTS]
    figure.legend(loc="outside upper left", ncols=len(judgement.models))
    figure.legend(handles=patches, loc="outside upper right", ncols=3)
    counts = judgement.shots.counts
    places = np.array(sorted(counts)) * task.bin_width + (task.bin_width - task.resolution) / 2
    lower.bar(places, [counts[key] for key in sorted(counts)], width=task.bin_width * 0.9, color="#5b6675")
    for limit in (task.many, task.few):
        lower.axhline(limit, color=INK, linewidth=0.7, linestyle=(0, (4, 3)))
    lower.set_yscale("log")
    lower.set(xlabel=f"truth{_unit(judgement)}", ylabel="training images")
    lower.set_xlim(task.low - task.bin_width, task.high + task.bin_width)
    return figure


def _errors(judgement: Judgement) -> "Figure":
    from matplotlib.figure import Figure

    trained = [model for model in judgement.models if model.name != "base"]
    figure = Figure(figsize=(10.5, 3.2))
    panels = figure.subplots(1, len(SHOTS), squeeze=False)[0]
    for axes, shot in zip(panels, SHOTS, strict=True):
        members = trained[0].predictions.members(shot)
        axes.set_title(f"{shot}-shot, {int(members.sum())} test images")
        axes.set_xlabel(f"away from  ←  error{_unit(judgement)}  →  towards the mean")
        if not members.any():
            axes.text(0.5, 0.5, "none", transform=axes.transAxes, ha="center")
            continue
        pulls = {model.name: pull(model, judgement.train)[members] for model in trained}
        limits = _error_bins(np.concatenate(list(pulls.values())), judgement.settings.task.resolution)
        for model in trained:
            share = np.full(len(pulls[model.name]), 1 / members.sum())
            values = np.clip(pulls[model.name], limits[0], limits[-1])
            colour = COLOURS[model.name]
            axes.hist(values, limits, weights=share, histtype="stepfilled", color=colour, alpha=0.15)
            axes.hist(values, limits, weights=share, histtype="step", color=colour, linewidth=1.6, label=model.title)
            axes.axvline(float(pulls[model.name].mean()), color=colour, linewidth=1.2, linestyle=(0, (2, 2)))
        axes.axvline(0, color=INK, linewidth=0.7)
    panels[0].set_ylabel("share of images")
    figure.legend(*_entries(panels), loc="outside upper right", ncols=2)
    return figure


def _entries(panels: Iterable["Axes"]) -> tuple[list[Any], list[str]]:
    """Handles and labels of the first panel that has any."""
    return next((found for axes in panels if (found := axes.get_legend_handles_labels())[0]), ([], []))


def pull(model: Judged, train: Array) -> Array:
    """Errors, positive where the answer lies on the side of the training mean: what regression to the mean does."""
    found = model.predictions
    side = np.where(found.targets < train.mean(), 1.0, -1.0)
    return (found.scored - found.targets) * side


def _error_bins(errors: Array, resolution: float) -> Array:
    """Limits of some 41 bins, symmetric about 0, that hold nearly all errors; whole steps of the label wide."""
    reach = max(float(np.quantile(np.abs(errors), 0.975)), 2 * resolution)
    width = max(np.ceil(2 * reach / 41 / resolution), 1) * resolution
    half = np.ceil(reach / width) + 0.5
    return np.arange(-half, half + 1) * width


def binned_mean(targets: Array, values: Array, limits: Array) -> tuple[Array, Array]:
    """Middle of each bin that holds enough to speak of, and the mean of its values."""
    index = np.digitize(targets, limits) - 1
    middle = (limits[:-1] + limits[1:]) / 2
    used = [bin for bin in range(len(middle)) if (index == bin).sum() >= FEWEST_FOR_A_MEAN]
    return middle[used], np.array([values[index == bin].mean() for bin in used])


def _shade(axes: "Axes", shots: ShotTable, low: float, high: float) -> None:
    """Tints the stretches of the range by shot group."""
    for start, end, shot in stretches(shots, low, high):
        if shot != "many":
            axes.axvspan(start, end, color=SHADES[shot], linewidth=0, zorder=0)


def _unit(judgement: Judgement) -> str:
    unit = judgement.settings.task.unit
    return f" ({unit})" if unit else ""


def _write(path: Path, header: list[str], rows: list[list[object]]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(["" if cell is None else cell for cell in row] for row in rows)
