"""The promotion rule: decides on equal test images whether a challenger becomes champion, and gives the reason."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from components.settings import Register
from components.shared.reporting.metrics import paired_difference
from components.shared.scoring.errors import Array, Predictions

# If two models are equally good, all of n independent images favour the challenger with probability 2 ** -n. From six
# on, it is below the 2.5 % that a 95 % interval leaves on one side; with fewer, no outcome is evidence enough.
LEAST_SUBJECTS = 6


@dataclass(frozen=True)
class Check:
    """The result of one condition of the rule.

    Attributes:
        name: few, all, many or unparseable.
        met: whether the condition is met.
        explanation: the figures behind it.
    """

    name: str
    met: bool
    explanation: str


@dataclass(frozen=True)
class Decision:
    """The result of the rule.

    Attributes:
        promote: whether the challenger becomes champion.
        reason: one sentence with the figures.
        checks: every condition.
        few: the paired difference of few-shot errors, challenger minus baseline.
    """

    promote: bool
    reason: str
    checks: tuple[Check, ...]
    few: dict[str, Any]


def decide(
    challenger: Predictions,
    baseline: Predictions,
    baseline_name: str,
    rule: Register,
    unit: str = "",
    mass: Array | None = None,
) -> Decision:
    """Decides whether a challenger is promoted over a baseline.

    It is promoted if its few-shot MAE is lower and the paired 95 % bootstrap interval of the difference excludes 0, its
    overall and many-shot MAE are not higher by more than the tolerances, and the share of its unparseable answers (or
    the mean probability of other texts than numbers) is within the limit. With fewer than `LEAST_SUBJECTS` few-shot
    images (or subjects, where these are known: they are resampled as a whole) a gain cannot be shown.

    Args:
        challenger: predictions of the new version.
        baseline: predictions of the champion, or of the SFT warm start if there is no champion, for the same test
            images in the same order.
        baseline_name: name of the baseline in the reason.
        rule: params.yaml: register.
        unit: unit of the task, for the reason.
        mass: `(N,)` probability of any number, where the challenger's answers come from the distribution.

    Raises:
        ValueError: the predictions are not for the same images.
    """
    if not np.array_equal(challenger.targets, baseline.targets) or not np.array_equal(challenger.shots, baseline.shots):
        raise ValueError("challenger and baseline must predict the same test images in the same order")
    suffix = f" {unit}" if unit else ""
    few = _difference(challenger, baseline, "few", rule)
    checks = (
        _better_few_shot(challenger, baseline, few, suffix),
        _not_worse(challenger, baseline, "all", rule.tolerance_all, rule, suffix),
        _not_worse(challenger, baseline, "many", rule.tolerance_many, rule, suffix),
        _parseable(challenger, rule.max_unparseable) if mass is None else _massive(mass, rule.max_unparseable),
    )
    missed = [check for check in checks if not check.met]
    promote = not missed and rule.promote
    explanations = "; ".join(check.explanation for check in missed or checks)
    reason = f"against {baseline_name}, {explanations}."
    if not missed and not rule.promote:
        reason = f"register.promote is false in params.yaml. The rule is met {reason}"
    return Decision(promote, reason, checks, few)


def _difference(challenger: Predictions, baseline: Predictions, group: str, rule: Register) -> dict[str, Any]:
    return paired_difference(
        [challenger.errors],
        [baseline.errors],
        challenger.members(group),
        rule.bootstrap,
        rule.seed,
        challenger.subjects,
    )


def _better_few_shot(challenger: Predictions, baseline: Predictions, few: dict[str, Any], suffix: str) -> Check:
    if few["difference"] is None:
        return Check("few", False, "the test set has no few-shot images, so no few-shot gain can be shown")
    of, units = ("images", few["n"]) if few["subjects"] is None else ("subjects", few["subjects"])
    if units < LEAST_SUBJECTS:
        count = f"few-shot images: {few['n']}" + (f", of {units} subjects" if of == "subjects" else "")
        return Check("few", False, f"{count}. With fewer than {LEAST_SUBJECTS} {of} no gain can be shown")
    low, high = few["ci"]
    mask = challenger.members("few")
    ours, theirs = challenger.errors[mask].mean(), baseline.errors[mask].mean()
    figures = (
        f"few-shot MAE {ours:.2f}{suffix} against {theirs:.2f}{suffix}, difference {few['difference']:+.2f} "
        f"(95 % interval {low:+.2f} to {high:+.2f}{f' over {units} subjects' if of == 'subjects' else ''})"
    )
    if high < 0:
        return Check("few", True, figures)
    verdict = "it is worse" if low > 0 else "the interval does not exclude 0, so no gain is shown"
    return Check("few", False, f"{figures}: {verdict}")


def _not_worse(
    challenger: Predictions, baseline: Predictions, group: str, tolerance: float, rule: Register, suffix: str
) -> Check:
    name = "overall" if group == "all" else f"{group}-shot"
    difference = _difference(challenger, baseline, group, rule)["difference"]
    if difference is None:
        return Check(group, True, f"the test set has no {name} images")
    mask = challenger.members(group)
    ours, theirs = challenger.errors[mask].mean(), baseline.errors[mask].mean()
    figures = f"{name} MAE {ours:.2f}{suffix} against {theirs:.2f}{suffix}"
    allowed = f"at most {tolerance:g}{suffix} worse is allowed"
    met = difference <= tolerance
    return Check(group, met, f"{figures} ({allowed})" if met else f"{figures}, and {allowed}")


def _parseable(challenger: Predictions, limit: float) -> Check:
    share = float(challenger.unparseable.mean())
    met = share <= limit
    return Check("unparseable", met, f"{100 * share:.2f} % of its answers are unparseable{_limits(met, limit)}")


def _massive(mass: Array, limit: float) -> Check:
    share = float(1 - mass.mean())
    met = share <= limit
    figures = f"{100 * share:.2f} % of its probability is on other texts than numbers{_limits(met, limit)}"
    return Check("unparseable", met, figures)


def _limits(met: bool, limit: float) -> str:
    return f" (limit {100 * limit:g} %)" if met else f", over the limit of {100 * limit:g} %"
