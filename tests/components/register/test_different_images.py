"""Which images a registered version reads otherwise than evaluate."""

import pyarrow as pa
import pytest

from components.register.served_predictions import different_images
from components.settings import load_settings
from tests.support.raw_folder import ROOT

TASK = load_settings(ROOT / "params.yaml").task  # in steps of 1


def table(**columns: list[float | None]) -> pa.Table:
    return pa.table({name: pa.array(values, pa.float64()) for name, values in columns.items()})


@pytest.mark.parametrize(
    ("was", "now", "expected"),
    [
        ({"value": [3.0, None]}, {"value": [3.0, None]}, {}),
        ({"mass": [2.3573264186262493e-06]}, {"mass": [2.3573266410404922e-06]}, {}),  # another order of additions
        ({"value": [3.0, 4.0]}, {"value": [3.0, 5.0]}, {1: "value 5, was 4"}),
        ({"value": [3.2]}, {"value": [3.6]}, {}),  # means are not on the grid
        ({"value": [None]}, {"value": [3.0]}, {0: "value 3, was nan"}),
        ({"value": [1.0], "low": [0.0]}, {"value": [1.0], "low": [None]}, {0: "low nan, was 0"}),
        ({"value": [1.0], "mass": [0.99]}, {"value": [2.0], "mass": [0.5]}, {0: "value 2, was 1"}),
        ({"mass": [0.99]}, {"mass": [0.988]}, {0: "mass 0.988, was 0.99"}),
    ],
)
def test_numbers_may_differ_by_less_than_half_the_resolution(
    was: dict[str, list[float | None]], now: dict[str, list[float | None]], expected: dict[int, str]
) -> None:
    assert different_images(was, table(**now), TASK) == expected
