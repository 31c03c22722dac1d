"""Formats numbers as answers, and parses answers back to numbers."""

import re
from collections.abc import Sequence

import numpy as np

ANSWER = re.compile(r"<answer>\s*([-+]?\d{1,12}(?:\.\d{1,6})?)\s*</answer>", re.ASCII)


def decimals(resolution: float) -> int:
    """Decimal digits needed for labels in steps of `resolution`: 1 -> 0, 0.1 -> 1, 0.25 -> 2."""
    text = f"{resolution:.6f}".rstrip("0").rstrip(".")
    return len(text.partition(".")[2])


def format_answer(value: float, resolution: float) -> str:
    """Formats the completion that the model is trained on, such as `<answer> 35 </answer>`."""
    digits = decimals(resolution)
    return f"<answer> {round(value, digits) + 0.0:.{digits}f} </answer>"  # + 0.0: never -0


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
