"""The source `folder`: rows, their order and their splits."""

import hashlib
import os
import random
from collections import Counter
from pathlib import Path

import pytest

from components.errors import ConcordError
from components.ingest.sources.folder import read_folder
from components.shared.rows.rows import SPLITS
from tests.support.raw_folder import SHARED_DATA, RawFolder, write_params


@pytest.fixture
def raw(tmp_path: Path) -> RawFolder:
    return RawFolder(tmp_path / "data")


def given_splits(raw: RawFolder) -> dict:
    """Adds a split column to the table, and returns the settings for it."""
    raw.rows = [[*row, SPLITS[k % 3]] for k, row in enumerate(raw.rows)]
    raw.write(header=["image", "reading", "part"])
    return {"split": "given", "split_column": "part"}


def test_rows_contain_the_unchanged_image_files(raw: RawFolder) -> None:
    settings = write_params(raw.folder / "params.yaml", task={"question": "How much?"})
    rows = {row.id: row for _, row in read_folder(raw.folder, settings)}
    assert len(rows) == len(raw.rows)
    row = rows["images/041.png"]
    assert row.image == (raw.folder / "images" / "041.png").read_bytes()
    assert (row.target, row.question, row.origin) == (50.0, "How much?", "labels.csv:43 images/041.png")


def test_the_balanced_rule_counts_label_bins(raw: RawFolder) -> None:
    settings = write_params(raw.folder / "params.yaml", task={"bin_width": 50})
    counts = Counter((split, row.target >= 50) for split, row in read_folder(raw.folder, settings))
    # 40 rows are below 50 and 29 are not; at most 4 of each go to val and to test.
    assert counts == {
        ("train", False): 32, ("val", False): 4, ("test", False): 4,
        ("train", True): 21, ("val", True): 4, ("test", True): 4,
    }  # fmt: skip


def test_given_splits_are_kept_and_shuffled(raw: RawFolder) -> None:
    settings = write_params(raw.folder / "params.yaml", ingest=given_splits(raw))
    rows = list(read_folder(raw.folder, settings))
    assert {row.id: split for split, row in rows} == {image: split for image, _, split in raw.rows}
    assert [split for split, _ in rows] == sorted((split for split, _ in rows), key=SPLITS.index)
    train = [row.target for split, row in rows if split == "train"]
    assert train not in (sorted(train), sorted(train, reverse=True))


@pytest.mark.parametrize("split", ["balanced", "given"])
def test_rows_do_not_depend_on_the_order_of_the_table(raw: RawFolder, split: str) -> None:
    ingest = given_splits(raw) if split == "given" else {}
    settings = write_params(raw.folder / "params.yaml", ingest=ingest)
    before = [(split, row.id) for split, row in read_folder(raw.folder, settings)]
    random.Random(1).shuffle(raw.rows)
    raw.write(header=["image", "reading", "part"][: len(raw.rows[0])])
    assert [(split, row.id) for split, row in read_folder(raw.folder, settings)] == before


def test_an_empty_split_is_an_error(raw: RawFolder) -> None:
    settings = write_params(raw.folder / "params.yaml", ingest=given_splits(raw))
    raw.rows = [[*row[:2], "train" if row[2] == "val" else row[2]] for row in raw.rows]
    raw.write(header=["image", "reading", "part"])
    with pytest.raises(ConcordError, match=r"labels\.csv: 69 rows, none of them in val\. .*ingest\.split: balanced"):
        next(read_folder(raw.folder, settings))


def test_balanced_without_three_rows_of_any_label_is_an_error(raw: RawFolder) -> None:
    raw.rows = [[row[0], str(k)] for k, row in enumerate(raw.rows)]
    raw.write()
    with pytest.raises(ConcordError, match=r"none of them in val or test\. .*widen task\.bin_width"):
        next(read_folder(raw.folder, write_params(raw.folder / "params.yaml")))


@pytest.mark.parametrize("csv", ["../labels.csv", "/etc/passwd", "a/../../labels.csv"])
def test_a_table_outside_the_folder_is_an_error(raw: RawFolder, csv: str) -> None:
    settings = write_params(raw.folder / "params.yaml", ingest={"csv": csv})
    with pytest.raises(ConcordError, match=r"ingest\.csv: .* is outside"):
        next(read_folder(raw.folder, settings))


def test_image_paths_are_relative_to_the_table(raw: RawFolder) -> None:
    os.rename(raw.folder, raw.folder.parent / "moved")
    (raw.folder).mkdir()
    os.rename(raw.folder.parent / "moved", raw.folder / "version 2")
    settings = write_params(raw.folder / "params.yaml", ingest={"csv": "version 2/labels.csv"})
    assert len(list(read_folder(raw.folder, settings))) == len(raw.rows)


def test_a_missing_table_lists_the_existing_ones(raw: RawFolder) -> None:
    settings = write_params(raw.folder / "params.yaml", ingest={"csv": "lables.csv"})
    with pytest.raises(ConcordError, match=r"lables\.csv: no such file\. Tables there: labels\.csv\."):
        next(read_folder(raw.folder, settings))


def test_the_error_for_a_file_deleted_during_reading_names_its_row(raw: RawFolder) -> None:
    settings = write_params(raw.folder / "params.yaml")
    rows = read_folder(raw.folder, settings)  # this has checked the table; iterating reads the images
    for image in (raw.folder / "images").iterdir():
        image.unlink()
    with pytest.raises(ConcordError, match=r"labels\.csv:\d+: images/\d+\.png: cannot be read \(No such file"):
        list(rows)  # some rows have been read ahead


@pytest.mark.parametrize(
    ("name", "count", "task", "ingest"),
    [
        ("meter-digits", 7467, {"high": 10, "resolution": 0.1, "bin_width": 0.1}, {"target_column": "reading"}),
        ("han-strokes", 20902, {"low": 1}, {"image_column": "path", "target_column": "strokes"}),
    ],
)
def test_real_folders_are_read_completely(tmp_path: Path, name: str, count: int, task: dict, ingest: dict) -> None:
    folder = SHARED_DATA / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    settings = write_params(tmp_path / "params.yaml", task=task, ingest={**ingest, "max_per_label": 30})
    targets: dict[str, Counter[float]] = {split: Counter() for split in SPLITS}
    contents = set()
    for split, row in read_folder(folder, settings):
        targets[split][row.target] += 1
        contents.add(hashlib.sha256(row.image).digest())
    assert sum(counts.total() for counts in targets.values()) == count == len(contents)
    for target in {target for counts in targets.values() for target in counts}:
        rows = [targets[split][target] for split in SPLITS]
        assert min(rows) >= 1 if sum(rows) >= 3 else rows[1:] == [0, 0]
        assert rows[1:] == [30, 30] if sum(rows) > 180 else max(rows[1:]) <= 30


def test_the_error_for_a_table_without_any_images_fits_on_a_screen(tmp_path: Path) -> None:
    folder = SHARED_DATA / "agedb"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    columns = {"csv": "agedb.csv", "image_column": "path", "target_column": "age"}
    settings = write_params(tmp_path / "params.yaml", ingest=columns)
    with pytest.raises(ConcordError) as caught:
        next(read_folder(folder, settings))
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("agedb.csv: 16488 errors")
    assert lines[-1] == "  and 16478 more (missing file: 16478)"
    assert len(lines) == 12
