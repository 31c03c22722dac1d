"""What the exact estimators train: from the probabilities of a batch of all ranks to one loss, and figures to log."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from components.grpo import exact_losses as losses
from components.grpo.advantages import group_advantages, group_spread
from components.grpo.batch_rewards import error_figures
from components.grpo.recent_anchors import RecentAnchors
from components.grpo.rewards import INVALID, regression_reward
from components.settings import Settings
from components.shared.training.validation import TaskNumbers


@dataclass(frozen=True)
class Scored:
    """A batch with its loss.

    Attributes:
        loss: of the whole batch.
        slopes: `(B, N)` its derivative by `log_p`.
        metrics: name -> figure of the batch.
    """

    loss: Tensor
    slopes: Tensor
    metrics: dict[str, float]


class ExactObjective:
    """The loss of `grpo.estimator: means` and `policy`.

    - means: the reward of each image's mean under the tilted distribution, or its CRPS, and -log mass;
    - policy: the policy gradient in closed form, for any reward of an answer;
    - both: the KL to the warm start.
    """

    def __init__(self, settings: Settings, numbers: TaskNumbers, recent: Callable[[], RecentAnchors | None]) -> None:
        """Takes the sections `task` and `grpo` of the settings.

        Args:
            recent: returns the anchors of earlier steps that join the comparison, or None.
        """
        self._task, self._grpo, self._numbers, self._recent = settings.task, settings.grpo, numbers, recent
        self._range = settings.task.high - settings.task.low

    @property
    def compares_batch(self) -> bool:
        """Whether an image's loss depends on the other images of its step."""
        grpo = self._grpo
        return grpo.reward in ("ccc", "pearson") or (grpo.estimator == "policy" and grpo.advantage == "batch")

    def score(self, log_p: Tensor, reference: Tensor | None, targets: Tensor, step: int) -> Scored:
        """Computes the loss of a batch, and its derivative by each log-probability.

        Args:
            log_p: `(B, N)` float64, of all ranks; no gradient flows back through it.
            reference: the same of the warm start; None where `beta` is 0.
            targets: `(B,)` float64.
            step: the current optimizer step.
        """
        log_p = log_p.detach()
        leaf = log_p.clone().requires_grad_()
        with torch.enable_grad():
            loss, metrics = (self._means if self._grpo.estimator == "means" else self._policy)(leaf, targets, step)
            if reference is not None:
                divergence = losses.kl(leaf, reference).mean()
                loss = loss + self._grpo.beta * divergence
                metrics["kl"] = float(divergence.detach())
            (slopes,) = torch.autograd.grad(loss, leaf)
        metrics["mass"] = float(log_p.exp().sum(dim=1).mean())
        return Scored(loss.detach(), slopes, metrics)

    def _means(self, log_p: Tensor, targets: Tensor, step: int) -> tuple[Tensor, dict[str, float]]:
        grpo, values = self._grpo, torch.as_tensor(self._numbers.tree.values, device=log_p.device)
        prior = torch.as_tensor(self._numbers.log_prior, device=log_p.device)
        r = losses.tilted(log_p, prior, grpo.balance).exp()
        means = r @ values
        if grpo.reward == "crps":
            reward = -losses.crps(r, values, targets).mean() / self._range
        else:
            reward = self._reward_of_means(means, targets, step)
        loss = -grpo.reward_weight * reward - grpo.mass_weight * log_p.logsumexp(dim=1).mean()
        return loss, {f"reward/{grpo.reward}": float(reward.detach()), **self._errors(means, targets)}

    def _reward_of_means(self, means: Tensor, targets: Tensor, step: int) -> Tensor:
        """The reward of the vector of means, recent anchors beside it."""
        name = self._grpo.reward
        if name in ("mae", "mse"):
            errors = (means - targets) / self._range
            return -(errors.abs() if name == "mae" else errors**2).mean()
        own, labels = means.detach().cpu().numpy(), targets.cpu().numpy()
        anchors, kept = self._joined(step, own[:, None], own, labels)
        earlier = torch.as_tensor(anchors[len(own) :, 0], device=means.device)
        compared = torch.cat([means, earlier]), torch.as_tensor(kept, device=means.device)
        return (losses.concordance if name == "ccc" else losses.pearson)(*compared)

    def _policy(self, log_p: Tensor, targets: Tensor, step: int) -> tuple[Tensor, dict[str, float]]:
        """All in numpy up to the advantages, as in the sampled trainer."""
        grpo, values = self._grpo, self._numbers.tree.values
        p, labels = log_p.detach().exp().cpu().numpy(), targets.cpu().numpy()
        anchors = log_p.detach().softmax(dim=1).cpu().numpy() @ values  # of valid answers, as in the sampled trainer
        answers, kept = self._joined(step, np.broadcast_to(values, p.shape), anchors, labels)
        anchored = np.concatenate([anchors, answers[len(p) :, 0]])
        rewards = regression_reward(grpo.reward, answers, kept, self._task.low, self._task.high, anchored)[: len(p)]
        rewards = np.pad(rewards, ((0, 0), (0, 1)), constant_values=INVALID)
        outcomes = np.column_stack([p, losses.rest(log_p.detach()).cpu().numpy()])
        advantages = group_advantages(rewards[None], [grpo.reward_weight], grpo.advantage, outcomes)
        loss = losses.policy_loss(log_p, torch.as_tensor(advantages, device=log_p.device))
        metrics = {
            f"reward/{grpo.reward}": float((outcomes * rewards).sum(axis=1).mean()),
            f"spread/{grpo.reward}": float(group_spread(rewards[None, :, :-1], p).mean()),  # of valid answers
            **self._errors(torch.as_tensor(anchors), targets.cpu()),
        }
        return loss, metrics

    def _joined(
        self, step: int, answers: np.ndarray, anchors: np.ndarray, targets: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Answers `(B + K, G)` and targets `(B + K,)` with the K recent anchors; the batch's own are kept for later."""
        recent = self._recent()
        if recent is None:
            return answers, targets
        joined = recent.joined(step, answers, targets)
        recent.add(step, anchors[:, None], targets)
        return joined

    def _errors(self, means: Tensor, targets: Tensor) -> dict[str, float]:
        own, labels = means.detach().cpu().numpy()[:, None], targets.cpu().numpy()
        return error_figures(own, labels, self._numbers.shots_of(labels))
