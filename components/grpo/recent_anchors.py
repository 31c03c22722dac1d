"""Anchors of earlier steps, which join the comparison of this one: a batch of eight inputs, which is what one GPU has,
then still sees the tail.

They are compared with, never rewarded. They come from an older policy, so their age is bounded.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from components.grpo.concordance import Array


class RecentAnchors:
    """The last inputs' anchors and targets, oldest first."""

    def __init__(self, inputs: int, steps: int) -> None:
        """Nothing is remembered yet.

        Args:
            inputs: how many are remembered, at most.
            steps: for how many optimizer steps.
        """
        self._inputs, self._steps = inputs, steps
        self._rows: Array = np.empty((0, 3))  # step, anchor, target

    def joined(self, step: int, predictions: ArrayLike, targets: ArrayLike) -> tuple[Array, Array]:
        """Predictions `(B + K, G)` and targets `(B + K,)`: the batch, then what is remembered, as if all of its answers
        were its anchor. So a slot-wise reward's first B rows are the batch's, compared over both."""
        p, t = np.asarray(predictions, np.float64), np.asarray(targets, np.float64)
        known = self._rows[self._rows[:, 0] >= step - self._steps]
        return np.concatenate([p, np.repeat(known[:, 1:2], p.shape[1], axis=1)]), np.concatenate([t, known[:, 2]])

    def add(self, step: int, predictions: ArrayLike, targets: ArrayLike) -> None:
        """Remembers the anchors of a batch, `(B, G)` with NaN for no valid answer, and its targets `(B,)`; an input
        without a valid answer has none."""
        p, t = np.asarray(predictions, np.float64), np.asarray(targets, np.float64)
        answered = np.isfinite(p).any(axis=1)
        anchors = np.nanmean(p[answered], axis=1)
        new = np.stack([np.full(len(anchors), float(step)), anchors, t[answered]], axis=1)
        self._rows = np.concatenate([self._rows, new])[-self._inputs :]

    def state(self) -> list[Any]:
        """What is remembered, as JSON holds it without loss."""
        return self._rows.tolist()

    def restore(self, state: list[Any]) -> None:
        """What `state` gave."""
        self._rows = np.array(state, np.float64).reshape(-1, 3)
