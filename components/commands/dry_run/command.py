"""`python -m components sft|grpo --dry-run`: what a training step would need, before anything is downloaded or trained.

The model is built from its config; of a hub, config and processor are fetched and no weights. One batch goes forward
and backward: without content, and where there is an accelerator, there as well with random weights. Nothing is written.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from components.commands.dry_run.batch import Batch, batch_of
from components.commands.dry_run.build import model_type, processor_of
from components.commands.dry_run.memory import Loss, Memory, grpo_loss, measured, reckoned, sft_loss
from components.errors import ConcordError
from components.grpo.shared_prefix import obstacle
from components.launcher import to_launch, world_size
from components.settings import Settings
from components.shared.model.device import device, on_accelerator

console = Console(highlight=False)


@dataclass(frozen=True)
class Share:
    """What falls to one device at once.

    Attributes:
        inputs, answers: how many inputs, and answers to each.
        length: tokens of an answer; None: of the longest right one.
        unshared: why the prefix cannot be shared; None where it can, or has one answer.
        loss: of the pass.
        words: the same for a person.
    """

    inputs: int
    answers: int
    length: int | None
    unshared: str | None
    loss: Loss
    words: str


def dry_run(step: str, settings: Settings, ingest: Path) -> None:
    """Prints the table for one device of the step `sft` or `grpo`.

    Args:
        ingest: row shards; where there is no such folder, pictures are made.

    Raises:
        ConcordError: config or processor cannot be loaded, or a step cannot be shared out evenly.
    """
    share = _of_sft(settings) if step == "sft" else _of_grpo(settings)
    processor = processor_of(settings)
    batch = batch_of(settings, processor, ingest, share.inputs, share.answers, share.length)
    memory = reckoned(settings, step, processor, batch, share.loss)
    lines = [
        ("model", f"{settings.model.name}, {settings.model.dtype}, {settings.model.attention}"),
        ("parameters", f"{_millions(memory.parameters)}, of which trained: {_millions(memory.trainable)}"),
        ("inputs", share.words),
        ("pictures", batch.pictures),
        ("tokens of an input", _tokens(batch)),
        *([("shared prefix", _sharing(batch, share.unshared))] if share.answers > 1 else []),
        *_memory(memory),
    ]
    if on_accelerator():
        seen = measured(settings, step, processor, batch, share.loss, device())
        lines.append((f"measured on {device()}", f"{_size(seen.total)}, activations {_size(seen.activations)}"))
    _show(f"{settings.experiment}, {step}: one batch on one device", lines)


def _of_sft(settings: Settings) -> Share:
    inputs = settings.sft.batch_size
    words = f"{inputs} on each device, {settings.sft.accumulation} accumulation"
    return Share(inputs, 1, None, None, sft_loss, words)


def _of_grpo(settings: Settings) -> Share:
    grpo = settings.grpo
    ranks = settings.launcher.num_processes if to_launch(settings.launcher) else world_size()
    inputs, rest = divmod(grpo.prompts, grpo.accumulation * ranks)
    parts = f"{grpo.accumulation} accumulation x {ranks} ranks"
    if rest:
        raise ConcordError(
            f"grpo: {grpo.prompts} prompts cannot be shared out evenly over {parts}. Make prompts a multiple of "
            f"{grpo.accumulation * ranks}."
        )
    unshared = obstacle(model_type(settings), settings.model.attention)
    if settings.launcher.config is not None:
        unshared = unshared or "launcher.config may ask for FSDP or DeepSpeed, which do not go with it"
    loss = grpo_loss(unshared is None, grpo.temperature)
    words = f"{inputs} of {grpo.prompts} ({parts}), {grpo.generations} answers each"
    return Share(inputs, grpo.generations, grpo.max_new_tokens, unshared, loss, words)


def _tokens(batch: Batch) -> str:
    image, prompt = _range(batch.image_tokens), _range(batch.prompt_tokens)
    return f"image {image}, prompt {prompt}, each answer at most {batch.completions.shape[1]}"


def _sharing(batch: Batch, unshared: str | None) -> str:
    if unshared is not None:
        return f"no: {unshared}"
    prefix = int((batch.image_tokens + batch.prompt_tokens).sum())
    answers = len(batch.owners) // len(batch.image_tokens)
    suffix = batch.completions.numel()
    return f"yes: {prefix + suffix:,} tokens in the decoder, not {answers * prefix + suffix:,}"


def _memory(memory: Memory) -> list[tuple[str, str]]:
    parts = {
        "weights": memory.weights,
        "adapters": memory.adapters,
        "gradients": memory.gradients,
        "optimizer's state": memory.optimizer,
        "reference model": memory.reference,
        "activations, at most": memory.activations,
        "memory, reckoned": memory.total,
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
