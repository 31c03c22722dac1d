"""Figures of the distributions over all numbers: what the balance trades, coverage by shot, and a dozen images."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from components.evaluate.images import spread_rows, thumbnails
from components.evaluate.palette import COLOURS, LIGHT, unit
from components.evaluate.results import BALANCED, Distributions, EvaluationResults, ModelResults
from components.shared.reporting.distribution_metrics import INTERVALS
from components.shared.reporting.figures import INK
from components.shared.scoring.answers import decimals
from components.shared.scoring.choice import Point
from components.shared.scoring.shots import GROUPS, SHOTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image

SHOWN_PER_SHOT = 4
PRIOR = "#8c8c8c"
DIAMOND: Any = {"marker": "D", "s": 46, "zorder": 5, "edgecolors": "#ffffff", "linewidths": 0.8}


def trade(results: EvaluationResults) -> "Figure":
    """Many-shot against few-shot MAE as the balance grows, on the images of the choice and on the test images."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 4.7))
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    tune = results.trained[0][1].rule.validation.tune_set
    left.set_title(f"tune, {len(tune.targets)} validation images: the choice is made here")
    right.set_title(f"test, {len(results.targets)} images: nothing is chosen here")
    tolerance = results.settings.registry.tolerance_many
    reference = {shot: float(tune.reference[tune.shots == shot].mean()) if (tune.shots == shot).any() else None
                 for shot in ("many", "few")}  # fmt: skip
    _diamond(left, reference["many"], reference["few"], "sft", "SFT, text")
    for model, known in results.trained:
        _line(left, known.rule.balance.curve, known, model, tolerance)
        _line(right, known.test_curve, known, model, None)
        groups = model.answers["text"].metrics["groups"]
        _diamond(right, groups["many"]["mae"], groups["few"]["mae"], model.name, f"{model.title}, text")
    if reference["many"] is not None:
        limit = reference["many"] + tolerance
        left.axvline(limit, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
        left.text(
            limit, 0.99, f" tolerance, +{tolerance:g}", transform=left.get_xaxis_transform(), va="top", fontsize=8
        )
    left.set_ylabel(f"few-shot MAE{unit(results)}")
    for axes in (left, right):
        axes.set_xlabel(f"many-shot MAE{unit(results)}")
        axes.grid(color=LIGHT, linewidth=0.4)
        axes.margins(0.08)
    figure.legend(*right.get_legend_handles_labels(), loc="outside upper left", ncols=4)
    return figure


def _line(
    axes: "Axes", curve: Sequence[Point], known: Distributions, model: ModelResults, tolerance: float | None
) -> None:
    """One model's curve.

    Args:
        tolerance: of the choice; points beyond it are hollow. None: nothing is chosen.
    """
    points = [point for point in curve if point.many is not None and point.few is not None]
    if not points:
        return
    many, few = np.array([point.many for point in points]), np.array([point.few for point in points])
    colour, chosen = COLOURS[model.name], known.rule.balance.value
    label = f"{model.title}, {known.rule.statistic}"
    axes.plot(many, few, color=colour, linewidth=1.5, label=label, zorder=2)
    allowed = np.array([tolerance is None or p.bound is None or p.bound <= tolerance for p in points])
    faces = [colour if each else "#ffffff" for each in allowed]
    axes.scatter(many, few, s=16, c=faces, edgecolors=colour, linewidths=1, zorder=3)
    axes.scatter(many[:1], few[:1], s=52, marker="o", c=faces[0], edgecolors=colour, linewidths=1.2, zorder=3)
    for point in points:
        if point.value == chosen:
            axes.scatter(
                point.many or 0, point.few or 0, s=150, facecolors="none", edgecolors=colour, linewidths=2, zorder=4
            )
        if point.value in (0, 0.5, 1) or point.value == chosen:
            place: Any = {"xytext": (-6, -13), "ha": "right"} if model.name == "sft" else {"xytext": (9, 5)}
            axes.annotate(
                f"{point.value:g}", (point.many or 0, point.few or 0), textcoords="offset points", fontsize=8,
                color=colour, weight="bold" if point.value == chosen else "normal", zorder=6, **place,
            )  # fmt: skip


def _diamond(axes: "Axes", many: float | None, few: float | None, model: str, label: str) -> None:
    if many is not None and few is not None:
        axes.scatter([many], [few], color=COLOURS[model], label=label, **DIAMOND)


def coverage(results: EvaluationResults) -> "Figure":
    """Coverage and median width of the intervals, the model's own and conformal, by shot group."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 3.9))
    left, right = figure.subplots(1, 2)
    series = [(model, known, kind) for model, known in results.trained for kind in reversed(INTERVALS)]
    offsets = 0.16 * (np.arange(len(series)) - (len(series) - 1) / 2)
    for (model, known, kind), offset in zip(series, offsets, strict=True):
        label = f"{model.title}, {kind}"
        _marks(left, known, kind, "coverage", COLOURS[model.name], offset, label)
        _marks(right, known, kind, "width", COLOURS[model.name], offset, label)
    promised = results.settings.answer.coverage
    left.axhline(promised, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
    left.set(ylabel="share of true values inside", title=f"coverage; promised: {promised:g}")
    left.set_ylim(top=1.01)
    right.set(ylabel=f"median width{unit(results)}", title="median width")
    right.set_ylim(bottom=0)
    missing = {
        g for _, known in results.trained for g in GROUPS if not known.metrics["groups"][g]["conformal"]["guaranteed"]
    }
    for axes in (left, right):
        names = [f"{g}\n{int(results.members(g).sum())} images" + ("\nnot guaranteed" * (g in missing)) for g in GROUPS]
        axes.set_xticks(range(len(GROUPS)), names)
        axes.tick_params(axis="x", length=0)
        axes.grid(axis="y", color=LIGHT, linewidth=0.4)
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper left", ncols=4)
    return figure


def _marks(axes: "Axes", known: Distributions, kind: str, figure: str, colour: str, offset: float, label: str) -> None:
    """One value per shot group with its bootstrap interval; hollow for the model's own interval."""
    places, values, spread = [], [], []
    for place, group in enumerate(GROUPS):
        found = known.metrics["groups"][group][kind]
        if found[figure] is not None:
            low, high = found[f"{figure}_ci"] or (found[figure], found[figure])
            places.append(place + offset)
            values.append(found[figure])
            spread.append((max(found[figure] - low, 0), max(high - found[figure], 0)))
    if places:
        axes.errorbar(
            places, values, np.array(spread).T, fmt="o" if kind == "own" else "s", color=colour, label=label,
            markersize=6, markerfacecolor="#ffffff" if kind == "own" else colour, elinewidth=1.2,
        )  # fmt: skip


def distributions(results: EvaluationResults, ingest: Path) -> "Figure":
    """A dozen test images: the distribution over all numbers, prior, truth, answer and interval of each."""
    from matplotlib.figure import Figure

    chosen = {shot: spread_rows(results, shot, SHOWN_PER_SHOT) for shot in SHOTS}
    ids = results.models[0].table["id"].to_pylist()
    shown_ids = {ids[row] for rows in chosen.values() for row in rows}
    images = thumbnails(ingest, shown_ids, results.settings.task.grey_bits)
    figure = Figure(figsize=(12, 6.4))
    grid = figure.add_gridspec(len(SHOTS), 2 * SHOWN_PER_SHOT, width_ratios=[0.78, 1] * SHOWN_PER_SHOT)
    for line, (shot, rows) in enumerate(chosen.items()):
        for place in range(SHOWN_PER_SHOT):
            picture, axes = (figure.add_subplot(grid[line, 2 * place + k]) for k in range(2))
            if place >= len(rows):
                picture.set_axis_off()
                axes.set_axis_off()
                continue
            _image(picture, images[ids[rows[place]]])
            _panel(axes, results, rows[place], line == len(SHOTS) - 1)
            if place == 0:
                picture.set_ylabel(f"{shot}-shot", fontsize=10, weight="bold")
    figure.legend(handles=_handles(_served_colour(results)), loc="outside upper left", ncols=5)
    return figure


def _handles(colour: str) -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    return [
        Patch(color=colour, alpha=0.35, linewidth=0, label="distribution"),
        Line2D([], [], color=PRIOR, linewidth=1, label="training prior"),
        Line2D([], [], color=INK, linewidth=1.1, linestyle=(0, (3, 2)), label="truth"),
        Line2D([], [], color=colour, linewidth=1.6, label="answer"),
        Line2D([], [], color=colour, alpha=0.75, linewidth=4, label="interval"),
    ]


def _served_colour(results: EvaluationResults) -> str:
    return COLOURS["served" if results.served.way == BALANCED else results.served.model]


def _image(axes: "Axes", image: "Image") -> None:
    axes.imshow(np.asarray(image.convert("RGB")), interpolation="lanczos")
    axes.set(xticks=[], yticks=[], anchor="C")
    axes.spines[:].set_visible(False)


def _panel(axes: "Axes", results: EvaluationResults, row: int, labelled: bool) -> None:
    task, model = results.settings.task, results.model(results.served.model)
    known = model.distributions
    if known is None:
        raise RuntimeError(f"{model.name} is served without distributions")
    rule, colour = known.rule, _served_colour(results)
    values, q = rule.validation.values, rule.distribution(known.log_p[row : row + 1])[0]
    peak = float(q.max())
    axes.fill_between(values, q, step="mid", color=colour, alpha=0.35, linewidth=0)
    axes.plot(values, np.exp(rule.validation.log_prior), color=PRIOR, linewidth=1)
    answers, truth = results.served_answers.predictions, float(results.targets[row])
    low, high = (float(model.table[name][row].as_py()) for name in ("low", "high"))
    half = task.resolution / 2
    axes.barh(-0.11 * peak, high - low + 2 * half, 0.07 * peak, low - half, color=colour, alpha=0.75, linewidth=0)
    axes.axvline(truth, color=INK, linewidth=1.1, linestyle=(0, (3, 2)))
    digits = decimals(task.resolution)
    value = float(answers.values[row])
    said = f"{value:.{digits}f}" if np.isfinite(value) else "unparseable"
    if np.isfinite(value):
        axes.axvline(value, color=colour, linewidth=1.6)
    axes.set_title(f"truth {truth:.{digits}f}, read {said}", fontsize=9, weight="normal", loc="center")
    margin = 0.02 * (task.high - task.low) + half
    axes.set(xlim=(task.low - margin, task.high + margin), ylim=(-0.2 * peak, 1.12 * peak), yticks=[])
    axes.spines["left"].set_visible(False)
    axes.tick_params(labelsize=7.5)
    if labelled and unit(results):
        axes.set_xlabel(task.unit, fontsize=8)
