"""Trains on the probability of every number (`grpo.estimator: means` and `policy`), without sampling.

A step is one pass forward and backward over its images. The loss compares all images of the step, whatever rank and
micro-batch they are in: the log-probabilities are gathered, every rank computes the loss of all of them and its
derivative by each log-probability (exact_objective.py), and goes backward from those of its own images. So the
gradient does not depend on the number of ranks or micro-batches.
"""

from collections import defaultdict
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather
from peft import PeftModel
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Sampler, SequentialSampler
from transformers import PrinterCallback, Trainer, TrainingArguments
from trl.trainer.utils import use_adapter

from components.grpo.arguments import SHOWN, common_arguments, inputs_at_once, uneven
from components.grpo.exact_objective import ExactObjective
from components.grpo.recent_anchors import RecentAnchors, recent_anchors
from components.settings import Grpo, Settings
from components.shared.model.answer_distribution import from_prompts, one_by_one
from components.shared.model.device import random_state_kept
from components.shared.model.generation import inference, processed
from components.shared.model.lora import REFERENCE, add_reference
from components.shared.model.number_reader import why_one_by_one
from components.shared.tracking.step_run import StepRun
from components.shared.training.checkpoints import SealedCheckpoints
from components.shared.training.curves import CurveCallback
from components.shared.training.data_wait import TimesDataWait
from components.shared.training.ranks import gathers_whole_passes
from components.shared.training.sharding import ShardedWeights, drop_gathered, shard
from components.shared.training.unused_parameters import look_for_unused
from components.shared.training.validation import TaskNumbers, ValidatesDistributions

Batch = dict[str, Any]


def exact_arguments(
    grpo: Grpo, settings: Settings, folder: Path, world_size: int, validated: bool = False
) -> TrainingArguments:
    """Translates our settings into transformers'.

    Args:
        folder: for checkpoints.
        world_size: number of ranks; the inputs of a step are divided among them.
        validated: whether checkpoints are evaluated and the best one is kept.

    Raises:
        ConcordError: the step's inputs cannot be divided evenly.
    """
    if grpo.prompts % (grpo.accumulation * world_size):
        raise uneven(grpo, f"{grpo.prompts} prompts", world_size)
    return TrainingArguments(
        per_device_train_batch_size=inputs_at_once(grpo, world_size),
        **common_arguments(grpo, settings, folder, validated),
    )


class PromptCollator:
    """Turns rows with question, image and target into the model's inputs, padded on the left, and `targets`."""

    def __init__(self, processor: Any) -> None:
        """Takes the model's processor."""
        self._processor = processor

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        """Returns the processor's output and `targets`, `(U,)` float64."""
        prompts = processed(self._processor, [row["image"] for row in rows], [row["question"] for row in rows])
        return {**prompts, "targets": torch.tensor([row["target"] for row in rows], dtype=torch.float64)}


@dataclass
class Step:
    """The optimizer step under way.

    Attributes:
        later: its micro-batches after the first.
        loss: of the images that were compared last.
        slopes: for each micro-batch among them that is still to go backward, the derivative of the loss `(U, N)`.
    """

    later: list[Batch]
    loss: Tensor
    slopes: list[Tensor]


class ExactTrainer(ValidatesDistributions, TimesDataWait, SealedCheckpoints, ShardedWeights, Trainer):
    """Trains the expected reward of all numbers: by their means, or by the policy gradient in closed form.

    Attributes:
        unshared_reason: why each number is scored in a row of its own, N times the work; None where it is not.
    """

    _step: Step

    def __init__(self, *, settings: Settings, numbers: TaskNumbers, **kwargs: Any) -> None:
        """Takes Trainer's arguments as well; the model may have adapters."""
        model, grpo = kwargs["model"], settings.grpo
        self._settings, self._tree = settings, numbers.tree
        self.checkpoint_seconds = 60 * settings.launcher.checkpoint_minutes
        self._adapted = isinstance(model, PeftModel)
        # As in TRL, the reference of the KL is a copy of the model; or of its adapter, if only that is trained.
        self._reference = deepcopy(model).requires_grad_(False) if grpo.beta and not self._adapted else None
        if grpo.beta and self._adapted:
            add_reference(model)
        if self._adapted and grpo.gradient_checkpointing:
            model.enable_input_require_grads()  # transformers 5.23 does not, for adapters
        super().__init__(data_collator=PromptCollator(kwargs["processing_class"]), **kwargs)
        if self._reference is not None:
            self._reference.to(self.args.device)
            if self.accelerator.is_fsdp2:
                shard(self, self._reference)
        if grpo.recent:
            self.add_callback(RecentAnchors(grpo.recent.inputs, grpo.recent.steps))
        self._objective = ExactObjective(settings, numbers, lambda: recent_anchors(self))
        self._metrics: dict[str, list[float]] = defaultdict(list)
        self.unshared_reason = self._unshared_reason()
        look_for_unused(self)

    def follow(self, track: StepRun | None) -> None:
        """Sends the training curves to the tracker and shows progress, in place of transformers' printed lines."""
        self.remove_callback(PrinterCallback)
        self.add_callback(CurveCallback(track, SHOWN, self.data_wait))

    def remarks(self) -> list[str]:
        """What a user should know before the training: that it is slow, and why."""
        if self.unshared_reason is None:
            return []
        return [f"each of the {len(self._tree.values)} numbers is scored in a row of its own: {self.unshared_reason}"]

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the micro-batches of one optimizer step; the first of them may need the others."""
        batches, count = super().get_batch_samples(*args, **kwargs)
        self._step = Step(batches[1:], torch.zeros(()), [])
        return batches, count

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """The loss of all images compared, whose gradient is that of this rank's share of it."""
        log_p, step = self._log_probs_in_wrapper(model, inputs), self._step
        if not step.slopes:
            later = [self._prepare_inputs(batch) for batch in step.later] if self._objective.compares_batch else []
            known = torch.stack([log_p.detach(), *self._looked_ahead(_inner(model), later)])
            step.loss, step.slopes = self._scored(_inner(model), known.double(), [inputs, *later])
        weighted = (step.slopes.pop(0) * log_p).sum()
        return step.loss + weighted - weighted.detach()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the step's own figures, averaged over its micro-batches where these were scored one by one."""
        logs.update({name: sum(values) / len(values) for name, values in self._metrics.items()})
        self._metrics.clear()
        super().log(logs, start_time)

    def _scored(self, model: Any, log_p: Tensor, batches: list[Batch]) -> tuple[Tensor, list[Tensor]]:
        """The loss of these micro-batches of all ranks, and its derivative by this rank's log-probabilities.

        Args:
            log_p: `(A, U, N)` of A micro-batches of this rank.
        """
        ranks, rank = self.accelerator.num_processes, self.accelerator.process_index
        reference = self._reference_log_probs(model, batches) if self._settings.grpo.beta else None
        targets = torch.stack([batch["targets"] for batch in batches])
        scored = self._objective.score(
            _gathered(log_p),
            None if reference is None else _gathered(reference),
            _gathered(targets),
            self.state.global_step,
        )
        for name, value in scored.metrics.items():
            self._metrics[name].append(value)
        own = scored.slopes.view(len(batches), ranks, *log_p.shape[1:])[:, rank]
        # transformers divides a loss by the number of micro-batches, and DDP averages gradients over ranks.
        return scored.loss, list(own * len(batches) * ranks)

    def _looked_ahead(self, model: Any, batches: list[Batch]) -> list[Tensor]:
        """Log-probabilities `(U, N)` of micro-batches that come later, without gradient.

        Their own passes start from the same random state afterwards, so that dropout drops the same.
        """
        with torch.no_grad(), random_state_kept(self.args.device):
            return [self._log_probs(model, batch) for batch in batches]

    def _reference_log_probs(self, model: Any, batches: list[Batch]) -> Tensor:
        """Log-probabilities `(A, U, N)` of the warm start; draws no random numbers."""
        if self._reference is not None:
            with inference(self._reference):
                found = torch.stack([self._log_probs(self._reference, batch) for batch in batches]).double()
            drop_gathered(self._reference)
            return found
        with inference(model), use_adapter(self.accelerator.unwrap_model(model), REFERENCE):
            return torch.stack([self._log_probs(model, batch) for batch in batches]).double()

    def _log_probs(self, model: Any, batch: Batch) -> Tensor:
        """`(U, N)` float32 of one micro-batch."""
        fields = {name: value for name, value in batch.items() if name != "targets"}
        prompts = fields.pop("input_ids"), fields.pop("attention_mask"), fields
        with self.accelerator.autocast():
            return (from_prompts if self.unshared_reason is None else one_by_one)(model, *prompts, self._tree)

    def _log_probs_in_wrapper(self, model: Any, batch: Batch) -> Tensor:
        """The same, inside DDP's forward pass, so that DDP knows of the LM head and of every pass of `one_by_one`."""
        wrapper = getattr(model, "_orig_mod", model)  # a compiled DDP could not be told: it is used uncompiled
        if not isinstance(wrapper, DistributedDataParallel):
            return self._log_probs(model, batch)
        inner: Any = wrapper.module
        forward = inner.forward

        def redirected(**moved: Any) -> Tensor:
            inner.forward = forward
            return self._log_probs(inner, moved)

        inner.forward = redirected
        found: Tensor = wrapper(**batch)
        return found

    def _unshared_reason(self) -> str | None:
        if gathers_whole_passes(self):
            return "FSDP 1 and DeepSpeed gather the weights for whole forward passes, the LM head included"
        return why_one_by_one(self.accelerator.unwrap_model(self.model))

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler:
        """The presentations are shuffled already."""
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        return SequentialSampler(rows)


def _inner(model: Any) -> Any:
    """The model inside DDP: passes without gradient need no wrapper, which would copy buffers between ranks."""
    wrapper = getattr(model, "_orig_mod", model)
    return wrapper.module if isinstance(wrapper, DistributedDataParallel) else model


def _gathered(own: Tensor) -> Tensor:
    """Gathers `(A, U, ...)` from all R ranks as `(A R U, ...)`, in the order of the presentations."""
    everyone = gather(own[None])  # (R, A, U, ...)
    return everyone.transpose(0, 1).flatten(0, 2)
