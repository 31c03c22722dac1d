"""What was read off an image, and the order in which results are worth a look."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Result:
    """What was read off an image; numbers are None where they are unknown.

    Attributes:
        image: its name.
        value, low, high: the number and the ends of its interval.
        mass: probability of any number.
        error: why the image could not be read; None where it was.
        flag: what makes the number doubtful, see `components.commands.predict.flags`.
        score: what it is ranked by, the largest first; None where it was not read.
        rank: from 1.
    """

    image: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    mass: float | None = None
    error: str | None = None
    flag: str | None = None
    score: float | None = None
    rank: int | None = None


def ranked(results: Iterable[Result]) -> Iterator[Result]:
    """Yields the results with their ranks, the largest score first and those that were not read last.

    All results are held, but no images. Equal scores stay in the order of the input.
    """
    ordered = sorted(results, key=lambda result: math.inf if result.score is None else -result.score)
    for number, result in enumerate(ordered, start=1):
        yield result if result.score is None else replace(result, rank=number)
