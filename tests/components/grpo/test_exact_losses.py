"""Losses on exact probabilities: values by hand, and gradients against finite differences and other implementations."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from components.grpo import concordance as slots
from components.grpo.exact_losses import concordance, crps, kl, pearson, policy_loss, rest, tilted
from components.shared.scoring.distribution import balanced
from components.shared.scoring.distribution import crps as crps_of_arrays

VALUES = torch.tensor([2.0, 3.0, 4.0, 5.0], dtype=torch.float64)


def random_log_p(rows: int = 5, seed: int = 0, mass: float = 0.9) -> Tensor:
    """`(rows, 4)` log-probabilities of numbers whose masses are `mass`."""
    logits = torch.randn(rows, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return logits.log_softmax(dim=1) + np.log(mass)


def log(*probabilities: float) -> Tensor:
    return torch.tensor([probabilities], dtype=torch.float64).log()


def test_tilted_puts_the_prior_back() -> None:
    prior = log(0.25, 0.75)[0]
    torch.testing.assert_close(tilted(log(0.3, 0.3), prior, 1.0), log(0.25, 0.75))
    torch.testing.assert_close(tilted(log(0.2, 0.6), prior, 0.0), log(0.25, 0.75))
    torch.testing.assert_close(
        tilted(log(0.3, 0.3), prior, 0.5).exp()[0, 1] / 3**0.5, torch.tensor(1 / (1 + 3**0.5)).double()
    )
    log_p, some = random_log_p(), torch.rand(4, dtype=torch.float64).log()
    expected = balanced(log_p.numpy(), some.numpy(), -0.7)
    np.testing.assert_allclose(tilted(log_p, some, 0.7).exp().numpy(), expected, rtol=1e-12)


def test_concordance_and_pearson_by_hand() -> None:
    """Means 1, 2, 3 for 2, 2, 5: covariance 1, variances 2/3 and 2, means 1 apart."""
    p, t = torch.tensor([1.0, 2.0, 3.0]).double(), torch.tensor([2.0, 2.0, 5.0]).double()
    assert float(concordance(p, t)) == pytest.approx(2 / (2 / 3 + 2 + 1))
    assert float(pearson(p, t)) == pytest.approx(1 / (4 / 3) ** 0.5)


def test_they_equal_numpy_with_a_large_offset() -> None:
    rng = np.random.default_rng(0)
    p = rng.normal(1e4, 3, 40)
    t = p + rng.normal(1, 2, 40)
    assert float(concordance(torch.tensor(p), torch.tensor(t))) == pytest.approx(slots.concordance(p, t), rel=1e-9)
    assert float(pearson(torch.tensor(p), torch.tensor(t))) == pytest.approx(np.corrcoef(p, t)[0, 1], rel=1e-9)


@pytest.mark.parametrize("measure", [concordance, pearson])
def test_constant_vectors_have_the_value_zero_and_finite_gradients(measure: Callable[[Tensor, Tensor], Tensor]) -> None:
    moving, constant = torch.tensor([1.0, 4.0, 5.0]).double(), torch.full((3,), 0.1).double()
    for p, t in ((moving, constant), (constant, moving), (constant, constant), (moving[:1], moving[1:2])):
        p = p.clone().requires_grad_()
        value = measure(p, t)
        value.backward()
        assert value.item() == 0
        assert p.grad is not None
        assert p.grad.isfinite().all()


def test_crps_by_hand_and_as_in_evaluation() -> None:
    """Label 3: F is 0.5, 0.75, 1, 1 and should be 0, 1, 1, 1."""
    r = torch.tensor([[0.5, 0.25, 0.25, 0.0]]).double()
    assert crps(r, VALUES, torch.tensor([3.0]).double()).tolist() == [0.25 + 0.0625]
    r, targets = random_log_p(mass=1.0).exp(), torch.tensor([2.0, 5.0, 3.0, 2.0, 4.0]).double()
    tenths = VALUES / 10
    expected = crps_of_arrays(r.numpy(), tenths.numpy(), targets.numpy() / 10)
    np.testing.assert_allclose(crps(r, tenths, targets / 10).numpy(), expected, rtol=1e-12)


def test_kl_by_hand() -> None:
    p, q = (0.5, 0.3), (0.2, 0.2)  # and 0.2 and 0.6 for any other text
    expected = 0.5 * np.log(2.5) + 0.3 * np.log(1.5) + 0.2 * np.log(1 / 3)
    assert kl(log(*p), log(*q)).item() == pytest.approx(expected)
    assert kl(log(*p), log(*p)).item() == 0
    # Over the numbers alone this would be negative.
    assert kl(log(0.1, 0.1), log(0.4, 0.4)).item() > 0


@pytest.mark.parametrize("excess", [-1e-3, -1e-9, 0.0, 1e-7])
def test_a_mass_of_one_and_slightly_more_gives_finite_values_and_gradients(excess: float) -> None:
    """Sums of probabilities in float32 can exceed 1."""
    log_p = random_log_p(mass=1 + excess).requires_grad_()
    total = kl(log_p, random_log_p(seed=1, mass=1.0)).mean() + policy_loss(log_p, torch.ones(5, 5).double().triu())
    total.backward()
    assert total.isfinite()
    assert log_p.grad is not None
    assert log_p.grad.isfinite().all()
    assert (rest(log_p) > 0).all()


def test_gradients_equal_finite_differences() -> None:
    reference, prior = random_log_p(seed=1, mass=0.7), random_log_p(1, seed=2)[0]
    targets = torch.tensor([2.0, 5.0, 3.0, 2.0, 4.0]).double()

    def means(log_p: Tensor) -> Tensor:
        return tilted(log_p, prior, 0.6).exp() @ VALUES

    for loss in (
        lambda log_p: concordance(means(log_p), targets),
        lambda log_p: pearson(means(log_p), targets),
        lambda log_p: crps(tilted(log_p, prior, 0.6).exp(), VALUES, targets),
        lambda log_p: kl(log_p, reference),
    ):
        assert torch.autograd.gradcheck(loss, random_log_p().requires_grad_())


def test_the_policy_gradient_is_that_of_the_expected_advantage() -> None:
    advantages = torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    log_p = random_log_p().requires_grad_()
    loss = policy_loss(log_p, advantages)
    assert loss.item() == 0
    (found,) = torch.autograd.grad(loss, log_p)
    p = log_p.exp()
    outcomes = torch.cat([p, 1 - p.sum(dim=1, keepdim=True)], dim=1)
    (expected,) = torch.autograd.grad(-(outcomes * advantages).sum(dim=1).mean(), log_p)
    torch.testing.assert_close(found, expected)
