"""Advantages from rewards: each reward is centred in its group and scaled on its own, then the rewards are summed.

GRPO (Shao et al. 2024, arXiv 2402.03300) divides by the group's standard deviation. One slot changes a batch's CCC by
about 1/B, so the CCC reward has a small spread. If the rewards were summed first, the format reward would dominate.
"""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from components.grpo.concordance import Array

Scale = Literal["group", "batch", "none"]
EPSILON = 1e-6


def group_advantages(
    rewards: ArrayLike, weights: ArrayLike, scale: Scale, probabilities: ArrayLike | None = None
) -> Array:
    """Computes the advantage of each generation within its group.

    Args:
        rewards: `(K, B, G)`, K rewards of B inputs with G generations.
        weights: `(K,)`.
        scale: what a reward's difference from its group mean is divided by. `group`: the group's standard deviation
            (GRPO). `batch`: the root of the mean in-group variance over the batch, so that groups with a larger spread
            keep more weight. `none`: nothing.
        probabilities: `(B, G)` of the generations, if a group is not a sample but all that the model can answer; None:
            every generation counts the same.

    Returns:
        `(B, G)`, mean 0 in every group. A reward without any spread adds nothing.
    """
    centred = _centred(rewards, probabilities)
    if scale != "none":
        spread = group_spread(rewards, probabilities)[..., None]
        if scale == "batch":
            spread = np.sqrt(np.mean(spread**2, axis=1, keepdims=True))
        centred = np.where(spread > EPSILON, centred / np.maximum(spread, EPSILON), 0.0)
    return np.einsum("k,kbg->bg", np.asarray(weights, np.float64), centred)


def group_spread(rewards: ArrayLike, probabilities: ArrayLike | None = None) -> Array:
    """Standard deviation of each reward in each group, `(K, B)`; arguments as for `group_advantages`."""
    centred = _centred(rewards, probabilities)
    return np.asarray(np.sqrt(np.average(centred**2, axis=2, weights=_weights(centred, probabilities))))


def _centred(rewards: ArrayLike, probabilities: ArrayLike | None) -> Array:
    r = np.asarray(rewards, np.float64)
    return r - np.average(r, axis=2, weights=_weights(r, probabilities))[..., None]


def _weights(rewards: Array, probabilities: ArrayLike | None) -> Array:
    given = 1.0 if probabilities is None else np.asarray(probabilities, np.float64)
    return np.broadcast_to(given, rewards.shape)
