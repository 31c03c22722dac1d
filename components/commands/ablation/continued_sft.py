"""Continues SFT for a fixed time: the baseline that spends the extra training time without reinforcement learning."""

import tempfile
import time
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed

from components.settings import Settings
from components.sft.trainer import OrderedSFTTrainer, sft_presentations, training_arguments
from components.shared.io.atomic import new_folder
from components.shared.model.device import on_accelerator
from components.shared.model.loading import load, save
from components.shared.model.lora import merged, trainable
from components.shared.training.curves import write_results

MAX_STEPS = 100_000  # more than the time allows; the schedule takes 8 bytes per image


def training_clock() -> float:
    """Seconds from an arbitrary start: processor time of this process on a CPU, wall time on an accelerator.

    Processor time does not depend on what else the machine is doing.
    """
    return time.monotonic() if on_accelerator() else time.process_time()


class StopAfterSeconds(TrainerCallback):
    """Stops training once it has run for `seconds` by `training_clock`."""

    def __init__(self, seconds: float) -> None:
        """Stores the limit; the time is measured from the start of training."""
        self._seconds = seconds

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Starts the clock."""
        self._start = training_clock()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stops training if the time is over."""
        control.should_training_stop |= training_clock() - self._start >= self._seconds


def continue_sft(settings: Settings, seconds: float, *, ingest: Path, warm: Path, out: Path) -> None:
    """Continues SFT from `warm` for `seconds` at GRPO's learning rate, held constant, and writes the model to `out`."""
    model, processor = load(warm, settings.model)
    set_seed(settings.sft.seed)
    with tempfile.TemporaryDirectory() as scratch:
        arguments = training_arguments(settings.sft, settings.model, Path(scratch))
        arguments.max_steps = MAX_STEPS
        arguments.learning_rate = settings.grpo.lr
        arguments.lr_scheduler_type = "constant_with_warmup"
        arguments.warmup_steps = settings.grpo.warmup_steps
        arguments.eval_strategy = arguments.save_strategy = "no"
        arguments.load_best_model_at_end = False
        rows = sft_presentations(settings, ingest, Path(scratch), MAX_STEPS * settings.sft.batch_size, processor)
        trainer = OrderedSFTTrainer(
            model=trainable(model, settings.model), args=arguments, train_dataset=rows, processing_class=processor
        )
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(StopAfterSeconds(seconds))
        trainer.train()
    with new_folder(out) as folder:
        save(merged(trainer.model), processor, folder)
        write_results(folder, trainer.state.log_history, {"steps": trainer.state.global_step})
