"""Trains the warm start: SFT on the answers' tokens until validation MAE stops improving.

GRPO learns nothing from data that SFT has memorised, and it is slower than more SFT while the model cannot yet read the
images. So the images are augmented (without changing their label), and early stopping uses the MAE of greedy answers to
validation images.
"""

from pathlib import Path

from transformers import set_seed

from components.settings import Settings
from components.sft.skill import check_skill, kept_evaluation
from components.sft.trainer import WarmStartTrainer, sft_presentations, training_arguments
from components.shared.io.atomic import new_folder
from components.shared.model.loading import base_model, save
from components.shared.model.lora import trainable
from components.shared.model.validation_pass import save_validation
from components.shared.tracking.lineage import compute_lineage
from components.shared.tracking.step_run import StepRun
from components.shared.training.checkpoints import resume_point, state_folder
from components.shared.training.curves import write_results
from components.shared.training.ranks import model_on_main_rank, node_cache, ranks
from components.shared.training.readable import check_readable
from components.shared.training.sharding import check_sharding
from components.steps import STEPS


def run(settings: Settings, track: StepRun | None, *, ingest: Path, validate: Path, out: Path, state: Path) -> None:
    """Trains the warm start and writes it to `out`, with validation.parquet, metrics.json and curve.csv.

    Args:
        track: MLflow run on rank 0; None on the other ranks, which train but write nothing.
        ingest: row shards.
        validate: output of the validate step; not read, but required so that only validated data is trained on.
        state: folder of the checkpoints; a killed run resumes from them.

    Raises:
        ConcordError: an image of train or val cannot be read, see `check_readable`; or no answer is clearly better
            than the best constant, and `sft.no_skill` is error; then the checkpoints stay, and a run with
            `no_skill: warning` takes them.
    """
    del validate
    check_sharding(settings.launcher)
    base, processor = base_model(settings, ingest)
    check_readable(processor, ingest)
    set_seed(settings.sft.seed)  # for the initial adapter weights; the trainer sets its seed after they exist
    world_size = ranks().num_processes
    lineage = compute_lineage(STEPS["sft"], settings, {"ingest": ingest})
    checkpoints = state_folder(state, lineage)
    with node_cache() as cache:
        arguments = training_arguments(settings.sft, settings.model, checkpoints, world_size, settings.launcher)
        count = settings.sft.max_steps * settings.sft.batch_size * settings.sft.accumulation
        rows = sft_presentations(settings, ingest, cache, count, processor)
        trainer = WarmStartTrainer(
            model=trainable(base, settings.model),
            args=arguments,
            train_dataset=rows,
            processing_class=processor,
            settings=settings,
            ingest=ingest,
        )
        trainer.follow(track)
        trainer.train(resume_from_checkpoint=resume_point(checkpoints))
    model = model_on_main_rank(trainer, lambda: trainable(base_model(settings, ingest)[0], settings.model))
    if model is None:
        return
    check_skill(settings, trainer.state)
    history, kept = trainer.state.log_history, kept_evaluation(trainer.state)
    with new_folder(out) as folder:
        save(model, processor, folder)
        batch_size = 2 * settings.sft.batch_size // world_size
        save_validation(folder, model, processor, settings.task, ingest, batch_size)
        figures = {name: value for name, value in kept.items() if name.startswith("val_")}
        write_results(folder, history, {**figures, "steps": trainer.state.global_step})
