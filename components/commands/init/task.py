"""Chooses the range, the step and the label bins of a task from its labels, and the limits between shot groups."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from components.ingest.sources.labels import Label
from components.settings import Settings, Task
from components.shared.rows.histogram import LabelBin
from components.shared.scoring.shots import SHOTS, label_bins

MANY, FEW = 100, 20  # Yang et al. 2021
MAX_NUMBERS = 2000  # of a task: the model's probability of each of them is computed
ROWS_PER_SHOT = 10  # test images that validate asks for in each shot group
MAX_TEST_IMBALANCE = 4.0
_DIGITS = 6  # decimals of an answer, at most
_STEPS_OF_BINS = (1, 2, 5, 10, 20, 50, 100, 200)
_PER_LABEL = (30, 20, 10, 5)


def guess_resolution(targets: Sequence[float]) -> float:
    """The largest step 1, 2 or 5 times a power of ten that all labels are multiples of.

    Labels with more decimals than `MAX_NUMBERS` allows get the smallest step that it allows; they are rounded to it.
    """
    digits = next(
        (d for d in range(_DIGITS) if np.allclose(np.rint(scaled := np.asarray(targets) * 10**d), scaled, atol=1e-6)),
        _DIGITS,
    )
    common = math.gcd(*(round(abs(target) * 10**digits) for target in set(targets))) or 1
    units = max(step for step in _nice_steps(common) if common % step == 0)
    resolution = rounded(units / 10**digits)
    smallest = (max(targets) - min(targets)) / MAX_NUMBERS
    return resolution if resolution >= smallest else nice_above(smallest)


def _nice_steps(limit: int) -> Iterator[int]:
    """1, 2, 5, 10, 20, ..., up to the limit."""
    power = 1
    while power <= limit:
        yield from (factor * power for factor in (1, 2, 5) if factor * power <= limit)
        power *= 10


def nice_above(value: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is at least the value."""
    power = 10.0 ** math.floor(math.log10(value))
    return rounded(next(factor * power for factor in (1, 2, 5, 10) if factor * power >= value * (1 - 1e-9)))


def guess_range(targets: Sequence[float], resolution: float) -> tuple[float, float]:
    """Lowest and highest answer: the ends of the labels, rounded outwards to a tenth of their span.

    The low end becomes 0 where the labels begin near it.
    """
    lowest, highest = min(targets), max(targets)
    step = max(resolution, nice_above(max(highest - lowest, resolution) / 20))
    step = math.ceil(step / resolution - 1e-9) * resolution  # the ends are answers too, so whole multiples
    low = math.floor(lowest / step + 1e-9) * step
    high = math.ceil(highest / step - 1e-9) * step
    if 0 < low <= highest / 2:
        low = 0.0
    return rounded(low), rounded(high if high > low else low + step)


def rounded(value: float) -> float:
    """Without the rounding errors of a product, and as an integer where it is one."""
    value = round(value, _DIGITS)
    return int(value) if value == int(value) else value


@dataclass(frozen=True)
class Bins:
    """Label bins and the limits between the shot groups.

    Attributes:
        width: of a bin, in the task's unit.
        many, few: limits of the shot groups, in training rows.
        max_per_label: rows of a label that go to val, and to test, at most.
    """

    width: float
    many: int
    few: int
    max_per_label: int


@dataclass(frozen=True)
class _Candidate:
    """Bins, and how good they are.

    Attributes:
        bins: the bins.
        test_rows: of the smallest shot group.
        imbalance: test rows of the fullest bin over the mean one.
        standard: whether the limits are those of the literature.
    """

    bins: Bins
    test_rows: int
    imbalance: float
    standard: bool

    @property
    def passes(self) -> bool:
        return self.test_rows >= ROWS_PER_SHOT and self.imbalance <= MAX_TEST_IMBALANCE


def choose_bins(labels: Sequence[Label], split: str, resolution: float, width: float | None = None) -> Bins:
    """The narrowest bins with which many, medium and few all have enough test rows.

    The limits 100 and 20 are kept where any bins allow it; else they are set between the bins of the data.

    Args:
        labels: all of them.
        split: the rule of ingest.split.
        resolution: step of the labels.
        width: the width that the user wants; None: any.
    """
    widths = [width] if width else [rounded(resolution * steps) for steps in _STEPS_OF_BINS]
    span = max(label.target for label in labels) - min(label.target for label in labels)
    candidates = [
        candidate
        for each in widths
        if each <= max(span / 3, resolution) or width
        for limit in (_PER_LABEL if split != "given" else _PER_LABEL[:1])
        for candidate in _candidates(labels, split, resolution, each, limit)
    ]
    for standard in (True, False):
        for candidate in candidates:
            if candidate.standard == standard and candidate.passes:
                return candidate.bins
    return max(candidates, key=lambda c: (min(c.test_rows, ROWS_PER_SHOT), -max(c.imbalance, MAX_TEST_IMBALANCE))).bins


def _candidates(
    labels: Sequence[Label], split: str, resolution: float, width: float, limit: int
) -> Iterator[_Candidate]:
    """The candidate with the limits of the literature, and the one with limits that fit the data."""
    train, test = split_counts(labels, split, resolution, width, limit)
    rows = np.array([test[bin] for bin in train])
    imbalance = max(test.values()) / (test.total() / len(test)) if test.total() else math.inf
    counts = np.array(list(train.values()))
    few, many = fitting_limits(counts, rows)
    for standard, low, high in ((True, FEW, MANY), (False, few, many)):
        groups = (rows[counts < low].sum(), rows[(counts >= low) & (counts <= high)].sum(), rows[counts > high].sum())
        yield _Candidate(Bins(width, int(high), int(low), limit), int(min(groups)), imbalance, standard)


def split_counts(
    labels: Sequence[Label], split: str, resolution: float, width: float, limit: int
) -> tuple[Counter[int], Counter[int]]:
    """Rows per bin in train and in test, as the rule of `components.ingest.splits` gives them on average."""
    bins = label_bins([label.target for label in labels], width, resolution).tolist()
    if split in ("given", "given-test"):
        train, test = (
            Counter(bin for bin, label in zip(bins, labels, strict=True) if label.split == part)
            for part in ("train", "test")
        )
        to_val = 0 if split == "given" else limit
        return Counter({bin: rows - min(rows // 3, to_val) for bin, rows in train.items()}), test
    all_rows = Counter(bins)
    share = {bin: min(rows // 3, limit) for bin, rows in all_rows.items()}
    test = Counter({bin: rows for bin, rows in share.items() if rows})
    return Counter({bin: rows - 2 * share[bin] for bin, rows in all_rows.items()}), test


def fitting_limits(counts: np.ndarray, test_rows: np.ndarray) -> tuple[int, int]:
    """few and many with which the smallest shot group has the most test rows.

    Args:
        counts: `(K,)` training rows of each bin.
        test_rows: `(K,)` test rows of each bin.

    Returns:
        few and many; both groups are empty if all bins have equally many rows.
    """
    levels = np.unique(counts)
    if len(levels) < 3:
        return int(levels[-1]), int(levels[-1])
    rows = np.array([test_rows[counts == level].sum() for level in levels])
    below = np.cumsum(rows)  # test rows in bins of at most this many training rows
    best = max(
        ((i, j) for i in range(len(levels) - 2) for j in range(i + 1, len(levels) - 1)),
        key=lambda ij: min(below[ij[0]], below[ij[1]] - below[ij[0]], below[-1] - below[ij[1]]),
    ) if len(levels) <= 60 else _by_thirds(below)  # fmt: skip
    return int(levels[best[0]]) + 1, int(levels[best[1]])


def _by_thirds(below: np.ndarray) -> tuple[int, int]:
    first, second = (int(np.searchsorted(below, below[-1] * share)) for share in (1 / 3, 2 / 3))
    first = min(first, len(below) - 3)
    return first, min(max(second, first + 1), len(below) - 2)


@dataclass(frozen=True)
class Limits:
    """What validate may ask of these splits.

    Attributes:
        min_imbalance, max_test_imbalance, max_val_imbalance, min_rows_per_shot: as in the section validate.
        absent: shot groups without test rows.
        train_imbalance, test_imbalance: as observed.
    """

    min_imbalance: float
    max_test_imbalance: float
    max_val_imbalance: float
    min_rows_per_shot: int
    absent: tuple[str, ...]
    train_imbalance: float
    test_imbalance: float


def limits_of(histogram: Sequence[LabelBin], template: Settings) -> Limits:
    """The template's limits, widened where the splits do not meet them.

    Unless the splits are given, hashes choose them, here of other ids than in ingest. So the limits leave room for
    counts that differ by two standard deviations.

    Args:
        histogram: rows per label and split.
        template: has the limits.
    """
    rows = {part: [bin.rows[part] for bin in histogram if bin.rows[part]] for part in ("train", "val", "test")}
    imbalance = {part: _high(max(counts)) * len(counts) / sum(counts) for part, counts in rows.items()}
    train = _low(max(rows["train"])) / _high(min(rows["train"]))
    shots = {shot: _low(sum(bin.rows["test"] for bin in histogram if bin.shot == shot)) for shot in SHOTS}
    wanted = template.validation
    return Limits(
        min(wanted.min_imbalance, max(1.0, math.floor(train * 10) / 10)),
        max(wanted.max_test_imbalance, math.ceil(imbalance["test"])),
        max(wanted.max_val_imbalance, math.ceil(imbalance["val"])),
        min(wanted.min_rows_per_shot, min((count for count in shots.values() if count), default=1)),
        tuple(shot for shot, count in shots.items() if not count),
        train,
        imbalance["test"],
    )


def _low(count: int) -> int:
    """A count that another draw hardly falls below."""
    return max(math.floor(count - 2 * math.sqrt(count)), 0)


def _high(count: int) -> int:
    """A count that another draw hardly exceeds."""
    return math.ceil(count + 2 * math.sqrt(count))


def on_step(targets: Sequence[float], task: Task) -> bool:
    """Whether all labels are whole numbers of steps."""
    steps = np.asarray(targets) / task.resolution
    return bool(np.all(np.abs(steps - np.rint(steps)) <= 0.001))
