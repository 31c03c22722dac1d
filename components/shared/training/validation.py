"""Validation during training: how well the model's distributions read the images that choices are made on.

The checkpoint with the lowest `val_score` is kept. It judges the greedy text where answers are sampled in training, and
the distribution where the distribution is trained.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from transformers import TrainerState

from components.settings import Task
from components.shared.model.answer_tree import AnswerTree, answer_tree
from components.shared.model.generation import collect_answers
from components.shared.model.number_reader import collect_log_probabilities
from components.shared.model.prompts import max_answer_tokens
from components.shared.model.validation_file import label_counts
from components.shared.rows.rows import slice_rows
from components.shared.rows.validation import tune_rows, tune_table
from components.shared.scoring.choice import BALANCES, label_weights
from components.shared.scoring.distribution import (
    answer,
    balanced,
    central_interval,
    crps,
    nearest,
    smoothed_prior,
)
from components.shared.scoring.errors import Array, Predictions
from components.shared.scoring.shots import GROUPS
from components.shared.scoring.skill import Skill
from components.shared.training.ranks import divided_among_ranks
from components.shared.training.sharding import gathered
from components.shared.training.trainer_hooks import TrainerHooks

COVERAGE = 0.9  # of the central interval whose true coverage is logged


@dataclass(frozen=True)
class TaskNumbers:
    """All numbers of a task, with what the training split says about them.

    Attributes:
        tree: N numbers as the model's tokens.
        log_prior: `(N,)` log of the smoothed training prior.
        shots: `(N,)` shot group of each number.
        grey_bits: the task's.
    """

    tree: AnswerTree
    log_prior: Array
    shots: NDArray[np.str_]
    grey_bits: int | None = None

    @classmethod
    def of(cls, processor: Any, task: Task, train: ArrayLike) -> "TaskNumbers":
        """Takes the targets of the training split."""
        counts, shots, per_bin = label_counts(task, np.asarray(train, np.float64))
        prior = np.log(smoothed_prior(counts, per_bin))
        return cls(answer_tree(processor, task), prior, shots, task.grey_bits)

    def shots_of(self, targets: ArrayLike) -> NDArray[np.str_]:
        """Shot group of each target, `(U,)`."""
        return self.shots[nearest(self.tree.values, targets)]


@dataclass(frozen=True)
class Validation:
    """What is evaluated during training.

    Attributes:
        ingest: row shards; the tune half of the val split is read from them.
        numbers: of the task.
        rows: images of one evaluation.
        batch_size: images that a rank reads at once.
        trained: the balance that the model is trained with, and so lacks already.
        text: the task, where training is judged by the number in the greedy text; None: by the distribution.
    """

    ingest: Path
    numbers: TaskNumbers
    rows: int
    batch_size: int
    trained: float = 0.0
    text: Task | None = None


def validation_arguments(every: int) -> dict[str, Any]:
    """Arguments for transformers that evaluate every so many steps and at the end, and keep the best checkpoint."""
    return {
        "eval_strategy": "steps",
        "eval_steps": every,
        "load_best_model_at_end": True,
        "metric_for_best_model": "val_score",
        "greater_is_better": False,
    }


def validation_figures(numbers: TaskNumbers, log_p: Array, targets: Array, trained: float) -> dict[str, float]:
    """Figures of a model's distributions over validation images, in the task's unit.

    - `val_score`: lowest MAE of the medians, every label weighing the same, over all balances; `val_balance` has it;
    - `val_mae/all`, `/many`, `/medium`, `/few`: MAE of the medians at that balance;
    - `val_skill`: of the medians at that balance;
    - `val_crps`, `val_coverage`, `val_mass`: of the distribution itself, without a balance: mean CRPS, share of targets
      inside the central 90 % interval, probability of all numbers.

    Args:
        log_p: `(U, N)`.
        targets: `(U,)`.
        trained: the balance that the model was trained with, and so lacks already.
    """
    values, weights = numbers.tree.values, label_weights(targets)
    errors = {
        balance: np.abs(answer(balanced(log_p, numbers.log_prior, balance - trained), values, "median") - targets)
        for balance in BALANCES
    }
    best = min(errors, key=lambda balance: float(weights @ errors[balance]))
    shots = numbers.shots_of(targets)
    p = balanced(log_p, numbers.log_prior, 0.0)
    low, high = central_interval(p, values, COVERAGE)
    members = {group: (shots == group) | (group == "all") for group in GROUPS}
    return {
        "val_score": float(weights @ errors[best]),
        "val_balance": best,
        **{f"val_mae/{group}": float(errors[best][mask].mean()) for group, mask in members.items() if mask.any()},
        "val_skill": Skill.of(errors[best], targets).value,
        "val_crps": float(crps(p, values, targets).mean()),
        "val_coverage": float(((low <= targets) & (targets <= high)).mean()),
        "val_mass": float(np.exp(log_p).sum(axis=1).mean()),
    }


def text_figures(numbers: TaskNumbers, task: Task, answers: Array, targets: Array) -> dict[str, float]:
    """Figures of a model's greedy text, in the task's unit; an invalid answer counts as the worst possible.

    - `val_score`: MAE, every label weighing the same;
    - `val_text_mae/all`, `/many`, `/medium`, `/few`: MAE.

    Args:
        answers: `(U,)`, NaN where invalid.
        targets: `(U,)`.
    """
    predictions = Predictions(targets, answers, numbers.shots_of(targets), task.low, task.high, task.resolution)
    errors, members = predictions.errors, {group: predictions.members(group) for group in GROUPS}
    return {
        "val_score": float(label_weights(targets) @ errors),
        **{f"val_text_mae/{group}": float(errors[mask].mean()) for group, mask in members.items() if mask.any()},
    }


def kept_figures(state: TrainerState) -> dict[str, float]:
    """Validation figures of the checkpoint that was kept, and `best_step`, its step; empty if none was evaluated."""
    best = state.best_global_step
    if best is None:
        return {}
    kept: dict[str, float] = next(line for line in state.log_history if line["step"] == best and "val_score" in line)
    return {**{name: value for name, value in kept.items() if name.startswith("val_")}, "best_step": best}


class ValidatesDistributions(TrainerHooks):
    """Mixin for a Trainer: evaluates the model's distributions and text, divided among the ranks."""

    def __init__(self, *, validation: Validation | None = None, **kwargs: Any) -> None:
        """Takes the trainer's arguments as well.

        Args:
            validation: goes with `validation_arguments`; None: nothing is evaluated.
        """
        if validation is not None:
            kwargs["eval_dataset"] = kwargs["train_dataset"]  # transformers requires one; `evaluate` reads the shards
        super().__init__(**kwargs)
        self._validation = validation

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Logs `validation_figures`, and `text_figures` if asked for, of the first images of the tune half of val.

        The checkpoint's `val_score` is that of the text if training is judged by it.

        Raises:
            ConcordError: the half is empty.
        """
        validation = self._validation
        assert validation is not None
        numbers, size, text = validation.numbers, validation.batch_size, validation.text
        targets = tune_table(validation.ingest)["target"].to_numpy()[: validation.rows]
        model = self.accelerator.unwrap_model(self.model)

        def log_probs(start: int, count: int) -> Array:
            rows = slice_rows(tune_rows(validation.ingest), start, count)
            with self.accelerator.autocast():
                processor, bits = self.processing_class, numbers.grey_bits
                return collect_log_probabilities(model, processor, rows, numbers.tree, size, grey_bits=bits)[1]

        def answers(start: int, count: int) -> Array:
            assert text is not None
            rows = slice_rows(tune_rows(validation.ingest), start, count)
            length = max_answer_tokens(self.processing_class, text)
            with self.accelerator.autocast():
                return collect_answers(model, self.processing_class, rows, size, length, text)[2]

        with gathered(model):
            log_p = divided_among_ranks(len(targets), log_probs)
            said = divided_among_ranks(len(targets), answers) if text else None
        figures = validation_figures(numbers, log_p, targets, validation.trained)
        if text and said is not None:
            figures |= text_figures(numbers, text, said, targets)
        self.log(figures)
        # transformers looks up `metric_for_best_model` with this prefix.
        prefixed = {f"eval_{name}": value for name, value in figures.items()}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, prefixed)
        return prefixed
