"""Formatting and parsing of answers."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.shared.scoring.answers import decimals, format_answer, parse_answer, parse_answers


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
