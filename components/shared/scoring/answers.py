"""Numbers as text: how an answer is written and how it is read back."""

import re
from collections.abc import Sequence

import numpy as np

ANSWER = re.compile(r"<answer>\s*([-+]?\d{1,12}(?:\.\d{1,6})?)\s*</answer>", re.ASCII)


def decimals(resolution: float) -> int:
    """Digits after the point that labels in steps of `resolution` need: 1 -> 0, 0.1 -> 1, 0.25 -> 2."""
    text = f"{resolution:.6f}".rstrip("0").rstrip(".")
    return len(text.partition(".")[2])


def format_answer(value: float, resolution: float) -> str:
    """The completion that the model learns for `value`: `<answer> 35 </answer>`."""
    return f"<answer> {value:.{decimals(resolution)}f} </answer>"


def parse_answer(text: str, low: float, high: float) -> float:
    """The number that a completion answers with, or NaN.

    NaN where there is no `<answer> NUMBER </answer>`, where two answers differ, or where the number lies outside
    `[low, high]`. Exponents, `nan` and `inf` are no numbers here.
    """
    found = {float(match) for match in ANSWER.findall(text)}
    if len(found) != 1:
        return float("nan")
    value = found.pop()
    return value if low <= value <= high else float("nan")


def parse_answers(texts: Sequence[str], low: float, high: float) -> np.ndarray:
    """`parse_answer` for every text: `(N,) float64`, NaN where there is no valid answer."""
    return np.array([parse_answer(text, low, high) for text in texts], dtype=np.float64)
