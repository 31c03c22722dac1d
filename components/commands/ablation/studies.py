"""The studies: which training variants are compared, and which pairs of them are reported."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from components.settings import Settings

WARM_START = "warm start"


@dataclass(frozen=True)
class Variant:
    """One way to spend the extra training time.

    Attributes:
        title: its name in the tables.
        grpo: changes to the settings' section grpo; None: continued SFT for the mean time of the GRPO variants.
    """

    title: str
    grpo: Mapping[str, Any] | None = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A comparison of variants.

    Attributes:
        title, text: heading of the results file, and what all variants have in common.
        variants: by name; `warm`, the warm start itself, is part of every study.
        ours: the variant whose losses are listed below the tables.
        pairs: (variant, variant or `warm`) whose paired differences are reported.
    """

    title: str
    text: str
    variants: Mapping[str, Variant]
    ours: str
    pairs: tuple[tuple[str, str], ...]

    def name(self, variant: str) -> str:
        """The title of a variant or of the warm start."""
        return WARM_START if variant == "warm" else self.variants[variant].title


def claim(settings: Settings) -> Study:
    """CCC-GRPO against the warm start, and against two other uses of the same extra time."""
    del settings
    variants = {
        "sft": Variant("SFT continued", None),
        "mae": Variant("GRPO, MAE reward", {"reward": "mae"}),
        "ccc": Variant("CCC-GRPO", {"reward": "ccc"}),
    }
    pairs = (("ccc", "warm"), ("ccc", "mae"), ("ccc", "sft"), ("mae", "warm"), ("sft", "warm"))
    return Study("Ablation", "Same warm start, same extra training time", variants, "ccc", pairs)


def advantage(settings: Settings) -> Study:
    """What the advantages are divided by; dividing by the group's spread removes the weight CCC gives rare values."""
    titles = {
        "group": "divided by the group's spread",
        "batch": "divided by the batch's spread",
        "none": "not divided",
    }
    chosen = settings.grpo.advantage
    variants = {name: Variant(titles[name], {"reward": "ccc", "advantage": name}) for name in titles}
    others = [name for name in titles if name != chosen]
    pairs = (*((name, "warm") for name in titles), *((chosen, name) for name in others))
    return Study("Advantages", "CCC-GRPO; the settings differ only in grpo.advantage", variants, chosen, pairs)


def recent(settings: Settings) -> Study:
    """Anchors of earlier steps in the comparison set, at a batch size that fits one GPU: 8 inputs per step."""
    grpo = settings.grpo
    small = {"reward": "ccc", "prompts": 8, "steps": grpo.steps * grpo.prompts // 8, "accumulation": 1}
    window = {"inputs": 256, "steps": 32}
    variants = {
        "alone": Variant("8 inputs per step", {**small, "recent": None}),
        "recent": Variant("8 inputs per step, with the last 256 anchors", {**small, "recent": window}),
    }
    text = f"CCC-GRPO with 8 inputs per step, {small['steps']} steps (as many inputs in total as the experiment itself)"
    pairs = (("recent", "warm"), ("alone", "warm"), ("recent", "alone"))
    return Study("Recent anchors", text, variants, "recent", pairs)


STUDIES: Mapping[str, Callable[[Settings], Study]] = {"claim": claim, "advantage": advantage, "recent": recent}
