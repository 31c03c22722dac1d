"""The memory of one training pass on one device: reckoned without weights, or measured with random ones."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile

from components.commands.dry_run.batch import Batch
from components.commands.dry_run.build import build
from components.commands.dry_run.weightless import Weightless, ready_gradients, without_content
from components.grpo.shared_prefix import IMAGE_FIELDS, PER_TOKEN, Slots, score_whole, select
from components.settings import Settings

Loss = Callable[[Any, Batch], Tensor]


@dataclass(frozen=True)
class Memory:
    """Parameters by number and memory by part, in bytes, on one device.

    Attributes:
        parameters, trainable: of the model, adapters counted.
        weights, adapters: of the model as it is, and of what LoRA adds.
        gradients, optimizer: of what is trained; AdamW keeps two figures a weight.
        reference: a second model for the KL, where adapters cannot be switched off for it.
        activations: what a pass forward and backward holds at its fullest, besides all that.
    """

    parameters: int
    trainable: int
    weights: int
    adapters: int
    gradients: int
    optimizer: int
    reference: int
    activations: int

    @property
    def total(self) -> int:
        """All parts."""
        return self.weights + self.adapters + self.gradients + self.optimizer + self.reference + self.activations


def sft_loss(model: Any, batch: Batch) -> Tensor:
    """Teacher forcing on the completions, the language model's head on their columns alone."""
    fields, length = _one_by_one(batch), batch.completions.shape[1]
    logits = model(**fields, use_cache=False, logits_to_keep=length + 1).logits[:, :-1]
    return cross_entropy(logits.float().flatten(0, 1), batch.completions.flatten(), reduction="sum")


def grpo_loss(shared: bool, temperature: float) -> Loss:
    """The policy pass of a GRPO step, without the few operations on `(N, L)` that follow it."""

    def loss(model: Any, batch: Batch) -> Tensor:
        if not shared:
            return _trl_log_probs(model, batch).sum()
        fields = {name: value for name, value in batch.fields.items() if name in IMAGE_FIELDS}
        ids, mask = batch.fields["input_ids"], batch.fields["attention_mask"]
        slots = Slots(batch.owners, len(ids))
        return score_whole(model, ids, mask, fields, slots, batch.completions, temperature)[0].sum()

    return loss


def _one_by_one(batch: Batch) -> dict[str, Tensor]:
    """The model's inputs with every completion behind a prompt and an image of its own."""
    fields = select(batch.fields, batch.owners)
    beside = {
        "input_ids": batch.completions,
        "attention_mask": torch.ones_like(batch.completions),
        **{name: torch.zeros_like(batch.completions) for name in PER_TOKEN if name in fields},
    }
    return fields | {name: torch.cat([fields[name], part], dim=1) for name, part in beside.items()}


def _trl_log_probs(model: Any, batch: Batch) -> Tensor:
    """As TRL's own path has them: chunk by chunk."""
    fields, length = _one_by_one(batch), batch.completions.shape[1]
    labels = fields["input_ids"].clone()
    labels[:, :-length] = -100
    log_probs: Tensor = model(**fields, labels=labels, fused_lm_head=True).log_probs
    return log_probs


def reckoned(settings: Settings, step: str, processor: Any, batch: Batch, loss: Loss) -> Memory:
    """Without weights: the model runs with tensors that have no content."""
    model = build(settings, processor, torch.device("meta"), settings.grpo.temperature, _checkpointing(settings, step))
    mode = Weightless()
    without_content(model, mode)
    held = mode.peak = mode.live
    with mode:
        with autocast(settings, "cpu"):
            value = loss(model, batch)
        value.backward()
    return _parts(model, settings, step, mode.peak - held)


def measured(settings: Settings, step: str, processor: Any, batch: Batch, loss: Loss, device: torch.device) -> Memory:
    """With random weights: the model takes a step on `device`, and its memory is watched."""
    model = build(settings, processor, device, settings.grpo.temperature, _checkpointing(settings, step))
    ready_gradients(model)
    moved = {name: value.to(device) for name, value in batch.fields.items()}
    there = replace(batch, fields=moved, completions=batch.completions.to(device), owners=batch.owners.to(device))
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-5)

    def run() -> None:
        with autocast(settings, device.type):
            value = loss(model, there)
        value.backward()

    activations = _most_held(run, device)
    optimizer.step()
    return _parts(model, settings, step, activations)


def autocast(settings: Settings, kind: str) -> AbstractContextManager[Any]:
    """bf16 as accelerate sets it for the trainers."""
    return torch.autocast(kind, dtype=torch.bfloat16, enabled=settings.model.dtype == "bfloat16")


def _most_held(run: Callable[[], None], device: torch.device) -> int:
    """Bytes that `run` holds at its fullest, beyond those that were held before."""
    if device.type != "cpu":
        torch.accelerator.reset_peak_memory_stats()
        before = torch.accelerator.memory_allocated()
        run()
        return int(torch.accelerator.max_memory_allocated() - before)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    events: Any = seen.profiler
    sizes = [event for event in events.kineto_results.events() if event.name() == "[memory]"]
    changes = np.array([event.nbytes() for event in sorted(sizes, key=lambda event: event.start_ns())])
    return int(np.cumsum(changes).max())


def _checkpointing(settings: Settings, step: str) -> bool:
    return settings.sft.gradient_checkpointing if step == "sft" else settings.grpo.gradient_checkpointing


def _parts(model: nn.Module, settings: Settings, step: str, activations: int) -> Memory:
    adapters = sum(_bytes(weight) for name, weight in model.named_parameters() if "lora_" in name)
    every = sum(_bytes(weight) for weight in [*model.parameters(), *model.buffers()])
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    gradients = sum(_bytes(weight) for weight in trained)
    second = step == "grpo" and settings.grpo.beta > 0 and not isinstance(model, PeftModel)
    return Memory(
        parameters=sum(weight.numel() for weight in model.parameters()),
        trainable=sum(weight.numel() for weight in trained),
        weights=every - adapters,
        adapters=adapters,
        gradients=gradients,
        optimizer=2 * gradients,
        reference=every if second else 0,
        activations=activations,
    )


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
