"""The picture of a distribution, and where its parts are drawn."""

import doctest
import re

import pytest

from components.commands.demo import chart
from components.commands.demo.chart import LEFT, RIGHT, WIDTH, Scale, round_numbers

READ = {
    "value": 30.0, "low": 20.0, "high": 40.0, "values": [0.0, 10.0, 20.0, 30.0, 40.0],
    "posterior": [0.0, 0.1, 0.2, 0.5, 0.2], "prior": [0.6, 0.1, 0.1, 0.1, 0.1],
}  # fmt: skip


def test_answer_and_interval_are_where_they_belong() -> None:
    drawn = chart.chart(READ, "%")
    x = Scale(0, 40, 1).x
    assert f'class="answer" x1="{x(30):.1f}" x2="{x(30):.1f}"' in drawn
    assert f'class="interval" x="{x(20):.1f}"' in drawn
    assert f'width="{x(40) - x(20):.1f}"' in drawn
    assert ">30 %</text>" in drawn


def test_numbers_span_the_width_and_the_most_likely_one_the_height() -> None:
    drawn = chart.chart(READ, "")
    (path,) = re.findall(r'class="prior" d="M(.*?)"', drawn)
    points = [[float(place) for place in point.split(",")] for point in path.split(" L")]
    assert points[0] == [LEFT, chart.TOP]
    assert points[-1][0] == WIDTH - RIGHT
    assert max(y for _, y in points) < chart.HEIGHT - chart.BOTTOM


def test_units_are_text() -> None:
    assert "<b>" not in chart.chart(READ, "<b>")


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        (0, 120, [0, 20, 40, 60, 80, 100, 120]),
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (5, 228, [50, 100, 150, 200]),
        (-3, 3, [-3, -2, -1, 0, 1, 2, 3]),
    ],
)
def test_axis_has_round_numbers(first: float, last: float, expected: list[float]) -> None:
    assert round_numbers(first, last) == expected


def test_examples() -> None:
    assert doctest.testmod(chart) == (0, 1)
