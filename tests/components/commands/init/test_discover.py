"""Where the tables of a data set are."""

import os
from pathlib import Path

import pytest

from components.commands.init.discover import find_tables, open_data_set, table_of
from components.errors import ConcordError
from components.s3_address import parse_s3


@pytest.mark.parametrize(
    ("files", "csv"),
    [
        (["labels.csv", "images/1.png"], "labels.csv"),
        (["metadata.csv", "readme.csv", "1.png"], "metadata.csv"),
        (["sub/labels.tsv", "images/1.png"], "sub/labels.tsv"),
        (["labels.csv", "sub/other.csv"], "labels.csv"),
        (["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"], "data/*.parquet"),
        (["a.parquet", "b.parquet"], "*.parquet"),
        (["train/metadata.jsonl", "train/1.png", "test/metadata.jsonl"], "*/metadata.jsonl"),
        (["35/1.png", "36/2.png", ".hidden/labels.csv"], None),
    ],
)
def test_the_table_is_found(files: list[str], csv: str | None, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(b"1")
    assert find_tables(tmp_path, "mine") == csv


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["a.csv", "b.csv"], r"mine: the table could be any of 'a\.csv', 'b\.csv'"),
        (["x/metadata.csv", "y/metadata.csv"], r"mine: the table could be any of 'x/metadata\.csv'"),
        (["notes.txt"], r"mine: no table \(\.csv, .*\) and no image"),
    ],
)
def test_other_folders_are_an_error(files: list[str], message: str, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"1")
    with pytest.raises(ConcordError, match=message):
        find_tables(tmp_path, "mine")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("s3://bucket/a/t.csv", ("s3://bucket/a", "t.csv")),
        ("s3://bucket/t.parquet", ("s3://bucket", "t.parquet")),
        ("s3://bucket/a", ("s3://bucket/a", None)),
    ],
)
def test_an_address_may_name_a_table(address: str, expected: tuple[str, str | None]) -> None:
    folder, table = table_of(parse_s3(address))
    assert (str(folder), table) == expected


def test_a_path_is_relative_below_the_params_file_and_else_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (tmp_path / "work" / "photos", tmp_path / "elsewhere"):
        folder.mkdir(parents=True)
        (folder / "labels.csv").write_text("a\n")
    monkeypatch.chdir(tmp_path / "work")
    with open_data_set("photos", Path()) as data:
        assert (data.path, data.csv) == ("photos", "labels.csv")
    with open_data_set("../elsewhere/labels.csv", Path()) as data:
        assert (data.path, data.csv) == (os.fspath(tmp_path / "elsewhere"), "labels.csv")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("missing", "missing: no such file or folder"),
        ("notes.txt", r"notes\.txt: not a table"),
        ("gs://bucket/x", r"gs://bucket/x: gs://\.\.\. is not supported"),
    ],
)
def test_other_data_is_an_error(data: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("x")
    with pytest.raises(ConcordError, match=message), open_data_set(data, Path()):
        pass
