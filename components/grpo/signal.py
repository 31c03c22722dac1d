"""Whether the rewards of a whole training could teach anything: answers that are valid, and rewards that differ."""

from collections.abc import Mapping, Sequence
from typing import Any

from components.console import console
from components.errors import ConcordError
from components.settings import Grpo

ROUNDING = 1e-12  # rewards lie in [-1, 1]


def check_signal(grpo: Grpo, history: Sequence[Mapping[str, Any]], checkpoints: str) -> None:
    """Reports if no answer was valid in any step, or if the reward never differed.

    Args:
        history: the trainer's log entries, which tell of every step.
        checkpoints: their folder, for the message.

    Raises:
        ConcordError: so it is, and `grpo.no_signal` is error.
    """
    reason = _no_signal(grpo, history)
    if reason is None:
        return
    text = f"grpo learned nothing: {reason}"
    if grpo.no_signal == "error":
        raise ConcordError(
            f"{text} The weights stay in {checkpoints}; grpo.no_signal: warning takes them without training again."
        )
    console.print(f"[yellow]warning[/] {text}")


def _no_signal(grpo: Grpo, history: Sequence[Mapping[str, Any]]) -> str | None:
    """Why no reward could teach anything, and the remedy; None if one could.

    Rewards are compared among the valid answers to an image (`sampled`, `policy`) or between the steps (`means`).
    """
    invalid = [line["invalid"] for line in history if "invalid" in line]
    if invalid and min(invalid) == 1.0:
        return (
            f"all answers of all {len(invalid)} steps are invalid, so every reward was the lowest. Train the warm "
            "start until it answers in the format (sft.max_steps, sft.lr), check that task.low and task.high hold the "
            "targets, or use grpo.estimator: means, which needs no valid answer."
        )
    name = grpo.reward
    spreads = [line[f"spread/{name}"] for line in history if f"spread/{name}" in line]
    rewards = [line[f"reward/{name}"] for line in history if f"reward/{name}" in line]
    if spreads and max(spreads) < ROUNDING:
        return (
            f"in all {len(spreads)} steps, all valid answers to an image got the same reward {name}, so no answer was "
            "preferred. Where the model gives one answer only, raise grpo.temperature or grpo.generations, or train "
            "the warm start less; otherwise raise grpo.prompts, take grpo.reward: crps, or use grpo.estimator: means."
        )
    if not spreads and len(rewards) > 1 and max(rewards) - min(rewards) < ROUNDING:
        return (
            f"the reward {name} is {rewards[0]:g} in all {len(rewards)} steps. Raise grpo.prompts, or check that the "
            "targets of the training images differ."
        )
    return None
