"""The tables that the expectations check."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from components.errors import ConcordError
from components.shared.rows.rows import SPLITS, Row, ShardWriter
from components.validate.tables import field_table, row_table, summarise
from tests.support.raw_folder import encoded, write_params


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    targets = {"train": [1.0, 1.0, 2.5, float("nan"), float("inf")], "val": [1.0], "test": [2.0, 7.0]}
    seed = 0
    for split in SPLITS:
        with ShardWriter(tmp_path, split, shard_mb=256) as writer:
            for target in targets[split]:
                data = encoded(seed) if (split, target) != ("train", 2.5) else b"not an image"
                writer.add(Row(f"{split} {seed}", data, target, "How much?", f"t.csv:{seed}"))
                seed += 1
    return tmp_path


def test_table_has_one_row_per_image(shards: Path) -> None:
    rows = row_table(shards, write_params(shards / "params.yaml").task)
    assert rows["split"].tolist() == ["train"] * 5 + ["val"] + ["test"] * 2
    assert rows["id"].tolist()[:2] == ["train 0", "train 1"]
    assert rows["origin"].tolist()[5] == "t.csv:5"
    assert rows["decodes"].tolist() == [True, True, False, True, True, True, True, True]
    assert rows["width"].tolist()[:2] == [12, 12]
    assert rows["finite"].tolist() == [True, True, True, None, False, True, True, True]
    assert rows["off_step"].tolist()[:3] == [0, 0, 0.5]
    assert rows["off_step"].isna().tolist() == [False, False, False, True, True, False, False, False]


@pytest.mark.parametrize("target", [0.3, 0.7, 8.9, 1.1, 300.1])
def test_multiples_of_a_tenth_are_on_step(tmp_path: Path, target: float) -> None:
    for split in SPLITS:
        with ShardWriter(tmp_path, split, shard_mb=256) as writer:
            writer.add(Row(split, encoded(0), target, "?", "t.csv:2"))
    task = write_params(tmp_path / "params.yaml", task={"resolution": 0.1}).task
    assert row_table(tmp_path, task)["off_step"].max() < 1e-6


def frame(**splits: list[float]) -> pd.DataFrame:
    rows = [(split, target) for split, targets in splits.items() for target in targets]
    table = pd.DataFrame(rows, columns=["split", "target"])
    table = table.assign(peak=None, frames=1)
    return table.assign(
        origin=[f"t.csv:{k}" for k in range(len(table))],
        content=[str(k) for k in range(len(table))],
        hash=None,
        subject=None,
    )


def test_imbalance_and_shots(tmp_path: Path) -> None:
    task = write_params(tmp_path / "params.yaml").task  # many > 12, few < 5, range 0 to 100
    rows = frame(train=[1.0] * 20 + [2.0] * 5 + [3.0] * 4, val=[1.0], test=[1.0] * 3 + [2.0, 3.0, 4.0, np.nan, 101.0])
    summary = summarise(rows, task, 8)
    assert summary.figures == {
        "images_in_two_splits": 0,
        "near_duplicates": 0,
        "image_range": 1.0,
        "image_frames": 0,
        "images_with_two_targets": 0,
        "train_imbalance": 5.0,
        "val_imbalance": 1.0,
        "test_imbalance": 2.0,
        "test_unseen": 1 / 6,
        "test_rows_many": 3,
        "test_rows_medium": 1,
        "test_rows_few": 2,
    }
    assert summary.examples["train_imbalance"] == ["train: 20 rows with label 1, 4 with 3, 9.7 on average"]
    assert summary.examples["test_unseen"] == ["1 rows with label 4"]
    assert summary.examples["test_rows_few"] == ["train has 4 few-shot rows"]


def test_leakage_counts_pictures_in_two_splits_but_not_repeats_in_one_split(tmp_path: Path) -> None:
    rows = frame(train=[1.0, 1.0, 2.0], val=[1.0], test=[2.0, 3.0])
    rows["content"] = ["a", "a", "b", "c", "b", None]
    summary = summarise(rows, write_params(tmp_path / "params.yaml").task, 8)
    assert summary.figures["images_in_two_splits"] == 1
    assert summary.examples["images_in_two_splits"] == ["t.csv:2 (train) = t.csv:4 (test)"]


def test_near_duplicates_are_counted_in_the_later_split_without_identical_pictures(tmp_path: Path) -> None:
    rows = frame(train=[1.0, 2.0], val=[1.0], test=[2.0, 3.0])
    noise = np.random.default_rng(0).integers(0, 256, (3, 32), np.uint8)
    near = noise[0].copy()
    near[[1, 9]] ^= 3
    rows["hash"] = [h.tobytes() for h in (noise[0], noise[1], near, noise[1], noise[2])]
    rows["content"] = ["a", "b", "c", "b", "d"]
    summary = summarise(rows, write_params(tmp_path / "params.yaml").task, 8)
    assert summary.figures["near_duplicates"] == 1
    assert summary.examples["near_duplicates"] == ["t.csv:2 (val) ~ t.csv:0 (train), 4 of 256 bits apart"]
    assert summary.figures["images_in_two_splits"] == 1
    assert summarise(rows, write_params(tmp_path / "params.yaml").task, 3).figures["near_duplicates"] == 0


def test_picture_with_two_targets_is_counted_within_and_between_splits(tmp_path: Path) -> None:
    rows = frame(train=[1.0, 2.0, 2.0, 5.0], val=[1.0], test=[np.nan])
    rows["content"] = ["a", "a", "b", "b", "c", "c"]
    summary = summarise(rows, write_params(tmp_path / "params.yaml").task, 8)
    assert summary.figures["images_with_two_targets"] == 2
    assert summary.examples["images_with_two_targets"][0] == "t.csv:0 (target 1) = t.csv:1 (target 2)"


def test_subject_in_two_splits_is_counted_and_rows_without_subject_are_not(tmp_path: Path) -> None:
    rows = frame(train=[1.0, 2.0, 3.0], val=[1.0, 1.0], test=[2.0])
    task = write_params(tmp_path / "params.yaml").task
    assert "subjects_in_two_splits" not in summarise(rows, task, 8).figures
    rows["subject"] = ["ann", "ann", None, "bob", None, "ann"]
    summary = summarise(rows, task, 8)
    assert summary.figures["subjects_in_two_splits"] == 1
    assert summary.examples["subjects_in_two_splits"] == ["'ann': t.csv:0 (train), t.csv:5 (test)"]


def test_undecodable_images_do_not_count_as_leakage(tmp_path: Path) -> None:
    rows = frame(train=[1.0], val=[1.0], test=[2.0]).assign(content=None)
    assert summarise(rows, write_params(tmp_path / "params.yaml").task, 8).figures["images_in_two_splits"] == 0


def test_data_without_valid_targets_are_handled(tmp_path: Path) -> None:
    rows = frame(train=[np.nan], val=[1.0], test=[np.inf])
    figures = summarise(rows, write_params(tmp_path / "params.yaml").task, 8).figures
    assert figures["test_rows_few"] == 0
    assert figures["train_imbalance"] == 1


def test_fields_are_compared_for_each_shard(shards: Path) -> None:
    fields = field_table(shards)
    assert set(fields["shard"]) == {f"{split}-00000.parquet" for split in SPLITS}
    assert (fields["expected"] == fields["found"]).all()
    assert len(fields) == 18


def test_truncated_shard_is_named(shards: Path) -> None:
    path = shards / "val-00000.parquet"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(
        ConcordError, match=r"val-00000\.parquet: not a complete Parquet file .* Run the ingest step again"
    ):
        field_table(shards)
