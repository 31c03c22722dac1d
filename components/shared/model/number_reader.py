"""Reads numbers off images: every answer of Concord that comes from the distribution comes through here."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from transformers import PreTrainedModel

from components.errors import ConcordError
from components.settings import Model, Reader, Task
from components.shared.model.answer_distribution import level_by_level, one_by_one
from components.shared.model.answer_tree import AnswerTree, answer_tree
from components.shared.model.device import device
from components.shared.model.generation import generate_answers, inference, prepared_batches
from components.shared.model.loading import load
from components.shared.model.prompts import max_answer_tokens
from components.shared.model.shared_prefix import encode, unshared_reason
from components.shared.model.validation_file import fitted_rule
from components.shared.scoring.answer_rule import AnswerRule, Readings
from components.shared.scoring.answers import parse_answers
from components.shared.scoring.errors import Array

FLOOR = 1e-6  # branches of the tree that are less likely are left out


def log_probabilities(
    model: PreTrainedModel,
    processor: Any,
    rows: Iterable[pa.RecordBatch],
    tree: AnswerTree,
    batch_size: int,
    unreadable: dict[str, str] | None = None,
    grey_bits: int | None = None,
) -> Iterator[tuple[list[str], Array]]:
    """Yields ids and log-probabilities `(U, N)` of all numbers, batch by batch.

    Args:
        model: the bare model, not wrapped for training on several devices.
        rows: record batches with the columns id, image and question.
        unreadable, grey_bits: see `prepared_batches`.
    """
    shared = why_one_by_one(model) is None
    for ids, batch in prepared_batches(model, processor, rows, batch_size, unreadable, grey_bits):
        with inference(model):
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
    model: PreTrainedModel,
    processor: Any,
    rows: Iterable[pa.RecordBatch],
    tree: AnswerTree,
    batch_size: int,
    unreadable: dict[str, str] | None = None,
    grey_bits: int | None = None,
) -> tuple[list[str], Array]:
    """`log_probabilities` of all rows together."""
    ids: list[str] = []
    parts: list[Array] = [np.empty((0, len(tree.values)))]
    for batch_ids, log_p in log_probabilities(model, processor, rows, tree, batch_size, unreadable, grey_bits):
        ids += batch_ids
        parts.append(log_p)
    return ids, np.concatenate(parts)


@dataclass(frozen=True)
class NumberReader:
    """A trained model that reads numbers off images.

    Attributes:
        model, processor: on the device where it reads.
        task: what it reads.
        tree: of the task's numbers.
        rule: turns distributions into answers with intervals; fitted on the validation images of the model folder. None
            where the answer is the number in the greedy text.
    """

    model: PreTrainedModel
    processor: Any
    task: Task
    tree: AnswerTree
    rule: AnswerRule | None

    @classmethod
    def load(cls, folder: Path, settings: Reader, tolerance: float = 0.0) -> "NumberReader":
        """The reader that a model folder holds, on the accelerator if there is one.

        Args:
            folder: weights, processor and, for answers from the distribution, validation.parquet.
            tolerance: for `balance: auto`, the largest many-shot loss, in the task's unit.

        Raises:
            ConcordError: the folder has no model, or no validation.parquet.
        """
        model, processor = load(folder, _loading(folder, settings))
        model.to(device())
        rule = None if settings.answer.source == "text" else fitted_rule(folder, settings.answer, tolerance)
        return cls(model, processor, settings.task, answer_tree(processor, settings.task), rule)

    def answering(self, balance: float | None = None, coverage: float | None = None) -> "NumberReader":
        """The same model with another balance or coverage; None keeps the present one.

        Raises:
            ConcordError: the answers come from the text, which has neither; or a value is out of range.
        """
        if balance is None and coverage is None:
            return self
        if self.rule is None:
            raise ConcordError("balance, coverage: this model answers with its text (answer.from), which has neither.")
        rule = self.rule
        for name, value, low, high in (("balance", balance, 0.0, 1.2), ("coverage", coverage, 0.5, 0.999)):
            if value is not None and not low <= value <= high:
                raise ConcordError(f"{name}: {value:g} is not within {low:g} and {high:g}.")
        if balance is not None and balance != rule.balance.value:
            rule = rule.with_balance(balance)
        if coverage is not None and coverage != rule.coverage:
            rule = replace(rule, coverage=coverage)
        return replace(self, rule=rule)

    def read(
        self, rows: Iterable[pa.RecordBatch], batch_size: int, unreadable: dict[str, str] | None = None
    ) -> Iterator[tuple[list[str], Readings]]:
        """Yields ids and readings, batch by batch.

        Args:
            rows: record batches with the columns id, image and question.
            unreadable: see `prepared_batches`.
        """
        if self.rule is None:
            length = max_answer_tokens(self.processor, self.task)
            bits = self.task.grey_bits
            for ids, texts in generate_answers(self.model, self.processor, rows, batch_size, length, unreadable, bits):
                unknown = np.full(len(ids), np.nan)
                yield ids, Readings(parse_answers(texts, self.task.low, self.task.high), unknown, unknown, unknown)
            return
        for ids, log_p in self.log_probabilities(rows, batch_size, unreadable):
            yield ids, self.rule.read(log_p)

    def log_probabilities(
        self, rows: Iterable[pa.RecordBatch], batch_size: int, unreadable: dict[str, str] | None = None
    ) -> Iterator[tuple[list[str], Array]]:
        """Yields ids and log-probabilities `(U, N)` of all numbers, batch by batch; for the arguments see `read`."""
        bits = self.task.grey_bits
        return log_probabilities(self.model, self.processor, rows, self.tree, batch_size, unreadable, bits)


def _loading(folder: Path, settings: Reader) -> Model:
    return Model(
        name=str(folder),
        revision=None,
        dtype=settings.dtype,
        attention=settings.attention,
        compile=False,
        max_pixels=None,  # the stored processor already has this limit
        freeze_vision=False,
        lora=None,
        tiny=None,
    )
