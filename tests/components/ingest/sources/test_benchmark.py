"""The published tables in their real formats, read with the settings of their recipes."""

import csv
import io
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from components.errors import ConcordError
from components.ingest.sources.benchmark import png_name, scale_decimal
from components.ingest.step import SOURCES
from components.settings import Settings, load_settings
from components.shared.rows.rows import SPLITS
from components.shared.scoring.shots import ShotTable, label_bins
from tests.support.raw_folder import ROOT, SHARED_DATA, encoded


def recipe(name: str, tmp_path: Path, *, task: dict[str, Any] | None = None, **ingest: Any) -> Settings:
    raw = yaml.safe_load((ROOT / "pipelines" / "recipes" / f"{name}-3b.yaml").read_text(encoding="utf-8"))
    raw["ingest"] |= ingest
    raw["task"] |= task or {}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    return load_settings(tmp_path / "params.yaml")


def read_rows(folder: Path, settings: Settings) -> list[tuple[str, Any]]:
    return list(SOURCES[settings.ingest.source](folder, settings))


def write(folder: Path, name: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / name, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def write_image(folder: Path, path: str, seed: int = 0) -> None:
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_bytes(encoded(seed, "PNG" if path.endswith(".png") else "JPEG", size=8))


def encoded_png(shade: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), shade).save(buffer, "PNG")
    return buffer.getvalue()


def test_the_published_split_of_agedb_is_read_completely(tmp_path: Path) -> None:
    """Uses the real table, with a different generated image for each row."""
    if not (SHARED_DATA / "agedb").is_dir():
        pytest.skip(f"{SHARED_DATA / 'agedb'} is not there")
    folder = tmp_path / "data"
    (folder / "AgeDB").mkdir(parents=True)
    shutil.copy(SHARED_DATA / "agedb" / "agedb.csv", folder)
    with open(folder / "agedb.csv", encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    header = encoded_png((1, 2, 3))
    data: dict[str, bytes] = {}
    for k, record in enumerate(table):
        data[record["path"]] = header + k.to_bytes(4, "big")  # trailing bytes, which decoders ignore
        (folder / record["path"]).write_bytes(data[record["path"]])
    settings = recipe("agedb", tmp_path)
    assert settings.ingest.source == "agedb"
    ids: set[str] = set()
    targets: dict[str, list[float]] = {split: [] for split in SPLITS}
    for split, row in SOURCES["agedb"](folder, settings):
        record = table[int(row.origin.removeprefix("agedb.csv:").split()[0]) - 2]
        assert (record["path"], float(record["age"]), record["split"]) == (row.id, row.target, split)
        assert row.image == data[row.id]
        assert row.question == settings.task.question
        ids.add(row.id)
        targets[split].append(row.target)
    assert {split: len(values) for split, values in targets.items()} == {"train": 12208, "val": 2140, "test": 2140}
    assert len(ids) == 16488
    shots = ShotTable.of(targets["train"], 1, 1, settings.task.many, settings.task.few)
    ages = np.unique(targets["train"])
    assert Counter(shots.shot(ages).tolist()) == {"many": 51, "medium": 16, "few": 33}


def test_imdb_wiki_images_are_read_from_two_folders(tmp_path: Path) -> None:
    paths = [
        "imdb_crop/01/nm0000001_rm980463616_1899-5-10_1968.jpg",
        "imdb_crop/02/nm0000002_rm1363385088_1924-9-16_2004.jpg",
        "wiki_crop/00/23300_1962-06-19_2011.jpg",
    ]
    write(
        tmp_path / "data",
        "imdb_wiki.csv",
        ["age", "path", "split"],
        list(zip((69, 79, 49), paths, SPLITS, strict=True)),
    )
    for k, path in enumerate(paths):
        write_image(tmp_path / "data", path, k)
    settings = recipe("imdb-wiki", tmp_path)
    assert settings.ingest.source == "imdb-wiki"
    rows = {(split, row.id, row.target) for split, row in read_rows(tmp_path / "data", settings)}
    assert rows == set(zip(SPLITS, paths, (69.0, 79.0, 49.0), strict=True))


def rsna(folder: Path, split: bool) -> list[tuple[int, int]]:
    """Writes RSNA's table, optionally with the split that the release adds, and PNG files; returns ids and ages."""
    ids = [(1377 + k, age) for k, age in enumerate([180] * 9 + [12] * 6 + [94] * 4 + [228] * 2)]
    header = ["id", "boneage", "male", *(["split"] if split else [])]
    table = [
        [id, age, id % 2 == 0, *(["test" if k % 3 == 0 else "train"] if split else [])]
        for k, (id, age) in enumerate(ids)
    ]
    write(folder, "boneage_train_test.csv", header, table)
    for id, _ in ids:
        write_image(folder, f"boneage-training-dataset/{id}.png", id)
    return ids


def test_bone_age_reads_numbered_files_and_takes_val_from_train(tmp_path: Path) -> None:
    ids = rsna(tmp_path / "data", split=True)
    settings = recipe("bone-age", tmp_path, max_per_label=1)
    assert (settings.ingest.source, settings.ingest.split) == ("bone-age", "given-test")
    rows = read_rows(tmp_path / "data", settings)
    assert {row.id: row.target for _, row in rows} == {f"boneage-training-dataset/{id}.png": age for id, age in ids}
    for _, row in rows:
        assert row.image == (tmp_path / "data" / row.id).read_bytes()
    given_test = {f"boneage-training-dataset/{id}.png" for k, (id, _) in enumerate(ids) if k % 3 == 0}
    assert {row.id for split, row in rows if split == "test"} == given_test
    # Train has six rows with target 180, four with 12, and fewer than three with 94 and with 228.
    assert sorted(row.target for split, row in rows if split == "val") == [12, 180]


def test_bone_age_without_a_split_column_is_split_by_the_balanced_rule(tmp_path: Path) -> None:
    rsna(tmp_path / "data", split=False)
    settings = recipe("bone-age", tmp_path, split="balanced", split_column=None)
    counts = Counter(split for split, _ in read_rows(tmp_path / "data", settings))
    assert counts.total() == 21
    assert counts["train"] >= 5  # two of the label that has two rows, and one of each of the others
    assert min(counts["val"], counts["test"]) >= 3


def test_the_error_for_a_missing_radiograph_names_file_and_line(tmp_path: Path) -> None:
    rsna(tmp_path / "data", split=True)
    (tmp_path / "data" / "boneage-training-dataset" / "1380.png").unlink()
    with pytest.raises(ConcordError, match=r"csv:5: id: missing file 'boneage-training-dataset/1380\.png'"):
        read_rows(tmp_path / "data", recipe("bone-age", tmp_path))


@pytest.mark.parametrize(
    ("id", "kind"),
    [("", "empty image path"), ("/etc/hostname", "image outside the folder"), ("../../x", "image outside the folder")],
)
def test_image_paths_are_checked_with_an_image_folder_too(tmp_path: Path, id: str, kind: str) -> None:
    rsna(tmp_path / "data", split=True)
    table = tmp_path / "data" / "boneage_train_test.csv"
    table.write_text(table.read_text().replace("1377,", f"{id},", 1))
    with pytest.raises(ConcordError, match=f"csv:2: id: {kind}"):
        read_rows(tmp_path / "data", recipe("bone-age", tmp_path))


POSTERS = [(6.1, "train"), (6.1, "train"), (6.1, "train"), (5.3, "test"), (6.6, "train"), (8.0, "test"), (2.8, "train")]


def posters(folder: Path) -> None:
    table = [[f"{score}_{k}.jpg", score, round(10 * score), split] for k, (score, split) in enumerate(POSTERS)]
    write(folder, "poster.csv", ["path", "score", "label", "split"], table)
    for seed, (path, *_) in enumerate(table):
        write_image(folder, f"posters/{path}", seed)


@pytest.mark.parametrize("column", ["score", "label"])
@pytest.mark.parametrize(("high", "factor"), [(100, 10), (10, 1)])
def test_movie_scores_are_converted_to_the_scale_of_the_task(
    tmp_path: Path, column: str, high: int, factor: int
) -> None:
    posters(tmp_path / "data")
    task = {"high": high, "resolution": factor / 10, "bin_width": factor / 10}
    settings = recipe("imdb-movie", tmp_path, task=task, target_column=column, image_folder="posters")
    assert (settings.ingest.source, settings.ingest.split) == ("imdb-movie", "given-test")
    rows = read_rows(tmp_path / "data", settings)
    targets = {row.id: row.target for _, row in rows}
    expected = {f"posters/{score}_{k}.jpg": float(f"{score * factor:.1f}") for k, (score, _) in enumerate(POSTERS)}
    assert targets == expected  # exactly: 61, not 60.99999999999999
    assert Counter(split for split, _ in rows) == {"train": 4, "val": 1, "test": 2}


def test_errors_in_a_published_table_are_reported_with_their_lines(tmp_path: Path) -> None:
    posters(tmp_path / "data")
    table = tmp_path / "data" / "poster.csv"
    table.write_text(table.read_text().replace(",61,train", ",6x,train", 1).replace(",53,", ",,", 1))
    with pytest.raises(ConcordError) as caught:
        read_rows(tmp_path / "data", recipe("imdb-movie", tmp_path, image_folder="posters"))
    assert "poster.csv:2: label: target with a unit '6x'" in str(caught.value)
    assert "poster.csv:5: label: empty target ''" in str(caught.value)


def test_a_missing_column_lists_the_existing_columns(tmp_path: Path) -> None:
    write(tmp_path / "data", "poster.csv", ["file", "score"], [["a.jpg", 6.1]])
    with pytest.raises(ConcordError, match=r"(?s)no column 'path' \(ingest\.image_column\).*existing columns: 'file'"):
        read_rows(tmp_path / "data", recipe("imdb-movie", tmp_path))


def test_a_record_with_a_wrong_number_of_values_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "data", "boneage_train_test.csv", ["id", "boneage", "male", "split"], [[1, 2, "True"], []])
    with pytest.raises(ConcordError, match="csv:2: 3 values where the header has 4 columns"):
        read_rows(tmp_path / "data", recipe("bone-age", tmp_path))


def test_given_test_without_three_train_rows_of_a_label_is_an_error(tmp_path: Path) -> None:
    posters(tmp_path / "data")
    table = tmp_path / "data" / "poster.csv"
    table.write_text("".join(line for line in table.open() if "6.1" not in line))
    with pytest.raises(ConcordError, match=r"4 rows, none of them in val\. .*a label needs three"):
        read_rows(tmp_path / "data", recipe("imdb-movie", tmp_path, image_folder="posters"))


def test_given_test_takes_val_rows_of_each_label(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    ages = [30] * 30 + [60] * 6 + [90] * 2
    table = [[age, f"{k}.png", "train"] for k, age in enumerate(ages)] + [[30, "t.png", "test"]]
    write(folder, "agedb.csv", ["age", "path", "split"], table)
    for seed, (_, path, _) in enumerate(table):
        write_image(folder, str(path), seed)
    settings = recipe("agedb", tmp_path, split="given-test", max_per_label=5)
    rows = read_rows(folder, settings)
    taken = Counter(label_bins([row.target for split, row in rows if split == "val"], 1, 1).tolist())
    assert taken[30] == 5  # the limit; a third of 30 rows is far above it
    assert 1 <= taken[60] <= 4
    assert taken.keys() == {30, 60}
    assert [row.id for split, row in rows if split == "test"] == ["t.png"]


@pytest.mark.parametrize(
    ("text", "name"), [("1377", "1377.png"), (" 1377 ", "1377.png"), ("a.PNG", "a.PNG"), ("", ""), (" ", "")]
)
def test_png_name(text: str, name: str) -> None:
    assert png_name(text) == name


@pytest.mark.parametrize(
    ("text", "shift", "number"),
    [
        ("6.1", 1, "61"),
        ("61", -1, "6.1"),
        (" 8.0 ", 1, "80"),
        ("1e1", 1, "100"),
        ("6,1", 1, "6,1"),
        ("6.10", 0, "6.10"),
    ],
)
def test_scale_decimal(text: str, shift: int, number: str) -> None:
    assert scale_decimal(text, shift) == number
