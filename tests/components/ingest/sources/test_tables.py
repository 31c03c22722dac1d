"""Tables of every ending give the same rows; images inside tables and in named files."""

import bz2
import gzip
import io
import json
import lzma
import os
import re
import shutil
import socket
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.errors import ConcordError
from components.ingest.quarantine import BadValueError
from components.ingest.sources.folder import open_folder, read_folder
from components.ingest.sources.image_files import ImageFiles
from components.ingest.sources.labels import scan_labels
from components.ingest.sources.tables import (
    read_image_files,
    read_json_lines,
    read_parquet,
    read_records,
    table_reader,
)
from components.settings import load_settings
from components.shared.rows.rows import Row
from tests.support.raw_folder import RawFolder, encoded, write_params

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture
def raw(tmp_path: Path) -> RawFolder:
    return RawFolder(tmp_path / "data")


def rows_of(raw: RawFolder, **ingest: Any) -> list[tuple[str, Row]]:
    return list(read_folder(raw.folder, write_params(raw.folder.parent / "params.yaml", ingest=ingest)))


def without_origin(rows: list[tuple[str, Row]]) -> list[tuple[str, str, bytes, float]]:
    return [(split, row.id, row.image, row.target) for split, row in rows]


@pytest.mark.parametrize("name", ["t.tsv", "t.csv", "t.jsonl", "t.parquet"])
def test_every_form_of_table_gives_the_same_rows(name: str, raw: RawFolder) -> None:
    expected = without_origin(rows_of(raw))
    table, header = raw.folder / name, ("image", "reading")
    if table.suffix == ".jsonl":
        table.write_text("".join(json.dumps({"image": row[0], "reading": int(row[1])}) + "\n" for row in raw.rows))
    elif table.suffix == ".parquet":
        images, readings = zip(*raw.rows, strict=True)
        pq.write_table(pa.table({"image": images, "reading": pa.array(map(float, readings), pa.float32())}), table)
    else:
        mark = "\t" if table.suffix == ".tsv" else ";"
        table.write_text("".join(f"{mark.join(row)}\n" for row in (header, *raw.rows)))
    rows = rows_of(raw, csv=name)
    assert without_origin(rows) == expected
    assert all(row.origin.startswith(f"{name}:") for _, row in rows)


@pytest.mark.parametrize(
    ("header", "fields"),
    [
        ("a,b;c", ["a", "b;c"]),  # commas win
        ("a;b", ["a", "b"]),
        ("a\tb", ["a", "b"]),
        ("a|b", ["a", "b"]),
        ("\n\na;b", ["a", "b"]),
        ("\ufeffa;b", ["a", "b"]),
        ("a", ["a"]),
    ],
)
def test_the_header_tells_the_delimiter(header: str, fields: list[str], tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(header + "\n", encoding="utf-8")
    assert [found for _, found in read_records(tmp_path / "t.csv")] == [fields]


def test_json_lines_have_the_keys_of_all_objects(tmp_path: Path) -> None:
    table = tmp_path / "t.jsonl"
    table.write_text('{"a": 1, "b": null}\n\n{"b": "x", "c": 2.5, "a": 3.0}\n', encoding="utf-8")
    assert list(read_json_lines(table)) == [(1, ["a", "b", "c"]), (1, ["1", "", ""]), (3, ["3", "x", "2.5"])]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"a": 1}\n{"a": \n', r"t\.jsonl:2: not JSON"),
        (b"[1]\n", r"t\.jsonl:1: '\[1\]' is not an object"),
        (b'{"a": "\xe4"}\n', r"t\.jsonl:1: not UTF-8 \(byte 0xe4\)"),
    ],
)
def test_wrong_json_lines_are_an_error_with_the_line(text: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes(text)
    with pytest.raises(ConcordError, match=message):
        list(read_json_lines(tmp_path / "t.jsonl"))


def test_a_file_that_is_no_parquet_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"image,reading\n")
    with pytest.raises(ConcordError, match=r"t\.parquet: cannot be read as Parquet"):
        list(read_parquet(tmp_path / "t.parquet", ImageFiles(tmp_path)))


@pytest.mark.parametrize("kind", ["struct", "binary"])
def test_images_inside_parquet_tables_are_unchanged(kind: str, raw: RawFolder) -> None:
    expected = {(row.image, row.target) for _, row in rows_of(raw)}
    data = [(raw.folder / image).read_bytes() for image, _ in raw.rows]
    column = pa.array([{"bytes": each, "path": None} for each in data], IMAGE) if kind == "struct" else pa.array(data)
    table = pa.table({"image": column, "reading": [int(reading) for _, reading in raw.rows]})
    (raw.folder / "parts").mkdir()
    for k in range(2):
        half = table.slice(k * 40, 40 if k == 0 else None)
        pq.write_table(half, raw.folder / "parts" / f"{k}.parquet", row_group_size=7)
    rows = [row for _, row in rows_of(raw, csv="parts/*.parquet")]
    assert {(row.image, row.target) for row in rows} == expected
    assert {row.id for row in rows} >= {"parts/0.parquet/1", "parts/0.parquet/40", "parts/1.parquet/1"}
    assert all(row.id.startswith(row.origin.partition(":")[0]) for row in rows)


def test_an_empty_image_and_one_beside_the_table_are_checked(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(1))
    cells = [{"bytes": b"", "path": None}, {"bytes": None, "path": "a.png"}, {"bytes": b"1", "path": "a.png"}]
    pq.write_table(pa.table({"image": pa.array(cells, IMAGE)}), tmp_path / "t.parquet")
    images = ImageFiles(tmp_path)
    texts = [fields[0] for _, fields in read_parquet(tmp_path / "t.parquet", images)][1:]
    assert texts == ["t.parquet/1", "a.png", "t.parquet/3"]
    with pytest.raises(BadValueError, match="empty image"):
        images.check(texts[0])
    assert [images.read(images.check(text)) for text in texts[1:]] == [encoded(1), b"1"]


@given(st.lists(st.binary(min_size=1, max_size=20), max_size=40), st.integers(0, 10))
def test_a_bounded_number_of_images_is_kept(data: list[bytes], keep: int) -> None:
    images = ImageFiles(Path("nowhere"), keep)
    for k, each in enumerate(data):
        images.add(f"t/{k}", each)
    assert len(images.kept) == min(keep, len(data))
    assert all(images.read(path) == data[int(path[2:])] for path in images.kept)
    assert all(images.check(f"t/{k}") == f"t/{k}" for k in range(len(data)))


def test_images_in_a_folder_of_their_own(raw: RawFolder) -> None:
    expected = without_origin(rows_of(raw))
    raw.rows = [[image.removeprefix("images/"), reading] for image, reading in raw.rows]
    raw.write()
    assert without_origin(rows_of(raw, image_folder="images")) == expected


def test_images_alone_are_read_by_their_paths(raw: RawFolder) -> None:
    expected = sorted((row.image, row.target) for _, row in rows_of(raw))
    for k, (image, reading) in enumerate(raw.rows):
        folder = raw.folder / "alone" / ("test" if k % 4 == 0 else "train") / reading
        folder.mkdir(parents=True, exist_ok=True)
        (raw.folder / image).rename(folder / Path(image).name)
    (raw.folder / "alone" / "notes.txt").write_text("no image")
    raw.folder = raw.folder / "alone"
    pattern = r"^(?P<split>\w+)/(?P<target>\d+)/"
    columns = {
        "csv": None,
        "pattern": pattern,
        "target_column": "target",
        "split": "given-test",
        "split_column": "split",
    }
    rows = rows_of(raw, **columns)
    assert sorted((row.image, row.target) for _, row in rows) == expected
    assert all(("test/" in row.id) == (split == "test") for split, row in rows)


def test_a_path_without_a_match_is_an_error_that_names_it(raw: RawFolder) -> None:
    raw.folder = raw.folder / "images"
    with pytest.raises(ConcordError, match=r"no target in the path .*'000\.png' does not match ingest\.pattern"):
        rows_of(raw, csv=None, pattern=r"^(?P<target>1\d+)", target_column="target")


def test_each_split_may_have_a_table_with_its_images_beside_it(raw: RawFolder) -> None:
    for k, (image, reading) in enumerate(raw.rows):
        folder = raw.folder / "parts" / ("validation" if k % 4 == 0 else "test" if k % 4 == 1 else "train")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{k}.png").write_bytes((raw.folder / image).read_bytes())
        with open(folder / "metadata.csv", "a") as file:
            file.write(("file_name,reading\n" if k < 4 and k != 3 else "") + f"{k}.png,{reading}\n")
    raw.folder = raw.folder / "parts"
    rows = rows_of(
        raw, csv="*/metadata.csv", image_column="file_name", pattern="^(?P<split>[a-z]+)/", split="given",
        split_column="split",
    )  # fmt: skip
    assert len(rows) == len(raw.rows)
    assert {row.id.split("/")[0]: split for split, row in rows} == {
        "train": "train",
        "validation": "val",
        "test": "test",
    }


def test_rows_that_are_twice_in_two_tables_are_an_error(raw: RawFolder) -> None:
    (raw.folder / "more.csv").write_text((raw.folder / "labels.csv").read_text())
    with pytest.raises(ConcordError, match=r"more\.csv:2: image: image listed twice .*labels\.csv:2 has it too"):
        rows_of(raw, csv="*.csv")


def test_what_is_named_like_an_image_and_is_no_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "5-good.png").write_bytes(b"x")
    (tmp_path / "5-gone.png").symlink_to("nowhere")
    (tmp_path / "5-folder.png").mkdir()
    (tmp_path / "5-zero.png").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "5-pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "5-socket.png"))
    pattern = {"csv": None, "pattern": "^(?P<reading>[0-9]+)-", "image_column": "image", "target_column": "reading"}
    settings = write_params(tmp_path / "params.yaml", ingest=pattern).ingest
    source = open_folder(tmp_path, settings)
    scan = scan_labels(source.tables, settings, source.read, source.images)
    assert [label.image for label in scan.labels] == ["5-good.png"]
    assert scan.rows == 6
    assert {str(error.value): f"{error.kind}: {error.remedy}" for error in scan.errors[0].errors} == {
        "5-folder.png": "not a file: it is a folder: give the path of an image file, or move it away",
        "5-gone.png": "link to nothing: restore the file that it points to, or remove it",
        "5-pipe.png": "not a file: it is a pipe: give the path of an image file, or move it away",
        "5-socket.png": "not a file: it is a socket: give the path of an image file, or move it away",
        "5-zero.png": "not a file: it is a device: give the path of an image file, or move it away",
    }


TEXT = "image,reading\na.png,5\n"


@pytest.mark.parametrize(
    ("content", "tool", "message"),
    [
        (gzip.compress(TEXT.encode()), "gzip", "compressed by gzip"),
        (bz2.compress(TEXT.encode()), "bzip2", "compressed by bzip2"),
        (lzma.compress(TEXT.encode()), "xz", "compressed by xz"),
        (TEXT.encode("utf-16"), "iconv", "UTF-16 text"),
        (TEXT.encode("utf-16-le"), "iconv", "UTF-16 text"),
        (TEXT.encode("utf-16-be"), "iconv", "UTF-16 text"),
        (TEXT.encode("utf-32"), "iconv", "UTF-32 text"),
    ],
    ids=["gzip", "bzip2", "xz", "utf-16", "utf-16-le", "utf-16-be", "utf-32"],
)
def test_the_remedy_for_text_in_disguise_works(content: bytes, tool: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(ConcordError, match=message) as caught:
        list(read_records(tmp_path / "t.csv"))
    command = re.search(f"{tool} .* > new-t.csv", str(caught.value))
    assert command is not None
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    subprocess.run(command[0], shell=True, cwd=tmp_path, check=True)
    assert list(read_records(tmp_path / "new-t.csv")) == [(1, ["image", "reading"]), (2, ["a.png", "5"])]


def workbook() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("xl/workbook.xml", "<workbook/>")
    return buffer.getvalue()


def parquet() -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"image": ["a.png"]}), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (workbook(), 'not plain text but a workbook. Open it in a spreadsheet, save it as "CSV UTF-8"'),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "a workbook"),
        (parquet(), "a Parquet file. Rename it so that its name ends in .parquet"),
    ],
)
def test_binary_tables_given_as_text_are_named(content: bytes, message: str, suffix: str, tmp_path: Path) -> None:
    table = tmp_path / f"t{suffix}"
    table.write_bytes(content)
    with pytest.raises(ConcordError) as caught:
        list(table_reader(ImageFiles(tmp_path))(table))
    assert message in str(caught.value)


def test_hidden_files_are_no_rows(tmp_path: Path) -> None:
    for name in ("1.png", ".2.png", ".thumbnails/3.png", "sub/4.JPG"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"1")
    assert [fields for _, fields in read_image_files(tmp_path)] == [["image"], ["1.png"], ["sub/4.JPG"]]


@pytest.mark.parametrize(
    ("ingest", "message"),
    [
        ({"csv": None}, "csv: null needs pattern"),
        ({"pattern": "("}, "ingest.pattern: not a regular expression"),
        ({"source": "agedb", "pattern": "(?P<target>1)"}, "source: agedb reads no columns from paths"),
        ({"source": "agedb", "csv": None}, "source: agedb has a table: csv must name it"),
    ],
)
def test_settings_that_contradict_each_other_are_errors(ingest: dict[str, Any], message: str, raw: RawFolder) -> None:
    with pytest.raises(ConcordError, match=message):
        write_params(raw.folder.parent / "params.yaml", ingest=ingest)
    with pytest.raises(ConcordError, match=message):
        load_settings(raw.folder.parent / "params.yaml")
