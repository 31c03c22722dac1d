"""Distributions over numbers: hand-worked values, properties, and simulations of the guarantees."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from components.shared.scoring.distribution import (
    answer,
    at_targets,
    balanced,
    central_interval,
    conformity,
    crps,
    interval_score,
    intervals,
    smoothed_prior,
    thresholds,
)

VALUES = np.arange(0.0, 5.0)
Q = np.array([[0.1, 0.2, 0.4, 0.2, 0.1], [0.0, 0.0, 0.0, 0.3, 0.7], [0.5, 0.5, 0.0, 0.0, 0.0]])
ROWS = arrays(np.float64, (3, 7), elements=st.floats(1e-3, 1.0)).map(lambda p: p / p.sum(axis=1, keepdims=True))


def test_answers_by_hand() -> None:
    np.testing.assert_array_equal(answer(Q, VALUES, "median"), [2, 4, 0])
    np.testing.assert_allclose(answer(Q, VALUES, "mean"), [2.0, 3.7, 0.5])
    np.testing.assert_array_equal(answer(Q, VALUES, "mode"), [2, 4, 0])


@given(ROWS)
def test_the_median_minimises_the_expected_absolute_error_and_the_mean_the_squared(q: np.ndarray) -> None:
    values = np.arange(7.0)
    absolute = np.einsum("un,cn->uc", q, np.abs(values[:, None] - values))
    chosen = answer(q, values, "median").astype(int)
    np.testing.assert_allclose(absolute[np.arange(3), chosen], absolute.min(axis=1), atol=1e-9)
    mean = answer(q, values, "mean")
    for shift in (-0.1, 0.1):
        shifted = (q * (values - (mean + shift)[:, None]) ** 2).sum(axis=1)
        assert np.all((q * (values - mean[:, None]) ** 2).sum(axis=1) <= shifted)


def test_balance_divides_the_prior_out() -> None:
    prior = np.array([0.7, 0.2, 0.1])
    likelihood = np.array([[0.2, 0.3, 0.9]])
    posterior = likelihood * prior
    np.testing.assert_allclose(balanced(np.log(posterior), np.log(prior), 0.0), posterior / posterior.sum())
    np.testing.assert_allclose(balanced(np.log(posterior), np.log(prior), 1.0), likelihood / likelihood.sum())
    half = likelihood * prior**0.5
    np.testing.assert_allclose(balanced(np.log(posterior), np.log(prior), 0.5), half / half.sum())


def test_an_impossible_number_stays_impossible() -> None:
    q = balanced([[-np.inf, 0.0, -1.0]], np.log([0.98, 0.01, 0.01]), 1.2)
    assert q[0, 0] == 0
    assert q.sum() == pytest.approx(1)


def test_a_row_without_any_possible_number_counts_as_the_prior() -> None:
    prior = np.array([0.5, 0.25, 0.25])
    np.testing.assert_allclose(balanced([[-np.inf] * 3], np.log(prior), 0.0), prior[None])
    np.testing.assert_allclose(balanced([[-np.inf] * 3], np.log(prior), 1.0), np.full((1, 3), 1 / 3))


@pytest.mark.parametrize("per_bin", [1.0, 5.0])
def test_the_prior_is_smoothed_as_scipy_does_with_half_a_row_per_bin(per_bin: float) -> None:
    counts = np.zeros(60)
    counts[[3, 20, 21, 59]] = [40, 200, 100, 7]
    reference = ndimage.gaussian_filter1d(counts, 2 * per_bin, mode="reflect", truncate=4.0) + 0.5 / per_bin
    np.testing.assert_allclose(smoothed_prior(counts, per_bin), reference / reference.sum(), rtol=2e-3)
    assert smoothed_prior(counts, per_bin).sum() == pytest.approx(1)
    assert smoothed_prior(np.zeros(60), per_bin) == pytest.approx(np.full(60, 1 / 60))


def test_crps_by_hand() -> None:
    # F = 0.1 0.3 0.7 0.9 1.0 against 0 0 1 1 1 for a target of 2.
    assert crps(Q[:1], VALUES, [2.0])[0] == pytest.approx(0.1**2 + 0.3**2 + 0.3**2 + 0.1**2)
    assert crps(Q[1:2], VALUES / 2, [2.0])[0] == pytest.approx(0.5 * 0.3**2)


@given(ROWS, st.integers(0, 6))
def test_crps_equals_its_form_with_expected_distances(q: np.ndarray, target: int) -> None:
    """E|X - y| - E|X - X'| / 2 (Gneiting and Raftery 2007, eq. 21)."""
    values = np.arange(7.0)
    near = q @ np.abs(values - target)
    spread = np.einsum("un,um,nm->u", q, q, np.abs(values[:, None] - values)) / 2
    np.testing.assert_allclose(crps(q, values, np.full(3, float(target))), near - spread, atol=1e-9)


def test_conformity_by_hand() -> None:
    np.testing.assert_allclose(conformity(Q[:1])[0], [0.9, 0.6, 0.0, 0.6, 0.9], atol=1e-12)
    np.testing.assert_allclose(at_targets(conformity(Q), VALUES, [1.0, 4.0, 4.0]), [0.6, 0.3, 1.0], atol=1e-12)


def test_a_threshold_is_the_rank_of_split_conformal_and_small_groups_borrow() -> None:
    scores = np.arange(1, 20) / 20  # 19 scores: rank ceil(20 * 0.9) = 18
    found = thresholds({"many": scores, "few": scores[:8], "medium": []}, 0.9)
    assert found["many"].score == pytest.approx(18 / 20)
    assert found["many"].guaranteed
    assert (found["few"].score, found["few"].guaranteed) == (found["many"].score, False)
    assert not found["medium"].guaranteed
    assert thresholds({"few": scores[:9]}, 0.9)["few"].guaranteed, "1 / alpha - 1 = 9 rows are enough"
    assert thresholds({"few": []}, 0.9)["few"].score == np.inf


def test_coverage_holds_for_each_group() -> None:
    """Random distributions that are overconfident; groups of very different size."""
    rng = np.random.default_rng(0)
    values, covered = np.arange(40.0), {"many": 0, "few": 0}
    group = np.where(values < 30, "many", "few")

    def draw(count: int, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
        targets = rng.integers(low, high, count).astype(float)
        centre = targets + rng.normal(0, 4, count)
        q = np.exp(-0.5 * ((values - centre[:, None]) / 2) ** 2) + 1e-12
        return q / q.sum(axis=1, keepdims=True), targets

    trials = 300
    for _ in range(trials):
        scores = {}
        for name, low, high, rows in (("many", 0, 30, 60), ("few", 30, 40, 15)):
            q, targets = draw(rows, low, high)
            scores[name] = at_targets(conformity(q), values, targets)
        found = thresholds(scores, 0.9)
        limits = np.array([found[name].score for name in group])
        for name, low, high in (("many", 0, 30), ("few", 30, 40)):
            q, targets = draw(20, low, high)
            admitted = at_targets(conformity(q) <= limits, values, targets)
            covered[name] += int(admitted.sum())
            lows, highs = intervals(q, values, limits, answer(q, values, "median"))
            assert np.all(admitted <= ((lows <= targets) & (targets <= highs))), "the hull holds what is admitted"
    assert all(count / (20 * trials) > 0.89 for count in covered.values()), covered


def test_an_interval_holds_the_answer_and_may_be_that_alone() -> None:
    low, high = intervals(Q, VALUES, np.full(5, 0.61), answer(Q, VALUES, "median"))
    np.testing.assert_array_equal(low, [1, 4, 0])
    np.testing.assert_array_equal(high, [3, 4, 1])
    low, high = intervals(Q, VALUES, np.full(5, -1.0), [2.0, 3.5, 0.0])
    np.testing.assert_array_equal((low, high), ([2, 3.5, 0], [2, 3.5, 0]))


def test_the_central_interval_and_its_score_by_hand() -> None:
    low, high = central_interval(Q, VALUES, 0.7)
    np.testing.assert_array_equal(low, [1, 3, 0])
    np.testing.assert_array_equal(high, [3, 4, 1])
    np.testing.assert_allclose(interval_score([1, 3, 0], [3, 4, 1], [0, 4, 2], 0.9), [2 + 20, 1, 1 + 20])
