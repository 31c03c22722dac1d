"""TRL's SFTTrainer, with a look at greedy validation MAE in place of a validation loss, and with whole checkpoints."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from torch.utils.data import Sampler, SequentialSampler
from transformers import EarlyStoppingCallback, PrinterCallback
from trl import SFTConfig, SFTTrainer
from trl.data_utils import apply_chat_template

from components.settings import Model, Settings, Sft
from components.shared.data.presentations import presentations, training_rows
from components.shared.data.rows import first, read_rows, read_table
from components.shared.regression.metrics import Predictions
from components.shared.tracking.runs import StepRun
from components.shared.vlm.checkpoints import SealedCheckpoints
from components.shared.vlm.curves import Follow
from components.shared.vlm.generation import answers
from components.shared.vlm.prompts import answer_tokens, completion, prompt_with_image


def training_arguments(sft: Sft, model: Model, folder: Path) -> SFTConfig:
    """Our settings in TRL's words."""
    return SFTConfig(
        output_dir=str(folder),
        max_steps=sft.max_steps,
        per_device_train_batch_size=sft.batch_size,
        gradient_accumulation_steps=sft.accumulation,
        learning_rate=sft.lr,
        lr_scheduler_type="cosine",
        warmup_steps=sft.warmup_steps,
        weight_decay=sft.weight_decay,
        adam_beta2=sft.adam_beta2,
        max_length=None,
        completion_only_loss=True,
        eval_strategy="steps",
        eval_steps=sft.eval_every,
        save_strategy="steps",
        save_steps=sft.eval_every,
        load_best_model_at_end=True,
        restore_callback_states_from_checkpoint=True,  # the patience that is used up already
        metric_for_best_model="val_mae",
        greater_is_better=False,
        logging_steps=50,
        disable_tqdm=True,
        report_to="none",
        seed=sft.seed,
        bf16=model.dtype == "bfloat16",
        torch_compile=model.compile,
        gradient_checkpointing=sft.gradient_checkpointing,
        remove_unused_columns=False,
        dataloader_drop_last=True,
    )


def sft_presentations(settings: Settings, ingest: Path, cache: Path, count: int, processor: Any) -> Dataset:
    """`count` presentations of the training split as TRL's SFT wants them: prompt, completion, images.

    Prompt and completion are text already: a template is filled in once for each question and target, where TRL's
    collator would do it for each row of each batch.
    """

    @lru_cache(maxsize=4096)
    def texts(question: str, target: float) -> dict[str, str]:
        messages = {"prompt": prompt_with_image(question), "completion": completion(target, settings.task)}
        return apply_chat_template(messages, processor)

    return presentations(
        training_rows(ingest, cache),
        count,
        settings.sft.seed,
        settings.sft.augment,
        lambda row, picture: {**texts(row["question"], row["target"]), "images": [picture]},
    )


class InOrder(SFTTrainer):
    """SFT on presentations in their order: they are a shuffle already."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler:
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        return SequentialSampler(rows)


class WarmStartTrainer(SealedCheckpoints, InOrder):
    """SFT whose evaluation is the MAE of greedy answers to validation images; it ends when that stops falling."""

    control: Any  # transformers' own, without a declared type

    def __init__(self, *, settings: Settings, ingest: Path, **kwargs: Any) -> None:
        """Takes SFTTrainer's arguments besides.

        Args:
            ingest: row shards, for the validation split.
        """
        # The base class wants a dataset wherever an evaluation is planned; ours reads the shards itself.
        super().__init__(eval_dataset=kwargs["train_dataset"], **kwargs)
        self._settings, self._ingest = settings, ingest
        self.add_callback(EarlyStoppingCallback(early_stopping_patience=settings.sft.patience))

    def follow(self, track: StepRun) -> None:
        """Sends the curves to the tracker."""
        self.remove_callback(PrinterCallback)
        self.add_callback(Follow(track, ("loss", "val_mae", "val_unparseable")))

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Greedy MAE, in the task's unit, over the first `eval_rows` validation images (their order is a shuffle)."""
        task, sft = self._settings.task, self._settings.sft
        model, length = self.accelerator.unwrap_model(self.model), answer_tokens(self.processing_class, task)
        rows = first(read_rows(self._ingest, "val"), sft.eval_rows)
        _, _, values = answers(model, self.processing_class, rows, 2 * sft.batch_size, length, task)
        targets = read_table(self._ingest, "val", ["target"])["target"].to_numpy()[: len(values)]
        shots = np.full(len(values), "all")
        judged = Predictions(targets, values, shots, task.low, task.high, task.resolution)
        figures = {
            "val_mae": float(judged.errors.mean()),
            "val_unparseable": float(judged.unparseable.mean()),
            "val_sd_ratio": float(judged.scored.std() / max(judged.targets.std(), 1e-12)),
        }
        self.log(figures)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, _prefixed(figures))
        return _prefixed(figures)


def _prefixed(figures: dict[str, float]) -> dict[str, float]:
    """transformers looks for the metric to go by under an `eval_` prefix."""
    return {f"eval_{name}": value for name, value in figures.items()}
