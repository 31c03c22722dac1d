"""The step grpo: reinforcement learning from the warm start, with the concordance of the whole batch as the reward."""

from pathlib import Path

from transformers import set_seed

from components.console import console
from components.grpo.trainer import BatchRewardTrainer, training_arguments
from components.settings import Settings
from components.shared.io.atomic import new_folder
from components.shared.model.loading import load, save
from components.shared.model.lora import lora_config, merged, trainable, vision_tower
from components.shared.model.prompts import prompt
from components.shared.scoring.shots import ShotTable
from components.shared.tracking.lineage import code_fingerprint, code_identity
from components.shared.tracking.step_run import StepRun
from components.shared.training.checkpoints import resume_point, state_folder
from components.shared.training.curves import write_results
from components.shared.training.presentations import presentations, training_rows
from components.shared.training.ranks import model_on_main_rank, node_cache, ranks
from components.steps import STEPS


def run(settings: Settings, track: StepRun | None, *, ingest: Path, sft: Path, out: Path, state: Path) -> None:
    """Trains from the warm start and writes the model to `out`, with metrics.json and curve.csv.

    Args:
        settings: of the experiment.
        track: MLflow run on rank 0; None on the other ranks, which train but write nothing.
        ingest: row shards.
        sft: the warm start, which is also the reference of the KL.
        out: the output folder.
        state: folder of the checkpoints; a killed run resumes from them.
    """
    grpo, task = settings.grpo, settings.task
    model, processor = load(sft, settings.model)
    set_seed(grpo.seed)  # for the initial adapter weights; the trainer sets its seed after they exist
    if settings.model.freeze_vision:
        vision_tower(model).requires_grad_(False)
    inputs, world_size = {"ingest": ingest, "sft": sft}, ranks().num_processes
    step = STEPS["grpo"]
    code = code_fingerprint(code_identity(step))
    checkpoints = state_folder(state, settings, step.sections, inputs, code, world_size)
    with node_cache() as cache:
        rows = training_rows(ingest, cache)
        shots = ShotTable.of(rows["target"][:], task.bin_width, task.resolution, task.many, task.few)
        shown = presentations(
            rows,
            grpo.steps * grpo.prompts,
            grpo.seed,
            grpo.augment,
            lambda row, picture: {
                "prompt": prompt(row["question"]),
                "image": picture,
                "target": row["target"],
                "shot": str(shots.shot([row["target"]])[0]),
            },
        )
        trainer = BatchRewardTrainer(
            model=model,
            args=training_arguments(grpo, settings, checkpoints, world_size),
            train_dataset=shown,
            processing_class=processor,
            peft_config=lora_config(settings.model) if settings.model.lora else None,
            settings=settings,
        )
        if trainer.unshared_reason and track is not None:
            console.print(f"images are encoded once per answer, not once per input: {trainer.unshared_reason}")
        if trainer.sampling_unshared_reason:
            console.print(f"answers are not sampled on a shared prefix: {trainer.sampling_unshared_reason}")
        trainer.follow(track)
        trainer.train(resume_from_checkpoint=resume_point(checkpoints))
    trained = model_on_main_rank(trainer, lambda: trainable(load(sft, settings.model)[0], settings.model))
    if trained is None:
        return
    with new_folder(out) as folder:
        save(merged(trained), processor, folder)
        write_results(folder, trainer.state.log_history, {"steps": trainer.state.global_step})
