"""The tail figure and the numbers behind it."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from components.settings import Task
from components.shared.reporting.tail import COLOURS, tail_figures, write_tail
from components.shared.rows.histogram import label_histogram
from tests.support.raw_folder import SHARED_DATA, write_params

TARGETS = {"train": [1.0] * 13 + [2.0] * 12 + [3.0] * 4, "val": [1.0], "test": [1.0, 2.0, 3.0, 4.0]}


@pytest.fixture
def task(tmp_path: Path) -> Task:
    return write_params(tmp_path / "params.yaml", task={"low": 0, "high": 5}).task  # many > 12, few < 5


def shot_groups_drawn(path: Path) -> set[str]:
    """Shot groups whose colour fills more pixels than its patch in the legend."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    distance = {shot: np.abs(pixels - ImageColor.getrgb(colour)).max(axis=2) for shot, colour in COLOURS.items()}
    return {shot for shot, pixels in distance.items() if (pixels < 3).sum() > 3000}


def test_numbers_match_hand_computed_values(task: Task) -> None:
    figures = tail_figures(label_histogram(TARGETS, task), task)
    assert figures["imbalance"] == 13 / 4
    assert figures["test_share"] == {"many": 0.25, "medium": 0.25, "few": 0.5}
    assert figures["share"]["train"] == {"many": 13 / 29, "medium": 12 / 29, "few": 4 / 29}
    assert figures["share"]["val"] == {"many": 1, "medium": 0, "few": 0}
    assert figures["regions"] == [
        {"from": 0, "to": 0, "shot": "few"},
        {"from": 1, "to": 1, "shot": "many"},
        {"from": 2, "to": 2, "shot": "medium"},
        {"from": 3, "to": 5, "shot": "few"},
    ]


def test_regions_with_wide_bins_and_decimal_labels(tmp_path: Path) -> None:
    changes = {"low": 0, "high": 0.9, "resolution": 0.1, "bin_width": 0.5}
    task = write_params(tmp_path / "params.yaml", task=changes).task
    figures = tail_figures(label_histogram({"train": [0.1] * 13, "val": [], "test": []}, task), task)
    assert figures["regions"] == [{"from": 0, "to": 0, "shot": "many"}, {"from": 0.5, "to": 0.5, "shot": "few"}]
    assert figures["share"]["test"] == {"many": None, "medium": None, "few": None}


def test_figure_is_deterministic_and_shows_the_shot_groups(task: Task, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_tail(label_histogram(TARGETS, task), task, tmp_path / f"{name}.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert shot_groups_drawn(tmp_path / "a.png") == {"many", "medium", "few"}
    common = {"train": [1.0] * 20, "val": [1.0], "test": [1.0]}
    write_tail(label_histogram(common, task), task, tmp_path / "common.png")
    assert shot_groups_drawn(tmp_path / "common.png") == {"many"}


@pytest.mark.parametrize("targets", [{}, {"train": [1.0]}, {"test": [1.0]}])
def test_empty_splits_are_drawn(task: Task, tmp_path: Path, targets: dict[str, list[float]]) -> None:
    empty: dict[str, list[float]] = {"train": [], "val": [], "test": []}
    histogram = label_histogram(empty | targets, task)
    write_tail(histogram, task, tmp_path / "tail.png")
    assert Image.open(tmp_path / "tail.png").width > 1000
    assert tail_figures(histogram, task)["regions"] == [{"from": 0, "to": 5, "shot": "few"}]


def test_agedb_has_the_published_shares(tmp_path: Path) -> None:
    table = SHARED_DATA / "agedb" / "agedb.csv"
    if not table.is_file():
        pytest.skip(f"{table} is missing")
    targets: dict[str, list[float]] = {"train": [], "val": [], "test": []}
    for row in csv.DictReader(io.StringIO(table.read_text(encoding="utf-8"))):
        targets[row["split"]].append(float(row["age"]))
    task = write_params(tmp_path / "params.yaml", task={"high": 101, "many": 100, "few": 20}).task
    figures = tail_figures(label_histogram(targets, task), task)
    assert figures["test_rows"] == {"many": 1530, "medium": 448, "few": 162}
    assert figures["regions"][:3] == [
        {"from": 0, "to": 16, "shot": "few"},
        {"from": 17, "to": 19, "shot": "medium"},
        {"from": 20, "to": 68, "shot": "many"},
    ]
