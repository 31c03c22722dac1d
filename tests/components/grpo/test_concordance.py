"""Slot-wise concordance against its definition, in exact arithmetic, and against torchmetrics."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torchmetrics.functional.regression import concordance_corrcoef, pearson_corrcoef

from components.grpo.concordance import concordance, slot_concordance, slot_pearson

NAN = float("nan")
BOTH = pytest.mark.parametrize("slotwise", [slot_concordance, slot_pearson])


@st.composite
def batches(draw: st.DrawFn, low: float = -100, high: float = 100, invalid: bool = True) -> tuple:
    """Predictions `(B, G)` in tenths with NaN here and there, and targets `(B,)` in tenths."""
    b, g = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    tenths = st.integers(int(low * 10), int(high * 10)).map(lambda n: n / 10)
    predictions = draw(arrays(np.float64, (b, g), elements=st.one_of(tenths, st.just(NAN)) if invalid else tenths))
    return predictions, draw(arrays(np.float64, b, elements=tenths))


def exact(v: list[Fraction], t: list[Fraction]) -> tuple[Fraction, Fraction, Fraction, Fraction]:
    """Population covariance, both variances and the difference of means."""
    n = len(v)
    mv, mt = sum(v, Fraction(0)) / n, sum(t, Fraction(0)) / n
    cov = sum(((a - mv) * (b - mt) for a, b in zip(v, t, strict=True)), Fraction(0)) / n
    return cov, sum((a - mv) ** 2 for a in v) / n, sum((b - mt) ** 2 for b in t) / n, mv - mt


def ccc(v: list[Fraction], t: list[Fraction]) -> float:
    cov, vv, vt, gap = exact(v, t)
    denominator = vv + vt + gap**2
    return float(2 * cov / denominator) if denominator else 0.0


def pearson(v: list[Fraction], t: list[Fraction]) -> float:
    cov, vv, vt, _ = exact(v, t)
    return float(cov) / math.sqrt(vv * vt) if vv * vt else 0.0


def by_definition(predictions: np.ndarray, targets: np.ndarray, of=ccc) -> np.ndarray:  # type: ignore[no-untyped-def]
    """The loop: the vector of anchors, with one generation in its own slot, for every generation."""
    rewards = np.full(predictions.shape, -1.0)
    answered = [i for i, row in enumerate(predictions) if np.isfinite(row).any()]
    groups = {i: [Fraction(p) for p in predictions[i] if np.isfinite(p)] for i in answered}
    anchors = {i: sum(group, Fraction(0)) / len(group) for i, group in groups.items()}
    reference = [Fraction(targets[i]) for i in answered]
    for i in answered:
        for g, p in enumerate(predictions[i]):
            if np.isfinite(p):
                rewards[i, g] = of([Fraction(p) if j == i else anchors[j] for j in answered], reference)
    return rewards


@given(batches())
def test_slot_concordance_is_its_definition(batch: tuple) -> None:
    np.testing.assert_allclose(slot_concordance(*batch), by_definition(*batch), atol=1e-9)


@given(batches())
def test_slot_pearson_is_its_definition(batch: tuple) -> None:
    np.testing.assert_allclose(slot_pearson(*batch), by_definition(*batch, of=pearson), atol=1e-6)


def test_by_hand() -> None:
    # Anchors (1, 4), targets (0, 4). Slot 1 = 0: (0, 4) is perfect. Slot 1 = 2: (2, 4) has cov 2, variances 1 and 4,
    # means 3 and 2, so 2*2 / (1 + 4 + 1) = 2/3. Slot 2 = 4 is (1, 4): cov 3, 2.25, 4, gap 0.5: 6 / 6.5. The invalid
    # answer is in no anchor.
    found = slot_concordance([[0, 2], [4, NAN]], [0, 4])
    np.testing.assert_allclose(found, [[1, 2 / 3], [6 / 6.5, -1]], atol=1e-15)


@BOTH
@given(batch=batches(), seed=st.integers(0, 2**32 - 1))
def test_order_of_inputs_and_of_generations_does_not_matter(slotwise, batch: tuple, seed: int) -> None:  # type: ignore[no-untyped-def]
    predictions, targets = batch
    rng = np.random.default_rng(seed)
    rows, columns = rng.permutation(len(targets)), rng.permutation(predictions.shape[1])
    there = slotwise(predictions[rows][:, columns], targets[rows])
    np.testing.assert_allclose(there, slotwise(predictions, targets)[rows][:, columns], atol=1e-6)


@BOTH
@given(batch=batches(), scale=st.sampled_from([1e-3, 0.5, 7.0, 1e4]), shift=st.sampled_from([-1e4, 0.0, 3.0]))
def test_unit_and_zero_of_the_scale_do_not_matter(slotwise, batch: tuple, scale: float, shift: float) -> None:  # type: ignore[no-untyped-def]
    predictions, targets = batch
    there = slotwise(predictions * scale + shift, targets * scale + shift)
    np.testing.assert_allclose(there, slotwise(predictions, targets), atol=1e-4)


@given(batches(invalid=False), st.sampled_from([0.5, 2.0]))
def test_concordance_sees_a_wrong_scale_that_pearson_does_not(batch: tuple, scale: float) -> None:
    _, targets = batch
    assume(np.ptp(targets) > 1)
    centred = targets - targets.mean()
    shrunk = (targets.mean() + scale * centred)[:, None]
    np.testing.assert_allclose(slot_pearson(shrunk, targets), 1, atol=1e-9)
    np.testing.assert_allclose(slot_concordance(shrunk, targets), 2 * scale / (1 + scale**2), atol=1e-9)


@BOTH
@given(batch=batches(), copies=st.integers(1, 4))
def test_perfect_answers_get_one(slotwise, batch: tuple, copies: int) -> None:  # type: ignore[no-untyped-def]
    _, targets = batch
    perfect = np.repeat(targets[:, None], copies, axis=1)
    expected = 1.0 if np.ptp(targets) > 0 else 0.0
    np.testing.assert_allclose(slotwise(perfect, targets), expected, atol=1e-9)


@BOTH
@given(batch=batches(), constant=st.integers(-1000, 1000).map(lambda n: n / 10), copies=st.integers(1, 4))
def test_a_constant_predictor_gets_zero(slotwise, batch: tuple, constant: float, copies: int) -> None:  # type: ignore[no-untyped-def]
    _, targets = batch
    np.testing.assert_allclose(slotwise(np.full((len(targets), copies), constant), targets), 0, atol=1e-9)


@BOTH
@given(batch=batches(), target=st.integers(-1000, 1000).map(lambda n: n / 10))
def test_equal_targets_have_nothing_to_agree_with(slotwise, batch: tuple, target: float) -> None:  # type: ignore[no-untyped-def]
    predictions, targets = batch
    found = slotwise(predictions, np.full_like(targets, target))
    np.testing.assert_allclose(found[np.isfinite(predictions)], 0, atol=1e-9)


@BOTH
@pytest.mark.parametrize("size", [3, 10, 64, 1000])
def test_rounding_noise_is_no_variance(slotwise, size: int) -> None:  # type: ignore[no-untyped-def]
    """Many equal values: their mean is not quite the value, and noise over noise would be any number."""
    rng = np.random.default_rng(size)
    for value in (0.1, -1 / 3, 77.7, 1e9 / 7):
        spread = rng.normal(value, 1, (size, 2))
        np.testing.assert_allclose(slotwise(spread, np.full(size, value)), 0, atol=1e-9)
        np.testing.assert_allclose(slotwise(np.full((size, 2), value), spread[:, 0]), 0, atol=1e-9)


@BOTH
def test_one_input_alone_gets_zero(slotwise) -> None:  # type: ignore[no-untyped-def]
    np.testing.assert_array_equal(slotwise([[3.0, 5.0, NAN]], [4.0]), [[0, 0, -1]])


@BOTH
@given(batch=batches())
def test_invalid_gets_minus_one_and_never_beats_a_valid_one(slotwise, batch: tuple) -> None:  # type: ignore[no-untyped-def]
    predictions, targets = batch
    found = slotwise(predictions, targets)
    valid = np.isfinite(predictions)
    assert (found[~valid] == -1).all()
    assert ((found[valid] >= -1) & (found[valid] <= 1)).all()


@BOTH
@given(batch=batches())
def test_invalid_answers_and_unanswered_inputs_change_nobody_else_s_reward(slotwise, batch: tuple) -> None:  # type: ignore[no-untyped-def]
    predictions, targets = batch
    wider = np.column_stack([predictions, np.full(len(targets), NAN)])
    longer = np.vstack([wider, np.full(wider.shape[1], NAN)])
    found = slotwise(longer, [*targets, 1e6])
    assert (found[-1] == -1).all()
    np.testing.assert_array_equal(found[:-1, :-1], slotwise(predictions, targets))


@BOTH
@pytest.mark.parametrize("shape", [(1, 1), (3, 2)])
def test_a_batch_without_a_valid_answer(slotwise, shape: tuple[int, int]) -> None:  # type: ignore[no-untyped-def]
    np.testing.assert_array_equal(slotwise(np.full(shape, NAN), np.arange(shape[0])), np.full(shape, -1.0))


@BOTH
def test_infinity_is_no_valid_answer(slotwise) -> None:  # type: ignore[no-untyped-def]
    found = slotwise([[1, math.inf], [2, -math.inf]], [1, 2])
    np.testing.assert_allclose(found, [[1, -1], [1, -1]])


@BOTH
@given(
    predictions=arrays(np.float64, (4, 3), elements=st.floats(allow_nan=True, allow_infinity=True)),
    targets=arrays(np.float64, 4, elements=st.floats(allow_nan=False, allow_infinity=False)),
)
def test_any_numbers_give_finite_rewards(slotwise, predictions: np.ndarray, targets: np.ndarray) -> None:  # type: ignore[no-untyped-def]
    found = slotwise(predictions, targets)
    assert np.isfinite(found).all()
    assert (np.abs(found) <= 1).all()


@pytest.mark.parametrize("size", [1e-300, 1e-150, 1.0, 1e150, 1e300])
def test_size_of_the_numbers_does_not_matter(size: float) -> None:
    predictions, targets = np.array([[0.0, 2.0], [4.0, 4.0]]), np.array([0.0, 4.0])
    np.testing.assert_allclose(
        slot_concordance(predictions * size, targets * size), slot_concordance(predictions, targets), rtol=1e-12
    )
    assert concordance(targets * size, targets * size) == pytest.approx(1)


@BOTH
@pytest.mark.parametrize(
    ("predictions", "targets", "message"),
    [
        ([1.0, 2.0], [1.0, 2.0], "predictions must be"),
        ([[1.0], [2.0]], [1.0], "predictions must be"),
        ([[1.0], [2.0]], [1.0, NAN], "targets must be finite"),
        ([[1.0], [2.0]], [1.0, math.inf], "targets must be finite"),
    ],
)
def test_wrong_input_is_refused(slotwise, predictions: list, targets: list, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        slotwise(predictions, targets)


def vectors() -> st.SearchStrategy:
    whole = st.integers(-1000, 1000).map(float)
    return st.integers(2, 30).flatmap(lambda n: st.tuples(*[arrays(np.float64, n, elements=whole)] * 2))


@given(vectors())
def test_concordance_is_torchmetrics_with_population_moments(pair: tuple) -> None:
    predictions, targets = pair
    assume(np.ptp(predictions) > 0 and np.ptp(targets) > 0)
    # torchmetrics divides variances and covariance by N - 1, and the squared gap by nothing. Widening the gap by
    # sqrt(N / (N - 1)) multiplies all its terms by N / (N - 1), and leaves the ratio that population moments give.
    n = len(targets)
    gap = predictions.mean() - targets.mean()
    widened = predictions + gap * (math.sqrt(n / (n - 1)) - 1)
    theirs = concordance_corrcoef(torch.tensor(widened), torch.tensor(targets))
    assert concordance(predictions, targets) == pytest.approx(float(theirs), abs=1e-8)


@given(vectors())
def test_one_generation_an_input_is_the_batch_s_own_figure(pair: tuple) -> None:
    predictions, targets = pair
    assume(np.ptp(predictions) > 0 and np.ptp(targets) > 0)
    whole = slot_concordance(predictions[:, None], targets)
    np.testing.assert_allclose(whole, concordance(predictions, targets), atol=1e-9)
    theirs = float(pearson_corrcoef(torch.tensor(predictions), torch.tensor(targets)))
    np.testing.assert_allclose(slot_pearson(predictions[:, None], targets), theirs, atol=1e-6)


@pytest.mark.parametrize(
    ("predictions", "targets", "expected"),
    [
        ([1, 2, 3], [1, 2, 3], 1),
        ([3, 2, 1], [1, 2, 3], -1),
        ([2, 2, 2], [1, 2, 3], 0),
        ([2, 2], [2, 2], 0),
        ([0.1, 0.1, 0.1], [0.1, 0.1, 0.1], 0),
        ([5], [7], 0),
        ([2, 3, 4], [1, 2, 3], 2 * (2 / 3) / (4 / 3 + 1)),
    ],
)
def test_concordance_by_hand(predictions: list, targets: list, expected: float) -> None:
    assert concordance(predictions, targets) == pytest.approx(expected, abs=1e-12)
