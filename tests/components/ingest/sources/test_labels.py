"""The table of labels: what is read, and how errors are reported."""

import math
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.errors import ConcordError
from components.ingest.quarantine import BadValueError, TableErrors
from components.ingest.sources.folder import open_folder
from components.ingest.sources.image_files import parse_image
from components.ingest.sources.labels import parse_split, read_labels
from components.ingest.sources.tables import read_records
from components.ingest.sources.targets import parse_target
from tests.support.raw_folder import RawFolder, write_params


@pytest.fixture
def raw(tmp_path: Path) -> RawFolder:
    return RawFolder(tmp_path / "data")


def labels_of(raw: RawFolder, **ingest: object) -> list:
    settings = write_params(raw.folder / "params.yaml", ingest=ingest).ingest
    source = open_folder(raw.folder, settings)
    return read_labels(source.tables, settings, source.read, source.images)


@pytest.mark.parametrize(
    ("text", "value"),
    [("12", 12.0), ("12.5", 12.5), (" -0.5 ", -0.5), ("+3.", 3.0), (".5", 0.5), ("1e2", 100.0), ("007", 7.0)],
)
def test_valid_targets_are_parsed(text: str, value: float) -> None:
    assert parse_target(text) == value


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "empty target"),
        ("  ", "empty target"),
        ("nan", "target not finite"),
        ("NaN", "target not finite"),
        ("-inf", "target not finite"),
        ("Infinity", "target not finite"),
        ("1e999", "target not finite"),
        ("NA", "target not finite"),
        ("12,5", "decimal comma"),
        ("1_000", "target is not a number"),
        ("12 %", "target with a unit"),
        ("twelve", "target is not a number"),
        ("0x1F", "target is not a number"),
        ("<12", "target is not a number"),
        ("12-15", "target is not a number"),
        ("1,2,3", "target is not a number"),
        ("1.2.3", "target is not a number"),
    ],
)
def test_invalid_targets_are_errors_with_a_remedy(text: str, kind: str) -> None:
    with pytest.raises(BadValueError) as caught:
        parse_target(text)
    assert caught.value.kind == kind
    assert caught.value.remedy


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_finite_double_is_parsed_back_from_its_text(value: float) -> None:
    assert parse_target(repr(value)) == value


@given(st.text())
def test_any_text_gives_a_finite_number_or_an_error(text: str) -> None:
    with suppress(BadValueError):
        assert math.isfinite(parse_target(text))


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("12,5", [12.5]), ("0,123", [0.123]), ("1,234", [1234, 1.234]), ("1.234,5", [1234.5]), ("1,234.5", [1234.5]),
        ("1.234.567", [1234567]), ("1 234", [1234]), ("1\xa0234,5", [1234.5]), ("1\u202f234", [1234]),
        ("1'234.5", [1234.5]), ("12 cm", [12]), ("12cm", [12]), ("$12", [12]), ("-12.5 °C", [-12.5]), ("12 kg.", [12]),
        ("１２", [12]), ("１２．５", [12.5]), ("٣٫٥", [3.5]), ("\u22125", [-5]),
    ],
)  # fmt: skip
def test_the_remedy_shows_a_number_that_is_read(text: str, numbers: list[float]) -> None:
    with pytest.raises(BadValueError) as caught:
        parse_target(text)
    shown = re.findall(r"(?:write|or) (-?[0-9.]+)", caught.value.remedy)
    assert [parse_target(number) for number in shown] == numbers


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("", "empty image path"),
        ("/etc/hostname", "image outside the folder"),
        ("../secret.png", "image outside the folder"),
        ("images/../../secret.png", "image outside the folder"),
        ("..", "image outside the folder"),
        ("C:\\pictures\\a.png", "image outside the folder"),
        ("images/none.png", "missing file"),
        ("images\\000.png", "missing file"),
        ("images/\0.png", "missing file"),
        ("images/" + "x" * 300, "missing file"),
        ("images", "not a file"),
        ("images/empty.png", "empty file"),
    ],
)
def test_invalid_image_paths_are_errors(raw: RawFolder, path: str, kind: str) -> None:
    (raw.folder.parent / "secret.png").write_bytes(b"outside the folder")
    (raw.folder / "images" / "empty.png").touch()
    with pytest.raises(BadValueError) as caught:
        parse_image(path, str(raw.folder))
    assert caught.value.kind == kind


def test_image_paths_are_normalised_and_links_are_followed(raw: RawFolder) -> None:
    (raw.folder.parent / "cache").write_bytes(b"an image")
    (raw.folder / "images" / "link.png").symlink_to(raw.folder.parent / "cache")
    assert parse_image("./images//000.png", str(raw.folder)) == "images/000.png"
    assert parse_image("images/../images/link.png", str(raw.folder)) == "images/link.png"


@pytest.mark.parametrize(
    ("text", "split"),
    [("train", "train"), ("Train ", "train"), ("validation", "val"), ("dev", "val"), ("TEST", "test")],
)
def test_splits_have_the_names_of_published_data_sets(text: str, split: str) -> None:
    assert parse_split(text) == split


@pytest.mark.parametrize("split", ["trains", "fold 1", "0", ""])
def test_other_split_names_are_errors(split: str) -> None:
    with pytest.raises(BadValueError, match="unknown split"):
        parse_split(split)


def test_labels_have_their_line_numbers(raw: RawFolder) -> None:
    labels = labels_of(raw)
    assert len(labels) == len(raw.rows)
    assert [(x.id, x.image, x.target, x.line) for x in labels[:2]] == [
        ("images/000.png", "images/000.png", 10.0, 2),
        ("images/001.png", "images/001.png", 10.0, 3),
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_utf8_is_read_with_and_without_a_byte_order_mark(raw: RawFolder, encoding: str) -> None:
    raw.rows[0][0] = "images/größe 1.png"
    (raw.folder / "images" / "größe 1.png").write_bytes(b"x")
    raw.write(encoding=encoding)
    assert labels_of(raw)[0].image == "images/größe 1.png"


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_any_line_end_is_read_and_blank_lines_are_counted(raw: RawFolder, line_end: str) -> None:
    lines = ["image,reading", "", 'images/000.png,"5"', '"images/001.png",6', "images/002.png,x", ""]
    (raw.folder / "labels.csv").write_bytes(line_end.join(lines).encode())
    with pytest.raises(ConcordError, match=r"labels\.csv:5: reading: target is not a number 'x'"):
        labels_of(raw)


def test_a_record_over_two_lines_has_the_number_of_its_first_line(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('a,b\n"x\ny",1\n\nz,2\n', encoding="utf-8")
    assert list(read_records(tmp_path / "t.csv")) == [(1, ["a", "b"]), (2, ["x\ny", "1"]), (5, ["z", "2"])]


def replace_line(line: int, replacement: bytes) -> Callable[[RawFolder], None]:
    def change(raw: RawFolder) -> None:
        table = raw.folder / "labels.csv"
        lines = table.read_bytes().split(b"\n")
        lines[line - 1] = replacement
        table.write_bytes(b"\n".join(lines))

    return change


@pytest.mark.parametrize(
    ("replacement", "expected"),
    [
        ("images/größe.png,4".encode("latin-1"), [":3:", "UTF-8", "0xf6", "iconv"]),
        (b'"images/001.png,4', [":3:", "quote"]),
        (b'"images/001.png"x,4', [":3:", "quote"]),
        (b"images/001.png,12,5", [":3:", "3 values where the header has 2 columns", "12.5"]),
        (b"images/001.png", [":3:", "1 values where the header has 2 columns"]),
    ],
)
def test_the_error_for_a_broken_line_names_the_line(raw: RawFolder, replacement: bytes, expected: list[str]) -> None:
    replace_line(3, replacement)(raw)
    with pytest.raises(ConcordError) as caught:
        labels_of(raw)
    assert "labels.csv" in str(caught.value)
    assert all(part in str(caught.value) for part in expected), str(caught.value)


def test_utf16_is_an_error(raw: RawFolder) -> None:
    raw.write(encoding="utf-16")
    with pytest.raises(ConcordError, match=r"labels\.csv: not plain text but UTF-16 text\. .* iconv -f UTF-16 "):
        labels_of(raw)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (
            ["Image", "reading"],
            ["no column 'image' (ingest.image_column)", "did you mean 'Image'?", "'Image', 'reading'"],
        ),
        (["picture", "value"], ["no column 'image'", "no column 'reading'", "'picture', 'value'"]),
        (["image", "reading", "reading"], ["'reading' (ingest.target_column) occurs 2 times"]),
    ],
)
def test_the_error_for_a_wrong_header_names_setting_and_columns(
    raw: RawFolder, header: list[str], expected: list[str]
) -> None:
    raw.write(header=header)
    with pytest.raises(ConcordError) as caught:
        labels_of(raw)
    assert "labels.csv:1" in str(caught.value)
    assert all(part in str(caught.value) for part in expected), str(caught.value)


@pytest.mark.parametrize(("text", "expected"), [("", "empty"), ("\n\n", "empty"), ("image,reading\n", "no rows")])
def test_a_table_without_rows_is_an_error(raw: RawFolder, text: str, expected: str) -> None:
    (raw.folder / "labels.csv").write_text(text)
    with pytest.raises(ConcordError, match=expected):
        labels_of(raw)


def test_the_error_for_a_duplicate_names_both_lines(raw: RawFolder) -> None:
    raw.rows = [[*row, f"id{k}"] for k, row in enumerate(raw.rows)]
    raw.rows[5][2] = "id1"
    raw.rows[7][0] = "./images/003.png"
    raw.write(header=["image", "reading", "name"])
    with pytest.raises(ConcordError) as caught:
        labels_of(raw, id_column="name")
    assert "labels.csv:7: name: duplicate id 'id1'; line 3 has it too" in str(caught.value)
    assert "labels.csv:9: image: image listed twice 'images/003.png'; line 5 has it too" in str(caught.value)


def test_all_errors_of_a_row_and_of_the_file_are_reported_together(raw: RawFolder) -> None:
    raw.rows[0] = ["images/none.png", "x"]
    raw.rows[30] = ["images/030.png", ""]
    raw.write()
    with pytest.raises(ConcordError) as caught:
        labels_of(raw)
    text = str(caught.value)
    assert "3 errors" in text
    assert text.index("labels.csv:2: image: missing file") < text.index("labels.csv:2: reading") < text.index(":32:")


def test_errors_beyond_the_first_ten_are_counted_by_kind(tmp_path: Path) -> None:
    errors = TableErrors(tmp_path / "labels.csv")
    for line in range(2, 40):
        errors.add(line, "image", "x" * 500, BadValueError("missing file" if line < 30 else "empty file", "add it"))
    with pytest.raises(ConcordError) as caught:
        errors.raise_if_any()
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("38 errors")
    assert lines[-1] == "  and 28 more (missing file: 18, empty file: 10)"
    assert len(lines) == 12
    assert max(len(line) for line in lines[1:]) < 130


def test_raise_if_any_without_errors_does_nothing(tmp_path: Path) -> None:
    TableErrors(tmp_path / "labels.csv").raise_if_any()
