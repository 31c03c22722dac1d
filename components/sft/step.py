"""SFT warm start: the answer's tokens by teacher forcing, until validation MAE stops improving.

RL on data that SFT has memorised learns nothing, and RL on a model that has not learned to see yet is slower than more
SFT. So the pictures are changed (their reading is not), and the end is decided by greedy answers to validation images.
"""

from pathlib import Path

from transformers import set_seed

from components.settings import Settings
from components.sft.trainer import WarmStartTrainer, sft_presentations, training_arguments
from components.shared.io.atomic import new_folder
from components.shared.model.loading import base_model, save
from components.shared.model.lora import merged, trainable
from components.shared.tracking.lineage import code_identity, code_mark
from components.shared.tracking.step_run import StepRun
from components.shared.training.checkpoints import resume_point, state_folder
from components.shared.training.curves import write_results
from components.shared.training.ranks import node_cache, ranks, trained
from components.steps import STEPS


def run(settings: Settings, track: StepRun | None, *, ingest: Path, validate: Path, out: Path, state: Path) -> None:
    """Trains the warm start and writes it to `out`, with metrics.json and curve.csv.

    Args:
        track: rank 0's; None on the others, which take part in the training and write nothing.
        ingest: row shards.
        validate: the validation's result; it is not read, but nothing unchecked is trained on.
        state: training state goes to a folder below it; a killed run goes on from there.
    """
    del validate
    base, processor = base_model(settings, ingest)
    set_seed(settings.sft.seed)  # of the adapters' first weights; the trainer sets it too late for them
    world_size = ranks().num_processes
    step = STEPS["sft"]
    code = code_mark(code_identity(step))
    folder = state_folder(state, settings, step.sections, {"ingest": ingest}, code, world_size)
    with node_cache() as cache:
        arguments = training_arguments(
            settings.sft, settings.model, folder, world_size, settings.launcher.loader_workers
        )
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
        trainer.train(resume_from_checkpoint=resume_point(folder))
    whole = trained(trainer, lambda: trainable(base_model(settings, ingest)[0], settings.model))
    if whole is None:
        return
    history = trainer.state.log_history
    with new_folder(out) as place:
        save(merged(whole), processor, place)
        write_results(place, history, {"val_mae": trainer.state.best_metric, "steps": trainer.state.global_step})
