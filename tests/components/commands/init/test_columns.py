"""The roles of columns: guessed where they are obvious, named by flags, never guessed between equals."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.commands.init.columns import (
    Images,
    Sample,
    guess_images,
    guess_split,
    guess_subject,
    guess_target,
    is_subject,
)
from components.errors import ConcordError
from components.ingest.sources.image_files import ImageFiles


def sample(header: str, *rows: str) -> Sample:
    return Sample("t.csv", header.split(","), [row.split(",") for row in rows])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "photos" / "all").mkdir(parents=True)
    for name in ("a.png", "photos/all/b.jpg"):
        (tmp_path / name).write_bytes(b"1")
    return tmp_path


@pytest.mark.parametrize(
    ("header", "row", "expected"),
    [
        ("name,file", "x,a.png", Images("file", None)),
        ("file,age", "b.jpg,3", Images("file", "photos/all")),
        ("path,age", "photos/all/b.jpg,3", Images("path", None)),
        ("image,mask", "a.png,a.png", Images("image", None)),
    ],
)
def test_the_image_column_names_files_that_exist(header: str, row: str, expected: Images, folder: Path) -> None:
    assert guess_images(sample(header, row), ImageFiles(folder), folder, None) == expected


def test_several_image_columns_are_an_error_that_names_the_flag(folder: Path) -> None:
    rows = sample("left,right", "a.png,a.png")
    with pytest.raises(ConcordError, match=r"t\.csv: the image column could be any of 'left', 'right'.*--image 'left'"):
        guess_images(rows, ImageFiles(folder), folder, None)
    assert guess_images(rows, ImageFiles(folder), folder, "right").column == "right"


@pytest.mark.parametrize(("named", "message"), [(None, "no column names image files"), ("mage", "no column 'mage'")])
def test_a_missing_image_column_is_an_error(named: str | None, message: str, folder: Path) -> None:
    with pytest.raises(ConcordError, match=message):
        guess_images(sample("image,age", "c.png,3"), ImageFiles(folder), folder, named)


@pytest.mark.parametrize(
    ("header", "rows", "target"),
    [
        ("i,img,score2", ["0,a,7", "1,b,3", "2,c,5"], "score2"),  # i counts the rows
        ("id,img,depth", ["9,a,7", "4,b,3", "2,c,5"], "depth"),
        ("male,img,months", ["1,a,7", "0,b,3", "1,c,5"], "months"),  # two values are a class
        ("height,age,img", ["7,30,a", "5,31,b", "9,40,c"], "age"),  # a well-known name wins
        ("name,depth", ["x,1.5", "y,n/a", *["z,2.5", "z,3.5"] * 5], "depth"),
    ],
)
def test_the_target_is_the_column_of_numbers(header: str, rows: list[str], target: str) -> None:
    assert guess_target(sample(header, *rows), ["img"], None) == target


def test_two_columns_of_numbers_are_an_error_that_names_the_flag() -> None:
    rows = sample("height,width", "1,7", "5,3", "2,4")
    with pytest.raises(ConcordError, match=r"the target could be any of 'height', 'width'\. Choose one: --target"):
        guess_target(rows, [], None)
    assert guess_target(rows, [], "width") == "width"


def test_a_table_without_numbers_is_an_error() -> None:
    with pytest.raises(ConcordError, match=r"no column has different numbers \(other columns: name\)"):
        guess_target(sample("img,name", "a,x"), ["img"], None)


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (["train", "test", "train"], True),
        (["Training", "validation", "dev"], True),
        (["train", "train", "train"], True),
        (["test", "val", "test"], False),
        (["train", "holdout", "test"], False),
        (["train", "", "test"], False),
    ],
)
def test_a_split_column_has_only_names_of_splits(values: list[str], found: bool) -> None:
    rows = Sample("t.csv", ["img", "part"], [[str(k), value] for k, value in enumerate(values)])
    assert guess_split(rows, ["img"]) == ("part" if found else None)


@pytest.mark.parametrize("name", ["subject", "patient_id", "PersonID", "device", "Meter Number"])
def test_subject_columns_are_known_by_name(name: str) -> None:
    assert is_subject(name)
    assert guess_subject(sample(f"img,{name}", "a,x"), ["img"]) == name


@pytest.mark.parametrize("name", ["age", "personality", "metering", "id", ""])
def test_other_columns_are_no_subjects(name: str) -> None:
    assert not is_subject(name)


@given(st.lists(st.floats(-1e6, 1e6), min_size=4, max_size=50))
def test_a_single_column_of_numbers_is_the_target_or_an_error(numbers: list[float]) -> None:
    rows = Sample("t.csv", ["img", "depth"], [["a.png", repr(number)] for number in numbers])
    try:
        assert guess_target(rows, ["img"], None) == "depth"
    except ConcordError:
        assert len(set(numbers)) < 3 or {round(b - a, 9) for a, b in pairwise(numbers)} == {1.0}
