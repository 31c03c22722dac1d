"""`python -m components sft|grpo --dry-run`: what a training step would need, before anything is downloaded or trained.

The model is built from its config; of a hub, config and processor are fetched and no weights. One batch goes forward
and backward, without content where there is no accelerator, and with random weights where there is one. Nothing is
written.
"""

import os
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from components.dry_run.batch import Batch, batch_of
from components.dry_run.build import config_of, processor_of
from components.dry_run.memory import Memory, grpo_loss, measured, reckoned, sft_loss
from components.settings import Settings
from components.shared.errors import ConcordError
from components.shared.vlm.shared_prefix import obstacle

console = Console(highlight=False)


def dry_run(step: str, settings: Settings, ingest: Path) -> None:
    """Prints the table for one device of the step `sft` or `grpo`.

    Args:
        ingest: row shards; where there is no such folder, pictures are made.

    Raises:
        ConcordError: config or processor cannot be loaded, or a step cannot be shared out evenly.
    """
    grpo, ranks = settings.grpo, int(os.environ.get("WORLD_SIZE", "1"))
    processor = processor_of(settings)
    if step == "sft":
        inputs, answers, length, unshared = settings.sft.batch_size, 1, None, None
        loss, shares = sft_loss, f"{inputs} on a device"
    else:
        parts = grpo.accumulation * ranks
        if grpo.prompts % parts:
            raise ConcordError(
                f"grpo: {grpo.prompts} prompts cannot be shared out evenly over {grpo.accumulation} accumulation x "
                f"{ranks} ranks. Make prompts a multiple of {parts}."
            )
        inputs, answers, length = grpo.prompts // parts, grpo.generations, grpo.max_new_tokens
        unshared = _unshared(settings)
        loss = grpo_loss(unshared is None, grpo.temperature)
        shares = (
            f"{inputs} of {grpo.prompts} ({grpo.accumulation} accumulation x {ranks} ranks), {answers} answers each"
        )
    batch = batch_of(settings, processor, ingest, inputs, answers, length)
    memory = reckoned(settings, step, processor, batch, loss)
    lines = [
        ("model", f"{settings.model.name}, {settings.model.dtype}, {settings.model.attention}"),
        ("parameters", f"{_millions(memory.parameters)}, of which trained: {_millions(memory.trainable)}"),
        ("inputs", f"{shares}; pictures: {batch.pictures}"),
        ("tokens of an input", _tokens(batch)),
        *([("shared prefix", _sharing(batch, unshared))] if step == "grpo" else []),
        *_memory(memory),
    ]
    if torch.accelerator.is_available():
        device = torch.accelerator.current_accelerator()
        assert device is not None
        seen = measured(settings, step, processor, batch, loss, device)
        lines.append((f"measured on {device}", f"{_size(seen.total)}, activations {_size(seen.activations)}"))
    _show(f"{settings.experiment}, {step}: one batch on one device", lines)


def _unshared(settings: Settings) -> str | None:
    kind = "idefics3" if settings.model.name == "tiny" else config_of(settings).model_type
    return obstacle(kind, settings.model.attention)


def _tokens(batch: Batch) -> str:
    return (
        f"image {_range(batch.image_tokens)}, prompt {_range(batch.prompt_tokens)}, "
        f"each answer at most {batch.completions.shape[1]}"
    )


def _sharing(batch: Batch, unshared: str | None) -> str:
    if unshared is not None:
        return f"no: {unshared}"
    prefix = int((batch.image_tokens + batch.prompt_tokens).sum())
    suffix = batch.completions.numel()
    copies = len(batch.owners) // len(batch.image_tokens)
    return f"yes: {prefix + suffix:,} tokens go through the decoder, not {copies * prefix + suffix:,}"


def _memory(memory: Memory) -> list[tuple[str, str]]:
    names = ("weights", "adapters", "gradients", "optimizer", "reference", "activations")
    titles = {"optimizer": "optimizer's state", "reference": "reference model", "activations": "activations, at most"}
    rows = [(titles.get(name, name), _size(getattr(memory, name))) for name in names]
    return [*rows, ("memory, reckoned", _size(memory.total))]


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
