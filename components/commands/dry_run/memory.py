"""Memory of one training pass on one device: estimated on fake tensors, or measured with random weights."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from components.commands.dry_run.batch import Batch
from components.commands.dry_run.build import build_training_model
from components.commands.dry_run.fake_tensors import FakeTensorMemory, allocate_gradients, allocate_weights
from components.settings import Settings
from components.shared.model.answer_distribution import from_prompts, one_by_one
from components.shared.model.answer_tree import AnswerTree
from components.shared.model.device import peak_bytes
from components.shared.model.shared_prefix import IMAGE_FIELDS, PER_TOKEN, Slots, score_without_cache, select

Loss = Callable[[Any, Batch], Tensor]


@dataclass(frozen=True)
class Memory:
    """Number of parameters, and memory by part in bytes, on one device.

    Attributes:
        parameters, trainable: number of parameters with adapters, and of those that are trained.
        weights, adapters: memory of the model, and of the LoRA adapters.
        gradients, optimizer: of the trained parameters; AdamW keeps two values per parameter.
        reference: a second model for the KL, or a second adapter; 0 if there is none.
        activations: peak memory of a forward and backward pass on top of the other parts.
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
        """Sum of all parts."""
        return self.weights + self.adapters + self.gradients + self.optimizer + self.reference + self.activations

    def divided(self, ranks: int) -> "Memory":
        """The memory of one of several ranks that share all but the activations."""
        return replace(
            self,
            weights=self.weights // ranks,
            gradients=self.gradients // ranks,
            optimizer=self.optimizer // ranks,
            reference=self.reference // ranks,
        )


def sft_loss(model: Any, batch: Batch) -> Tensor:
    """SFT loss: teacher forcing on the completions; the LM head runs only on their columns."""
    fields, length = _unshared_inputs(batch), batch.completions.shape[1]
    logits = model(**fields, use_cache=False, logits_to_keep=length + 1).logits[:, :-1]
    return cross_entropy(logits.float().flatten(0, 1), batch.completions.flatten(), reduction="sum")


def grpo_loss(shared: bool, temperature: float) -> Loss:
    """Returns the loss of a GRPO step's policy pass, without the few operations on `(N, L)` that follow it."""

    def loss(model: Any, batch: Batch) -> Tensor:
        if not shared:
            return _trl_log_probs(model, batch).sum()
        fields = {name: value for name, value in batch.fields.items() if name in IMAGE_FIELDS}
        ids, mask = batch.fields["input_ids"], batch.fields["attention_mask"]
        slots = Slots(batch.owners, len(ids))
        return score_without_cache(model, ids, mask, fields, slots, batch.completions, temperature)[0].sum()

    return loss


def exact_loss(tree: AnswerTree, shared: bool) -> Loss:
    """Returns the loss of a step without sampling, up to the few operations on `(U, N)` that follow the model."""

    def loss(model: Any, batch: Batch) -> Tensor:
        fields = {name: value for name, value in batch.fields.items() if name in IMAGE_FIELDS}
        prompts = batch.fields["input_ids"], batch.fields["attention_mask"], fields
        return (from_prompts if shared else one_by_one)(model, *prompts, tree).sum()

    return loss


def _unshared_inputs(batch: Batch) -> dict[str, Tensor]:
    """The model's inputs with a separate image and prompt for every completion."""
    fields = select(batch.fields, batch.owners)
    suffix = {
        "input_ids": batch.completions,
        "attention_mask": torch.ones_like(batch.completions),
        **{name: torch.zeros_like(batch.completions) for name in PER_TOKEN if name in fields},
    }
    return fields | {name: torch.cat([fields[name], part], dim=1) for name, part in suffix.items()}


def _trl_log_probs(model: Any, batch: Batch) -> Tensor:
    """Log-probs computed like TRL's path without a shared prefix, chunk by chunk."""
    fields, length = _unshared_inputs(batch), batch.completions.shape[1]
    labels = fields["input_ids"].clone()
    labels[:, :-length] = -100
    log_probs: Tensor = model(**fields, labels=labels, fused_lm_head=True).log_probs
    return log_probs


def estimate_memory(settings: Settings, step: str, processor: Any, batch: Batch, loss: Loss) -> Memory:
    """Estimates the memory by a forward and backward pass on fake tensors, which have shapes but no content."""
    model = build_training_model(
        settings, processor, torch.device("meta"), settings.grpo.temperature, _checkpointing(settings, step)
    )
    mode = FakeTensorMemory()
    allocate_weights(model, mode)
    before = mode.peak = mode.live
    with mode:
        with autocast(settings, "cpu"):
            value = loss(model, batch)
        value.backward()
    return _parts(model, settings, step, mode.peak - before)


def measure_memory(
    settings: Settings, step: str, processor: Any, batch: Batch, loss: Loss, device: torch.device
) -> Memory:
    """Measures the memory of one step with random weights on `device`."""
    model = build_training_model(settings, processor, device, settings.grpo.temperature, _checkpointing(settings, step))
    allocate_gradients(model)
    moved = {name: value.to(device) for name, value in batch.fields.items()}
    on_device = replace(batch, fields=moved, completions=batch.completions.to(device), owners=batch.owners.to(device))
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-5)

    def run() -> None:
        with autocast(settings, device.type):
            value = loss(model, on_device)
        value.backward()

    activations = peak_bytes(run, device)
    optimizer.step()
    return _parts(model, settings, step, activations)


def autocast(settings: Settings, kind: str) -> AbstractContextManager[Any]:
    """bf16 autocast, as accelerate sets it for the trainers."""
    return torch.autocast(kind, dtype=torch.bfloat16, enabled=settings.model.dtype == "bfloat16")


def _checkpointing(settings: Settings, step: str) -> bool:
    return settings.sft.gradient_checkpointing if step == "sft" else settings.grpo.gradient_checkpointing


def _parts(model: nn.Module, settings: Settings, step: str, activations: int) -> Memory:
    adapters = sum(_bytes(weight) for name, weight in model.named_parameters() if "lora_" in name)
    total = sum(_bytes(weight) for weight in [*model.parameters(), *model.buffers()])
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    gradients = sum(_bytes(weight) for weight in trained)
    needs_reference = step == "grpo" and settings.grpo.beta > 0
    return Memory(
        parameters=sum(weight.numel() for weight in model.parameters()),
        trainable=sum(weight.numel() for weight in trained),
        weights=total - adapters,
        adapters=adapters,
        gradients=gradients,
        optimizer=2 * gradients,
        reference=(adapters or total) if needs_reference else 0,
        activations=activations,
    )


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
