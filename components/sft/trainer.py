"""TRL's SFTTrainer, with a look at greedy validation MAE in place of a validation loss, and with whole checkpoints."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather
from datasets import Dataset
from torch.nn.functional import cross_entropy
from torch.utils.data import Sampler, SequentialSampler
from transformers import EarlyStoppingCallback, PrinterCallback
from trl import SFTConfig, SFTTrainer
from trl.data_utils import apply_chat_template

from components.errors import ConcordError
from components.settings import Model, Settings, Sft
from components.shared.model.device import on_accelerator
from components.shared.model.generation import answers
from components.shared.model.prompts import answer_tokens, completion, prompt_with_image
from components.shared.rows.rows import read_rows, read_table, stretch
from components.shared.scoring.errors import Predictions
from components.shared.tracking.step_run import StepRun
from components.shared.training.checkpoints import SealedCheckpoints
from components.shared.training.curves import Follow
from components.shared.training.data_wait import WaitsForData
from components.shared.training.presentations import presentations, training_rows

IGNORED = -100  # the label of a token that is not learned


def training_arguments(sft: Sft, model: Model, folder: Path, world_size: int = 1, loader_workers: int = 0) -> SFTConfig:
    """Our settings in TRL's words.

    Args:
        world_size: number of ranks; `batch_size` is shared out among them, so that a step shows the same pictures
            whatever their number.
        loader_workers: processes of each rank that make batches ready; they decide nothing about them.

    Raises:
        ConcordError: it cannot be shared out evenly.
    """
    if sft.batch_size % world_size:
        raise ConcordError(
            f"sft: batch_size {sft.batch_size} cannot be shared out evenly over {world_size} ranks. "
            f"Make it a multiple of {world_size}, or change launcher.num_processes."
        )
    return SFTConfig(
        output_dir=str(folder),
        max_steps=sft.max_steps,
        per_device_train_batch_size=sft.batch_size // world_size,
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
        use_cpu=not on_accelerator(),
        seed=sft.seed,
        bf16=model.dtype == "bfloat16",
        torch_compile=model.compile,
        gradient_checkpointing=sft.gradient_checkpointing,
        remove_unused_columns=False,
        dataloader_drop_last=True,
        dataloader_num_workers=loader_workers,
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
    """SFT on presentations in their order, which is a shuffle already, with the language model's head on the columns of
    answers alone: a few of some hundreds."""

    _metrics: Any  # TRL's own, without a declared type

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Cross entropy per answer token, over all micro-batches and ranks of the step, as TRL has it."""
        labels = inputs.pop("labels")[:, 1:]
        columns = (labels != IGNORED).any(dim=0).nonzero()[:, 0]
        outputs = model(**inputs, use_cache=False, logits_to_keep=columns)
        logits, wanted = outputs.logits.float().flatten(0, 1), labels[:, columns].flatten()
        answered = (wanted != IGNORED).sum()
        loss = cross_entropy(logits, wanted, ignore_index=IGNORED, reduction="sum")
        loss = loss / (answered if num_items_in_batch is None else num_items_in_batch)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # DDP averages gradients over ranks
        right = torch.stack([(logits.argmax(dim=-1) == wanted).sum(), answered])
        right = self.accelerator.gather(right[None]).sum(dim=0)
        mode = "train" if self.model.training else "eval"
        self._metrics[mode]["mean_token_accuracy"].append((right[0] / right[1]).item())
        return (loss, outputs) if return_outputs else loss

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler:
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        return SequentialSampler(rows)


class WarmStartTrainer(WaitsForData, SealedCheckpoints, InOrder):
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

    def follow(self, track: StepRun | None) -> None:
        """Sends the curves to the tracker."""
        self.remove_callback(PrinterCallback)
        self.add_callback(Follow(track, ("loss", "val_mae", "val_unparseable"), self.waiting))

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Greedy MAE, in the task's unit, over the first `eval_rows` validation images (their order is a shuffle)."""
        task, sft = self._settings.task, self._settings.sft
        targets = read_table(self._ingest, "val", ["target"])["target"].to_numpy()[: sft.eval_rows]
        values = self._values(len(targets))
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

    def _values(self, count: int) -> np.ndarray:
        """The answers to the first `count` validation images, `(count,)`, NaN for no valid one.

        Each rank reads as many of them, so that all take part in every collective; where the count does not divide,
        stretches overlap.
        """
        task, world = self._settings.task, self.accelerator.num_processes
        share = -(-count // world)
        starts = [min(rank * share, count - share) for rank in range(world)]
        rows = stretch(read_rows(self._ingest, "val"), starts[self.accelerator.process_index], share)
        model, length = self.accelerator.unwrap_model(self.model), answer_tokens(self.processing_class, task)
        batch_size = 2 * self.args.per_device_train_batch_size
        _, _, mine = answers(model, self.processing_class, rows, batch_size, length, task)
        parts = gather(torch.tensor(mine, device=self.accelerator.device)).cpu().numpy().reshape(world, share)
        values = np.empty(count)
        for start, part in zip(starts, parts, strict=True):
            values[start : start + share] = part
        return values


def _prefixed(figures: dict[str, float]) -> dict[str, float]:
    """transformers looks for the metric to go by under an `eval_` prefix."""
    return {f"eval_{name}": value for name, value in figures.items()}
