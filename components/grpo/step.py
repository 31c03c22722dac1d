"""The step grpo: reinforcement learning from the warm start, with the concordance of the whole batch as the reward."""

from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import set_seed

from components.console import console
from components.grpo.arguments import reading_batch
from components.grpo.exact_trainer import ExactTrainer, exact_arguments
from components.grpo.signal import check_signal
from components.grpo.trainer import BatchRewardTrainer, training_arguments
from components.settings import Settings
from components.shared.io.atomic import new_folder
from components.shared.model.loading import load, save, weights_dtype
from components.shared.model.lora import trainable
from components.shared.model.prompts import prompt
from components.shared.model.validation_pass import save_validation, warm_start_answers
from components.shared.tracking.lineage import compute_lineage
from components.shared.tracking.step_run import StepRun
from components.shared.training.checkpoints import resume_point, state_folder
from components.shared.training.curves import write_results
from components.shared.training.presentations import presentations, training_rows
from components.shared.training.ranks import model_on_main_rank, node_cache, ranks, shards_weights
from components.shared.training.readable import check_readable
from components.shared.training.sharding import check_sharding
from components.shared.training.validation import TaskNumbers, Validation, kept_figures
from components.steps import STEPS


def run(settings: Settings, track: StepRun | None, *, ingest: Path, sft: Path, out: Path, state: Path) -> None:
    """Trains from the warm start and writes the best model to `out`, with validation.parquet, metrics.json, curve.csv.

    Args:
        settings: of the experiment.
        track: MLflow run on rank 0; None on the other ranks, which train but write nothing.
        ingest: row shards.
        sft: the warm start, which is also the reference of the KL.
        out: the output folder.
        state: folder of the checkpoints; a killed run resumes from them.

    Raises:
        ConcordError: an image of train or val cannot be read, see `check_readable`; or no reward of the training could
            teach anything, see `check_signal`; then the checkpoints stay.
    """
    grpo = settings.grpo
    check_sharding(settings.launcher)
    dtype = weights_dtype(settings.model)
    model, processor = load(sft, settings.model, weights=dtype)
    reference = warm_start_answers(sft, ingest)  # before hours of training, in case it has none
    check_readable(processor, ingest)
    set_seed(grpo.seed)  # for the initial adapter weights; the trainer sets its seed after they exist
    world_size = ranks().num_processes
    lineage = compute_lineage(STEPS["grpo"], settings, {"ingest": ingest, "sft": sft})
    checkpoints = state_folder(state, lineage)
    with node_cache() as cache:
        rows = training_rows(ingest, cache)
        numbers = TaskNumbers.of(processor, settings.task, np.asarray(rows["target"][:]))
        trainer = _trainer(
            settings,
            numbers,
            checkpoints,
            model=model,
            train_dataset=_presentations(settings, rows, numbers),
            processing_class=processor,
            validation=_validation(settings, ingest, numbers, world_size),
        )
        if track is not None:
            for remark in trainer.remarks():
                console.print(remark)
        trainer.follow(track)
        trainer.train(resume_from_checkpoint=resume_point(checkpoints))
    trained = model_on_main_rank(
        trainer, lambda: trainable(load(sft, settings.model, weights=dtype)[0], settings.model)
    )
    if trained is None:
        return
    check_signal(grpo, trainer.state.log_history, str(checkpoints))
    with new_folder(out) as folder:
        save(trained, processor, folder)
        size = reading_batch(grpo, world_size)
        save_validation(folder, trained, processor, settings.task, ingest, size, reference, grpo.balance)
        figures = {"method": grpo.method, "steps": trainer.state.global_step, **kept_figures(trainer.state)}
        write_results(folder, trainer.state.log_history, figures)


def _presentations(settings: Settings, rows: Dataset, numbers: TaskNumbers) -> Dataset:
    """All inputs of the training, in their order."""
    grpo = settings.grpo
    return presentations(
        rows,
        grpo.steps * grpo.prompts,
        grpo.seed,
        grpo.augment,
        lambda row, picture: {
            "prompt": prompt(row["question"]),
            "question": row["question"],
            "image": picture,
            "target": row["target"],
            "shot": str(numbers.shots_of([row["target"]])[0]),
        },
        settings.task.grey_bits,
    )


def _validation(settings: Settings, ingest: Path, numbers: TaskNumbers, world_size: int) -> Validation | None:
    """What each checkpoint is evaluated on; None where the ranks share the weights, and the last checkpoint is kept."""
    if shards_weights():
        if ranks().is_main_process:
            console.print("checkpoints are not evaluated, since the ranks share the weights: the last one is kept")
        return None
    grpo = settings.grpo
    text = settings.task if grpo.estimator == "sampled" else None
    return Validation(ingest, numbers, grpo.eval_rows, reading_batch(grpo, world_size), grpo.balance, text)


def _trainer(
    settings: Settings, numbers: TaskNumbers, checkpoints: Path, model: Any, **common: Any
) -> BatchRewardTrainer | ExactTrainer:
    """The trainer of the estimator."""
    grpo, world_size = settings.grpo, ranks().num_processes
    common |= {"settings": settings, "model": trainable(model, settings.model)}
    validated = common["validation"] is not None
    if grpo.estimator != "sampled":
        arguments = exact_arguments(grpo, settings, checkpoints, world_size, validated)
        return ExactTrainer(args=arguments, numbers=numbers, **common)
    return BatchRewardTrainer(args=training_arguments(grpo, settings, checkpoints, world_size, validated), **common)
