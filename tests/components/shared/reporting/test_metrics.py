"""Metrics against hand-computed values, and their intervals against scipy's bootstrap."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from components.grpo.concordance import concordance
from components.shared.reporting.metrics import evaluate, interval, paired_difference, resamples
from components.shared.scoring.errors import Predictions, subject_numbers

NAN = float("nan")
FIGURES = ("rmse", "pearson", "ccc", "sd_ratio", "unparseable")


def answers(values, targets, shots=None, low=0.0, high=100.0, resolution=1.0) -> Predictions:  # type: ignore[no-untyped-def]
    targets = np.asarray(targets, float)
    shots = np.asarray(["many"] * len(targets) if shots is None else shots)
    return Predictions(targets, np.asarray(values, float), shots, low, high, resolution)


def test_metrics_match_hand_computed_values() -> None:
    # errors 0, 2, 8, 20; the exact hit counts as half a step in GM.
    result: dict[str, Any] = evaluate(
        answers([10, 12, 58, 60], [10, 10, 50, 80], ["many", "many", "medium", "few"]), times=50
    )
    groups = result["groups"]
    assert [groups[g]["n"] for g in ("all", "many", "medium", "few")] == [4, 2, 1, 1]
    assert [groups[g]["mae"] for g in ("all", "many", "medium", "few")] == pytest.approx([7.5, 1, 8, 20])
    assert [groups[g]["gm"] for g in ("all", "many", "medium", "few")] == pytest.approx(
        [(0.5 * 2 * 8 * 20) ** 0.25, 1.0, 8, 20]
    )
    assert result["n"] == 4
    assert result["gm_floor"] == 0.5
    assert result["unparseable"] == 0
    assert result["rmse"] == pytest.approx(math.sqrt((0 + 4 + 64 + 400) / 4))
    predictions, targets = np.array([10, 12, 58, 60.0]), np.array([10, 10, 50, 80.0])
    assert result["pearson"] == pytest.approx(stats.pearsonr(predictions, targets).statistic)
    assert result["ccc"] == pytest.approx(concordance(predictions, targets))
    assert result["sd_ratio"] == pytest.approx(predictions.std() / targets.std())


def test_unparseable_answer_counts_as_the_farther_end_of_the_range() -> None:
    predictions = answers([NAN, NAN, 50, np.inf], [10, 80, 50, 50], low=0, high=100)
    np.testing.assert_array_equal(predictions.scored, [100, 0, 50, 100])
    np.testing.assert_array_equal(predictions.errors, [90, 80, 0, 50])
    result: dict[str, Any] = evaluate(predictions, times=20)
    assert result["unparseable"] == 0.75
    assert result["groups"]["all"]["mae"] == 55
    assert result["groups"]["all"]["n"] == 4


def test_unparseable_answer_has_the_largest_possible_error() -> None:
    targets = np.linspace(-7, 13, 41)
    for low, high in ((-7.0, 13.0), (-20.0, 13.0)):
        errors = answers(np.full(41, NAN), targets, low=low, high=high).errors
        worst = np.abs(np.linspace(low, high, 201)[:, None] - targets).max(axis=0)
        np.testing.assert_allclose(errors, worst)


@pytest.mark.parametrize(("resolution", "floor"), [(1.0, 0.5), (0.1, 0.05), (5.0, 2.5)])
def test_gm_floor_is_half_the_resolution(resolution: float, floor: float) -> None:
    result: dict[str, Any] = evaluate(answers([3, 4, 5], [3, 4, 5], resolution=resolution), times=10)
    assert result["gm_floor"] == floor
    assert result["groups"]["all"]["gm"] == pytest.approx(floor)
    assert result["groups"]["all"]["mae"] == 0


def test_empty_group_is_reported_as_empty() -> None:
    result: dict[str, Any] = evaluate(answers([1, 2], [1, 3], ["many", "few"]), times=10)
    assert result["groups"]["medium"] == {"n": 0, "mae": None, "mae_ci": None, "gm": None, "gm_ci": None}


def test_constant_predictions_have_no_pearson_and_zero_spread() -> None:
    targets = np.random.default_rng(0).integers(0, 101, 500)  # enough for rounding noise in every sum
    for constant in (40.0, 20.0, 0.1, 100 / 3):
        result = evaluate(answers([constant] * 500, targets), times=50)
        assert result["pearson"] is None
        assert result["pearson_ci"] is None
        assert result["ccc"] == pytest.approx(0, abs=1e-12)
        assert result["sd_ratio"] == 0


def test_equal_targets_have_no_sd_ratio() -> None:
    for target in (2.0, 0.1, 100 / 3):
        result = evaluate(answers(np.linspace(0, 100, 500), [target] * 500), times=50)
        assert result["pearson"] is None
        assert result["sd_ratio"] is None
        assert result["ccc"] == pytest.approx(0, abs=1e-12)


def test_resamples_without_spread_are_excluded_from_the_interval() -> None:
    """A resample of few images often repeats a single image; its correlation is undefined and must not be noise."""
    targets = np.array([0.1, 0.1, 0.1, 0.1, 0.7, 13.3])
    result = evaluate(answers(0.5 * targets + 0.3, targets), times=3000)
    assert result["pearson_ci"] == pytest.approx([1, 1])
    assert result["sd_ratio_ci"] == pytest.approx([0.5, 0.5])


def test_metrics_of_one_image() -> None:
    result: dict[str, Any] = evaluate(answers([4], [7]), times=20)
    assert result["groups"]["all"] == {
        "n": 1,
        "mae": 3,
        "mae_ci": [3, 3],
        "gm": pytest.approx(3),
        "gm_ci": pytest.approx([3, 3]),
    }
    assert result["pearson"] is None


def test_empty_predictions_are_rejected() -> None:
    with pytest.raises(ValueError, match="no predictions"):
        evaluate(answers([], []))


@given(
    values=arrays(np.float64, 12, elements=st.one_of(st.integers(0, 100).map(float), st.just(NAN))),
    targets=arrays(np.float64, 12, elements=st.integers(0, 100).map(float)),
    shots=arrays("<U6", 12, elements=st.sampled_from(["many", "medium", "few"])),
)
def test_metrics_are_consistent_with_each_other(values: np.ndarray, targets: np.ndarray, shots: np.ndarray) -> None:
    predictions = answers(values, targets, shots)
    result: dict[str, Any] = evaluate(predictions, times=30)
    groups = result["groups"]
    assert sum(groups[g]["n"] for g in ("many", "medium", "few")) == groups["all"]["n"] == 12
    weighted = sum(groups[g]["n"] * groups[g]["mae"] for g in ("many", "medium", "few") if groups[g]["n"])
    assert groups["all"]["mae"] == pytest.approx(weighted / 12)
    for group in groups.values():
        if group["n"]:
            assert 0.5 - 1e-9 <= group["gm"] <= max(group["mae"], 0.5) + 0.5
    assert groups["all"]["mae"] <= result["rmse"] + 1e-9
    for name in FIGURES:
        if result[name] is None:
            continue
        assert math.isfinite(result[name])
    if result["pearson"] is not None:
        assert abs(result["ccc"]) <= abs(result["pearson"]) + 1e-9
        assert result["ccc"] == pytest.approx(concordance(predictions.scored, targets), abs=1e-9)


def test_intervals_agree_with_scipy() -> None:
    rng = np.random.default_rng(3)
    targets = rng.uniform(0, 100, 400)
    values = np.clip(0.8 * targets + rng.normal(8, 6, 400), 0, 100)
    shots = np.where(targets < 60, "many", "few")
    result: dict[str, Any] = evaluate(answers(values, targets, shots), times=4000, seed=1)
    errors = np.abs(values - targets)

    def scipy_interval(statistic, *samples):  # type: ignore[no-untyped-def]
        result = stats.bootstrap(
            samples, statistic, paired=len(samples) > 1, vectorized=False, n_resamples=2000, method="percentile", rng=5
        )
        return [result.confidence_interval.low, result.confidence_interval.high]

    def close(ours: list[float], theirs: list[float]) -> None:
        assert ours == pytest.approx(theirs, abs=0.12 * (theirs[1] - theirs[0]))

    close(result["groups"]["all"]["mae_ci"], scipy_interval(np.mean, errors))
    close(result["groups"]["few"]["mae_ci"], scipy_interval(np.mean, errors[shots == "few"]))
    close(result["groups"]["all"]["gm_ci"], scipy_interval(stats.gmean, np.maximum(errors, 0.5)))
    close(result["rmse_ci"], scipy_interval(lambda e: np.sqrt(np.mean(e**2)), errors))
    close(result["ccc_ci"], scipy_interval(concordance, values, targets))
    close(result["sd_ratio_ci"], scipy_interval(lambda v, t: v.std() / t.std(), values, targets))


def test_interval_contains_the_value_and_depends_on_the_seed() -> None:
    rng = np.random.default_rng(0)
    predictions = answers(rng.integers(0, 100, 300), rng.integers(0, 100, 300), rng.choice(["many", "few"], 300))
    result: dict[str, Any] = evaluate(predictions, times=600, seed=2)
    assert result == evaluate(predictions, times=600, seed=2)
    assert result != evaluate(predictions, times=600, seed=3)
    for group in ("all", "many", "few"):
        for metric in ("mae", "gm"):
            low, high = result["groups"][group][f"{metric}_ci"]
            assert low < result["groups"][group][metric] < high
    for name in ("rmse", "pearson", "ccc", "sd_ratio"):
        low, high = result[f"{name}_ci"]
        assert low < result[name] < high


def test_each_resample_draws_n_images() -> None:
    blocks = list(resamples(n=7, times=600, seed=0))
    drawn = np.concatenate(blocks)
    assert drawn.shape == (600, 7)
    assert (drawn.sum(axis=1) == 7).all()
    np.testing.assert_allclose(drawn.mean(axis=0), 1, atol=0.15)


def test_interval() -> None:
    assert interval(np.arange(1001)) == pytest.approx([25, 975])
    assert interval([1.0, NAN, 1.0, np.inf]) == [1, 1]
    assert interval([NAN]) is None


def test_paired_difference_matches_hand_computed_values() -> None:
    ours = [np.array([1.0, 2.0, 9.0, 4.0]), np.array([2.0, 2.0, 9.0, 4.0])]
    theirs = [np.array([2.0, 4.0, 0.0, 4.0]), np.array([2.0, 5.0, 0.0, 6.0])]
    mask = np.array([True, True, False, True])
    result: dict[str, Any] = paired_difference(ours, theirs, mask, times=500)
    # Seed 1: -1, -2, 0. Seed 2: 0, -3, -2.
    assert result["per_seed"] == pytest.approx([-1, -5 / 3])
    assert result["difference"] == pytest.approx(-4 / 3)
    assert (result["n"], result["seeds"]) == (3, 2)
    low, high = result["ci"]
    assert -3 <= low < -4 / 3 < high <= 0


def test_paired_difference_of_one_seed_agrees_with_scipy() -> None:
    rng = np.random.default_rng(4)
    ours, theirs = rng.gamma(2, 3, 300), rng.gamma(2, 3.5, 300)
    result = paired_difference([ours], [theirs], np.ones(300, bool), times=4000)
    reference = stats.bootstrap(
        (ours - theirs,), np.mean, n_resamples=4000, method="percentile", rng=1
    ).confidence_interval
    width = reference.high - reference.low
    assert result["ci"] == pytest.approx([reference.low, reference.high], abs=0.1 * width)


def test_paired_difference_widens_with_the_spread_between_seeds() -> None:
    """Differences between seeds are uncertainty too; resampling images alone would miss it."""
    base = np.random.default_rng(5).gamma(2, 3, 500)
    mask = np.ones(500, bool)
    calm = paired_difference([base - 1, base - 1, base - 1], [base] * 3, mask)
    wild: dict[str, Any] = paired_difference([base - 3, base - 1, base + 1], [base] * 3, mask)
    assert calm["difference"] == pytest.approx(wild["difference"]) == pytest.approx(-1)
    assert calm["ci"] == pytest.approx([-1, -1])
    assert wild["ci"][0] < -2.3
    assert wild["ci"][1] > 0.3


def test_few_images_widen_the_interval_as_students_does() -> None:
    gaps = np.array([-3.0, -1, -2, -4, 1, -3])
    result: dict[str, Any] = paired_difference([gaps], [np.zeros(6)], np.ones(6, bool), times=20_000)
    low, high = result["ci"]
    student = stats.t.interval(0.95, 5, gaps.mean(), stats.sem(gaps))
    plain = stats.bootstrap((gaps,), np.mean, n_resamples=20_000, method="percentile", rng=1).confidence_interval
    assert low < plain.low - 0.2
    assert (low, high) == pytest.approx(student, abs=0.5), "a mean of six has only about 462 resamples"
    assert paired_difference([gaps[:1]], [np.zeros(1)], np.ones(1, bool))["ci"] is None


def test_whole_subjects_are_resampled() -> None:
    """Ten equal images of each subject say no more than one of each."""
    few = np.random.default_rng(1).normal(-1, 2, 12)
    many, subjects = np.repeat(few, 10), np.repeat(np.arange(12), 10)
    alone: dict[str, Any] = paired_difference([few], [np.zeros(12)], np.ones(12, bool))
    every = np.ones(120, bool)
    ten: dict[str, Any] = paired_difference([many], [np.zeros(120)], every, subjects=subjects)
    assert (ten["n"], ten["subjects"]) == (120, 12)
    assert ten["ci"] == pytest.approx(alone["ci"])
    wrong: dict[str, Any] = paired_difference([many], [np.zeros(120)], every)
    assert wrong["ci"][1] - wrong["ci"][0] < 0.5 * (ten["ci"][1] - ten["ci"][0])


def test_every_figure_has_its_interval_over_subjects() -> None:
    rng = np.random.default_rng(2)
    targets = rng.uniform(20, 80, 15)
    alone = answers(targets + rng.normal(0, 5, 15), targets)
    ten = answers(np.repeat(alone.values, 10), np.repeat(targets, 10))
    known: dict[str, Any] = evaluate(replace(ten, subjects=np.repeat(np.arange(15), 10)), times=200)
    expected: dict[str, Any] = evaluate(alone, times=200)
    assert known["subjects"] == 15
    for name in ("rmse", "pearson", "ccc", "sd_ratio"):
        assert known[f"{name}_ci"] == pytest.approx(expected[f"{name}_ci"])
    assert known["groups"]["many"]["mae_ci"] == pytest.approx(expected["groups"]["many"]["mae_ci"])


def test_an_image_of_an_unknown_subject_stands_for_itself() -> None:
    assert subject_numbers([None, None]) is None
    numbers = subject_numbers(["b", None, "a", None, "b", ""])
    assert numbers is not None
    assert numbers[0] == numbers[4]
    assert sorted(set(numbers.tolist())) == [0, 1, 2, 3, 4]


def test_paired_difference_of_no_images_and_of_unequal_seeds() -> None:
    nothing = {"n": 0, "subjects": None, "seeds": 1, "difference": None, "ci": None, "per_seed": None}
    assert paired_difference([np.ones(3)], [np.ones(3)], np.zeros(3, bool)) == nothing
    with pytest.raises(ValueError, match="shorter"):
        paired_difference([np.ones(3)] * 2, [np.ones(3)], np.ones(3, bool))
