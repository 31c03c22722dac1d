"""Figures of the answers and their errors: against the truth, along the range, and by shot group."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from components.evaluate.palette import LIGHT, SHADES, Shown, shade, shown, unit
from components.evaluate.plot_data import edges, mae_per_bin
from components.evaluate.results import Answers, EvaluationResults
from components.shared.reporting.figures import INK
from components.shared.scoring.errors import Array
from components.shared.scoring.shots import SHOTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MIN_ANSWERS_PER_MEAN = 5
COLUMN = {"sft.text": "sft", "grpo.text": "grpo"}  # in the table of the MAE per bin; any others are the served ones


def truth(results: EvaluationResults) -> "Figure":
    """Every answer against its true value."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 4.1))
    sets = shown(results)
    panels = figure.subplots(1, len(sets), sharex=True, sharey=True, squeeze=False)[0]
    for axes, one in zip(panels, sets, strict=True):
        _truth_panel(axes, results, one)
    panels[0].set_ylabel(f"answer{unit(results)}")
    return figure


def _truth_panel(axes: "Axes", results: EvaluationResults, one: Shown) -> None:
    task, predictions, figures = results.settings.task, one.answers.predictions, one.answers.metrics
    valid = ~predictions.unparseable
    shade(axes, results.shots, task.low, task.high)
    axes.plot([task.low, task.high], [task.low, task.high], color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    targets, values = predictions.targets[valid], predictions.values[valid]
    alpha = min(0.5, max(0.08, 250 / max(len(values), 1)))
    axes.scatter(targets, values, s=7, alpha=alpha, color=one.colour, linewidths=0)
    axes.plot(*binned_mean(targets, values, edges(results)), color=one.colour, linewidth=2)
    ratio = figures["sd_ratio"]
    spread = "–" if ratio is None else f"{ratio:.2f}"
    axes.set_title(f"{one.title}\nMAE {figures['groups']['all']['mae']:.2f}, sd ratio {spread}")
    if count := int(predictions.unparseable.sum()):
        note = f"{count} of {len(valid)} answers unparseable"
        axes.text(0.03, 0.96, note, transform=axes.transAxes, va="top", fontsize=8)
    margin = 0.02 * (task.high - task.low)
    axes.set(xlim=(task.low - margin, task.high + margin), ylim=(task.low - margin, task.high + margin))
    axes.set_xlabel(f"truth{unit(results)}")
    axes.set_aspect("equal")


def bins(results: EvaluationResults) -> "Figure":
    """MAE along the range, over the training histogram."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    task, rows = results.settings.task, list(mae_per_bin(results))
    figure = Figure(figsize=(10.5, 5.2))
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[2.2, 1])
    for axes in (upper, lower):
        shade(axes, results.shots, task.low, task.high)
    middle = np.array([row["target"] for row in rows], float)
    top = task.resolution
    for one in shown(results):
        column = COLUMN.get(one.answers.name, "served")
        mae = np.array([np.nan if row[column] is None else row[column] for row in rows], float)
        top = max(top, 1.12 * float(np.nanmax(mae)))
        label = f"{one.title}, MAE {one.answers.metrics['groups']['all']['mae']:.1f}"
        upper.plot(middle, mae, color=one.colour, linewidth=2, marker="o", markersize=4, label=label)
    upper.set(ylim=(0, top), ylabel=f"MAE{unit(results)}")
    patches = [Patch(facecolor=SHADES[shot], edgecolor=LIGHT, label=f"{shot}-shot") for shot in SHOTS]
    figure.legend(loc="outside upper left", ncols=3)
    upper.legend(handles=patches, loc="upper right", bbox_to_anchor=(1, 1.02), ncols=3)
    _histogram(lower, results)
    return figure


def _histogram(axes: "Axes", results: EvaluationResults) -> None:
    from matplotlib.ticker import StrMethodFormatter

    task, counts = results.settings.task, results.shots.counts
    labels = np.array(sorted(counts)) * task.bin_width + (task.bin_width - task.resolution) / 2
    axes.bar(labels, [counts[key] for key in sorted(counts)], width=task.bin_width * 0.9, color="#5b6675")
    for limit in (task.many, task.few):
        axes.axhline(limit, color=INK, linewidth=0.7, linestyle=(0, (4, 3)))
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set(xlabel=f"truth{unit(results)}", ylabel="training images")
    axes.set_xlim(task.low - task.bin_width, task.high + task.bin_width)


def errors(results: EvaluationResults) -> "Figure":
    """Histograms of the signed errors by shot group."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 3.3))
    panels = figure.subplots(1, len(SHOTS), squeeze=False)[0]
    for axes, shot in zip(panels, SHOTS, strict=True):
        _error_panel(axes, results, shot)
    panels[0].set_ylabel("share of images")
    figure.legend(*_entries(panels), loc="outside upper left", ncols=3)
    return figure


def _error_panel(axes: "Axes", results: EvaluationResults, shot: str) -> None:
    members = results.members(shot)
    axes.set_title(f"{shot}-shot, {int(members.sum())} test images")
    axes.set_xlabel(f"away from  ←  error{unit(results)}  →  towards the mean")
    if not members.any():
        axes.text(0.5, 0.5, "none", transform=axes.transAxes, ha="center")
        return
    sets = [(one, error_towards_mean(one.answers, results.train)[members]) for one in shown(results)]
    limits = _error_bins(np.concatenate([signed for _, signed in sets]), results.settings.task.resolution).tolist()
    for one, signed in sets:
        share = np.full(len(signed), 1 / len(signed))
        values = np.clip(signed, limits[0], limits[-1])
        axes.hist(values, limits, weights=share, histtype="stepfilled", color=one.colour, alpha=0.12)
        axes.hist(values, limits, weights=share, histtype="step", color=one.colour, linewidth=1.5, label=one.title)
        axes.axvline(float(signed.mean()), color=one.colour, linewidth=1.2, linestyle=(0, (2, 2)))
    axes.axvline(0, color=INK, linewidth=0.7)


def _entries(panels: Iterable["Axes"]) -> tuple[list[Any], list[str]]:
    """Legend handles and labels of the first panel that has any."""
    return next((entries for axes in panels if (entries := axes.get_legend_handles_labels())[0]), ([], []))


def error_towards_mean(answers: Answers, train: Array) -> Array:
    """Signed errors, positive if the answer is shifted towards the mean of the training targets.

    Regression to the mean makes them positive on average.
    """
    predictions = answers.predictions
    direction = np.where(predictions.targets < train.mean(), 1.0, -1.0)
    return np.asarray((predictions.scored - predictions.targets) * direction, np.float64)


def _error_bins(signed: Array, resolution: float) -> Array:
    """Edges of about 41 bins, symmetric around 0, that cover 97.5 % of the errors; widths are whole label steps."""
    reach = max(float(np.quantile(np.abs(signed), 0.975)), 2 * resolution)
    width = max(np.ceil(2 * reach / 41 / resolution), 1) * resolution
    half = np.ceil(reach / width) + 0.5
    return np.asarray(np.arange(-half, half + 1) * width, np.float64)


def binned_mean(targets: Array, values: Array, limits: Array) -> tuple[Array, Array]:
    """Middle and mean value of each bin that has at least `MIN_ANSWERS_PER_MEAN` values."""
    index = np.digitize(targets, limits) - 1
    middle = (limits[:-1] + limits[1:]) / 2
    used = [bin for bin in range(len(middle)) if (index == bin).sum() >= MIN_ANSWERS_PER_MEAN]
    return middle[used], np.array([values[index == bin].mean() for bin in used])
