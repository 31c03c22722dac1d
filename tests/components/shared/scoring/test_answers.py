"""Formatting and parsing of answers."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.shared.scoring.answers import decimals, format_answer, parse_answer, parse_answers, unwritable


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<answer> 35 </answer>", 35),
        ("<answer>35</answer>", 35),
        ("<answer>\n 35.5\t</answer>", 35.5),
        ("<answer> +7 </answer>", 7),
        ("<answer> -7 </answer>", -7),
        ("<answer> -0 </answer>", 0),
        ("<answer> 007 </answer>", 7),
        ("The needle stands at <answer> 12 </answer>.", 12),
        ("<answer> 100 </answer>", 100),
        ("<answer> 100.0 </answer>", 100),
        ("<answer> -10 </answer>", -10),
        ("<answer> 5 </answer> so <answer> 5.0 </answer>", 5),
        ("<answer> ? </answer> <answer> 5 </answer>", 5),
        ("<answer> <answer> 5 </answer>", 5),
    ],
)
def test_valid_answers(text: str, value: float) -> None:
    assert parse_answer(text, -10, 100) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "35",
        "<answer> </answer>",
        "<answer> 35",
        "35 </answer>",
        "<ANSWER> 35 </ANSWER>",
        "< answer > 35 </ answer >",
        "<answer> thirty </answer>",
        "<answer> 35 years </answer>",
        "<answer> 3 5 </answer>",
        "<answer> 1e1 </answer>",
        "<answer> nan </answer>",
        "<answer> inf </answer>",
        "<answer> .5 </answer>",
        "<answer> 5. </answer>",
        "<answer> 1,000 </answer>",
        "<answer> 3,5 </answer>",
        "<answer> ٣ </answer>",
        "<answer> ³ </answer>",
        "<answer> 100.1 </answer>",
        "<answer> 101 </answer>",
        "<answer> -10.1 </answer>",
        "<answer> 5 </answer> or <answer> 6 </answer>",
        "<answer> 5 </answer> or <answer> 500 </answer>",
        "<answer> " + "9" * 400 + " </answer>",
        "<answer> 0." + "9" * 400 + " </answer>",
    ],
)
def test_invalid_answers(text: str) -> None:
    assert math.isnan(parse_answer(text, -10, 100))


@pytest.mark.parametrize(("resolution", "digits"), [(1, 0), (10, 0), (0.5, 1), (0.1, 1), (0.25, 2), (0.001, 3), (5, 0)])
def test_decimals(resolution: float, digits: int) -> None:
    assert decimals(resolution) == digits


@pytest.mark.parametrize(
    ("value", "resolution", "text"),
    [
        (35, 1, "<answer> 35 </answer>"),
        (35.0, 1, "<answer> 35 </answer>"),
        (0.1 + 0.2, 0.1, "<answer> 0.3 </answer>"),
        (-4, 0.5, "<answer> -4.0 </answer>"),
        (1234567, 1, "<answer> 1234567 </answer>"),
    ],
)
def test_format_answer(value: float, resolution: float, text: str) -> None:
    assert format_answer(value, resolution) == text


@given(st.integers(-100_000, 100_000), st.sampled_from([1, 0.5, 0.1, 0.25, 0.01]))
def test_formatted_answers_are_parsed_back(steps: int, resolution: float) -> None:
    value = steps * resolution
    assert parse_answer(format_answer(value, resolution), -1e5, 1e5) == pytest.approx(value, abs=resolution * 1e-6)


@given(st.text())
def test_any_text_parses_to_a_number_in_range_or_nan(text: str) -> None:
    for completion in (text, f"<answer> {text} </answer>"):
        value = parse_answer(completion, 0, 10)
        assert math.isnan(value) or 0 <= value <= 10


def test_parse_answers_keeps_the_order() -> None:
    np.testing.assert_array_equal(
        parse_answers(["<answer> 1 </answer>", "no", "<answer> 3 </answer>"], 0, 9), [1, np.nan, 3]
    )
    assert parse_answers([], 0, 9).shape == (0,)


@pytest.mark.parametrize(("value", "resolution"), [(-0.0, 1), (-1e-16, 0.1), (-0.4, 1)])
def test_minus_zero_is_never_written(value: float, resolution: float) -> None:
    assert format_answer(value, resolution) in ("<answer> 0 </answer>", "<answer> 0.0 </answer>")


@pytest.mark.parametrize(
    ("low", "high", "resolution"),
    [
        (0, 100, 1), (-0.7, 0.7, 0.1), (0, 1, 1 / 3), (0, 0.011, 1e-6), (0, 12.345, 0.001), (1e11, 1e11 + 50, 5),
        (-999_999_999_999, -999_999_999_000, 1), (0, 1000, 0.3),
    ],
)  # fmt: skip
def test_every_number_of_a_writable_range_is_parsed_back(low: float, high: float, resolution: float) -> None:
    assert unwritable(low, high, resolution) is None
    for step in range(round(low / resolution), math.floor(high / resolution + 0.001) + 1):
        value = step * resolution
        assert abs(parse_answer(format_answer(value, resolution), low, high) - value) <= resolution / 1000


@pytest.mark.parametrize(
    ("low", "high", "resolution", "reason"),
    [
        (0, 1e-4, 1e-7, "decimals"),  # every label would be written as 0
        (0, 1e-3, 1.5e-6, "decimals"),
        (0, 1, 1 / 3000, "decimals"),
        (0, 1e12, 1, "digits before the point"),
        (-1e13, 0, 1e9, "digits before the point"),
        (1e10, 1e10 + 0.01, 1e-5, "double"),
        (0.5, 9.5, 1, "multiples of resolution"),
        (0, 2 / 3, 1 / 3, "outside the range"),  # written as 0.666667
    ],
)
def test_a_range_that_answers_cannot_hold_is_refused(low: float, high: float, resolution: float, reason: str) -> None:
    assert reason in str(unwritable(low, high, resolution))


@given(st.floats(-1e13, 1e13), st.floats(0, 1e13), st.floats(1e-9, 1e6), st.floats(0, 1))
def test_what_is_not_refused_is_parsed_back(low: float, span: float, resolution: float, share: float) -> None:
    low = round(low / resolution) * resolution
    if unwritable(low, low + span, resolution) is None:
        value = math.floor((low + share * span) / resolution) * resolution
        if value >= low:
            assert abs(parse_answer(format_answer(value, resolution), low, low + span) - value) <= resolution / 1000


def test_a_label_between_two_steps_is_written_as_the_nearest() -> None:
    assert format_answer(0.3, 0.25) == "<answer> 0.25 </answer>"
    assert format_answer(37, 5) == "<answer> 35 </answer>"
