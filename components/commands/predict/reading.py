"""Reads images with a model: one result per image, in the order of the input."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np
import pyarrow as pa

from components.commands.predict.flags import Flags
from components.commands.predict.images import Image, with_data
from components.commands.predict.results import Result
from components.errors import ConcordError
from components.shared.io.prefetch import prefetch
from components.shared.io.progress import with_progress
from components.shared.model.number_reader import NumberReader
from components.shared.rows.images import load_decoders
from components.shared.scoring.answer_rule import Readings
from components.shared.scoring.errors import Array

Rank = Literal["rare", "unsure"]
AHEAD = 4  # files per task of the threads that read ahead


def read_images(
    reader: NumberReader, images: Iterable[Image], batch_size: int, total: int, rank: Rank | None
) -> Iterator[Result]:
    """Yields a result per image, in order; holds only a few batches of images, and shows progress.

    Args:
        total: number of images, for the progress bar.
        rank: which score the results get.

    Raises:
        ConcordError: the model has no such score.
    """
    _check_rank(reader, rank)
    load_decoders()
    batches = _BatchReader(reader, Flags.of(reader.rule), rank)
    loaded = prefetch(with_data, with_progress(images, "reading", total), AHEAD)
    while batch := list(islice(loaded, batch_size)):
        yield from batches.results(batch)


def _check_rank(reader: NumberReader, rank: Rank | None) -> None:
    if rank is None:
        return
    if reader.rule is None:
        raise ConcordError("--rank: this model answers with its text (answer.from), which has no probabilities.")
    if rank == "rare" and not _few(reader).any():
        raise ConcordError("--rank rare: no number of this model's task is few-shot. Use --rank unsure.")


def _few(reader: NumberReader) -> np.ndarray:
    assert reader.rule is not None
    return np.asarray(reader.rule.validation.shots == "few")


@dataclass(frozen=True)
class _BatchReader:
    """Reads a batch of images.

    Attributes:
        reader: the model.
        flags: which numbers are flagged.
        rank: which score the results get.
    """

    reader: NumberReader
    flags: Flags
    rank: Rank | None

    def results(self, images: list[Image]) -> list[Result]:
        """A result per image."""
        errors = {str(k): image.error for k, image in enumerate(images) if image.error is not None}
        found = self._read(_rows(images, self.reader.task.question), errors)
        return [
            Result(image.name, error=errors[str(k)]) if str(k) in errors else self._result(image, *found[str(k)])
            for k, image in enumerate(images)
        ]

    def _read(self, rows: pa.RecordBatch, errors: dict[str, str]) -> dict[str, tuple[Readings, float]]:
        """Reads all rows; `errors` receives id -> reason of those that cannot be read.

        Returns:
            Id -> reading (arrays of one) and score.
        """
        found: dict[str, tuple[Readings, float]] = {}
        for ids, read, scores in self._stream(rows, errors):
            for k, id in enumerate(ids):
                one = Readings(*(column[k : k + 1] for column in (read.value, read.low, read.high, read.mass)))
                found[id] = one, float(scores[k])
        return found

    def _stream(self, rows: pa.RecordBatch, errors: dict[str, str]) -> Iterator[tuple[list[str], Readings, Array]]:
        """Yields ids, readings and scores `(U,)`."""
        size = max(rows.num_rows, 1)
        if self.rank == "rare":
            rule, few = self.reader.rule, _few(self.reader)
            assert rule is not None
            for ids, log_p in self.reader.log_probabilities([rows], size, errors):
                yield ids, rule.read(log_p), rule.distribution(log_p)[:, few].sum(axis=1)
            return
        for ids, read in self.reader.read([rows], size, errors):
            yield ids, read, read.high - read.low

    def _result(self, image: Image, read: Readings, score: float) -> Result:
        value, low, high, mass = (_number(column[0]) for column in (read.value, read.low, read.high, read.mass))
        if value is None:
            task = self.reader.task
            return Result(image.name, error=f"the model's text has no number from {task.low:g} to {task.high:g}")
        return Result(image.name, value, low, high, mass, flag=self.flags.flag(read, 0), score=score)


def _rows(images: list[Image], question: str) -> pa.RecordBatch:
    """The images without an error, as rows whose ids are their positions."""
    ids = [str(k) for k, image in enumerate(images) if image.error is None]
    data = [{"bytes": image.data} for image in images if image.error is None]
    return pa.record_batch(
        {
            "id": pa.array(ids, pa.string()),
            "image": pa.array(data, pa.struct([("bytes", pa.large_binary())])),
            "question": pa.array([question] * len(ids), pa.string()),
        }
    )


def _number(value: float) -> float | None:
    """The value without the noise of binary fractions: 0.3 instead of 0.30000000000000004; None for NaN."""
    return None if math.isnan(value) else float(f"{value:.10g}")
