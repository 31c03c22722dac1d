"""From rewards to advantages: each reward centred in its group and scaled on its own, then summed.

GRPO (Shao et al. 2024, arXiv 2402.03300) divides by the group's standard deviation. One slot moves a batch's CCC by
about 1/B, so the CCC reward's spread is small and a summed format reward would drown it: hence each on its own.
"""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from components.grpo.concordance import Array

Scale = Literal["group", "batch", "none"]
EPSILON = 1e-6


def group_advantages(rewards: ArrayLike, weights: ArrayLike, scale: Scale) -> Array:
    """The advantage of each generation within its group.

    Args:
        rewards: `(K, B, G)`, K rewards of B inputs with G generations.
        weights: `(K,)`.
        scale: what a reward's in-group difference is divided by: `group`, the group's own standard deviation (GRPO);
            `batch`, the root of the mean in-group variance over the batch, which leaves a group's weight to its spread;
            `none`, nothing.

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
