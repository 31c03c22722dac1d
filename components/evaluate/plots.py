"""Draws every figure of the evaluation. The same data gives the same bytes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from components.evaluate import distribution_plots, error_plots
from components.evaluate.results import EvaluationResults
from components.shared.reporting.figures import save, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Plot:
    """One figure as the report shows it."""

    title: str
    caption: str


FIGURES = {
    "trade": Plot(
        "What the balance trades",
        "Each line is one model as the balance goes from 0 (large point) to 1.2. Dividing the training prior out helps "
        "rare readings and costs common ones. Left: on tune, where the choice is made; solid points keep the upper "
        "bound of the many-shot loss within the tolerance, the ring is the choice. Right: the same balances on the "
        "test images, where nothing is chosen. Diamonds: greedy text.",
    ),
    "truth": Plot(
        "Answers against true values",
        "Each point is a test image; the line is the mean answer to images with that true value. On the dashed "
        "diagonal every answer is correct; a line that is flatter shrinks towards the mean. Medium-shot labels are "
        "shaded, few-shot labels darker.",
    ),
    "bins": Plot(
        "Error along the range, over the training histogram",
        "Top: MAE of the test images along the range. Bottom: training images per label on a logarithmic scale; the "
        "dashed lines are the limits of the shot groups.",
    ),
    "errors": Plot(
        "Errors by shot group",
        "Errors are positive if the answer is shifted towards the mean of the training data, so regression to the mean "
        "is a shift to the right. Dashed: the mean error. The outermost bars include all larger errors; unparseable "
        "answers count as the farther end of the range.",
    ),
    "coverage": Plot(
        "Intervals by shot group",
        "Left: share of the test images whose true value lies in the interval, with its 95 % bootstrap interval; the "
        "dashed line is the coverage that is promised. Right: the median width. Own: the central interval of the "
        "model's distribution. Conformal: calibrated for each shot group on validation images that chose nothing.",
    ),
    "distributions": Plot(
        "A dozen test images",
        "Four images of each shot group, at the 1/8, 3/8, 5/8 and 7/8 quantile of the served answer's error, from good "
        "to bad. Filled: the distribution with its balance. Grey: the training prior. Bar below: the interval. Each "
        "panel has its own scale of probability.",
    ),
}  # fmt: skip


def write_figures(results: EvaluationResults, ingest: Path, folder: Path) -> None:
    """Draws every figure of `FIGURES` as `folder`/NAME.png.

    Args:
        ingest: row shards, for the test images in the figures.
    """
    draw: dict[str, Callable[[], Figure]] = {
        "trade": lambda: distribution_plots.trade(results),
        "truth": lambda: error_plots.truth(results),
        "bins": lambda: error_plots.bins(results),
        "errors": lambda: error_plots.errors(results),
        "coverage": lambda: distribution_plots.coverage(results),
        "distributions": lambda: distribution_plots.distributions(results, ingest),
    }
    with style():
        for name in FIGURES:
            save(draw[name](), folder / f"{name}.png")
