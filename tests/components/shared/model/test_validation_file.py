"""validation.parquet: round trip, and errors."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.errors import ConcordError
from components.settings import Settings
from components.shared.model.validation_file import FILE, label_counts, read_validation, write_validation
from components.shared.scoring.answer_rule import ValidationDistributions


def distributions(rows: int) -> ValidationDistributions:
    rng = np.random.default_rng(0)
    log_p = np.log(rng.dirichlet(np.ones(4), rows))
    log_p[:, 0] = -np.inf
    targets = rng.choice([0.5, 0.6, 0.7, 0.8], rows)
    warm_start = np.where(rng.random(rows) < 0.5, np.nan, targets)
    return ValidationDistributions(
        np.array([0.5, 0.6, 0.7, 0.8]), np.array([3.0, 0, 7, 1]), np.array(["few", "few", "many", "medium"]), 2.0,
        0.25, rng.random(rows) < 0.5, targets, log_p, warm_start,
    )  # fmt: skip


@pytest.mark.parametrize("rows", [5, 0])
def test_round_trip(tmp_path: Path, rows: int) -> None:
    known, ids = distributions(rows), [f"id-{k}" for k in range(rows)]
    write_validation(tmp_path, ids, known)
    found_ids, found = read_validation(tmp_path)
    assert found_ids == ids
    for field in fields(ValidationDistributions):
        ours, theirs = getattr(found, field.name), getattr(known, field.name)
        if isinstance(theirs, np.ndarray) and theirs.dtype.kind == "f":
            np.testing.assert_allclose(ours, theirs, rtol=1e-6)
        else:
            np.testing.assert_array_equal(ours, theirs)
    assert (found.trained, found.per_bin) == (0.25, 2.0)


def test_the_same_distributions_give_the_same_bytes(tmp_path: Path) -> None:
    contents = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_validation(tmp_path / name, [f"id-{k}" for k in range(5)], distributions(5))
        contents.append((tmp_path / name / FILE).read_bytes())
    assert contents[0] == contents[1]


def test_a_missing_file_is_reported_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConcordError, match=r"validation\.parquet: missing.* Train the model with this version"):
        read_validation(tmp_path)


def test_a_broken_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"PAR1 and no more")
    with pytest.raises(ConcordError, match=r"validation\.parquet: cannot be read"):
        read_validation(tmp_path)
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / FILE)
    with pytest.raises(ConcordError, match=r"validation\.parquet: cannot be read"):
        read_validation(tmp_path)


def test_a_truncated_file_is_reported(tmp_path: Path) -> None:
    write_validation(tmp_path, [f"id-{k}" for k in range(5)], distributions(5))
    whole = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConcordError, match=r"validation\.parquet: cannot be read"):
        read_validation(tmp_path)


def test_label_counts_by_hand(settings: Settings) -> None:
    changes = {"low": 0, "high": 1, "resolution": 0.1, "bin_width": 0.5, "many": 2, "few": 1}
    task = settings.task.model_copy(update=changes)
    counts, shots, per_bin = label_counts(task, np.array([0.0, 0.3, 0.3, 0.9]))
    assert counts.tolist() == [1, 0, 0, 2, 0, 0, 0, 0, 0, 1, 0]
    assert shots.tolist() == ["many"] * 5 + ["medium"] * 5 + ["few"], "three images in the first bin, one in the next"
    assert per_bin == pytest.approx(5)
