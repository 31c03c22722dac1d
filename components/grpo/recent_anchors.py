"""Anchors of earlier steps that join the comparison, so that a batch of few inputs still sees rare values.

They are compared with and never rewarded. They come from an older policy, so their age is bounded.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from components.grpo.concordance import Array


class RecentAnchors(TrainerCallback, ExportableState):
    """The last inputs' anchors and targets.

    A callback only so that transformers saves `state()` in a checkpoint's trainer_state.json. On resume, transformers
    replaces the callback by a new one with that state.

    Attributes:
        rows: `[step, anchor, target]` of each input, oldest first.
    """

    rows: list[list[float]]

    def __init__(self, inputs: int, steps: int) -> None:
        """Starts empty.

        Args:
            inputs: how many are kept, at most.
            steps: for how many optimizer steps.
        """
        self._inputs, self._steps = inputs, steps
        self.rows = []

    def joined(self, step: int, predictions: ArrayLike, targets: ArrayLike) -> tuple[Array, Array]:
        """Appends the K kept anchors to a batch, each as an input whose answers all equal its anchor.

        The first B rows of a slot-wise reward of the result are those of the batch, compared with both.

        Args:
            step: the current optimizer step.
            predictions: `(B, G)`.
            targets: `(B,)`.

        Returns:
            Predictions `(B + K, G)` and targets `(B + K,)`.
        """
        p, t = np.asarray(predictions, np.float64), np.asarray(targets, np.float64)
        rows = np.array(self.rows, np.float64).reshape(-1, 3)
        kept = rows[rows[:, 0] >= step - self._steps]
        return np.concatenate([p, np.repeat(kept[:, 1:2], p.shape[1], axis=1)]), np.concatenate([t, kept[:, 2]])

    def add(self, step: int, predictions: ArrayLike, targets: ArrayLike) -> None:
        """Keeps the anchors of a batch; an input without a valid answer has none.

        Args:
            step: the current optimizer step.
            predictions: `(B, G)`, NaN where a completion holds no valid answer.
            targets: `(B,)`.
        """
        p, t = np.asarray(predictions, np.float64), np.asarray(targets, np.float64)
        answered = np.isfinite(p).any(axis=1)
        anchors = np.nanmean(p[answered], axis=1)
        new = np.stack([np.full(len(anchors), float(step)), anchors, t[answered]], axis=1)
        self.rows = [*self.rows, *new.tolist()][-self._inputs :]

    def state(self) -> dict[str, Any]:
        """Returns what transformers writes to a checkpoint; JSON keeps the floats exactly."""
        return {"args": {"inputs": self._inputs, "steps": self._steps}, "attributes": {"rows": self.rows}}


def recent_anchors(trainer: Any) -> RecentAnchors | None:
    """The trainer's recent anchors as they are now: on resume, transformers replaces the callback; None without any."""
    return next((part for part in trainer.callback_handler.callbacks if isinstance(part, RecentAnchors)), None)
