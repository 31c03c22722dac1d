"""Losses on the exact probabilities of all numbers, as pure functions of torch tensors.

`log_p` `(U, N)` are the log-probabilities of U images over N numbers, `values` `(N,)` the numbers in ascending order
with equal steps, `targets` `(U,)` the labels in the task's unit. A row of `log_p` sums to the image's mass, at most 1;
the rest is the probability of any other text. Everything runs in float64: in float32, 1 - mass would be rounding noise.
"""

import torch
from torch import Tensor

# The model's probabilities are sums in float32, so the rest beside a mass near 1 is known no better than this.
LEAST_REST = 1e-7


def tilted(log_p: Tensor, log_prior: Tensor, balance: float) -> Tensor:
    """The distribution with a part of the prior put back: log r with r proportional to p * prior^balance.

    A loss on r trains that part of the prior away: where r is right under the training law, p is right in a world whose
    prior is prior^(1 - balance). Balanced softmax (Ren et al. 2020, arXiv 2007.10740), for numbers.

    Args:
        log_prior: `(N,)`.

    Returns:
        `(U, N)`; the probabilities of each row have sum 1.
    """
    return (log_p + balance * log_prior).log_softmax(dim=1)


def concordance(predictions: Tensor, targets: Tensor) -> Tensor:
    """Lin's concordance of two vectors `(B,)`, a scalar; 0 where both are constant and equal (see concordance.py)."""
    p, t = predictions - targets.mean(), targets - targets.mean()
    covariance = ((p - p.mean()) * t).mean()
    scale = p.var(correction=0) + t.var(correction=0) + p.mean() ** 2
    return 2 * covariance / torch.where(scale > 0, scale, torch.ones_like(scale))


def pearson(predictions: Tensor, targets: Tensor) -> Tensor:
    """Pearson's correlation of two vectors `(B,)`, a scalar; 0 where one is constant."""
    p, t = predictions - predictions.mean(), targets - targets.mean()
    # Where all values are equal, the variance is rounding noise, and a correlation would divide noise by noise.
    known = ((p**2).mean() > 1e-13 * (predictions**2).mean()) & ((t**2).mean() > 1e-13 * (targets**2).mean())
    product = torch.where(known, (p**2).mean() * (t**2).mean(), 1.0)
    return torch.where(known, (p * t).mean() / product.sqrt(), 0.0)


def crps(r: Tensor, values: Tensor, targets: Tensor) -> Tensor:
    """Continuous ranked probability score of each image, `(U,)` in the task's unit; lower is better.

    resolution * sum over n of (R(n) - 1[n >= y])^2 (Gneiting and Raftery 2007, JASA 102:359-378).

    Args:
        r: `(U, N)` probabilities; each row has sum 1.
    """
    step = values[1] - values[0]
    reached = (values >= targets[:, None] - step / 4).to(r.dtype)
    return step * ((r.cumsum(dim=1) - reached) ** 2).sum(dim=1)


def rest(log_p: Tensor) -> Tensor:
    """Probability of any other text, `(U,)`: 1 - mass, at least LEAST_REST. No gradient flows where it is less."""
    return (-torch.expm1(log_p.logsumexp(dim=1))).clamp_min(LEAST_REST)


def kl(log_p: Tensor, log_reference: Tensor) -> Tensor:
    """KL divergence `(U,)` of p from the reference over N + 1 outcomes: the numbers, and any other text.

    Over the numbers alone it could be negative, since their masses differ. Rounding can make it -1e-7.
    """
    other, reference = rest(log_p), rest(log_reference)
    numbers = (log_p.exp() * (log_p - log_reference)).sum(dim=1)
    return numbers + other * (other.log() - reference.log())


def policy_loss(log_p: Tensor, advantages: Tensor) -> Tensor:
    """The policy gradient in closed form, a scalar with the gradient of -E[A], the advantages A being fixed.

    -mean over images of sum over N + 1 outcomes of stop(p A) grad log p. The outcome "any other text" has log p =
    log(1 - mass), whose gradient times its p is minus that of the numbers: so each number gets p (A - A_other), and
    nothing is divided by 1 - mass, which may be 0. The value is 0, as it is in GRPO.

    Args:
        advantages: `(U, N + 1)`, last the advantage of any other text.
    """
    fixed = log_p.detach()
    pull = fixed.exp() * (advantages[:, :-1] - advantages[:, -1:])
    return -(pull * (log_p - fixed)).sum(dim=1).mean()
