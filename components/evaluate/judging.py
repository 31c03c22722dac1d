"""Judges one model on the test images: by its text, and by its distribution over all numbers."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from itertools import compress, islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from transformers import PreTrainedModel

from components.console import console
from components.errors import ConcordError
from components.evaluate.results import CONSTANT, Answers, Distributions, ModelResults, way_title
from components.settings import Settings
from components.shared.io.progress import with_progress
from components.shared.model.answer_tree import answer_tree
from components.shared.model.device import device
from components.shared.model.generation import collect_answers
from components.shared.model.number_reader import collect_log_probabilities
from components.shared.model.prompts import max_answer_tokens
from components.shared.reporting import metrics
from components.shared.reporting.distribution_metrics import evaluate_distribution
from components.shared.reporting.predictions import (
    WAYS,
    predictions_file,
    read_predictions,
    to_predictions,
    write_predictions,
)
from components.shared.rows.rows import read_rows, read_subjects, read_table
from components.shared.rows.validation import tune_constant
from components.shared.scoring.answer_rule import AnswerRule, fit_stretch, plain_means, stretch
from components.shared.scoring.choice import Point, TuneSet, balance_curve
from components.shared.scoring.distribution import answer, balanced
from components.shared.scoring.errors import Array, Predictions, subject_numbers
from components.shared.scoring.shots import ShotTable
from components.shared.scoring.skill import CONSTANTS, best_constant

NAMED = 10  # unreadable images in a message; unreadable.json has all


@dataclass(frozen=True)
class TestSet:
    """The images that models are judged on.

    Attributes:
        ingest: row shards.
        ids, targets, shots, subjects: of the test images, in their order; an unknown subject is None.
        constant: the best constant answer to the images that choices are made on (`tune`).
    """

    ingest: Path
    ids: list[str]
    targets: Array
    shots: np.ndarray
    subjects: list[str | None]
    constant: float

    @classmethod
    def read(cls, ingest: Path, shots: ShotTable) -> "TestSet":
        """Reads ids and targets.

        Raises:
            ConcordError: the test split is empty, or there are no images to choose by.
        """
        table = read_table(ingest, "test", ["id", "target"])
        if not table.num_rows:
            raise ConcordError(f"{ingest}: the test split has no rows. See ingest.split in params.yaml.")
        targets = table["target"].to_numpy()
        subjects = read_subjects(ingest, "test")
        return cls(ingest, table["id"].to_pylist(), targets, shots.shot(targets), subjects, tune_constant(ingest))

    def without(self, ids: Collection[str]) -> "TestSet":
        """Leaves out some images."""
        kept = np.array([id not in ids for id in self.ids], bool)
        return replace(
            self,
            ids=list(compress(self.ids, kept)),
            targets=self.targets[kept],
            shots=self.shots[kept],
            subjects=list(compress(self.subjects, kept)),
        )


def check_unreadable(unreadable: Mapping[str, str], test: TestSet, allowed: float) -> None:
    """Names the test images that cannot be read.

    Args:
        allowed: largest share of them.

    Raises:
        ConcordError: they are more, or all.
    """
    if not unreadable:
        return
    count, total = len(unreadable), len(test.ids)
    named = "; ".join(f"{id}: {reason}" for id, reason in islice(unreadable.items(), NAMED))
    text = f"{test.ingest}: {count} of {total} test images cannot be read ({named}{'; ...' if count > NAMED else ''})"
    if count > allowed * total or count == total:
        raise ConcordError(
            f"{text}. A share of {allowed:g} is allowed (evaluate.max_unreadable). Remove their rows from the raw "
            "data, or replace the images, and run ingest again."
        )
    console.print(f"[yellow]warning[/] {escape(text)}. They are left out of the figures of all models.")


@dataclass(frozen=True)
class TestReadings:
    """What a model says to every test image: its greedy text, the number in it, and `(U, N)` log-probabilities."""

    ids: list[str]
    texts: list[str]
    values: Array
    numbers: Array
    log_p: Array

    def without(self, ids: Collection[str]) -> "TestReadings":
        """Leaves out some images."""
        kept = np.array([id not in ids for id in self.ids], bool)
        return replace(
            self,
            ids=list(compress(self.ids, kept)),
            texts=list(compress(self.texts, kept)),
            values=self.values[kept],
            log_p=self.log_p[kept],
        )


def read_test(
    settings: Settings,
    title: str,
    model: PreTrainedModel,
    processor: Any,
    test: TestSet,
    unreadable: dict[str, str] | None = None,
) -> TestReadings:
    """Reads every test image twice: greedy text, and the probability of every number.

    Args:
        unreadable: see `prepared_batches`.
    """
    model.to(device())
    size, count = settings.evaluate.batch_size, -(-len(test.ids) // settings.evaluate.batch_size)
    # The same batches as `register` sends to the registered model, so that rounding and answers are identical.
    rows = with_progress(read_rows(test.ingest, "test", size), f"{title}: text", count)
    length = max_answer_tokens(processor, settings.task)
    ids, texts, values = collect_answers(model, processor, rows, size, length, settings.task, unreadable)
    tree = answer_tree(processor, settings.task)
    rows = with_progress(read_rows(test.ingest, "test", size), f"{title}: distribution", count)
    bits = settings.task.grey_bits
    same, log_p = collect_log_probabilities(model, processor, rows, tree, size, unreadable, bits)
    if not ids == same == [id for id in test.ids if not unreadable or id not in unreadable]:
        raise RuntimeError("the answers are not in the order of the test set")
    return TestReadings(ids, texts, values, tree.values, log_p)


def judge(
    settings: Settings,
    name: str,
    title: str,
    readings: TestReadings,
    test: TestSet,
    rule: AnswerRule | None,
    warm_start: ModelResults | None,
    folder: Path,
) -> ModelResults:
    """Writes the model's predictions file and computes all its figures.

    Args:
        rule: fitted on validation images; None for an untrained model, which has no prior to divide out.
        warm_start: its text is the reference of the curve on the test images; None if this is the warm start.
        folder: for predictions-`name`.parquet.
    """
    limits, factor, found = settings.evaluate, None, None
    columns: dict[str, Array] = {way: _plain(readings, way) for way in ("median", "mean")}
    if rule:
        factor = fit_stretch(rule.validation, settings.registry.tolerance_many)
        columns["stretched"] = stretch(rule.validation, plain_means(rule.validation, readings.log_p), factor.value)
        found = rule.read(readings.log_p)
        columns |= {"balanced": found.value, "low": found.low, "high": found.high, "mass": found.mass}
    path = predictions_file(folder, name)
    write_predictions(
        path, test.ids, test.targets, test.shots.tolist(), test.subjects, readings.texts, readings.values, columns
    )
    table = read_predictions(path)
    answers = {}
    for way in ("text", *(way for way in WAYS if way in columns)):
        predictions = to_predictions(table, settings.task, way)
        figures = metrics.evaluate(predictions, limits.bootstrap, limits.seed, test.constant)
        answers[way] = Answers(name, way, f"{title}, {way_title(way, rule, factor)}", predictions, figures)
    if rule is None or found is None or factor is None:
        return ModelResults(name, title, table, answers, None)
    reference = answers["text"] if warm_start is None else warm_start.answers["text"]
    distributions = Distributions(
        readings.log_p,
        rule,
        factor,
        _test_curve(rule, readings.log_p, test, reference.predictions.errors),
        evaluate_distribution(rule, readings.log_p, found, answers["text"].predictions, limits.bootstrap, limits.seed),
    )
    return ModelResults(name, title, table, answers, distributions)


def judge_constants(settings: Settings, test: TestSet, train: Array) -> list[Answers]:
    """What a model must beat: the best constant on validation, and the training median, as answers to every image.

    Args:
        train: training targets `(N,)`.
    """
    task, limits, found = settings.task, settings.evaluate, []
    for way, number in {"validation": test.constant, "training": best_constant(train)}.items():
        values = np.full(len(test.targets), number)
        subjects = subject_numbers(test.subjects)
        predictions = Predictions(test.targets, values, test.shots, task.low, task.high, task.resolution, subjects)
        figures = metrics.evaluate(predictions, limits.bootstrap, limits.seed, test.constant)
        found.append(Answers(CONSTANT, way, f"{CONSTANTS[way]} {number:g}", predictions, figures))
    return found


def _plain(readings: TestReadings, way: str) -> Array:
    """Median or mean of the model's distribution as it is."""
    q = balanced(readings.log_p, np.zeros(len(readings.numbers)), 0.0)
    return answer(q, readings.numbers, "median" if way == "median" else "mean")


def _test_curve(rule: AnswerRule, log_p: Array, test: TestSet, reference: Array) -> list[Point]:
    known = rule.validation
    judged = TuneSet(log_p, test.targets, test.shots, reference)
    balances = [point.value for point in rule.balance.curve]
    return balance_curve(judged, known.values, known.log_prior, known.trained, rule.statistic, balances)
