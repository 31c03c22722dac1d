"""`python -m components sft|grpo --dry-run`: prints what a training step needs, without weights and without training.

The model is built from its config; only config and processor are fetched from a hub. One batch runs forward and
backward on fake tensors, and with random weights on an accelerator if there is one. Nothing is written.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from components.commands.dry_run.batch import Batch, build_batch
from components.commands.dry_run.build import load_processor, model_type
from components.commands.dry_run.memory import (
    Loss,
    Memory,
    estimate_memory,
    exact_loss,
    grpo_loss,
    measure_memory,
    sft_loss,
)
from components.errors import ConcordError
from components.launcher import to_launch, world_size
from components.settings import Settings
from components.shared.model.answer_tree import AnswerTree, answer_tree
from components.shared.model.device import device, on_accelerator
from components.shared.model.prompts import max_answer_tokens
from components.shared.model.shared_prefix import unshared_reason
from components.shared.tracking.model_revision import revision_error

console = Console(highlight=False)


@dataclass(frozen=True)
class DeviceBatch:
    """Size of the batch of one device.

    Attributes:
        inputs, answers: number of inputs, and of answers to each.
        length: tokens per answer; None: those of the longest correct one.
        obstacle: why the prefix cannot be shared; None if it can, or if there is one answer per input.
        loss: computes the loss of the pass.
        description: the sizes as text for the user.
        tree: the numbers whose probabilities the pass computes; None if it computes those of the answers' tokens.
    """

    inputs: int
    answers: int
    length: int | None
    obstacle: str | None
    loss: Loss
    description: str
    tree: AnswerTree | None = None


def dry_run(step: str, settings: Settings, ingest: Path) -> None:
    """Prints what one device needs for the step `sft` or `grpo`.

    Args:
        ingest: row shards; if the folder does not exist, noise images are generated.

    Raises:
        ConcordError: config or processor cannot be loaded, or the batch cannot be divided evenly over the ranks.
    """
    processor = load_processor(settings)
    size = _sft_batch(settings) if step == "sft" else _grpo_batch(settings, processor)
    batch = build_batch(settings, processor, ingest, size.inputs, size.answers, size.length)
    memory = estimate_memory(settings, step, processor, batch, size.loss)
    if sharded := settings.launcher.sharding != "none":
        memory = memory.divided(_ranks(settings))
    lines = [
        ("model", f"{settings.model.name}, {settings.model.dtype}, {settings.model.attention}"),
        *([("not yet", error)] if (error := revision_error(settings.model)) else []),
        ("parameters", f"{_millions(memory.parameters)}, of which {_millions(memory.trainable)} are trained"),
        ("inputs", size.description),
        ("images", batch.image_source),
        ("tokens per input", _tokens(batch)),
        *([("shared prefix", _sharing(batch, size.obstacle))] if size.answers > 1 else []),
        *([("numbers", _numbers(size.tree, size.obstacle))] if size.tree else []),
        *_memory(memory),
    ]
    if on_accelerator() and not sharded:
        measured = measure_memory(settings, step, processor, batch, size.loss, device())
        lines.append((f"measured on {device()}", f"{_size(measured.total)}, activations {_size(measured.activations)}"))
    _show(f"{settings.experiment}, {step}: one batch on one device", lines)


def _ranks(settings: Settings) -> int:
    return settings.launcher.num_processes if to_launch(settings.launcher) else world_size()


def _sft_batch(settings: Settings) -> DeviceBatch:
    inputs = settings.sft.batch_size
    description = f"{inputs} per device, {settings.sft.accumulation} accumulation"
    return DeviceBatch(inputs, 1, None, None, sft_loss, description)


def _grpo_batch(settings: Settings, processor: Any) -> DeviceBatch:
    grpo = settings.grpo
    ranks = _ranks(settings)
    inputs, rest = divmod(grpo.prompts, grpo.accumulation * ranks)
    parts = f"{grpo.accumulation} accumulation x {ranks} ranks"
    if rest:
        raise ConcordError(
            f"grpo.prompts: {grpo.prompts} cannot be divided evenly over {parts}. Make it a multiple of "
            f"{grpo.accumulation * ranks}."
        )
    reason = unshared_reason(model_type(settings), settings.model.attention)
    if settings.launcher.config is not None:
        reason = reason or "launcher.config may select FSDP 1 or DeepSpeed, which cannot share it"
    description = f"{inputs} of {grpo.prompts} ({parts})"
    if grpo.estimator != "sampled":
        tree = answer_tree(processor, settings.task)
        return DeviceBatch(inputs, 1, None, reason, exact_loss(tree, reason is None), description, tree)
    loss = grpo_loss(reason is None, grpo.temperature)
    description += f", {grpo.generations} answers each"
    return DeviceBatch(inputs, grpo.generations, max_answer_tokens(processor, settings.task), reason, loss, description)


def _tokens(batch: Batch) -> str:
    image, prompt = _range(batch.image_tokens), _range(batch.prompt_tokens)
    return f"image {image}, prompt {prompt}, each answer up to {batch.completions.shape[1]}"


def _sharing(batch: Batch, reason: str | None) -> str:
    if reason is not None:
        return f"no: {reason}"
    prefix = int((batch.image_tokens + batch.prompt_tokens).sum())
    answers = len(batch.owners) // len(batch.image_tokens)
    suffix = batch.completions.numel()
    return f"yes: {prefix + suffix:,} tokens in the decoder instead of {answers * prefix + suffix:,}"


def _numbers(tree: AnswerTree, reason: str | None) -> str:
    count = f"{len(tree.values):,}"
    if reason is not None:
        return f"{count}, each in a row of its own: {reason}"
    return f"{count}, all in one pass: {tree.nodes:,} tokens behind each prompt"


def _memory(memory: Memory) -> list[tuple[str, str]]:
    parts = {
        "weights": memory.weights,
        "adapters": memory.adapters,
        "gradients": memory.gradients,
        "optimizer state": memory.optimizer,
        "reference model": memory.reference,
        "activations, at most": memory.activations,
        "memory, estimated": memory.total,
    }
    return [(name, _size(size)) for name, size in parts.items()]


def _show(title: str, lines: list[tuple[str, str]]) -> None:
    table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in lines:
        table.add_row(name, value)
    console.print(table)


def _range(counts: torch.Tensor) -> str:
    low, high = int(counts.min()), int(counts.max())
    return str(low) if low == high else f"{low} to {high}"


def _millions(count: int) -> str:
    return f"{count / 1e6:,.1f} M"


def _size(count: int) -> str:
    return f"{count / 2**30:,.2f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"
