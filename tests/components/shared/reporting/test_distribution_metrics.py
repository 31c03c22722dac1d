"""Metrics of distributions and intervals by shot group, against values worked out by hand."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.shared.reporting.distribution_metrics import evaluate_distribution
from components.shared.reporting.metrics import mean_over, median_over
from components.shared.scoring.answer_rule import AnswerRule, Readings, ValidationDistributions
from components.shared.scoring.errors import Predictions

VALUES = np.arange(5.0)
P = np.array([[0.1, 0.2, 0.4, 0.2, 0.1], [0.0, 0.0, 0.0, 0.32, 0.64], [0.5, 0.3, 0.0, 0.0, 0.0]])
TARGETS = np.array([2.0, 2.0, 4.0])
SHOTS = np.array(["many", "many", "few"])


@pytest.fixture
def rule() -> AnswerRule:
    """Balance 0; many has ten calibration rows, the other groups have none."""
    with np.errstate(divide="ignore"):
        log_p = np.log(np.tile(P[:1], (10, 1)))
    validation = ValidationDistributions(
        VALUES, np.array([0, 5, 9, 5, 1.0]), np.array(["few", "medium", "many", "medium", "few"]), 1.0, 0.0,
        np.zeros(10, bool), np.full(10, 2.0), log_p, np.full(10, 2.0),
    )  # fmt: skip
    return AnswerRule.fit(validation, "median", 0.0, 0.9, 0.5)


def judged(rule: AnswerRule, readings: Readings, times: int = 200) -> dict[str, Any]:
    predictions = Predictions(TARGETS, TARGETS, SHOTS, 0.0, 4.0, 1.0)
    with np.errstate(divide="ignore"):
        return evaluate_distribution(rule, np.log(P), readings, predictions, times, 0)


@pytest.fixture
def figures(rule: AnswerRule) -> dict[str, Any]:
    low, high = np.array([1.0, 3.0, 0.0]), np.array([3.0, 4.0, 1.0])
    return judged(rule, Readings(TARGETS, low, high, P.sum(axis=1)))


def test_crps_by_hand(figures: dict[str, Any]) -> None:
    # F - 1[n >= y]: 0.1 0.3 -0.3 -0.1 0; 0 0 -1 -2/3 0; 5/8 1 1 1 0.
    crps = [0.2, 1 + 4 / 9, 25 / 64 + 3]
    assert figures["groups"]["many"]["crps"] == pytest.approx((crps[0] + crps[1]) / 2)
    assert figures["groups"]["few"]["crps"] == pytest.approx(crps[2])
    assert figures["groups"]["all"]["crps"] == pytest.approx(np.mean(crps))
    low, high = figures["groups"]["many"]["crps_ci"]
    assert low == pytest.approx(crps[0])
    assert high == pytest.approx(crps[1])


def test_intervals_by_hand(figures: dict[str, Any]) -> None:
    many, few, everything = (figures["groups"][group]["conformal"] for group in ("many", "few", "all"))
    assert (many["coverage"], few["coverage"]) == (0.5, 0.0)
    assert everything["coverage"] == pytest.approx(1 / 3)
    assert (many["width"], few["width"], everything["width"]) == (1.0, 1.0, 1.0)  # widths 2, 1 and 1
    # The width, and 20 for each unit of a miss: 2; 1 + 20 * 1; 1 + 20 * 3.
    assert many["score"] == pytest.approx((2 + 21) / 2)
    assert few["score"] == pytest.approx(61)
    assert figures["coverage"] == 0.9
    own = figures["groups"]["many"]["own"]  # 5 to 95 %: 0 to 4, and 3 to 4
    assert (own["coverage"], own["width"], own["score"]) == (0.5, 1.0, pytest.approx((4 + 21) / 2))


def test_a_group_without_calibration_rows_is_flagged(figures: dict[str, Any]) -> None:
    assert {group: found["conformal"]["guaranteed"] for group, found in figures["groups"].items()} == {
        "all": False, "many": True, "medium": False, "few": False,
    }  # fmt: skip
    assert "guaranteed" not in figures["groups"]["many"]["own"]


def test_an_empty_group_has_no_figures(figures: dict[str, Any]) -> None:
    medium = figures["groups"]["medium"]
    assert (medium["n"], medium["crps"], medium["crps_ci"]) == (0, None, None)
    assert {medium["own"][key] for key in ("coverage", "width", "score", "coverage_ci")} == {None}


def test_mass_by_hand(figures: dict[str, Any]) -> None:
    mass = figures["mass"]
    assert mass["mean"] == pytest.approx((1 + 0.96 + 0.8) / 3)
    assert mass["least"] == pytest.approx(0.8)
    assert mass["below_0.9"] == pytest.approx(1 / 3)
    assert mass["mean_ci"][0] == pytest.approx(0.8)


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=12),
    st.lists(st.integers(0, 3), min_size=12, max_size=12),
)
def test_the_weighted_median_is_numpys_lower_median_of_repeated_values(values: list[int], counts: list[int]) -> None:
    numbers, weights = np.array(values, float), np.array(counts[: len(values)], float)
    found = median_over(numbers, np.ones(len(values), bool))(weights[None])
    repeated = np.repeat(numbers, weights.astype(int))
    if len(repeated):
        assert found[0] == np.quantile(repeated, 0.5, method="inverted_cdf")
    else:
        assert np.isnan(found[0])


def test_statistics_only_see_the_masked_images() -> None:
    values, mask = np.array([1.0, 100.0, 3.0]), np.array([True, False, True])
    weights = np.array([[1.0, 9.0, 1.0], [1.0, 9.0, 3.0], [0.0, 9.0, 0.0]])
    np.testing.assert_allclose(mean_over(values, mask)(weights), [2.0, 2.5, np.nan])
    np.testing.assert_allclose(median_over(values, mask)(weights), [1.0, 3.0, np.nan])
