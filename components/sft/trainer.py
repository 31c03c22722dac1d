"""TRL's SFTTrainer with early stopping on greedy validation MAE instead of validation loss, and atomic checkpoints."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy
from torch.utils.data import Sampler, SequentialSampler
from transformers import PrinterCallback
from trl import SFTConfig, SFTTrainer
from trl.data_utils import apply_chat_template

from components.errors import ConcordError
from components.settings import Launcher, Model, Settings, Sft
from components.sft.skill import PatienceOnceSkilled
from components.shared.model.device import on_accelerator
from components.shared.model.generation import collect_answers
from components.shared.model.prompts import completion, max_answer_tokens, prompt_with_image
from components.shared.rows.rows import slice_rows
from components.shared.rows.validation import tune_rows, tune_table
from components.shared.scoring.errors import Predictions
from components.shared.scoring.skill import Skill
from components.shared.tracking.step_run import StepRun
from components.shared.training.checkpoints import SealedCheckpoints
from components.shared.training.curves import CurveCallback
from components.shared.training.data_wait import TimesDataWait
from components.shared.training.presentations import presentations, training_rows
from components.shared.training.ranks import divided_among_ranks
from components.shared.training.sharding import ShardedWeights, gathered, sharding_arguments
from components.shared.training.unused_parameters import look_for_unused

IGNORED = -100  # label of a token without a loss


def training_arguments(
    sft: Sft, model: Model, folder: Path, world_size: int = 1, launcher: Launcher | None = None
) -> SFTConfig:
    """Converts our settings to TRL's.

    Args:
        world_size: number of ranks; `batch_size` is divided among them, so that a step uses the same images for any
            number of ranks.
        launcher: data loader processes of each rank, and whether the ranks share the weights; neither changes the
            batches. None: no processes, whole weights.

    Raises:
        ConcordError: `batch_size` cannot be divided evenly over the ranks.
    """
    if sft.batch_size % world_size:
        raise ConcordError(
            f"sft.batch_size: {sft.batch_size} cannot be divided evenly over {world_size} ranks. "
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
        restore_callback_states_from_checkpoint=True,  # includes the patience that early stopping has used up
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
        dataloader_num_workers=launcher.loader_workers if launcher else 0,
        **(sharding_arguments(launcher) if launcher else {}),
    )


def sft_presentations(settings: Settings, ingest: Path, cache: Path, count: int, processor: Any) -> Dataset:
    """Returns `count` presentations of the training split in TRL's SFT format: prompt, completion, images.

    The chat template is applied here, once per question and target; TRL's collator would apply it to each row of each
    batch.
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
        lambda row, image: {**texts(row["question"], row["target"]), "images": [image]},
        settings.task.grey_bits,
    )


class OrderedSFTTrainer(SFTTrainer):
    """SFT that keeps the order of the presentations, which are shuffled already.

    The LM head runs only on the columns of the answers, a few out of some hundreds.
    """

    _metrics: Any  # TRL declares no type

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Cross entropy per answer token over all micro-batches and ranks of the step, equal to TRL's loss."""
        labels = inputs.pop("labels")[:, 1:]
        columns = (labels != IGNORED).any(dim=0).nonzero()[:, 0]
        outputs = model(**inputs, use_cache=False, logits_to_keep=columns)
        logits, targets = outputs.logits.float().flatten(0, 1), labels[:, columns].flatten()
        count = (targets != IGNORED).sum()
        loss = cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
        loss = loss / (count if num_items_in_batch is None else num_items_in_batch)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # DDP averages gradients over ranks
        correct = torch.stack([(logits.argmax(dim=-1) == targets).sum(), count])
        correct = self.accelerator.gather(correct[None]).sum(dim=0)
        mode = "train" if self.model.training else "eval"
        self._metrics[mode]["mean_token_accuracy"].append((correct[0] / correct[1]).item())
        return (loss, outputs) if return_outputs else loss

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler:
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        return SequentialSampler(rows)


class WarmStartTrainer(TimesDataWait, SealedCheckpoints, ShardedWeights, OrderedSFTTrainer):
    """SFT that evaluates greedy answers to validation images and stops when their MAE no longer falls."""

    control: Any  # transformers declares no type

    def __init__(self, *, settings: Settings, ingest: Path, **kwargs: Any) -> None:
        """Accepts SFTTrainer's arguments as well.

        Args:
            ingest: row shards; the validation split is read from them.
        """
        # The base class requires an evaluation dataset; `evaluate` reads the shards instead.
        super().__init__(eval_dataset=kwargs["train_dataset"], **kwargs)
        self._settings, self._ingest = settings, ingest
        self.checkpoint_seconds = 60 * settings.launcher.checkpoint_minutes
        self.add_callback(PatienceOnceSkilled(early_stopping_patience=settings.sft.patience))
        look_for_unused(self)

    def follow(self, track: StepRun | None) -> None:
        """Logs the training curves to the tracker."""
        self.remove_callback(PrinterCallback)
        self.add_callback(CurveCallback(track, ("loss", "val_mae", "val_skill", "val_unparseable"), self.data_wait))

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """MAE and skill of greedy answers to the first `eval_rows` images of the tune half of val.

        MAEs are in the task's unit. `val_skill_low` is the lower end of the skill's 95 % interval.
        """
        task, sft = self._settings.task, self._settings.sft
        targets = tune_table(self._ingest)["target"].to_numpy()[: sft.eval_rows]
        with gathered(self.model):
            values = divided_among_ranks(len(targets), self._validation_answers)
        shots = np.full(len(values), "all")
        predictions = Predictions(targets, values, shots, task.low, task.high, task.resolution)
        skill = Skill.of(predictions.errors, targets)
        figures = {
            "val_mae": skill.mae,
            "val_constant_mae": skill.constant_mae,
            "val_skill": skill.value,
            **({"val_skill_low": skill.low} if np.isfinite(skill.low) else {}),
            "val_unparseable": float(predictions.unparseable.mean()),
            "val_sd_ratio": float(predictions.scored.std() / max(predictions.targets.std(), 1e-12)),
        }
        self.log(figures)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, _prefixed(figures))
        return _prefixed(figures)

    def _validation_answers(self, start: int, count: int) -> np.ndarray:
        """Answers to `count` images of the tune half from `start` on, `(count,)`, NaN where an answer is invalid."""
        task, rows = self._settings.task, slice_rows(tune_rows(self._ingest), start, count)
        model, length = self.accelerator.unwrap_model(self.model), max_answer_tokens(self.processing_class, task)
        batch_size = 2 * self.args.per_device_train_batch_size
        return collect_answers(model, self.processing_class, rows, batch_size, length, task)[2]


def _prefixed(figures: dict[str, float]) -> dict[str, float]:
    """transformers looks up `metric_for_best_model` with an `eval_` prefix."""
    return {f"eval_{name}": value for name, value in figures.items()}
