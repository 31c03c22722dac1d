"""Whether the rewards of a whole training could teach anything: answers that are valid, and rewards that differ."""

from collections.abc import Mapping, Sequence
from typing import Any

from components.errors import ConcordError
from components.settings import Grpo

ROUNDING = 1e-12  # rewards lie in [-1, 1]


def check_signal(grpo: Grpo, history: Sequence[Mapping[str, Any]], checkpoints: str) -> None:
    """Looks at every logged step.

    Args:
        history: the trainer's log entries.
        checkpoints: their folder, for the message.

    Raises:
        ConcordError: no answer was valid in any step; or the reward never differed, neither within the groups of a step
            (`sampled`, `policy`) nor between the steps (`means`).
    """
    kept = f"The weights stay in {checkpoints}."
    invalid = [line["invalid"] for line in history if "invalid" in line]
    if invalid and min(invalid) == 1.0:
        raise ConcordError(
            f"grpo learned nothing: all answers of all {len(invalid)} steps are invalid, so every reward was the "
            "lowest. Train the warm start until it answers in the format (sft.max_steps, sft.lr), check that task.low "
            f"and task.high hold the targets, or use grpo.estimator: means, which needs no valid answer. {kept}"
        )
    name = grpo.reward
    spreads = [line[f"spread/{name}"] for line in history if f"spread/{name}" in line]
    rewards = [line[f"reward/{name}"] for line in history if f"reward/{name}" in line]
    if spreads and max(spreads) < ROUNDING:
        raise ConcordError(
            f"grpo learned nothing: in all {len(spreads)} steps, all answers to an image got the same reward {name}, "
            "so no answer was preferred. Where the model gives one answer only, raise grpo.temperature or "
            "grpo.generations, or train the warm start less; otherwise raise grpo.prompts, take grpo.reward: crps, or "
            f"use grpo.estimator: means. {kept}"
        )
    if not spreads and len(rewards) > 1 and max(rewards) - min(rewards) < ROUNDING:
        raise ConcordError(
            f"grpo learned nothing: the reward {name} is {rewards[0]:g} in all {len(rewards)} steps. Raise "
            f"grpo.prompts, or check that the targets of the training images differ. {kept}"
        )
