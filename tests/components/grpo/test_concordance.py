"""Slot-wise concordance against its definition in exact arithmetic, and against torchmetrics."""

import math
from collections.abc import Callable
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
Slotwise = Callable[..., np.ndarray]


@st.composite
def batches(draw: st.DrawFn, low: float = -100, high: float = 100, invalid: bool = True) -> tuple:
    """Predictions `(B, G)`, multiples of 0.1 and some NaN, and targets `(B,)`, multiples of 0.1."""
    b, g = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    tenths = st.integers(int(low * 10), int(high * 10)).map(lambda n: n / 10)
    predictions = draw(arrays(np.float64, (b, g), elements=st.one_of(tenths, st.just(NAN)) if invalid else tenths))
    return predictions, draw(arrays(np.float64, b, elements=tenths))


def moments(v: list[Fraction], t: list[Fraction]) -> tuple[Fraction, Fraction, Fraction, Fraction]:
    """Population covariance, both variances, and the difference of the means."""
    n = len(v)
    mv, mt = sum(v, Fraction(0)) / n, sum(t, Fraction(0)) / n
    cov = sum(((a - mv) * (b - mt) for a, b in zip(v, t, strict=True)), Fraction(0)) / n
    var_v, var_t = (sum(((a - m) ** 2 for a in x), Fraction(0)) / n for x, m in ((v, mv), (t, mt)))
    return cov, var_v, var_t, mv - mt


def ccc(v: list[Fraction], t: list[Fraction]) -> float:
    cov, vv, vt, gap = moments(v, t)
    denominator = vv + vt + gap**2
    return float(2 * cov / denominator) if denominator else 0.0


def pearson(v: list[Fraction], t: list[Fraction]) -> float:
    cov, vv, vt, _ = moments(v, t)
    return float(cov) / math.sqrt(vv * vt) if vv * vt else 0.0


def by_definition(
    predictions: np.ndarray,
    targets: np.ndarray,
    measure: Callable[[list[Fraction], list[Fraction]], float] = ccc,
) -> np.ndarray:
    """For every generation, the measure of the vector of anchors with that generation in its own slot."""
    rewards = np.full(predictions.shape, -1.0)
    answered = [i for i, row in enumerate(predictions) if np.isfinite(row).any()]
    groups = {i: [Fraction(p) for p in predictions[i] if np.isfinite(p)] for i in answered}
    anchors = {i: sum(group, Fraction(0)) / len(group) for i, group in groups.items()}
    reference = [Fraction(targets[i]) for i in answered]
    for i in answered:
        for g, p in enumerate(predictions[i]):
            if np.isfinite(p):
                rewards[i, g] = measure([Fraction(p) if j == i else anchors[j] for j in answered], reference)
    return rewards


@given(batches())
def test_slot_concordance_equals_its_definition(batch: tuple) -> None:
    np.testing.assert_allclose(slot_concordance(*batch), by_definition(*batch), atol=1e-9)


@given(batches())
def test_slot_pearson_equals_its_definition(batch: tuple) -> None:
    predictions, targets = batch
    expected = by_definition(predictions, targets, pearson)
    np.testing.assert_allclose(slot_pearson(predictions, targets), expected, atol=1e-6)


def test_slot_concordance_by_hand() -> None:
    # Anchors (1, 4), targets (0, 4). Slot 1 = 0: (0, 4) is perfect. Slot 1 = 2: (2, 4) has cov 2, variances 1 and 4,
    # means 3 and 2, so 2*2 / (1 + 4 + 1) = 2/3. Slot 2 = 4 is (1, 4): cov 3, 2.25, 4, gap 0.5: 6 / 6.5. The invalid
    # answer is in no anchor.
    rewards = slot_concordance(np.array([[0, 2], [4, NAN]]), [0, 4])
    np.testing.assert_allclose(rewards, [[1, 2 / 3], [6 / 6.5, -1]], atol=1e-15)


@BOTH
@given(batch=batches(), seed=st.integers(0, 2**32 - 1))
def test_the_order_of_inputs_and_generations_does_not_matter(slotwise: Slotwise, batch: tuple, seed: int) -> None:
    predictions, targets = batch
    rng = np.random.default_rng(seed)
    rows, columns = rng.permutation(len(targets)), rng.permutation(predictions.shape[1])
    permuted = slotwise(predictions[rows][:, columns], targets[rows])
    np.testing.assert_allclose(permuted, slotwise(predictions, targets)[rows][:, columns], atol=1e-6)


@BOTH
@given(batch=batches(), scale=st.sampled_from([1e-3, 0.5, 7.0, 1e4]), shift=st.sampled_from([-1e4, 0.0, 3.0]))
def test_unit_and_origin_of_the_scale_do_not_matter(
    slotwise: Slotwise, batch: tuple, scale: float, shift: float
) -> None:
    predictions, targets = batch
    changed = slotwise(predictions * scale + shift, targets * scale + shift)
    np.testing.assert_allclose(changed, slotwise(predictions, targets), atol=1e-4)


@given(batches(invalid=False), st.sampled_from([0.5, 2.0]))
def test_concordance_penalises_a_wrong_scale_and_pearson_does_not(batch: tuple, scale: float) -> None:
    _, targets = batch
    assume(np.ptp(targets) > 1)
    centred = targets - targets.mean()
    shrunk = (targets.mean() + scale * centred)[:, None]
    np.testing.assert_allclose(slot_pearson(shrunk, targets), 1, atol=1e-9)
    np.testing.assert_allclose(slot_concordance(shrunk, targets), 2 * scale / (1 + scale**2), atol=1e-9)


@BOTH
@given(batch=batches(), copies=st.integers(1, 4))
def test_perfect_answers_get_reward_one(slotwise: Slotwise, batch: tuple, copies: int) -> None:
    _, targets = batch
    perfect = np.repeat(targets[:, None], copies, axis=1)
    expected = 1.0 if np.ptp(targets) > 0 else 0.0
    np.testing.assert_allclose(slotwise(perfect, targets), expected, atol=1e-9)


@BOTH
@given(batch=batches(), constant=st.integers(-1000, 1000).map(lambda n: n / 10), copies=st.integers(1, 4))
def test_a_constant_predictor_gets_reward_zero(slotwise: Slotwise, batch: tuple, constant: float, copies: int) -> None:
    _, targets = batch
    np.testing.assert_allclose(slotwise(np.full((len(targets), copies), constant), targets), 0, atol=1e-9)


@BOTH
@given(batch=batches(), target=st.integers(-1000, 1000).map(lambda n: n / 10))
def test_equal_targets_give_reward_zero(slotwise: Slotwise, batch: tuple, target: float) -> None:
    predictions, targets = batch
    rewards = slotwise(predictions, np.full_like(targets, target))
    np.testing.assert_allclose(rewards[np.isfinite(predictions)], 0, atol=1e-9)


@BOTH
@pytest.mark.parametrize("size", [3, 10, 64, 1000])
def test_rounding_noise_does_not_count_as_variance(slotwise: Slotwise, size: int) -> None:
    """The mean of many equal values is not exactly the value, and noise divided by noise would be any number."""
    rng = np.random.default_rng(size)
    for value in (0.1, -1 / 3, 77.7, 1e9 / 7):
        spread = rng.normal(value, 1, (size, 2))
        np.testing.assert_allclose(slotwise(spread, np.full(size, value)), 0, atol=1e-9)
        np.testing.assert_allclose(slotwise(np.full((size, 2), value), spread[:, 0]), 0, atol=1e-9)


@BOTH
def test_a_single_input_gets_reward_zero(slotwise: Slotwise) -> None:
    np.testing.assert_array_equal(slotwise([[3.0, 5.0, NAN]], [4.0]), [[0, 0, -1]])


@BOTH
@given(batch=batches())
def test_invalid_answers_get_minus_one_and_never_beat_valid_ones(slotwise: Slotwise, batch: tuple) -> None:
    predictions, targets = batch
    rewards = slotwise(predictions, targets)
    valid = np.isfinite(predictions)
    assert (rewards[~valid] == -1).all()
    assert ((rewards[valid] >= -1) & (rewards[valid] <= 1)).all()


@BOTH
@given(batch=batches())
def test_invalid_answers_and_unanswered_inputs_do_not_change_other_rewards(slotwise: Slotwise, batch: tuple) -> None:
    predictions, targets = batch
    wider = np.column_stack([predictions, np.full(len(targets), NAN)])
    longer = np.vstack([wider, np.full(wider.shape[1], NAN)])
    rewards = slotwise(longer, [*targets, 1e6])
    assert (rewards[-1] == -1).all()
    np.testing.assert_array_equal(rewards[:-1, :-1], slotwise(predictions, targets))


@BOTH
@pytest.mark.parametrize("shape", [(1, 1), (3, 2)])
def test_a_batch_without_a_valid_answer_gets_minus_one(slotwise: Slotwise, shape: tuple[int, int]) -> None:
    np.testing.assert_array_equal(slotwise(np.full(shape, NAN), np.arange(shape[0])), np.full(shape, -1.0))


@BOTH
def test_an_infinite_answer_is_invalid(slotwise: Slotwise) -> None:
    rewards = slotwise([[1, math.inf], [2, -math.inf]], [1, 2])
    np.testing.assert_allclose(rewards, [[1, -1], [1, -1]])


@BOTH
@given(
    predictions=arrays(np.float64, (4, 3), elements=st.floats(allow_nan=True, allow_infinity=True)),
    targets=arrays(np.float64, 4, elements=st.floats(allow_nan=False, allow_infinity=False)),
)
def test_any_numbers_give_finite_rewards(slotwise: Slotwise, predictions: np.ndarray, targets: np.ndarray) -> None:
    rewards = slotwise(predictions, targets)
    assert np.isfinite(rewards).all()
    assert (np.abs(rewards) <= 1).all()


@pytest.mark.parametrize("size", [1e-300, 1e-150, 1.0, 1e150, 1e300])
def test_the_magnitude_of_the_numbers_does_not_matter(size: float) -> None:
    predictions, targets = np.array([[0.0, 2.0], [4.0, 4.0]]), np.array([0.0, 4.0])
    np.testing.assert_allclose(
        slot_concordance(predictions * size, targets * size), slot_concordance(predictions, targets), rtol=1e-12
    )
    assert concordance(targets * size, targets * size) == pytest.approx(1)


@given(batch=batches(invalid=False), data=st.data())
def test_given_anchors_replace_the_means(batch: tuple, data: st.DataObject) -> None:
    predictions, targets = batch
    tenths = st.integers(-1000, 1000).map(lambda n: n / 10)
    anchors = data.draw(arrays(np.float64, len(targets), elements=tenths))
    for slotwise, measure in ((slot_concordance, ccc), (slot_pearson, pearson)):
        found = slotwise(predictions, targets, anchors)
        for (i, g), answer in np.ndenumerate(predictions):
            vector = [Fraction(answer if j == i else anchor) for j, anchor in enumerate(anchors)]
            assert found[i, g] == pytest.approx(measure(vector, [Fraction(t) for t in targets]), abs=1e-9)


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
def test_wrong_shapes_and_targets_are_errors(
    slotwise: Slotwise, predictions: list, targets: list, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        slotwise(predictions, targets)


def vectors() -> st.SearchStrategy:
    whole = st.integers(-1000, 1000).map(float)
    return st.integers(2, 30).flatmap(lambda n: st.tuples(*[arrays(np.float64, n, elements=whole)] * 2))


@given(vectors())
def test_concordance_equals_torchmetrics_with_population_moments(pair: tuple) -> None:
    predictions, targets = pair
    assume(np.ptp(predictions) > 0 and np.ptp(targets) > 0)
    # torchmetrics divides variances and covariance by N - 1 and does not divide the squared gap. Widening the gap by
    # sqrt(N / (N - 1)) multiplies all terms by N / (N - 1), so the ratio is that of population moments.
    n = len(targets)
    gap = predictions.mean() - targets.mean()
    widened = predictions + gap * (math.sqrt(n / (n - 1)) - 1)
    theirs = concordance_corrcoef(torch.tensor(widened), torch.tensor(targets))
    assert concordance(predictions, targets) == pytest.approx(float(theirs), abs=1e-8)


@given(vectors())
def test_with_one_generation_per_input_every_reward_is_the_measure_of_the_batch(pair: tuple) -> None:
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
