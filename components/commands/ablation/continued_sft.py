"""Continues SFT from the warm start: the baseline that spends the extra time without reinforcement learning."""

from pathlib import Path
from typing import Any

from transformers import PrinterCallback, set_seed

from components.settings import Settings
from components.sft.trainer import OrderedSFTTrainer, sft_presentations, training_arguments
from components.shared.io.atomic import new_folder
from components.shared.model.loading import load, save, weights_dtype
from components.shared.model.lora import trainable
from components.shared.model.validation_pass import save_validation, warm_start_answers
from components.shared.rows.rows import read_table
from components.shared.training.checkpoints import SealedCheckpoints, resume_point
from components.shared.training.curves import CurveCallback, write_results
from components.shared.training.ranks import node_cache
from components.shared.training.readable import check_readable
from components.shared.training.validation import (
    TaskNumbers,
    ValidatesDistributions,
    Validation,
    kept_figures,
    validation_arguments,
)


class ContinuedSftTrainer(ValidatesDistributions, SealedCheckpoints, OrderedSFTTrainer):
    """SFT whose checkpoints are judged as those of GRPO are."""


def run(settings: Settings, track: Any, *, ingest: Path, sft: Path, out: Path, state: Path) -> None:
    """Trains from the warm start and writes the best model to `out`, as the grpo step does.

    Steps, learning rate and its schedule, validation and seed are those of the section grpo; batches and augmentation
    those of sft.

    Args:
        settings: of the experiment.
        track: see `components.commands.ablation.stopwatch.Stopwatch`.
        ingest: row shards.
        sft: the warm start.
        out: the output folder.
        state: folder of the checkpoints; a killed run resumes from them.
    """
    grpo, task = settings.grpo, settings.task
    settings = settings.model_copy(update={"sft": settings.sft.model_copy(update={"seed": 1000 + grpo.seed})})
    model, processor = load(sft, settings.model, weights=weights_dtype(settings.model))
    reference = warm_start_answers(sft, ingest)
    check_readable(processor, ingest)
    set_seed(settings.sft.seed)
    batch_size = 2 * settings.sft.batch_size
    with node_cache() as cache:
        count = grpo.steps * settings.sft.batch_size * settings.sft.accumulation
        numbers = TaskNumbers.of(processor, task, read_table(ingest, "train", ["target"])["target"].to_numpy())
        trainer = ContinuedSftTrainer(
            model=trainable(model, settings.model),
            args=_arguments(settings, state),
            train_dataset=sft_presentations(settings, ingest, cache, count, processor),
            processing_class=processor,
            validation=Validation(ingest, numbers, grpo.eval_rows, batch_size, text=task),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(CurveCallback(track, ("loss", "val_score")))
        trainer.train(resume_from_checkpoint=resume_point(state))
    with new_folder(out) as folder:
        save(trainer.model, processor, folder)
        save_validation(folder, trainer.model, processor, task, ingest, batch_size, reference)
        figures = {"steps": trainer.state.global_step, **kept_figures(trainer.state)}
        write_results(folder, trainer.state.log_history, figures)


def _arguments(settings: Settings, state: Path) -> Any:
    """The arguments of sft with the schedule and the validation of grpo."""
    grpo = settings.grpo
    arguments = training_arguments(settings.sft, settings.model, state)
    changes = {
        "max_steps": grpo.steps,
        "learning_rate": grpo.lr,
        "lr_scheduler_type": "linear",
        "warmup_steps": grpo.warmup_steps,
        "save_steps": grpo.checkpoint_every,
        "logging_steps": 1,
        **validation_arguments(grpo.checkpoint_every),
    }
    for name, value in changes.items():
        setattr(arguments, name, value)
    return arguments
