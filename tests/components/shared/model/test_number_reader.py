"""The number reader equals scoring each number by itself, whatever the batches."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.errors import ConcordError
from components.shared.model.answer_distribution import one_by_one
from components.shared.model.generation import image_batches, inference, prepared
from components.shared.model.number_reader import (
    FLOOR,
    NumberReader,
    collect_log_probabilities,
    log_probabilities,
    why_one_by_one,
)
from components.shared.rows.rows import read_rows, read_table
from tests.support.gray_world import GrayWorld


@pytest.fixture(scope="module")
def reader(gray: GrayWorld) -> NumberReader:
    return NumberReader.load(gray.grpo, gray.settings.reader(), 0.5)


def collected(reader: NumberReader, gray: GrayWorld, batch_size: int, rows: int = 256) -> tuple[list[str], np.ndarray]:
    batches = read_rows(gray.ingest, "test", rows)
    return collect_log_probabilities(reader.model, reader.processor, batches, reader.tree, batch_size)


def test_log_probabilities_equal_those_of_each_number_by_itself(reader: NumberReader, gray: GrayWorld) -> None:
    ids, found = collected(reader, gray, 8)
    assert ids == read_table(gray.ingest, "test", ["id"])["id"].to_pylist()
    parts: list[Any] = []
    for _, images, questions in image_batches(read_rows(gray.ingest, "test", 8), 8):
        with inference(reader.model):
            batch = prepared(reader.model, reader.processor, images, questions)
            inputs = batch.pop("input_ids"), batch.pop("attention_mask"), batch
            parts.append(one_by_one(reader.model, *inputs, reader.tree).double().numpy())
    p, reference = np.exp(found), np.exp(np.concatenate(parts))
    np.testing.assert_allclose(p, reference, atol=2 * FLOOR)
    likely = reference > 100 * FLOOR
    np.testing.assert_allclose(found[likely], np.concatenate(parts)[likely], atol=1e-3)


def test_batches_do_not_matter(reader: NumberReader, gray: GrayWorld) -> None:
    ids, found = collected(reader, gray, 24)
    for batch_size, rows in ((1, 256), (7, 5)):
        same, other = collected(reader, gray, batch_size, rows)
        assert same == ids
        np.testing.assert_allclose(np.exp(other), np.exp(found), atol=1e-5)


def test_read_gives_what_the_rule_reads(reader: NumberReader, gray: GrayWorld) -> None:
    pieces = list(reader.read(read_rows(gray.ingest, "test", 9), 9))
    batches = read_rows(gray.ingest, "test", 9)
    scored = list(log_probabilities(reader.model, reader.processor, batches, reader.tree, 9))
    assert [ids for ids, _ in pieces] == [ids for ids, _ in scored]
    for (_, read), (_, log_p) in zip(pieces, scored, strict=True):
        assert reader.rule is not None
        expected = reader.rule.read(log_p)
        for name in ("value", "low", "high", "mass"):
            np.testing.assert_array_equal(getattr(read, name), getattr(expected, name))
    values = np.concatenate([read.value for _, read in pieces])
    targets = read_table(gray.ingest, "test", ["target"])["target"].to_numpy()
    assert np.abs(values - targets).max() <= 1, "the trained model has learned the task"


def test_models_whose_prefix_cannot_be_shared_give_the_same(
    reader: NumberReader, gray: GrayWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = collected(reader, gray, 8)[1]
    assert why_one_by_one(reader.model) is None
    monkeypatch.setattr(reader.model.config, "model_type", "another")
    assert why_one_by_one(reader.model) is not None
    np.testing.assert_allclose(np.exp(collected(reader, gray, 8)[1]), np.exp(shared), atol=1e-5)


def test_without_rows_there_are_no_readings(reader: NumberReader) -> None:
    ids, log_p = collect_log_probabilities(reader.model, reader.processor, [], reader.tree, 4)
    assert (ids, log_p.shape) == ([], (0, 101))


def test_a_folder_without_validation_distributions_is_reported(gray: GrayWorld, tmp_path: Path) -> None:
    for file in gray.sft.iterdir():
        if file.name != "validation.parquet":
            shutil.copy(file, tmp_path)
    with pytest.raises(ConcordError, match=r"validation\.parquet: missing"):
        NumberReader.load(tmp_path, gray.settings.reader(), 0.5)
