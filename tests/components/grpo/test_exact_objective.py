"""The objective of the exact estimators: against numpy, and the closed form against the average sampled gradient."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from torch import Tensor

from components.grpo.advantages import group_advantages
from components.grpo.concordance import concordance
from components.grpo.exact_objective import ExactObjective
from components.grpo.recent_anchors import RecentAnchors
from components.grpo.rewards import regression_reward
from components.settings import Settings
from components.shared.model.answer_tree import build_tree
from components.shared.scoring.distribution import balanced, crps
from components.shared.training.validation import TaskNumbers
from tests.support.grpo_training import small_settings

PRIOR = np.array([0.6, 0.3, 0.1])
NUMBERS = TaskNumbers(
    build_tree(np.array([0.0, 1.0, 2.0]), [[1], [2], [3]]), np.log(PRIOR), np.array(["many", "medium", "few"])
)
RECENT_ANCHORS, RECENT_TARGETS = np.array([0.4, 1.7]), np.array([0.0, 2.0])


def settings(**grpo: Any) -> Settings:
    """Three labels: 0, 1 and 2."""
    base = small_settings(**grpo)
    return base.model_copy(update={"task": base.task.model_copy(update={"low": 0.0, "high": 2.0, "resolution": 1.0})})


def objective(recent: bool = False, **grpo: Any) -> ExactObjective:
    kept = RecentAnchors(inputs=2, steps=5)
    kept.rows = [[0.0, a, t] for a, t in zip(RECENT_ANCHORS, RECENT_TARGETS, strict=True)]
    return ExactObjective(settings(**grpo), NUMBERS, lambda: kept if recent else None)


def batch(rows: int = 6) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log-probabilities of a model and of its warm start, and targets."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, rows, 4))
    log_p = logits - np.log(np.exp(logits).sum(axis=2, keepdims=True))
    return log_p[0, :, :3], log_p[1, :, :3], rng.integers(0, 3, rows).astype(float)


def expected_loss(name: str, log_p: np.ndarray, reference: np.ndarray, targets: np.ndarray, recent: bool) -> float:
    """The loss of `means` in numpy: balance 0.5, mass_weight 0.2, beta 0.1, reward_weight 2."""
    r, values = balanced(log_p, np.log(PRIOR), -0.5), NUMBERS.tree.values
    means, error = r @ values, (r @ values - targets) / 2
    compared, labels = means, targets
    if recent:
        compared, labels = np.concatenate([means, RECENT_ANCHORS]), np.concatenate([targets, RECENT_TARGETS])
    reward = {
        "ccc": concordance(compared, labels),
        "pearson": np.corrcoef(compared, labels)[0, 1],
        "mae": -np.abs(error).mean(),
        "mse": -(error**2).mean(),
        "crps": -crps(r, values, targets).mean() / 2,
    }[name]
    p, q = (np.column_stack([np.exp(x), 1 - np.exp(x).sum(axis=1)]) for x in (log_p, reference))
    kl = (p * np.log(p / q)).sum(axis=1).mean()
    return float(-2 * reward - 0.2 * np.log(np.exp(log_p).sum(axis=1)).mean() + 0.1 * kl)


@pytest.mark.parametrize("recent", [False, True], ids=["alone", "recent"])
@pytest.mark.parametrize("name", ["ccc", "pearson", "mae", "mse", "crps"])
def test_the_loss_of_means_and_its_slopes_equal_numpy_and_finite_differences(name: str, recent: bool) -> None:
    log_p, reference, targets = batch()
    weights = {"balance": 0.5, "mass_weight": 0.2, "beta": 0.1, "reward_weight": 2.0}
    made = objective(recent, estimator="means", reward=name, **weights)
    scored = made.score(torch.tensor(log_p), torch.tensor(reference), torch.tensor(targets), 1)
    assert scored.loss.item() == pytest.approx(expected_loss(name, log_p, reference, targets, recent), rel=1e-10)
    for place in np.ndindex(log_p.shape):
        moved = [log_p.copy(), log_p.copy()]
        moved[0][place] += 1e-6
        moved[1][place] -= 1e-6
        up, down = (expected_loss(name, x, reference, targets, recent) for x in moved)
        assert scored.slopes[place].item() == pytest.approx((up - down) / 2e-6, abs=1e-8), place
    assert scored.metrics["mass"] == pytest.approx(np.exp(log_p).sum(axis=1).mean())
    assert {f"reward/{name}", "kl", "batch_mae/all", "sd_ratio"} <= scored.metrics.keys()


@pytest.mark.parametrize(("estimator", "balance"), [("means", 0.5), ("policy", 0.0)])
def test_recent_anchors_are_kept_in_order(estimator: str, balance: float) -> None:
    kept = RecentAnchors(inputs=4, steps=5)
    log_p, _, targets = batch()
    made = ExactObjective(settings(beta=0.0, estimator=estimator, balance=balance), NUMBERS, lambda: kept)
    made.score(torch.tensor(log_p), None, torch.tensor(targets), 3)
    means = balanced(log_p, np.log(PRIOR), -balance) @ NUMBERS.tree.values
    expected = np.column_stack([np.full(4, 3.0), means[-4:], targets[-4:]])
    np.testing.assert_allclose(kept.rows, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("grpo", "compares"),
    [
        ({"estimator": "means", "reward": "ccc"}, True),
        ({"estimator": "means", "reward": "pearson"}, True),
        ({"estimator": "means", "reward": "crps", "advantage": "batch"}, False),
        ({"estimator": "means", "reward": "mae"}, False),
        ({"estimator": "policy", "reward": "ccc"}, True),
        ({"estimator": "policy", "reward": "mse", "advantage": "group"}, False),
        ({"estimator": "policy", "reward": "mse", "advantage": "batch"}, True),
    ],
)
def test_only_some_losses_compare_the_images_of_a_step(grpo: dict[str, Any], compares: bool) -> None:
    assert objective(**grpo).compares_batch is compares


# The policy gradient by the logits of four outcomes (0, 1, 2 and any other text), against sampling.


def logits_and_targets() -> tuple[Tensor, np.ndarray]:
    rng = np.random.default_rng(1)
    return torch.tensor(rng.normal(size=(4, 4))), np.array([0.0, 1.0, 2.0, 1.0])


def closed_form(name: str, advantage: str) -> np.ndarray:
    logits, targets = logits_and_targets()
    logits.requires_grad_()
    log_p = logits.log_softmax(dim=1)[:, :3]
    made = objective(estimator="policy", reward=name, advantage=advantage, beta=0.0)
    scored = made.score(log_p, None, torch.tensor(targets), 0)
    (log_p * scored.slopes).sum().backward()
    assert logits.grad is not None
    return logits.grad.numpy()


def sampled(name: str, advantage: Any, generations: int, draws: int) -> np.ndarray:
    """`(draws, 4, 4)`: gradients of GRPO's loss, each from `generations` sampled answers per input."""
    logits, targets = logits_and_targets()
    p = logits.softmax(dim=1).numpy()
    rng = np.random.default_rng(2)
    gradients = []
    for _ in range(draws):
        outcomes = np.stack([rng.choice(4, generations, p=row) for row in p])
        rewards = regression_reward(name, np.array([0, 1, 2, np.nan])[outcomes], targets, 0, 2)  # type: ignore[arg-type]
        advantages = group_advantages(rewards[None], [1.0], advantage)
        score = np.eye(4)[outcomes] - p[:, None]  # gradient of log p(outcome)
        gradients.append(-(advantages[..., None] * score).mean(axis=1) / len(p))
    return np.array(gradients)


def test_the_closed_form_equals_the_average_sampled_gradient() -> None:
    """Exactly, for a reward without anchors: a group's mean takes 1/G of each answer's own reward away.

    The squared distance from the average of 5,000 gradients, by their covariance, is chi-square with 12 degrees of
    freedom (the logits of each of four inputs have three); it exceeds the limit once in a thousand seeds.
    """
    generations, draws = 4, 5_000
    found = sampled("mae", "none", generations, draws)[:, :, :3].reshape(draws, -1)
    expected = closed_form("mae", "none")[:, :3].ravel() * (generations - 1) / generations
    assert np.abs(expected).max() > 0.02
    distance = found.mean(axis=0) - expected
    covariance = np.cov(found, rowvar=False) / draws
    assert distance @ np.linalg.solve(covariance, distance) < chi2.ppf(0.999, 12)


@pytest.mark.parametrize("advantage", ["none", "batch", "group"])
@pytest.mark.parametrize("name", ["ccc", "pearson", "mse"])
def test_the_closed_form_is_the_limit_of_many_answers(name: str, advantage: str) -> None:
    """Anchors and spreads of 4,000 answers are near their expectations: bias 1/G, noise 1 % of the largest entry."""
    found = sampled(name, advantage, 4000, 100)
    expected = closed_form(name, advantage)
    error = np.abs(found.mean(axis=0) - expected)
    noise = found.std(axis=0) / 10
    assert (error <= 5 * noise + 2e-3 * np.abs(expected).max()).all()
    assert noise.max() < 0.02 * np.abs(expected).max()
