"""The histogram of labels and its metrics."""

import csv
import io
import time
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest

from components.shared.rows.histogram import distribution_metrics, histogram_csv, label_histogram, shot_ranges
from components.shared.scoring.shots import ShotTable
from tests.support.raw_folder import SHARED_DATA, write_params

TARGETS = {"train": [1.0] * 13 + [2.0] * 12 + [3.0] * 4 + [9.0] * 5, "val": [1.0], "test": [1.0, 2.0, 3.0, 4.0]}


def test_bins_shots_and_metrics(tmp_path: Path) -> None:
    task = write_params(tmp_path / "params.yaml").task  # many > 12, few < 5
    histogram = label_histogram(TARGETS, task)
    assert histogram_csv(histogram, task) == (
        "label,train,val,test,shot\n1,13,1,1,many\n2,12,0,1,medium\n3,4,0,1,few\n4,0,0,1,few\n9,5,0,0,medium\n"
    )
    assert distribution_metrics(histogram) == {
        "rows": {"train": 34, "val": 1, "test": 4},
        "label_bins": {"train": 4, "val": 1, "test": 4},
        "train_bins_per_shot": {"many": 1, "medium": 2, "few": 1},
        "imbalance": 13 / 4,
        "test_rows": {"many": 1, "medium": 1, "few": 2},
        "test_share": {"many": 0.25, "medium": 0.25, "few": 0.5},
    }


@pytest.mark.parametrize(
    ("resolution", "width", "expected"),
    [
        (0.1, 0.1, ["0.3,2", "0.7,1", "-0.2,1"]),
        (0.1, 0.5, ["0.0,2", "0.5,1", "-0.5,1"]),
        (0.25, 0.25, ["0.25,2", "0.75,1", "-0.25,1"]),
    ],
)
def test_decimal_labels_are_the_lower_ends_of_their_bins(
    tmp_path: Path, resolution: float, width: float, expected: list[str]
) -> None:
    task = write_params(tmp_path / "params.yaml", task={"resolution": resolution, "bin_width": width}).task
    targets = {"train": [0.1 + 0.2, 0.3, 0.7, -0.2], "val": [], "test": []}
    lines = histogram_csv(label_histogram(targets, task), task).splitlines()[1:]
    assert sorted(",".join(line.split(",")[:2]) for line in lines) == sorted(expected)


def test_targets_far_out_of_range_are_counted(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    task = write_params(tmp_path / "params.yaml").task
    histogram = label_histogram({"train": [1.0, 1e300], "val": [], "test": []}, task)
    assert sum(bin.rows["train"] for bin in histogram) == 2
    assert distribution_metrics(histogram)["test_share"] == {"many": None, "medium": None, "few": None}
    assert not recwarn


def test_agedb_has_the_published_shot_counts(tmp_path: Path) -> None:
    table = SHARED_DATA / "agedb" / "agedb.csv"
    if not table.is_file():
        pytest.skip(f"{table} is not there")
    targets: dict[str, list[float]] = {"train": [], "val": [], "test": []}
    for row in csv.DictReader(io.StringIO(table.read_text(encoding="utf-8"))):
        targets[row["split"]].append(float(row["age"]))
    task = write_params(tmp_path / "params.yaml", task={"many": 100, "few": 20}).task
    metrics = distribution_metrics(label_histogram(targets, task))
    assert metrics["train_bins_per_shot"] == {"many": 51, "medium": 16, "few": 33}
    assert metrics["rows"] == {"train": 12208, "val": 2140, "test": 2140}
    assert metrics["imbalance"] == 353


def test_shot_ranges_are_runs_of_label_bins_with_the_same_shot_group() -> None:
    shots = ShotTable({0: 200, 1: 150, 2: 50, 4: 5}, width=5, resolution=1)
    assert shot_ranges(shots, 3, 24) == [(-0.5, 9.5, "many"), (9.5, 14.5, "medium"), (14.5, 24.5, "few")]


def test_shot_ranges_are_those_of_a_walk_over_all_bins() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        bins = random.choice(60, random.integers(0, 20), replace=False) - 20
        shots = ShotTable({int(bin): int(random.choice([1, 19, 20, 100, 101])) for bin in bins}, width=2, resolution=1)
        low, high = sorted(random.choice(80, 2, replace=False) - 40)
        walked = [(bin, str(shots.shot([bin * 2])[0])) for bin in range(low // 2, high // 2 + 1)]
        found = shot_ranges(shots, low, high)
        assert [(shot, (end - start) / 2) for start, end, shot in found] == [
            (shot, len(list(run))) for shot, run in groupby(shot for _, shot in walked)
        ]
        assert (found[0][0], found[-1][1]) == (2 * (low // 2) - 0.5, 2 * (high // 2) + 1.5)


def test_a_wide_range_takes_no_longer_than_its_rows() -> None:
    """24 rows of a range of ten million numbers: no loop over the range."""
    shots = ShotTable.of(np.arange(24) * 400_000, 1, 1, many=3, few=1)
    start = time.monotonic()
    assert len(shot_ranges(shots, 0, 10_000_000)) == 48
    assert time.monotonic() - start < 1
