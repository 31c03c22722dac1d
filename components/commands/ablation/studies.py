"""What is compared: arms that start from one warm start, and the pairs of them whose difference is asked for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from components.settings import Settings

WARM = "warm start"


@dataclass(frozen=True)
class Arm:
    """One way to spend the extra training time.

    Attributes:
        title: what the table calls it.
        grpo: changes of the settings' section grpo; None for SFT continued, for as long as the GRPO arms took.
    """

    title: str
    grpo: Mapping[str, Any] | None = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A comparison.

    Attributes:
        title, text: heading of its results file, and what is held equal in it.
        arms: by name; `warm`, the warm start itself, is in every study.
        ours: the arm whose losses are told.
        pairs: (arm, arm or `warm`) whose paired differences are told.
    """

    title: str
    text: str
    arms: Mapping[str, Arm]
    ours: str
    pairs: tuple[tuple[str, str], ...]

    def name(self, arm: str) -> str:
        """The title of an arm or of the warm start."""
        return WARM if arm == "warm" else self.arms[arm].title


def claim(settings: Settings) -> Study:
    """CCC-GRPO against what the same extra time is worth otherwise."""
    del settings
    arms = {
        "sft": Arm("SFT continued", None),
        "mae": Arm("GRPO, MAE reward", {"reward": "mae"}),
        "ccc": Arm("CCC-GRPO", {"reward": "ccc"}),
    }
    pairs = (("ccc", "warm"), ("ccc", "mae"), ("ccc", "sft"), ("mae", "warm"), ("sft", "warm"))
    return Study("Ablation", "Same warm start, same extra training time", arms, "ccc", pairs)


def advantage(settings: Settings) -> Study:
    """What the advantages are divided by: in-group normalisation takes away that CCC gives rare values more weight."""
    titles = {
        "group": "divided by the group's spread",
        "batch": "divided by the batch's spread",
        "none": "not divided",
    }
    chosen = settings.grpo.advantage
    arms = {name: Arm(titles[name], {"reward": "ccc", "advantage": name}) for name in titles}
    others = [name for name in titles if name != chosen]
    pairs = (*((name, "warm") for name in titles), *((chosen, name) for name in others))
    return Study("Advantages", "CCC-GRPO, the settings equal but for grpo.advantage", arms, chosen, pairs)


def recent(settings: Settings) -> Study:
    """Anchors of earlier steps in the comparison set, at the batch that one GPU has: 8 inputs a step."""
    grpo = settings.grpo
    small = {"reward": "ccc", "prompts": 8, "steps": grpo.steps * grpo.prompts // 8, "accumulation": 1}
    window = {"inputs": 256, "steps": 32}
    arms = {
        "alone": Arm("8 inputs a step", {**small, "recent": None}),
        "recent": Arm("8 inputs a step, the last 256 anchors beside", {**small, "recent": window}),
    }
    text = (
        f"CCC-GRPO with 8 inputs a step, {small['steps']} steps (as many inputs as the experiment's own settings show)"
    )
    return Study("Recent anchors", text, arms, "recent", (("recent", "warm"), ("alone", "warm"), ("recent", "alone")))


STUDIES: Mapping[str, Callable[[Settings], Study]] = {"claim": claim, "advantage": advantage, "recent": recent}
