"""Runs single training steps of a trainer and times their phases."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from components.grpo.exact_trainer import ExactTrainer
from components.shared.model.device import device, on_accelerator, peak_bytes

Seconds = dict[str, float]


class TimedSteps:
    """Steps of a trainer that samples answers: ours or TRL's."""

    phases: tuple[str, ...] = ("step", "rollout", "reward", "policy pass", "optimizer")

    def __init__(self, trainer: Any) -> None:
        """Prepares the trainer as `train()` would, with an optimizer of its own."""
        self._trainer = trainer
        trainer.model.train()
        if trainer.args.gradient_checkpointing:
            trainer.model.gradient_checkpointing_enable(trainer.args.gradient_checkpointing_kwargs)
        trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
        self._weights = [weight for weight in trainer.model.parameters() if weight.requires_grad]
        self._optimizer = torch.optim.AdamW(self._weights, lr=1e-5)
        self._batches = iter(trainer.get_train_dataloader())
        self._seconds: Seconds = {}
        self._inputs: Any = None
        self._time_methods()

    def _time_methods(self) -> None:
        self._time_calls(self._trainer, "_generate", "rollout")
        self._time_calls(self._trainer, "_calculate_rewards", "reward")

    def _time_calls(self, owner: Any, name: str, phase: str) -> None:
        function: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self._time(phase):
                return function(*args, **kwargs)

        setattr(owner, name, timed)

    @contextmanager
    def _time(self, phase: str) -> Iterator[None]:
        synchronize()
        start = time.perf_counter()
        yield
        synchronize()
        self._seconds[phase] += time.perf_counter() - start

    def step(self) -> Seconds:
        """Takes one optimizer step and returns the seconds by phase."""
        self._seconds = dict.fromkeys(self.phases, 0.0)
        with self._time("step"):
            self._gradients()
            with self._time("optimizer"):
                torch.nn.utils.clip_grad_norm_(self._weights, 1.0)
                self._optimizer.step()
                self._optimizer.zero_grad()
        return dict(self._seconds)

    def _gradients(self) -> None:
        for _ in range(self._trainer.args.gradient_accumulation_steps):
            self._inputs = self._trainer._prepare_inputs(next(self._batches))
            with self._time("policy pass"):
                self._loss().backward()
            self._trainer._step += 1

    def _loss(self) -> Any:
        with self._trainer.compute_loss_context_manager():
            return self._trainer.compute_loss(self._trainer.model, self._inputs)

    @property
    def tokens(self) -> tuple[int, int]:
        """Prompt and completion tokens of the last step, with padding."""
        return self._inputs["prompt_ids"].shape[1], self._inputs["completion_ids"].shape[1]

    def policy_pass_bytes(self) -> int:
        """Peak bytes that a policy pass on the last inputs allocates on top of what was allocated before."""
        return peak_bytes(lambda: self._loss().backward(), device())


class TimedExactSteps(TimedSteps):
    """Steps of the exact trainer; `reference` is the warm start's pass, which only the KL needs."""

    phases = ("step", "inputs", "forward", "reference", "loss", "backward", "optimizer")

    def _time_methods(self) -> None:
        self._time_calls(self._trainer, "_log_probs_in_wrapper", "forward")
        self._time_calls(self._trainer, "_reference_log_probs", "reference")
        self._time_calls(self._trainer._objective, "score", "loss")

    def _gradients(self) -> None:
        trainer = self._trainer
        with self._time("inputs"):
            count = trainer.args.gradient_accumulation_steps
            batches, _ = trainer.get_batch_samples(self._batches, count, trainer.args.device)
        for batch in batches:
            with self._time("inputs"):
                self._inputs = trainer._prepare_inputs(batch)
            loss = self._loss() / count
            with self._time("backward"):
                loss.backward()

    @property
    def tokens(self) -> tuple[int, int]:
        """Tokens of the prompt and of the answer tree."""
        return self._inputs["input_ids"].shape[1], self._trainer._tree.nodes

    def policy_pass_bytes(self) -> int:
        """The same, with the reference's pass; of one micro-batch."""
        self._trainer._later = []
        return super().policy_pass_bytes()


def timed_steps(trainer: Any) -> TimedSteps:
    """Timed steps of any of the trainers."""
    return TimedExactSteps(trainer) if isinstance(trainer, ExactTrainer) else TimedSteps(trainer)


def synchronize() -> None:
    """Waits until the accelerator has finished its queued work."""
    if on_accelerator():
        torch.accelerator.synchronize()
