"""The rewards as TRL's reward functions: they gather predictions and targets over all ranks and score whole groups."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather, gather_object

from components.grpo.advantages import group_spread
from components.grpo.concordance import Array
from components.grpo.recent_anchors import RecentAnchors
from components.grpo.rewards import format_reward, regression_reward
from components.settings import RewardName, Settings
from components.shared.scoring.answers import parse_answers
from components.shared.scoring.shots import GROUPS
from components.shared.training.ranks import ranks


@dataclass(frozen=True)
class BatchScores:
    """The rewards of one batch of all ranks, with what they were computed from. Identical on every rank.

    Attributes:
        predictions: `(B, G)`, NaN where a completion holds no valid answer.
        targets: `(B,)`.
        shots: `(B,)` the shot group of each target.
        rewards: `(2, B, G)` the regression reward and the format reward.
    """

    predictions: Array
    targets: Array
    shots: np.ndarray
    rewards: Array

    def metrics(self, name: RewardName) -> dict[str, float]:
        """Returns what shows early whether the batch teaches anything: rewards, spread, invalid share, errors by shot.

        The spread of the regression reward is that of the valid answers of an image: invalid ones get the same reward
        whatever the model sees.

        Args:
            name: of the regression reward.
        """
        regression, form = self.rewards
        valid = np.isfinite(self.predictions)
        answered = valid.any(axis=1)
        figures = {
            f"reward/{name}": float(regression.mean()),
            f"spread/{name}": float(group_spread(regression[None, answered], valid[answered]).mean())
            if answered.any()
            else 0.0,
            "reward/format": float(form.mean()),
            "spread/format": float(form.std(axis=1).mean()),
            "invalid": float(1 - valid.mean()),
        }
        return figures | error_figures(self.predictions, self.targets, self.shots)


def error_figures(predictions: Array, targets: Array, shots: np.ndarray) -> dict[str, float]:
    """Mean absolute errors of a batch by shot group, and `sd_ratio`: spread of the anchors over that of the targets.

    Args:
        predictions: `(B, G)`, NaN where a completion holds no valid answer.
        targets, shots: `(B,)`.
    """
    figures: dict[str, float] = {}
    valid, errors = np.isfinite(predictions), np.abs(predictions - targets[:, None])
    for group in GROUPS:
        member = valid & ((shots == group) | (group == "all"))[:, None]
        if member.any():
            figures[f"batch_mae/{group}"] = float(errors[member].mean())
    answered = valid.any(axis=1)
    if answered.sum() > 1 and targets[answered].std() > 0:
        anchors = np.nanmean(predictions[answered], axis=1)
        figures["sd_ratio"] = float(anchors.std() / targets[answered].std())
    return figures


class BatchRewards:
    """Two reward functions for TRL, `functions`: the regression reward and the format reward.

    Attributes:
        scores: of the batch that was scored last; None before the first one.
    """

    scores: BatchScores | None = None

    def __init__(self, settings: Settings, recent: Callable[[], RecentAnchors | None]) -> None:
        """Takes the sections `task` and `grpo` of the settings.

        Args:
            recent: returns the anchors of earlier steps that join the comparison, or None.
        """
        self._task, self._grpo, self._recent = settings.task, settings.grpo, recent

    @property
    def functions(self) -> list[Callable[..., list[float]]]:
        """The reward functions; TRL names its columns `rewards/_regression` and `rewards/_format` after them."""
        return [self._regression, self._format]

    def _regression(
        self, completions: Any, target: list[float], shot: list[str], trainer_state: Any, **_: Any
    ) -> list[float]:
        """Scores the batch of all ranks and returns the regression reward of this rank's completions."""
        own = np.stack([self._predictions(completions), target], axis=1)
        everyone = gather(torch.tensor(own, dtype=torch.float64, device=ranks().device))
        predictions, targets = everyone.cpu().numpy().T.reshape(2, -1, self._grpo.generations)
        shots = np.array(gather_object(shot)).reshape(-1, self._grpo.generations)[:, 0]
        regression = self._compare(predictions, targets[:, 0], trainer_state.global_step)
        rewards = np.stack([regression, format_reward(predictions)])
        self.scores = BatchScores(predictions, targets[:, 0], shots, rewards)
        return local_rows(regression, len(target)).tolist()

    def _format(self, completions: Any, **_: Any) -> list[float]:
        """Returns the format reward of this rank's completions."""
        return format_reward(self._predictions(completions)).tolist()

    def _predictions(self, completions: Any) -> Array:
        texts = [completion[0]["content"] for completion in completions]
        return parse_answers(texts, self._task.low, self._task.high)

    def _compare(self, predictions: Array, targets: Array, step: int) -> Array:
        """The regression reward `(B, G)`, with the anchors of earlier steps beside the batch."""
        task, name = self._task, self._grpo.reward
        recent = self._recent()
        if recent is None:
            return regression_reward(name, predictions, targets, task.low, task.high)
        joined = recent.joined(step, predictions, targets)
        recent.add(step, predictions, targets)
        return regression_reward(name, *joined, task.low, task.high)[: len(targets)]


def local_rows(values: Array, count: int) -> Array:
    """Returns this rank's `(count,)` of `values` `(B, G)`, whose completions are in the order of the ranks."""
    start = ranks().process_index * count
    return values.reshape(-1)[start : start + count]
