"""The task: range, step, bins and shot limits of any labels."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.commands.init.task import (
    MAX_NUMBERS,
    choose_bins,
    fitting_limits,
    guess_range,
    guess_resolution,
    nice_above,
    split_counts,
)
from components.ingest.sources.labels import Label
from components.ingest.splits import balanced_splits
from components.shared.scoring.answers import unwritable
from components.shared.scoring.shots import SHOTS, ShotTable, label_bins


def labels_of(counts: dict[float, int], split: str = "") -> list[Label]:
    targets = [target for target, count in counts.items() for _ in range(count)]
    return [Label(f"{k}", f"{k}.png", target, split, k + 2) for k, target in enumerate(targets)]


@pytest.mark.parametrize(
    ("targets", "resolution"),
    [
        ([1, 2, 7], 1),
        ([0.5, 9.0, 3.3], 0.1),
        ([2.5, 5, 7.5], 0.5),
        ([20, 40, 60], 20),
        ([15, 30, 45], 5),
        ([-1.25, 0, 3], 0.05),
        ([3, 3, 3], 1),
        ([0, 0, 0], 1),
    ],
)
def test_the_step_is_the_largest_nice_one_that_divides_all_labels(targets: list[float], resolution: float) -> None:
    assert guess_resolution(targets) == resolution


def test_labels_with_too_many_decimals_get_a_step_that_the_model_can_enumerate() -> None:
    targets = np.random.default_rng(0).uniform(0, 1000, 500).tolist()
    assert guess_resolution(targets) == 0.5
    assert MAX_NUMBERS >= 1000 / 0.5


@given(st.lists(st.integers(-10_000, 10_000), min_size=2, max_size=40), st.sampled_from([0.01, 0.1, 0.5, 1, 5, 100]))
def test_labels_lie_on_the_step_and_in_the_range(steps: list[int], step: float) -> None:
    targets = [k * step for k in steps]
    resolution = guess_resolution(targets)
    low, high = guess_range(targets, resolution)
    assert low <= min(targets) + 1e-9
    assert max(targets) <= high + 1e-9
    assert low < high
    assert unwritable(low, high, resolution) is None
    if (max(steps) - min(steps)) <= MAX_NUMBERS:
        assert all(abs(target / resolution - round(target / resolution)) < 1e-3 for target in targets)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [([1, 101], (0, 105)), ([0, 100], (0, 100)), ([0.5, 9.0], (0, 9)), ([-3, 20], (-4, 20)), ([90, 100], (90, 100))],
)
def test_the_range_is_rounded_outwards(targets: list[float], expected: tuple[float, float]) -> None:
    assert guess_range(targets, guess_resolution([*targets, min(targets) + 1])) == expected


def test_the_low_end_is_a_label() -> None:
    """Labels 5, 7, 9, ... would never be the model's answers 4, 6, 8, ... and the other way round."""
    targets = [float(value) for value in range(160, 256, 2)]
    assert guess_range(targets, guess_resolution(targets)) == (156, 258)


@given(st.floats(1e-6, 1e6))
def test_nice_numbers_are_1_2_or_5_times_a_power_of_ten(value: float) -> None:
    nice = nice_above(value)
    assert nice >= value * (1 - 1e-6) or nice == round(value, 6)
    assert nice <= 2.5 * value + 1e-6


@pytest.mark.parametrize("split", ["balanced", "given", "given-test"])
def test_rows_per_bin_are_those_of_the_rule(split: str) -> None:
    labels = labels_of({1: 100, 2: 40, 3: 2})
    if split != "balanced":
        labels = [
            Label(x.id, x.image, x.target, "test" if k % 4 == 0 else "train", x.line) for k, x in enumerate(labels)
        ]
    train, test = split_counts(labels, split, 1, 1, 10)
    if split == "balanced":
        bins = label_bins([label.target for label in labels], 1, 1).tolist()
        rule = balanced_splits([label.id for label in labels], bins, 10)
        pairs = list(zip(bins, rule, strict=True))
        assert train == {bin: pairs.count((bin, "train")) for bin in (1, 2, 3)}
        assert test == {bin: pairs.count((bin, "test")) for bin in (1, 2)}
    else:
        assert test == {1: 25, 2: 10, 3: 1}
        assert train == {1: 75 if split == "given" else 65, 2: 30 if split == "given" else 20, 3: 1}


@given(
    st.lists(st.integers(1, 400), min_size=6, max_size=40),
    st.sampled_from(["balanced", "subject"]),
)
def test_all_shot_groups_exist_where_the_counts_differ(counts: list[int], split: str) -> None:
    labels = labels_of({float(k): count for k, count in enumerate(counts)})
    if len(labels) < 30:
        return
    bins = choose_bins(labels, split, 1)
    train, test = split_counts(labels, split, 1, bins.width, bins.max_per_label)
    assert bins.few <= bins.many
    levels = {train[bin] for bin in train if test[bin]}
    if len(levels) >= 3:
        table = ShotTable(dict(train), bins.width, 1, bins.many, bins.few)
        groups = set(table.shot([bin * bins.width for bin in train if test[bin]]).tolist())
        assert groups == set(SHOTS)


def test_the_limits_of_the_literature_are_kept_where_they_fit() -> None:
    tail = {float(age): round(400 * math.exp(-abs(age - 35) / 10)) + 6 for age in range(100)}
    bins = choose_bins(labels_of(tail), "balanced", 1)
    assert (bins.width, bins.many, bins.few, bins.max_per_label) == (1, 100, 20, 30)


def test_a_small_data_set_gets_limits_of_its_own() -> None:
    bins = choose_bins(labels_of({1: 60, 2: 40, 3: 30, 4: 20, 5: 15, 6: 10, 7: 8, 8: 6}), "balanced", 1)
    assert bins.many < 100
    assert bins.few < 20


def test_the_width_that_the_user_wants_is_kept() -> None:
    assert choose_bins(labels_of({1: 60, 2: 40, 3: 30, 4: 20}), "balanced", 1, width=2).width == 2


def test_equal_counts_give_one_group() -> None:
    assert fitting_limits(np.array([5, 5, 5]), np.array([2, 2, 2])) == (5, 5)
