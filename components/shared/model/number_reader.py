"""Reads numbers off images: every answer of Concord that comes from the distribution comes through here."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from transformers import PreTrainedModel

from components.settings import Answer, Model, Task
from components.shared.model.answer_distribution import level_by_level, one_by_one
from components.shared.model.answer_tree import AnswerTree, answer_tree
from components.shared.model.generation import image_batches, inference, prepared
from components.shared.model.loading import load
from components.shared.model.shared_prefix import encode, unshared_reason
from components.shared.model.validation_file import read_validation
from components.shared.scoring.answer_rule import AnswerRule, Readings
from components.shared.scoring.errors import Array

FLOOR = 1e-6  # branches of the tree that are less likely are left out


def log_probabilities(
    model: PreTrainedModel, processor: Any, rows: Iterable[pa.RecordBatch], tree: AnswerTree, batch_size: int
) -> Iterator[tuple[list[str], Array]]:
    """Yields ids and log-probabilities `(U, N)` of all numbers, batch by batch.

    Args:
        model: the bare model, not wrapped for training on several devices.
        rows: record batches with the columns id, image and question.
    """
    shared = why_one_by_one(model) is None
    for ids, images, questions in image_batches(rows, batch_size):
        with inference(model):
            batch = prepared(model, processor, images, questions)
            inputs = batch.pop("input_ids"), batch.pop("attention_mask"), batch
            if shared:
                found = level_by_level(model, encode(model, *inputs), tree, FLOOR).numbers
            else:
                found = one_by_one(model, *inputs, tree)
        yield ids, found.double().cpu().numpy()


def why_one_by_one(model: PreTrainedModel) -> str | None:
    """Why each number is scored in a row of its own, which takes N times as long; None where one pass is enough."""
    config = model.config
    return unshared_reason(config.model_type, config.get_text_config()._attn_implementation)


def collect_log_probabilities(
    model: PreTrainedModel, processor: Any, rows: Iterable[pa.RecordBatch], tree: AnswerTree, batch_size: int
) -> tuple[list[str], Array]:
    """`log_probabilities` of all rows together."""
    ids: list[str] = []
    parts: list[Array] = [np.empty((0, len(tree.values)))]
    for batch_ids, log_p in log_probabilities(model, processor, rows, tree, batch_size):
        ids += batch_ids
        parts.append(log_p)
    return ids, np.concatenate(parts)


@dataclass(frozen=True)
class NumberReader:
    """A trained model that reads numbers off images, each with an interval.

    Attributes:
        model, processor: on the device where it reads.
        tree: of the task's numbers.
        rule: turns distributions into answers; fitted on the validation images of the model folder.
    """

    model: PreTrainedModel
    processor: Any
    tree: AnswerTree
    rule: AnswerRule

    @classmethod
    def load(cls, folder: Path, settings: Model, task: Task, answer: Answer, tolerance: float) -> "NumberReader":
        """The reader that a model folder holds.

        Args:
            tolerance: for `balance: auto`, the largest many-shot loss, in the task's unit.

        Raises:
            ConcordError: the folder has no model, or no validation.parquet.
        """
        model, processor = load(folder, settings)
        return cls(model, processor, answer_tree(processor, task), fitted_rule(folder, answer, tolerance))

    def read(self, rows: Iterable[pa.RecordBatch], batch_size: int) -> Iterator[tuple[list[str], Readings]]:
        """Yields ids and readings, batch by batch.

        Args:
            rows: record batches with the columns id, image and question.
        """
        for ids, log_p in log_probabilities(self.model, self.processor, rows, self.tree, batch_size):
            yield ids, self.rule.read(log_p)


def fitted_rule(folder: Path, answer: Answer, tolerance: float) -> AnswerRule:
    """The answer rule of a model folder under the settings.

    Raises:
        ConcordError: the folder has no validation.parquet.
    """
    _, validation = read_validation(folder)
    return AnswerRule.fit(validation, answer.statistic, answer.balance, answer.coverage, tolerance)
