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


def group_advantages(rewards: ArrayLike, weights: ArrayLike, scale: Scale) -> Array:
    """Computes the advantage of each generation within its group.

    Args:
        rewards: `(K, B, G)`, K rewards of B inputs with G generations.
        weights: `(K,)`.
        scale: what a reward's difference from its group mean is divided by. `group`: the group's standard deviation
            (GRPO). `batch`: the root of the mean in-group variance over the batch, so that groups with a larger spread
            keep more weight. `none`: nothing.

    Returns:
        `(B, G)`, mean 0 in every group. A reward without any spread adds nothing.
    """
    r = np.asarray(rewards, np.float64)
    centred = r - r.mean(axis=2, keepdims=True)
    if scale != "none":
        axes = 2 if scale == "group" else (1, 2)
        spread = np.sqrt(np.mean(centred**2, axis=axes, keepdims=True))
        centred = np.where(spread > EPSILON, centred / np.maximum(spread, EPSILON), 0.0)
    return np.einsum("k,kbg->bg", np.asarray(weights, np.float64), centred)
