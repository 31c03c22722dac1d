"""The rule of promotion: who may be champion, decided on the same test images, with the reason in words. Pure."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from components.settings import Register
from components.shared.reporting.metrics import paired_difference
from components.shared.scoring.errors import Predictions


@dataclass(frozen=True)
class Check:
    """One condition of the rule.

    Attributes:
        name: few, all, many or unparseable.
        met: whether it holds.
        words: the figures that say so.
    """

    name: str
    met: bool
    words: str


@dataclass(frozen=True)
class Decision:
    """What comes of it.

    Attributes:
        promote: whether the challenger becomes champion.
        reason: why, in words, with the figures.
        checks: every condition.
        few: the paired difference of few-shot errors, challenger minus bar.
    """

    promote: bool
    reason: str
    checks: tuple[Check, ...]
    few: dict[str, Any]


def decide(challenger: Predictions, bar: Predictions, against: str, rule: Register, unit: str = "") -> Decision:
    """Holds a challenger against the bar.

    It is promoted when its few-shot MAE is better and the paired 95 % bootstrap interval of the difference excludes 0,
    when its MAE overall and on many-shot images is not worse by more than the tolerances, and when no more than the
    allowed share of its answers is unparseable. Without few-shot images nothing is shown where it matters: refused.

    Args:
        challenger, bar: answers to the same test images in the same order; the bar is the champion, or where there is
            none the SFT warm start.
        against: what the bar is called, in the reason.
        rule: params.yaml: register.
        unit: of the task, for the words.

    Raises:
        ValueError: the two were not asked about the same images.
    """
    if not np.array_equal(challenger.targets, bar.targets) or not np.array_equal(challenger.shots, bar.shots):
        raise ValueError("challenger and bar must answer the same test images in the same order")
    of = f" {unit}" if unit else ""
    few = _difference(challenger, bar, "few", rule)
    checks = (
        _few(challenger, bar, few, of),
        _not_worse(challenger, bar, "all", rule.tolerance_all, rule, of),
        _not_worse(challenger, bar, "many", rule.tolerance_many, rule, of),
        _parseable(challenger, rule.max_unparseable),
    )
    missed = [check for check in checks if not check.met]
    promote = not missed and rule.promote
    told = "; ".join(check.words for check in missed or checks)
    reason = f"against {against}, {told}."
    if not missed and not rule.promote:
        reason = f"register.promote is false in params.yaml. The rule is met {reason}"
    return Decision(promote, reason, checks, few)


def _difference(ours: Predictions, theirs: Predictions, group: str, rule: Register) -> dict[str, Any]:
    return paired_difference([ours.errors], [theirs.errors], ours.members(group), rule.bootstrap, rule.seed)


def _few(ours: Predictions, theirs: Predictions, found: dict[str, Any], of: str) -> Check:
    if found["difference"] is None:
        return Check("few", False, "the test set has no few-shot images, so nothing is shown where it matters")
    low, high = found["ci"]
    mask = ours.members("few")
    figures = (
        f"few-shot MAE {ours.errors[mask].mean():.2f}{of} against {theirs.errors[mask].mean():.2f}{of}, difference "
        f"{found['difference']:+.2f} (95 % interval {low:+.2f} to {high:+.2f})"
    )
    if high < 0:
        return Check("few", True, figures)
    says = "it is worse" if low > 0 else "the interval does not exclude 0, so no gain is shown"
    return Check("few", False, f"{figures}: {says}")


def _not_worse(ours: Predictions, theirs: Predictions, group: str, tolerance: float, rule: Register, of: str) -> Check:
    name = "overall" if group == "all" else f"{group}-shot"
    found = _difference(ours, theirs, group, rule)
    if found["difference"] is None:
        return Check(group, True, f"the test set has no {name} images")
    mask = ours.members(group)
    figures = f"{name} MAE {ours.errors[mask].mean():.2f}{of} against {theirs.errors[mask].mean():.2f}{of}"
    allowed = f"at most {tolerance:g}{of} worse is allowed"
    met = found["difference"] <= tolerance
    return Check(group, met, f"{figures} ({allowed})" if met else f"{figures}, and {allowed}")


def _parseable(ours: Predictions, limit: float) -> Check:
    share = float(ours.unparseable.mean())
    met = share <= limit
    words = f"{100 * share:.2f} % of its answers are unparseable{'' if met else ','} "
    return Check(
        "unparseable", met, words + (f"(limit {100 * limit:g} %)" if met else f"over the limit of {100 * limit:g} %")
    )
