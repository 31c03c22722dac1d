"""Predictions files: round trip, unknown columns, and errors."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.errors import ConcordError
from components.settings import Settings
from components.shared.reporting.predictions import (
    READ,
    SCHEMA,
    WAYS,
    predictions_file,
    read_predictions,
    to_predictions,
    write_predictions,
)

TARGETS = np.array([10.0, 20.0, 30.0])
VALUES = np.array([11.0, np.nan, 33.0])
READ_OFF = {name: TARGETS + k for k, name in enumerate(READ)}


def written(folder: Path, read: dict[str, np.ndarray]) -> pa.Table:
    path = predictions_file(folder, "sft")
    texts = ["<answer> 11 </answer>", "none", "<answer> 33 </answer>"]
    write_predictions(path, ["a", "b", "c"], TARGETS, ["many", "medium", "few"], [None] * 3, texts, VALUES, read)
    return read_predictions(path)


def test_round_trip(tmp_path: Path, settings: Settings) -> None:
    table = written(tmp_path, READ_OFF)
    assert table.schema.equals(SCHEMA)
    assert table["value"].to_pylist() == [11.0, None, 33.0]
    for way in WAYS:
        predictions = to_predictions(table, settings.task, way)
        np.testing.assert_array_equal(predictions.values, VALUES if way == "text" else READ_OFF[way])
        np.testing.assert_array_equal(predictions.shots, ["many", "medium", "few"])
        np.testing.assert_array_equal(predictions.targets, TARGETS)


def test_what_is_unknown_is_null(tmp_path: Path) -> None:
    table = written(tmp_path, {"median": TARGETS})
    assert table["median"].to_pylist() == [10.0, 20.0, 30.0]
    assert {name: table[name].null_count for name in READ} == {name: 0 if name == "median" else 3 for name in READ}


def test_a_missing_or_other_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConcordError, match="cannot be read as predictions"):
        read_predictions(tmp_path / "predictions-sft.parquet")
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "predictions-sft.parquet")
    with pytest.raises(ConcordError, match=r"columns .*, expected .*Run the evaluate step"):
        read_predictions(tmp_path / "predictions-sft.parquet")
