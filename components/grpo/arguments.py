"""The training arguments that the sampled and the exact trainer share, and what their progress shows."""

from pathlib import Path
from typing import Any

from components.errors import ConcordError
from components.settings import Grpo, Settings
from components.shared.model.device import on_accelerator
from components.shared.training.sharding import sharding_arguments
from components.shared.training.validation import validation_arguments

# Beside the progress bar, where they are logged.
SHOWN = (
    "loss", "reward/ccc", "reward/pearson", "reward/mae", "reward/mse", "reward/crps", "batch_mae/all", "invalid",
    "sd_ratio", "mass", "kl", "val_score", "val_mae/all", "val_mae/few",
)  # fmt: skip


def inputs_at_once(grpo: Grpo, world_size: int) -> int:
    """Inputs of one micro-batch of one rank, rounded down."""
    return grpo.prompts // (grpo.accumulation * world_size)


def reading_batch(grpo: Grpo, world_size: int) -> int:
    """Images that a rank reads at once where it keeps no gradients: twice as many as in training."""
    return max(2 * inputs_at_once(grpo, world_size), 1)


def common_arguments(grpo: Grpo, settings: Settings, folder: Path, validated: bool) -> dict[str, Any]:
    """Translates the settings of both trainers into transformers' arguments.

    Args:
        folder: for checkpoints.
        validated: whether checkpoints are evaluated and the best one is kept.
    """
    return {
        "output_dir": str(folder),
        "max_steps": grpo.steps,
        "gradient_accumulation_steps": grpo.accumulation,
        "learning_rate": grpo.lr,
        "lr_scheduler_type": "linear",
        "warmup_steps": grpo.warmup_steps,
        "weight_decay": 0.0,
        "save_strategy": "steps",
        "save_steps": grpo.checkpoint_every,
        "restore_callback_states_from_checkpoint": True,  # the recent anchors
        "logging_steps": 1,
        "disable_tqdm": True,
        "report_to": "none",
        "use_cpu": not on_accelerator(),
        "seed": grpo.seed,
        "bf16": settings.model.dtype == "bfloat16",
        "torch_compile": settings.model.compile,
        "gradient_checkpointing": grpo.gradient_checkpointing,
        "remove_unused_columns": False,
        "dataloader_num_workers": settings.launcher.loader_workers,
        **sharding_arguments(settings.launcher),
        **(validation_arguments(grpo.checkpoint_every) if validated else {}),
    }


def uneven(grpo: Grpo, what: str, world_size: int) -> ConcordError:
    """The error for a step that cannot be divided evenly."""
    return ConcordError(
        f"grpo: {what} cannot be divided evenly over {grpo.accumulation} accumulation x {world_size} ranks. "
        f"Make prompts a multiple of {grpo.accumulation * world_size}."
    )
