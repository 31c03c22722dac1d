"""The promotion rule: examples computed by hand, and its properties."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.register.promotion import LEAST_SUBJECTS, Decision, decide
from components.settings import Register
from components.shared.scoring.errors import Predictions

RULE = Register(
    model="m",
    promote=True,
    max_unparseable=0.1,
    max_different=0.01,
    tolerance_all=0.5,
    tolerance_many=1.0,
    bootstrap=500,
    seed=0,
)
SHOTS = ["many"] * 10 + ["few"] * 10
TRUTH = np.array([50.0] * 10 + [90.0] * 10)


def predictions(many: float, few: float, spread: float = 0.0, shots: list[str] | None = None) -> Predictions:
    """Predictions with errors `many` and `few`; half of the few-shot errors are `spread` larger, half smaller."""
    errors = np.array([many] * 10 + [few] * 10) + spread * np.array([0.0] * 10 + [1.0, -1.0] * 5)
    return Predictions(TRUTH, TRUTH - errors, np.array(shots or SHOTS), 0, 100, 1)


def decided(challenger: Predictions, baseline: Predictions, rule: Register = RULE) -> tuple[bool, set[str], str]:
    decision: Decision = decide(challenger, baseline, "the champion, version 3", rule, "%")
    return decision.promote, {check.name for check in decision.checks if not check.met}, decision.reason


def test_lower_few_shot_error_and_no_worse_elsewhere_is_promoted() -> None:
    promote, missed, reason = decided(predictions(4, 10), predictions(4, 14))
    assert (promote, missed) == (True, set())
    assert reason == (
        "against the champion, version 3, few-shot MAE 10.00 % against 14.00 %, difference -4.00 (95 % interval -4.00 "
        "to -4.00); overall MAE 7.00 % against 9.00 % (at most 0.5 % worse is allowed); many-shot MAE 4.00 % against "
        "4.00 % (at most 1 % worse is allowed); 0.00 % of its answers are unparseable (limit 10 %)."
    )


def test_gain_whose_interval_includes_0_is_refused() -> None:
    # Half of the images are 10 better, half 9 worse: -0.5 on average, with an interval about 12 wide.
    promote, missed, reason = decided(predictions(4, 10, spread=9.5), predictions(4, 10.5))
    assert (promote, missed) == (False, {"few"})
    assert "the interval does not exclude 0, so no gain is shown" in reason
    assert "overall" not in reason, "only missed conditions are reported"


def test_higher_few_shot_error_is_reported_as_worse() -> None:
    assert "it is worse" in decided(predictions(4, 14), predictions(4, 10))[2]


def test_many_shot_may_be_worse_up_to_the_tolerance() -> None:
    assert decided(predictions(5, 5), predictions(4, 10))[:2] == (True, set())
    promote, missed, reason = decided(predictions(5.01, 5), predictions(4, 10))
    assert (promote, missed) == (False, {"many"})
    assert "many-shot MAE 5.01 % against 4.00 %, and at most 1 % worse is allowed" in reason


def test_overall_may_be_worse_up_to_the_tolerance() -> None:
    shots = ["many"] * 8 + ["medium"] * 2 + ["few"] * 10

    def challenger(medium: float) -> Predictions:
        errors = np.array([4.0] * 8 + [medium] * 2 + [9.0] * 10)
        return Predictions(TRUTH, TRUTH - errors, np.array(shots), 0, 100, 1)

    baseline = predictions(4, 10, shots=shots)
    assert decided(challenger(13.9), baseline)[:2] == (
        True,
        set(),
    )  # 2 * 9.9 worse, 10 * 1 better, over 20 images: +0.49
    assert decided(challenger(14.1), baseline)[1] == {"all"}


def test_too_many_unparseable_answers_are_refused() -> None:
    ours = predictions(4, 5)
    for count, met in ((2, True), (3, False)):
        values = ours.values.copy()
        values[:count] = np.nan  # each counts as an error of 50 on a many-shot image
        lenient = RULE.model_copy(update={"tolerance_all": 100.0, "tolerance_many": 100.0})
        promote, missed, reason = decided(
            Predictions(TRUTH, values, ours.shots, 0, 100, 1), predictions(4, 10), lenient
        )
        assert (promote, missed) == (met, set() if met else {"unparseable"})
    assert "15.00 % of its answers are unparseable, over the limit of 10 %" in reason


def test_without_few_shot_images_nothing_is_promoted() -> None:
    shots = ["many"] * 20
    promote, missed, reason = decided(predictions(4, 5, shots=shots), predictions(4, 10, shots=shots))
    assert (promote, missed) == (False, {"few"})
    assert "the test set has no few-shot images, so no few-shot gain can be shown" in reason


@pytest.mark.parametrize(("count", "met"), [(1, False), (5, False), (6, True)])
def test_a_handful_of_few_shot_images_shows_no_gain(count: int, met: bool) -> None:
    shots = ["many"] * (20 - count) + ["few"] * count
    promote, _, reason = decided(predictions(4, 5, shots=shots), predictions(4, 10, shots=shots))
    assert promote is met
    assert (f"few-shot images: {count}. With fewer than 6 images no gain can be shown" in reason) is not met


def test_a_handful_of_few_shot_subjects_shows_no_gain() -> None:
    subjects = np.array([0] * 10 + [1, 2, 3, 4, 5] * 2)
    ours = replace(predictions(4, 5), subjects=subjects)
    promote, missed, reason = decided(ours, predictions(4, 10))
    assert (promote, missed) == (False, {"few"})
    assert "few-shot images: 10, of 5 subjects. With fewer than 6 subjects no gain can be shown" in reason


def test_images_of_one_subject_do_not_promote_by_chance() -> None:
    """20 subjects with 10 images each: two equally good models, whose difference is mostly one of the subject.

    2.5 % of such comparisons may show a gain; over single images, a fifth does.
    """
    rng, rule = np.random.default_rng(0), RULE.model_copy(update={"bootstrap": 200})
    truth, shots, subjects = np.full(200, 50.0), np.array(["few"] * 200), np.repeat(np.arange(20), 10)
    baseline = Predictions(truth, truth - 20, shots, 0, 100, 1)
    promoted = {"subjects": 0, "images": 0}
    runs = 600
    for _ in range(runs):
        gap = np.repeat(rng.normal(0, 2, 20), 10) + rng.normal(0, 2, 200)
        ours = Predictions(truth, truth - 20 - gap, shots, 0, 100, 1)
        promoted["images"] += decide(ours, baseline, "x", rule).promote
        promoted["subjects"] += decide(replace(ours, subjects=subjects), baseline, "x", rule).promote
    assert promoted["subjects"] <= 0.045 * runs  # three standard errors above 2.5 %
    assert promoted["images"] >= 0.15 * runs


def test_without_many_shot_images_their_condition_is_met() -> None:
    shots = ["medium"] * 10 + ["few"] * 10
    promote, _, reason = decided(predictions(4, 5, shots=shots), predictions(4, 10, shots=shots))
    assert promote
    assert "the test set has no many-shot images" in reason


def test_reason_says_that_promotion_is_switched_off() -> None:
    off = RULE.model_copy(update={"promote": False})
    promote, missed, reason = decided(predictions(4, 10), predictions(4, 14), off)
    assert (promote, missed) == (False, set())
    assert reason.startswith("register.promote is false in params.yaml. The rule is met against the champion")


def test_predictions_for_other_images_raise() -> None:
    theirs = Predictions(TRUTH[::-1].copy(), TRUTH, np.array(SHOTS), 0, 100, 1)
    with pytest.raises(ValueError, match="same test images"):
        decide(predictions(4, 10), theirs, "x", RULE)


values = st.lists(st.floats(0, 100) | st.just(float("nan")), min_size=20, max_size=20).map(np.array)
groups = st.lists(st.sampled_from(["many", "medium", "few"]), min_size=20, max_size=20).map(np.array)


@given(values, values, groups)
def test_two_versions_never_beat_each_other_and_none_beats_itself(
    a: np.ndarray, b: np.ndarray, shots: np.ndarray
) -> None:
    first, second = (Predictions(TRUTH, v, shots, 0, 100, 1) for v in (a, b))
    rule = RULE.model_copy(update={"max_unparseable": 1.0, "bootstrap": 100})
    assert not decide(first, first, "itself", rule).promote
    assert not (decide(first, second, "x", rule).promote and decide(second, first, "x", rule).promote)


@given(values, groups, st.floats(0.5, 20))
def test_better_on_every_image_is_promoted(theirs: np.ndarray, shots: np.ndarray, gain: float) -> None:
    baseline = Predictions(TRUTH, theirs, shots, 0, 100, 1)
    closer = np.sign(baseline.scored - TRUTH) * np.maximum(baseline.errors - gain, 0)
    ours = Predictions(TRUTH, TRUTH + closer, shots, 0, 100, 1)
    few = baseline.members("few")
    promote = decide(ours, baseline, "x", RULE.model_copy(update={"bootstrap": 100})).promote
    # Where every few-shot error was at least as large as the gain, the whole interval lies below 0.
    if few.sum() >= LEAST_SUBJECTS and (baseline.errors[few] >= gain).all():
        assert promote
    if few.sum() < LEAST_SUBJECTS:
        assert not promote


def test_probability_of_other_texts_is_limited_where_answers_come_from_the_distribution() -> None:
    ours, theirs = predictions(4, 10), predictions(4, 14)
    for mass, met, words in (
        (np.full(20, 0.95), True, "5.00 % of its probability is on other texts than numbers (limit 10 %)"),
        (
            np.repeat([1.0, 0.75], 10),
            False,
            "12.50 % of its probability is on other texts than numbers, over the limit",
        ),
    ):
        decision = decide(ours, theirs, "the champion", RULE, "%", mass)
        assert decision.promote == met
        assert words in decision.reason
