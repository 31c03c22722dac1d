"""Intervals for new seeds and new images: hand-worked values, invariances, and a simulation of their coverage."""

import doctest
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from components.shared.reporting.metrics import paired_difference
from components.shared.scoring import crossed
from components.shared.scoring.crossed import crossed_difference, half_width, mean_squares, t_quantile

TABLES = arrays(np.float64, (3, 4), elements=st.integers(-20, 20).map(float))
WORST = 0.93  # coverage that an interval called 95 % must have


def difference(gaps: Any, **changes: Any) -> dict[str, Any]:
    """The result for a table of differences `(S, n)`."""
    table = np.asarray(gaps, float)
    every = {"ours": list(table), "theirs": [np.zeros(table.shape[1])] * len(table)}
    return crossed_difference(**(every | {"mask": np.ones(table.shape[1], bool)} | changes))


def test_the_example_in_the_docstring() -> None:
    assert doctest.testmod(crossed).attempted == 3
    assert doctest.testmod(crossed).failed == 0


def test_a_table_by_hand() -> None:
    # Seeds' means 2 and 4, images' means 1, 3, 5; the cells differ from their sum by -+1, 0, +-1.
    gaps = [[-1.0, 2.0, 5.0], [3.0, 4.0, 5.0]]
    assert mean_squares(np.array(gaps)) == pytest.approx([3 * 2, 2 * 4, 4 / 2])
    variance = (6 + 8 - 2) / 6
    a, b = 6 * 5, 8 * 3  # each mean square counts 1 + 4/v times, v being 1 and 2
    df = (a + b - 2) ** 2 / (a**2 / 1 + b**2 / 2 + 2**2 / 2)
    half = stats.t.ppf(0.975, df) * math.sqrt(variance)
    assert difference(gaps) == {
        "n": 3,
        "seeds": 2,
        "difference": 3,
        "ci": pytest.approx([3 - half, 3 + half]),
        "df": pytest.approx(df),
        "per_seed": [2, 4],
    }


@given(TABLES)
def test_images_of_one_subject_count_once(gaps: np.ndarray) -> None:
    """Each image twice tells no more than once; and every image a subject of its own is as no subjects."""
    once = difference(gaps)
    for times in (1, 2):
        found = difference(np.repeat(gaps, times, axis=1), subjects=np.repeat([3, 1, 7, 5], times))
        assert found["ci"] == pytest.approx(once["ci"], abs=1e-9)
        assert (found["n"], found["per_seed"]) == (4 * times, pytest.approx(once["per_seed"]))
    assert difference(gaps, subjects=np.zeros(4, int))["ci"] is None


@given(TABLES)
def test_mean_squares_equal_sums_of_squares_by_loops(gaps: np.ndarray) -> None:
    """Exact fractions, each sum as it is defined, and their total."""
    cells = [[Fraction(int(cell)) for cell in row] for row in gaps]
    seeds, n = len(cells), len(cells[0])
    mean = sum(sum(row) for row in cells) / Fraction(seeds * n)
    rows = [sum(row) / Fraction(n) for row in cells]
    columns = [sum(row[i] for row in cells) / Fraction(seeds) for i in range(n)]
    by_seed = sum((n * (row - mean) ** 2 for row in rows), Fraction(0))
    by_image = sum((seeds * (column - mean) ** 2 for column in columns), Fraction(0))
    total = sum(((cell - mean) ** 2 for row in cells for cell in row), Fraction(0))
    expected = [by_seed / 2, by_image / 3, (total - by_seed - by_image) / 6]
    np.testing.assert_allclose(mean_squares(gaps), [float(square) for square in expected], atol=1e-9)


def test_the_sum_of_mean_squares_estimates_the_variance_of_the_mean() -> None:
    rng = np.random.default_rng(1)
    means = np.concatenate([simulate(rng, 4000, 5, 30, 0.5, 2.0, 1.0).mean(axis=(1, 2)) for _ in range(5)])
    by_seed, by_image, rest = mean_squares(simulate(rng, 20000, 5, 30, 0.5, 2.0, 1.0))
    expected = 0.25 / 5 + 4 / 30 + 1 / 150
    assert ((by_seed + by_image - rest) / 150).mean() == pytest.approx(expected, rel=0.02)
    assert means.var() == pytest.approx(expected, rel=0.04), "the simulation itself"


def test_only_masked_images_count() -> None:
    gaps = np.random.default_rng(2).normal(size=(3, 6))
    mask = np.array([True, False, True, True, False, True])
    assert difference(gaps, mask=mask) == difference(gaps[:, mask])


def test_one_seed_gives_students_interval_over_images() -> None:
    gaps = np.random.default_rng(3).gamma(2, 3, 40)
    low, high = stats.ttest_1samp(gaps, 0).confidence_interval(0.95)
    assert difference([gaps])["ci"] == pytest.approx([low, high])
    assert difference([gaps])["df"] == 39


def test_seeds_that_answer_alike_do_not_shorten_the_interval() -> None:
    """The same differences five times are one seed's knowledge of the images."""
    gaps = np.random.default_rng(4).normal(size=40)
    once, often = difference([gaps]), difference([gaps] * 5)
    assert often["difference"] == pytest.approx(once["difference"])
    assert often["ci"] == pytest.approx(once["ci"])
    assert often["df"] == pytest.approx(once["df"])


def test_seeds_that_differ_on_all_images_give_students_interval_over_seeds() -> None:
    means = np.array([1.0, 4.0, 2.0])
    low, high = stats.ttest_1samp(means, 0).confidence_interval(0.95)
    assert difference(np.repeat(means[:, None], 50, axis=1))["ci"] == pytest.approx([low, high])
    assert difference(np.repeat(means[:, None], 50, axis=1))["df"] == pytest.approx(2)


def test_a_negative_sum_falls_back_on_the_largest_single_term() -> None:
    gaps = np.array([[1.0, -1.0], [-1.0, 1.0]]) + 3  # the seeds' means and the images' are equal
    assert [float(square) for square in mean_squares(gaps)] == [0, 0, 4]
    assert (difference(gaps)["ci"], difference(gaps)["df"]) == ([3, 3], 1)
    gaps[0, 0] += 1
    by_seed, by_image, rest = mean_squares(gaps)
    assert by_seed + by_image < rest
    found = difference(gaps)
    assert found["df"] == 1, "the least of the single degrees of freedom"
    assert (found["ci"][1] - found["ci"][0]) / 2 == pytest.approx(stats.t.ppf(0.975, 1) * math.sqrt(by_seed / 4))


def test_equal_models_have_an_interval_of_width_0() -> None:
    found = difference(np.zeros((3, 5)))
    assert (found["difference"], found["ci"], found["df"]) == (0, [0, 0], 2)


@given(TABLES, st.floats(0.1, 10))
def test_swapping_flips_signs_and_units_scale(gaps: np.ndarray, unit: float) -> None:
    every = np.ones(4, bool)
    ours, theirs = list(gaps), list(gaps[::-1, ::-1] / 2)
    found: dict[str, Any] = crossed_difference(ours, theirs, every)
    swapped: dict[str, Any] = crossed_difference(theirs, ours, every)
    assert swapped["difference"] == pytest.approx(-found["difference"], abs=1e-9)
    assert swapped["ci"] == pytest.approx([-found["ci"][1], -found["ci"][0]], abs=1e-9)
    assert swapped["per_seed"] == pytest.approx([-each for each in found["per_seed"]], abs=1e-9)
    scaled: dict[str, Any] = crossed_difference([unit * a for a in ours], [unit * b for b in theirs], every)
    assert scaled["ci"] == pytest.approx([unit * each for each in found["ci"]], abs=1e-6)
    assert scaled["df"] == pytest.approx(found["df"], rel=1e-6) or found["ci"][0] == pytest.approx(found["ci"][1])


@given(TABLES, st.permutations(range(3)), st.permutations(range(4)), st.floats(-50, 50))
def test_order_and_shift(gaps: np.ndarray, seeds: list[int], images: list[int], shift: float) -> None:
    found, moved = difference(gaps), difference(gaps[seeds][:, images] + shift)
    assert moved["difference"] == pytest.approx(found["difference"] + shift, abs=1e-9)
    assert moved["ci"] == pytest.approx([each + shift for each in found["ci"]], abs=1e-5)


def test_no_images_one_image_and_unequal_seeds() -> None:
    nothing = {"n": 0, "seeds": 2, "difference": None, "ci": None, "df": None, "per_seed": None}
    assert difference(np.ones((2, 3)), mask=np.zeros(3, bool)) == nothing
    one = {"n": 1, "seeds": 2, "difference": 2, "ci": None, "df": None, "per_seed": [1, 3]}
    assert difference([[1.0], [3.0]]) == one
    with pytest.raises(ValueError, match="longer"):
        difference(np.ones((2, 3)), theirs=[np.ones(3)] * 3)


@pytest.mark.parametrize("coverage", [0.5, 0.9, 0.95, 0.99])
def test_quantiles_equal_scipys(coverage: float) -> None:
    df = np.array([1, 1.01, 1.3, 2, 2.7, 5, 30, 199.5, 1e4, 1e6, 1e9])
    np.testing.assert_allclose(t_quantile(df, coverage), stats.t.ppf((1 + coverage) / 2, df), rtol=3e-6)


def simulate(
    rng: np.random.Generator, tables: int, seeds: int, n: int, a: float, b: float, e: float, skewed: bool = False
) -> np.ndarray:
    """Tables `(tables, S, n)` of mean 0 with standard deviations a of seeds, b of images and e of cells."""

    def draw(*shape: int) -> np.ndarray:
        return rng.exponential(size=shape) - 1 if skewed else rng.normal(size=shape)

    return a * rng.normal(size=(tables, seeds, 1)) + b * draw(tables, 1, n) + e * draw(tables, seeds, n)


def least_coverage(gaps: np.ndarray) -> float:
    """The coverage that is exceeded with 99 % confidence: the share of tables whose interval has 0, less 2.33 SE."""
    covered = float((np.abs(gaps.mean(axis=(1, 2))) <= half_width(gaps)[0]).mean())
    return covered - 2.33 * math.sqrt(covered * (1 - covered) / len(gaps))


@pytest.mark.parametrize("seeds", [3, 5, 8])
def test_95_percent_means_at_least_93(seeds: int) -> None:
    """With 5,000 tables a cell has a standard error of 0.0033, and the least true coverage is about 0.945."""
    rng = np.random.default_rng(seeds)
    n = 40
    # Parts of the variance of the mean that are the seeds' and the images', as multiples of the interaction's.
    for seeds_part in (0.0, 1.0, 5.0, 20.0, 100.0):
        for images_part in (0.0, 1.0, 5.0, 20.0):
            a, b = math.sqrt(seeds_part / n), math.sqrt(images_part / seeds)
            least = least_coverage(simulate(rng, 5000, seeds, n, a, b, 1.0))
            assert least >= WORST, (seeds_part, images_part)


@pytest.mark.parametrize("seeds", [3, 5, 8])
def test_95_percent_means_at_least_93_for_skewed_errors_on_many_images(seeds: int) -> None:
    gaps = simulate(np.random.default_rng(seeds), 2500, seeds, 400, 0.1, 3.0, 2.0, skewed=True)
    assert least_coverage(gaps) >= WORST


def test_simpler_intervals_fail_the_same_simulation() -> None:
    """Percentile bootstrap, Student's t over three seeds' means, and plain Satterthwaite: each where it is weak."""
    rng = np.random.default_rng(0)
    gaps = simulate(rng, 4000, 3, 40, 0.15, 1.0, 0.5)
    means = gaps.mean(axis=2)
    alone = stats.t.ppf(0.975, 2) * means.std(axis=1, ddof=1) / math.sqrt(3)
    assert (np.abs(means.mean(axis=1)) <= alone).mean() < 0.87
    assert least_coverage(gaps) >= WORST

    gaps = simulate(rng, 400, 3, 40, 1.0, 1.0, 1.0)
    zeros, every = [np.zeros(40)] * 3, np.ones(40, bool)
    intervals: list[Any] = [paired_difference(list(g), zeros, every, times=250)["ci"] for g in gaps]
    assert np.mean([low <= 0 <= high for low, high in intervals]) < 0.85

    gaps = simulate(rng, 20000, 3, 40, 1.0, math.sqrt(0.15 * 40 / 3), 0.1)
    by_seed, by_image, rest = mean_squares(gaps)
    total = by_seed + by_image - rest
    df = total**2 / (by_seed**2 / 2 + by_image**2 / 39 + rest**2 / 78)
    covered = (np.abs(gaps.mean(axis=(1, 2))) <= t_quantile(df) * np.sqrt(total / gaps[0].size)).mean()
    assert covered < WORST - 2.33 * math.sqrt(WORST * (1 - WORST) / 20000)
    assert least_coverage(gaps) >= WORST
