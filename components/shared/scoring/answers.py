"""Formats numbers as answers, and parses answers back to numbers."""

import math
import re
from collections.abc import Sequence

import numpy as np

MAX_DIGITS, MAX_DECIMALS = 12, 6  # of an answer, before and after the point
ANSWER = re.compile(rf"<answer>\s*([-+]?\d{{1,{MAX_DIGITS}}}(?:\.\d{{1,{MAX_DECIMALS}}})?)\s*</answer>", re.ASCII)


def decimals(resolution: float) -> int:
    """Decimal digits needed for labels in steps of `resolution`: 1 -> 0, 0.1 -> 1, 0.25 -> 2."""
    text = f"{resolution:.{MAX_DECIMALS}f}".rstrip("0").rstrip(".")
    return len(text.partition(".")[2])


def format_answer(value: float, resolution: float) -> str:
    """Formats the completion that the model is trained on, such as `<answer> 35 </answer>`: the nearest whole step."""
    digits = decimals(resolution)
    value = round(value / resolution) * resolution
    return f"<answer> {round(value, digits) + 0.0:.{digits}f} </answer>"  # + 0.0: never -0


def unwritable(low: float, high: float, resolution: float) -> str | None:
    """Why not every number from `low` to `high` can be an answer, with the remedy; None if each of them can.

    Then `parse_answer(format_answer(x))` is x to within a thousandth of the resolution for each x = k * resolution.
    This follows from the ends and the number of decimals: written with d decimals, x is off by at most half a unit of
    the last one, and by at most k times the rounding of the resolution itself; rounding keeps the order of numbers, so
    all of them lie between the ends as these are written.
    """
    digits, tolerance, largest = decimals(resolution), resolution / 1000, max(abs(low), abs(high))
    if round(largest, digits) >= 10**MAX_DIGITS:
        return f"an answer has at most {MAX_DIGITS} digits before the point. Choose a larger unit"
    rounding = min(0.5 * 10.0**-digits, largest / resolution * abs(resolution - round(resolution, digits)))
    if rounding > tolerance:
        return f"an answer has at most {MAX_DECIMALS} decimals. Choose a smaller unit, or a coarser resolution"
    if np.spacing(largest) > tolerance:
        return "such numbers have more digits than a double. Choose a coarser resolution, or move the range to 0"
    if abs(low / resolution - round(low / resolution)) > 0.001:
        return f"labels are whole multiples of resolution. Set low to one, such as {_below(low, resolution):g}"
    for end in (low, _below(high, resolution)):
        if not abs(parse_answer(format_answer(end, resolution), low, high) - end) <= tolerance:
            written = format_answer(end, resolution)
            return f"{end!r} is written as {written}, which is outside the range. Widen it a little"
    return None


def _below(value: float, resolution: float) -> float:
    """The largest whole multiple of the resolution that is no larger than the value, up to a thousandth of a step."""
    return math.floor(value / resolution + 0.001) * resolution


def parse_answer(text: str, low: float, high: float) -> float:
    """Returns the number in a completion, or NaN.

    NaN means that there is no `<answer> NUMBER </answer>`, that two answers differ, or that the number lies outside
    `[low, high]`. Exponents, `nan` and `inf` are not accepted as numbers.
    """
    numbers = {float(match) for match in ANSWER.findall(text)}
    if len(numbers) != 1:
        return float("nan")
    value = numbers.pop()
    return value if low <= value <= high else float("nan")


def parse_answers(texts: Sequence[str], low: float, high: float) -> np.ndarray:
    """Applies `parse_answer` to every text: `(N,) float64`, NaN where there is no valid answer."""
    return np.array([parse_answer(text, low, high) for text in texts], dtype=np.float64)
