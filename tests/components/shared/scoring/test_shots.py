"""Shot groups: binning of labels, also with decimals, and the limits between groups."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.shared.scoring.shots import ShotTable, label_bins


@pytest.mark.parametrize(
    ("targets", "width", "resolution", "bins"),
    [
        ([0, 1, 99, 100], 1, 1, [0, 1, 99, 100]),
        ([0, 4, 5, 9, 10], 5, 1, [0, 0, 1, 1, 2]),
        ([-1, -5, -6], 5, 1, [-1, -1, -2]),
        ([0.0, 0.4, 0.5, 0.9, 1.0], 0.5, 0.1, [0, 0, 1, 1, 2]),
        ([0.1 + 0.2, 0.7, 2.3], 0.1, 0.1, [3, 7, 23]),
        ([5.8, 5.9, 6.0, 6.4, 6.5], 0.5, 0.1, [11, 11, 12, 12, 13]),
        ([0.25, 0.5], 0.25, 0.25, [1, 2]),
        ([1950, 1951], 1, 1, [1950, 1951]),
    ],
)
def test_bins(targets: list, width: float, resolution: float, bins: list) -> None:
    np.testing.assert_array_equal(label_bins(targets, width, resolution), bins)


@given(st.integers(-10_000, 10_000), st.sampled_from([(1, 1), (5, 1), (0.5, 0.1), (1, 0.1), (0.1, 0.1), (0.3, 0.1)]))
def test_every_label_step_is_in_its_bin(step: int, widths: tuple[float, float]) -> None:
    """The expected bin is computed in integers; float division must not move a label to a neighbouring bin."""
    width, resolution = widths
    assert label_bins([step * resolution], width, resolution)[0] == step // round(width / resolution)


@pytest.mark.parametrize(
    ("count", "shot"),
    [
        (0, "few"),
        (1, "few"),
        (19, "few"),
        (20, "medium"),
        (21, "medium"),
        (99, "medium"),
        (100, "medium"),
        (101, "many"),
    ],
)
def test_shot_group_limits(count: int, shot: str) -> None:
    table = ShotTable.of([7.0] * count + [8.0], width=1, resolution=1)
    assert table.shot([7])[0] == shot
    assert table.count([7])[0] == count


def test_custom_limits() -> None:
    table = ShotTable.of([1] * 3 + [2] * 5 + [3] * 6, width=1, resolution=1, many=5, few=4)
    assert table.shot([1, 2, 3, 4]).tolist() == ["few", "medium", "many", "few"]


def test_decimal_labels_are_counted_in_their_bin() -> None:
    train = np.repeat(np.arange(0, 100) / 10, 5)  # 5 of each tenth: alone each would be few
    assert set(ShotTable.of(train, width=0.1, resolution=0.1).shot(train)) == {"few"}
    table = ShotTable.of(train, width=0.5, resolution=0.1)
    assert set(table.counts.values()) == {25}
    assert set(table.shot(train)) == {"medium"}


def test_labels_missing_in_training_are_few_shot() -> None:
    table = ShotTable.of([1] * 200, width=1, resolution=1)
    assert table.shot([1, 55, -3]).tolist() == ["many", "few", "few"]
    assert table.count([]).shape == table.shot([]).shape == (0,)
