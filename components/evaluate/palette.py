"""What the figures share: which answers they show, in which colours, over the shading of the shot groups."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from components.evaluate.results import Answers, EvaluationResults
from components.shared.rows.histogram import shot_ranges
from components.shared.scoring.shots import ShotTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Distinguishable with any colour vision, and by lightness when printed in grey (after Okabe and Ito).
COLOURS = {"base": "#8c8c8c", "sft": "#0072b2", "grpo": "#c8500a", "served": "#00684a"}
SHADES = {"many": "#ffffff", "medium": "#eef0f3", "few": "#dde1e7"}
LIGHT = "#c3c9d1"


@dataclass(frozen=True)
class Shown:
    """Answers as a figure shows them."""

    answers: Answers
    title: str
    colour: str


def shown(results: EvaluationResults) -> list[Shown]:
    """The text of the two trained models, as published, and the served answers; only once if they are a text."""
    found = [
        Shown(answers, answers.title, COLOURS[answers.model])
        for answers in (results.answers("sft.text"), results.answers("grpo.text"))
    ]
    if results.served.way != "text":
        answers = results.answers(results.served.name)
        found.append(Shown(answers, f"served: {answers.title}", COLOURS["served"]))
    return found


def shade(axes: "Axes", shots: ShotTable, low: float, high: float) -> None:
    """Shades the parts of the range by shot group."""
    for start, end, shot in shot_ranges(shots, low, high):
        if shot != "many":
            axes.axvspan(start, end, color=SHADES[shot], linewidth=0, zorder=0)


def unit(results: EvaluationResults) -> str:
    """The unit for the label of an axis."""
    name = results.settings.task.unit
    return f" ({name})" if name else ""
