"""The long tail of the data as a figure and as numbers: rows per label and split, shot regions and shares."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from components.settings import Task
from components.shared.reporting.figures import INK, save, style
from components.shared.rows.histogram import LabelBin, distribution_metrics, shot_ranges
from components.shared.rows.rows import SPLITS
from components.shared.scoring.shots import SHOTS, ShotTable, label_bins

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Distinguishable with any colour vision; different from the models' colours in evaluate's report.
COLOURS = {"many": "#4a5568", "medium": "#8fb3d9", "few": "#c2317c"}
SHOT_LIMITS = {"many": "more than {many}", "medium": "{few} to {many}", "few": "fewer than {few}"}


def tail_figures(histogram: Sequence[LabelBin], task: Task) -> dict[str, Any]:
    """The numbers behind the figure.

    Returns:
        The result of `distribution_metrics`; `share`, split -> shot group -> share of the split's rows (None for an
        empty split); `regions`, the runs of labels with the same shot group: lower end of the first and of the last
        label bin, and the shot group.
    """
    shots = _shots(histogram, task)
    width, step = task.bin_width, task.resolution
    return {
        **distribution_metrics(histogram),
        "share": {split: _shares(histogram, split) for split in SPLITS},
        "regions": [
            {"from": round(start + step / 2, 9), "to": round(end + step / 2 - width, 9), "shot": shot}
            for start, end, shot in shot_ranges(shots, task.low, task.high)
        ],
    }


def write_tail(histogram: Sequence[LabelBin], task: Task, path: Path) -> None:
    """Draws the tail as a PNG: rows per label in train, val and test by shot region, and each group's share.

    Args:
        histogram: of targets inside the task's range.
    """
    with style():
        save(_draw(histogram, task), path)


def _draw(histogram: Sequence[LabelBin], task: Task) -> "Figure":
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch
    from matplotlib.patheffects import withStroke
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    figures = distribution_metrics(histogram)
    rows: Any = figures["rows"]
    bins: Any = figures["label_bins"]
    figure = Figure(figsize=(10.5, 6.2))
    upper, middle, lower = figure.subplots(3, 1, height_ratios=[2.0, 1.1, 0.75])
    middle.sharex(upper)
    limits, counts = _counts(histogram, task)
    groups = _shots(histogram, task).shot(limits[:-1] + task.resolution / 2)
    _fill(upper, limits, counts["train"], groups, 0.5)
    upper.set_yscale("log")
    upper.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    upper.yaxis.set_major_locator(LogLocator(10))
    upper.yaxis.set_minor_locator(NullLocator())
    upper.set(ylim=(0.5, 1.6 * max(counts["train"].max(), task.many)), ylabel="rows in train")
    for limit in (task.many, task.few):
        upper.axhline(limit, color=INK, linewidth=0.7, linestyle=(0, (4, 3)))
    imbalance = figures["imbalance"]
    ratio = "" if imbalance is None else f", largest label {imbalance:.4g} times the smallest"
    upper.set_title(f"train: {rows['train']:,} rows of {_labels(bins['train'])}{ratio}")
    _fill(middle, limits, counts["test"], groups, 0)
    halo = withStroke(linewidth=3, foreground="#ffffff")
    middle.stairs(counts["val"], limits, color=INK, linewidth=1, path_effects=[halo])
    middle.set_ylim(0, 1.08 * max(counts["test"].max(), counts["val"].max(), 1))
    middle.set(ylabel="rows in test", xlabel=f"label ({task.unit})" if task.unit else "label")
    middle.set_title(f"test: {rows['test']:,} rows of {_labels(bins['test'])}; val, the line: {rows['val']:,} rows")
    middle.set_xlim(limits[0], limits[-1])
    _bars(lower, histogram)
    patches = [
        Patch(
            color=COLOURS[shot], label=f"{shot}-shot: {SHOT_LIMITS[shot].format(many=task.many, few=task.few)} in train"
        )
        for shot in SHOTS
    ]
    figure.legend(handles=patches, loc="outside upper left", ncols=3)
    return figure


def _labels(count: int) -> str:
    return f"{count:,} label{'' if count == 1 else 's'}"


def _fill(axes: "Axes", limits: np.ndarray, counts: np.ndarray, groups: np.ndarray, base: float) -> None:
    for shot in SHOTS:
        shown = np.where((groups == shot) & (counts > base), counts, np.nan)
        axes.stairs(shown, limits, baseline=base, fill=True, color=COLOURS[shot], linewidth=0)


def _bars(axes: "Axes", histogram: Sequence[LabelBin]) -> None:
    """Draws one bar per split, divided into each shot group's share of its rows."""
    for row, split in enumerate(reversed(SPLITS)):
        left = 0.0
        for shot, share in _shares(histogram, split).items():
            if not share:
                continue
            axes.barh(row, share, 0.72, left, color=COLOURS[shot])
            if share >= 0.025:
                ink = "#ffffff" if shot != "medium" else INK
                axes.text(
                    left + share / 2, row, f"{100 * share:.1f} %", ha="center", va="center", fontsize=8, color=ink
                )
            left += share
    axes.set_yticks(range(len(SPLITS)), list(reversed(SPLITS)))
    axes.tick_params(left=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set(xlim=(0, 1), xticks=[])
    axes.set_title("share of each split's rows")


def _shares(histogram: Sequence[LabelBin], split: str) -> Mapping[str, float | None]:
    total = sum(bin.rows[split] for bin in histogram)
    counts = {shot: sum(bin.rows[split] for bin in histogram if bin.shot == shot) for shot in SHOTS}
    return {shot: count / total if total else None for shot, count in counts.items()}


def _counts(histogram: Sequence[LabelBin], task: Task) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Edges of the label bins in the task's range, `(K + 1,)`, and each split's rows per bin, `(K,)`."""
    first, last = label_bins([task.low, task.high], task.bin_width, task.resolution)
    limits = (
        np.arange(first, last + 2) * task.bin_width - task.resolution / 2
    )  # so that labels lie inside their bin, not on its edge
    counts = {split: np.zeros(last - first + 1) for split in SPLITS}
    indices = label_bins([bin.label for bin in histogram], task.bin_width, task.resolution) - first
    for index, bin in zip(indices, histogram, strict=True):
        for split in SPLITS:
            counts[split][index] += bin.rows[split]
    return limits, counts


def _shots(histogram: Sequence[LabelBin], task: Task) -> ShotTable:
    indices = label_bins([bin.label for bin in histogram], task.bin_width, task.resolution).tolist()
    counts = {index: bin.rows["train"] for index, bin in zip(indices, histogram, strict=True)}
    return ShotTable(counts, task.bin_width, task.resolution, task.many, task.few)
