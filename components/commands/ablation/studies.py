"""The studies: which arms are trained, how they are read, and which differences are reported."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from components.settings import Settings

WARM = "warm"
WARM_START = "warm start"
# How numbers are read from a model, in the order of the tables.
READINGS: Mapping[str, str] = {
    "text": "greedy text",
    "median": "median",
    "auto": "median with auto",
    "mean": "mean",
    "stretched": "stretched mean",
    "equal": "median at equal many-shot MAE",
}


@dataclass(frozen=True)
class Arm:
    """One way to spend the extra training time.

    Attributes:
        title: its name in the tables.
        grpo: changes to the settings' section grpo; None: continued SFT.
        as_long_as: the arm whose training time this one gets, in as many steps as fit; None: the steps of the settings.
    """

    title: str
    grpo: Mapping[str, Any] | None
    as_long_as: str | None = None


Pair = tuple[str, str]  # of ARM.READING


@dataclass(frozen=True)
class Comparison:
    """A table of paired differences, first minus second."""

    title: str
    pairs: tuple[Pair, ...]


@dataclass(frozen=True)
class Study:
    """A comparison of arms that start from the same warm start.

    Attributes:
        title, text: heading of the results file, and what all arms have in common.
        arms: by name; the warm start itself, `warm`, is part of every study.
        readings: names of `READINGS`.
        comparisons: in the order of the results file.
    """

    title: str
    text: str
    arms: Mapping[str, Arm]
    readings: tuple[str, ...]
    comparisons: tuple[Comparison, ...]

    def name(self, arm: str) -> str:
        """The title of an arm or of the warm start."""
        return WARM_START if arm == WARM else self.arms[arm].title

    def answers(self, name: str) -> str:
        """The title of ARM.READING."""
        arm, _, reading = name.partition(".")
        return f"{self.name(arm)}, {READINGS[reading]}"

    def difference(self, pair: Pair) -> str:
        """The title of a difference; the title of its table says how both are read if they are read alike."""
        (ours, _, way), (theirs, _, other) = (name.partition(".") for name in pair)
        alike = way == other
        return " − ".join((self.name(ours), self.name(theirs)) if alike else (self.answers(name) for name in pair))


def claim(settings: Settings) -> Study:
    """What reinforcement learning is worth, beside other uses of the same time and beside no training at all."""
    del settings
    published = {"estimator": "sampled", "balance": 0}
    exact = {"estimator": "means", "vllm": None}
    arms = {
        "sft": Arm("SFT continued", None, "ccc"),
        "mae": Arm("GRPO, MAE reward", {**published, "reward": "mae"}),
        "ccc": Arm("CCC-GRPO", {**published, "reward": "ccc"}),
        "means": Arm("expected CCC", {**exact, "reward": "ccc", "balance": 0}, "ccc"),
        "crps": Arm("CRPS", {**exact, "reward": "crps", "balance": 0}, "ccc"),
        "tilted": Arm("CRPS, balance 0.75", {**exact, "reward": "crps", "balance": 0.75}, "ccc"),
    }
    comparisons = (
        Comparison(
            "Is training worth anything? All by median with auto",
            tuple((f"{arm}.auto", "warm.auto") for arm in arms),
        ),
        Comparison(
            "Against CCC-GRPO as published, which is read by its greedy text",
            (
                ("warm.stretched", "ccc.text"),
                ("warm.auto", "ccc.text"),
                *((f"{arm}.auto", "ccc.text") for arm in arms),
            ),
        ),
        Comparison(
            "All by greedy text",
            (
                *((f"{arm}.text", "warm.text") for arm in arms),
                ("ccc.text", "mae.text"),
                ("ccc.text", "sft.text"),
            ),
        ),
        Comparison(
            "Against the warm start's stretched mean, which training for concordance must beat",
            (("ccc.text", "warm.stretched"), ("ccc.mean", "warm.stretched"), ("means.mean", "warm.stretched")),
        ),
        Comparison(
            "All by median at equal many-shot MAE, found on the images that are judged",
            tuple((f"{arm}.equal", "warm.equal") for arm in arms),
        ),
    )
    text = "A warm start for each seed, then the same training time from it for every arm"
    return Study("Ablation", text, arms, tuple(READINGS), comparisons)


def advantage(settings: Settings) -> Study:
    """What the advantages are divided by; dividing by the group's spread removes the weight CCC gives rare values."""
    titles = {
        "group": "divided by the group's spread",
        "batch": "divided by the batch's spread",
        "none": "not divided",
    }
    chosen = settings.grpo.advantage
    arms = {name: Arm(title, {**_PUBLISHED_CCC, "advantage": name}) for name, title in titles.items()}
    pairs = (
        *((f"{name}.text", "warm.text") for name in titles),
        *((f"{chosen}.text", f"{name}.text") for name in titles if name != chosen),
    )
    text = "CCC-GRPO by its greedy text, a warm start for each seed; the arms differ only in grpo.advantage"
    return Study("Advantages", text, arms, ("text",), (Comparison("All by greedy text", pairs),))


def recent(settings: Settings) -> Study:
    """Anchors of earlier steps in the comparison set, at a batch size that fits one GPU: 8 inputs per step."""
    grpo = settings.grpo
    small = {**_PUBLISHED_CCC, "prompts": 8, "steps": grpo.steps * grpo.prompts // 8, "accumulation": 1}
    arms = {
        "alone": Arm("8 inputs per step", {**small, "recent": None}),
        "recent": Arm(
            "8 inputs per step, with the last 256 anchors", {**small, "recent": {"inputs": 256, "steps": 32}}
        ),
    }
    text = (
        "CCC-GRPO by its greedy text, a warm start for each seed; 8 inputs per step, "
        f"{small['steps']} steps (as many inputs in total as the experiment itself)"
    )
    pairs = (("recent.text", "warm.text"), ("alone.text", "warm.text"), ("recent.text", "alone.text"))
    return Study("Recent anchors", text, arms, ("text",), (Comparison("All by greedy text", pairs),))


_PUBLISHED_CCC: Mapping[str, Any] = {"estimator": "sampled", "reward": "ccc", "balance": 0}

STUDIES: Mapping[str, Callable[[Settings], Study]] = {"claim": claim, "advantage": advantage, "recent": recent}
