"""SFT continued for a given time: what the same extra time is worth without reinforcement learning."""

import tempfile
import time
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed

from components.settings import Settings
from components.sft.trainer import InOrder, sft_presentations, training_arguments
from components.shared.io.atomic import new_folder
from components.shared.model.device import on_accelerator
from components.shared.model.loading import load, save
from components.shared.model.lora import merged, trainable
from components.shared.training.curves import write_results

NEVER = 100_000  # steps; their schedule is 8 bytes an image


def effort() -> float:
    """Seconds of this process's work, from some start: processor time where a CPU trains, which does not depend on what
    else the machine does; where an accelerator does, the clock."""
    return time.monotonic() if on_accelerator() else time.process_time()


class Until(TrainerCallback):
    """Ends training once it has taken `seconds` of `effort`."""

    def __init__(self, seconds: float) -> None:
        """The clock starts with the training."""
        self._seconds = seconds

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Starts the clock."""
        self._start = effort()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Looks at it."""
        control.should_training_stop |= effort() - self._start >= self._seconds


def run(settings: Settings, seconds: float, *, ingest: Path, warm: Path, out: Path) -> None:
    """Continues SFT from `warm` for `seconds` of `effort`, at GRPO's learning rate held constant, into `out`."""
    model, processor = load(warm, settings.model)
    set_seed(settings.sft.seed)
    with tempfile.TemporaryDirectory() as scratch:
        arguments = training_arguments(settings.sft, settings.model, Path(scratch))
        arguments.max_steps = NEVER
        arguments.learning_rate = settings.grpo.lr
        arguments.lr_scheduler_type = "constant_with_warmup"
        arguments.warmup_steps = settings.grpo.warmup_steps
        arguments.eval_strategy = arguments.save_strategy = "no"
        arguments.load_best_model_at_end = False
        rows = sft_presentations(settings, ingest, Path(scratch), NEVER * settings.sft.batch_size, processor)
        trainer = InOrder(
            model=trainable(model, settings.model), args=arguments, train_dataset=rows, processing_class=processor
        )
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(Until(seconds))
        trainer.train()
    with new_folder(out) as place:
        save(merged(trainer.model), processor, place)
        write_results(place, trainer.state.log_history, {"steps": trainer.state.global_step})
