"""Draws a distribution with the prior, the answer and its interval as SVG; the page's style sheet has the colours."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

WIDTH, HEIGHT = 760, 300
LEFT, RIGHT, TOP, BOTTOM = 14, 14, 34, 44  # margins around the plot
TICKS = 6  # about as many numbers on the axis


def chart(read: Mapping[str, Any], unit: str) -> str:
    """The picture of one image's distribution.

    Args:
        read: an answer of the scoring server's /distribution.
        unit: of the numbers.
    """
    values, posterior, prior = read["values"], read["posterior"], read["prior"]
    scale = Scale(values[0], values[-1], max(*posterior, *prior))
    low, high, answer = (scale.x(read[name]) for name in ("low", "high", "value"))
    anchor = "start" if answer < 90 else "end" if answer > WIDTH - 90 else "middle"
    label = html.escape(f"{read['value']:g} {unit}".strip())
    return "\n".join(
        [
            f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="distribution">',
            f'<rect class="interval" x="{low:.1f}" y="{TOP}" width="{max(high - low, 1):.1f}" '
            f'height="{HEIGHT - TOP - BOTTOM}"/>',
            f'<path class="posterior" d="{scale.area(values, posterior)}"/>',
            f'<path class="prior" d="{scale.steps(values, prior)}"/>',
            f'<line class="answer" x1="{answer:.1f}" x2="{answer:.1f}" y1="{TOP - 6}" y2="{HEIGHT - BOTTOM}"/>',
            f'<text class="label" x="{answer:.1f}" y="{TOP - 12}" text-anchor="{anchor}">{label}</text>',
            *_axis(scale, unit),
            "</svg>",
        ]
    )


class Scale:
    """Places of numbers and probabilities in the picture."""

    def __init__(self, first: float, last: float, most: float) -> None:
        self.first, self.last, self.most = first, max(last, first + 1e-9), most or 1.0

    def x(self, value: float) -> float:
        """Horizontal place of a number."""
        share = (value - self.first) / (self.last - self.first)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, probability: float) -> float:
        """Vertical place of a probability."""
        return HEIGHT - BOTTOM - probability / self.most * (HEIGHT - TOP - BOTTOM)

    def steps(self, values: Sequence[float], probabilities: Sequence[float]) -> str:
        """A path with one step for each number, half-way to its neighbours."""
        points: list[str] = []
        for k, (value, probability) in enumerate(zip(values, probabilities, strict=True)):
            left = (values[k - 1] + value) / 2 if k else value
            right = (value + values[k + 1]) / 2 if k + 1 < len(values) else value
            points += [f"{self.x(edge):.1f},{self.y(probability):.1f}" for edge in (left, right)]
        return "M" + " L".join(points)

    def area(self, values: Sequence[float], probabilities: Sequence[float]) -> str:
        """The same, closed along the axis."""
        return (
            f"{self.steps(values, probabilities)} L{self.x(values[-1]):.1f},{self.y(0):.1f} "
            f"L{self.x(values[0]):.1f},{self.y(0):.1f} Z"
        )


def _axis(scale: Scale, unit: str) -> list[str]:
    """The axis with round numbers."""
    base = HEIGHT - BOTTOM
    lines = [f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>']
    for number in round_numbers(scale.first, scale.last):
        x = scale.x(number)
        anchor = "start" if x < LEFT + 4 else "end" if x > WIDTH - RIGHT - 4 else "middle"
        lines += [
            f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{base}" y2="{base + 5}"/>',
            f'<text class="tick" x="{x:.1f}" y="{base + 22}" text-anchor="{anchor}">{number:g}</text>',
        ]
    lines.append(f'<text class="tick" x="{WIDTH / 2}" y="{HEIGHT - 4}" text-anchor="middle">{html.escape(unit)}</text>')
    return lines


def round_numbers(first: float, last: float) -> list[float]:
    """About TICKS round numbers between two numbers.

    >>> round_numbers(0, 100)
    [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]
    """
    wished = (last - first) / (TICKS - 1)
    power: float = 10 ** math.floor(math.log10(wished))
    step = min((factor * power for factor in (1.0, 2.0, 5.0, 10.0)), key=lambda step: abs(step - wished))
    start = math.ceil(first / step - 1e-9)
    return [round(k * step, 10) for k in range(start, math.floor(last / step + 1e-9) + 1)]
