"""Ingest, through the command line: the shards and their bytes, and every kind of error in the raw input."""

import csv
import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from components.__main__ import main
from components.ingest.sources.gauges import draw_scenes, label_counts, write_scenes
from components.shared.rows.rows import SCHEMA, SPLITS, read_table, schema
from tests.support.raw_folder import ROOT, RawFolder, content, encoded, write_params

INGEST = ["ingest", "--params", "params.yaml", "--data", "data", "--out", "artifacts/ingest"]
OUT = Path("artifacts/ingest")  # relative to the test's working directory


@pytest.fixture
def raw(store: Path) -> RawFolder:
    """A raw folder in the working directory, with a params.yaml for it."""
    write_params(store / "params.yaml")
    return RawFolder(store / "data")


def test_ingest_writes_shards_metrics_and_a_histogram(raw: RawFolder) -> None:
    assert main(INGEST) == 0
    names = {f"{split}-00000.parquet" for split in SPLITS} | {"metrics.json", "histogram.csv", "libraries.json"}
    assert set(os.listdir(OUT)) == names
    assert not list(Path("artifacts").glob(".*.partial"))
    metrics = json.loads((OUT / "metrics.json").read_text())
    assert metrics["rows"] == {"train": 47, "val": 11, "test": 11}
    assert metrics["test_rows"] == {"many": 4, "medium": 4, "few": 3}
    lines = (OUT / "histogram.csv").read_text().splitlines()
    assert lines == ["label,train,val,test,shot", "10,32,4,4,many", "50,12,4,4,medium", "90,3,3,3,few"]
    for split in SPLITS:
        assert pq.read_schema(OUT / f"{split}-00000.parquet").equals(SCHEMA, check_metadata=True)
        for row in read_table(OUT, split, SCHEMA.names).to_pylist():
            image = (raw.folder / row["id"]).read_bytes()
            assert row["image"]["bytes"] == image
            assert row["image_sha256"] == hashlib.sha256(image).hexdigest()
            line = int(row["origin"].split()[0].removeprefix("labels.csv:"))
            assert raw.rows[line - 2] == [row["id"], f"{row['target']:g}"]


@pytest.mark.usefixtures("raw")
def test_the_same_input_gives_the_same_bytes() -> None:
    assert main(INGEST) == 0
    first = content(OUT)
    assert main(INGEST) == 0
    assert content(OUT) == first


def test_datasets_reads_the_images(raw: RawFolder) -> None:
    from datasets import Dataset

    assert main(INGEST) == 0
    rows = Dataset.from_parquet("artifacts/ingest/test-00000.parquet", cache_dir="cache")
    assert rows[0]["image"].size == (12, 12)


def test_large_input_is_written_to_several_shards_within_the_size_limit(raw: RawFolder) -> None:
    write_params(Path("params.yaml"), ingest={"shard_mb": 1})
    for k in range(len(raw.rows)):
        (raw.folder / f"images/{k:03d}.png").write_bytes(random.Random(k).randbytes(100_000))
    assert main(INGEST) == 0
    shards = sorted(OUT.glob("train-*.parquet"))
    assert len(shards) >= 5
    assert max(path.stat().st_size for path in shards) <= 2**20
    assert read_table(OUT, "train").num_rows == 47


GAUGES = {"source": "gauges", "split": "given", "split_column": "split"}


def test_the_source_gauges_is_ingested(store: Path) -> None:
    write_params(store / "params.yaml", ingest={**GAUGES, "csv": "scenes.csv", "image_size": 16})
    (store / "data").mkdir()
    scenes = draw_scenes(0, label_counts(head=3, operating_point=50, decay=9.0, floor=1), val=1, test=1)
    (store / "data" / "scenes.csv").write_text(write_scenes(scenes))
    assert main(INGEST) == 0
    rows = json.loads(Path("artifacts/ingest/metrics.json").read_text())["rows"]
    assert rows["val"] == rows["test"] == 101
    assert sum(rows.values()) == len(scenes)


Change = Callable[[RawFolder], object]


def setting(**ingest: object) -> Change:
    return lambda raw: write_params(Path("params.yaml"), ingest=ingest)


def row(line: int, column: int, value: str) -> Change:
    def change(raw: RawFolder) -> None:
        raw.rows[line - 2][column] = value
        raw.write()

    return change


def bytes_of(image: str, data: bytes | None) -> Change:
    def change(raw: RawFolder) -> None:
        (raw.folder / image).unlink()
        if data is not None:
            (raw.folder / image).write_bytes(data)

    return change


def split_column(line: int, value: str) -> Change:
    def change(raw: RawFolder) -> None:
        raw.rows = [[*row, SPLITS[k % 3]] for k, row in enumerate(raw.rows)]
        raw.rows[line - 2][2] = value
        raw.write(header=["image", "reading", "part"])
        setting(split="given", split_column="part")(raw)

    return change


def header(*names: str) -> Change:
    return lambda raw: raw.write(header=names)


def text(data: bytes) -> Change:
    return lambda raw: (raw.folder / "labels.csv").write_bytes(data)


def empty_subject(raw: RawFolder) -> None:
    subjects(raw, empty=9)
    setting(split="subject", subject_column="who")(raw)


def repeated_ids(raw: RawFolder) -> None:
    setting(id_column="name")(raw)
    raw.rows = [[*row, f"n{k % 60}"] for k, row in enumerate(raw.rows)]
    raw.write(header=["image", "reading", "name"])


ERRORS: dict[str, tuple[Change, list[str]]] = {
    "missing column": (
        header("image", "readings"),
        ["data/labels.csv:1", "no column 'reading' (ingest.target_column)", "did you mean 'readings'?", "'image'"],
    ),
    "missing split column": (
        setting(split="given", split_column="part"),
        ["no column 'part' (ingest.split_column)", "'image', 'reading'"],
    ),
    "no subject": (
        empty_subject,
        ["labels.csv:9: who: empty subject ' '", "name the person or device in the image"],
    ),
    "missing file": (
        bytes_of("images/007.png", None),
        ["labels.csv:9: image: missing file 'images/007.png'", "add the file or remove the row"],
    ),
    "empty file": (
        bytes_of("images/007.png", b""),
        ["labels.csv:9: image: empty file 'images/007.png'", "copy it again or remove the row"],
    ),
    "absolute path": (
        row(4, 0, "/etc/hostname"),
        ["labels.csv:4: image: image outside the folder '/etc/hostname'", "below the CSV's folder"],
    ),
    "path out of the folder": (row(4, 0, "../params.yaml"), ["labels.csv:4: image: image outside the folder"]),
    "NaN": (row(4, 1, "NaN"), ["labels.csv:4: reading: target not finite 'NaN'", "fill in the number"]),
    "infinite": (row(4, 1, "inf"), ["labels.csv:4: reading: target not finite 'inf'"]),
    "empty target": (row(4, 1, ""), ["labels.csv:4: reading: empty target ''", "fill in the number"]),
    "text target": (row(4, 1, "[bold]low"), ["labels.csv:4: reading: target is not a number '[bold]low'"]),
    "decimal comma": (row(4, 1, "12,5"), ["labels.csv:4: reading: decimal comma '12,5'", "write 12.5"]),
    "unquoted decimal comma": (
        text(b"image,reading\nimages/000.png,12,5\n"),
        ["labels.csv:2: 3 values where the header has 2 columns", "write decimals with a point"],
    ),
    "duplicate": (
        row(9, 0, "images/001.png"),
        ["labels.csv:9: image: image listed twice 'images/001.png'", "line 3 has it too"],
    ),
    "duplicate id": (
        repeated_ids,
        ["labels.csv:62: name: duplicate id 'n0'; line 2 has it too", "9 errors"],
    ),
    "unknown split": (split_column(5, "tset"), ["labels.csv:5: part: unknown split 'tset'", "train, val or test"]),
    "not UTF-8": (text("image,reading\nß,1\n".encode("latin-1")), ["labels.csv:2: not UTF-8", "iconv"]),
    "no CSV": (setting(csv="other.csv"), ["data/other.csv: no such file", "Tables there: labels.csv"]),
    "binary": (lambda raw: (raw.folder / "labels.csv").write_bytes(os.urandom(5000)), ["labels.csv:", "UTF-8"]),
    "control characters": (row(4, 1, "\x1b[2J\x07"), ["labels.csv:4: reading: target is not a number '\\x1b[2J\\x07'"]),
}


@pytest.mark.parametrize("case", ERRORS)
def test_an_error_is_reported_on_one_screen_and_earlier_output_is_kept(
    raw: RawFolder, case: str, capfd: pytest.CaptureFixture[str]
) -> None:
    OUT.mkdir(parents=True)
    (OUT / "train-00000.parquet").write_bytes(b"earlier")
    before = content(OUT)
    change, expected = ERRORS[case]
    change(raw)
    assert main(INGEST) == 1
    stderr = capfd.readouterr().err
    assert not [part for part in expected if part not in stderr], stderr
    assert "Traceback" not in stderr
    assert len(stderr.splitlines()) < 24
    assert content(OUT) == before
    assert not list(Path("artifacts").glob(".*.partial"))


def subjects(raw: RawFolder, empty: int | None = None) -> None:
    """Assigns the rows to 23 persons with three images each, of one or two labels."""
    raw.rows = [[*row, f"person {k // 3}"] for k, row in enumerate(raw.rows)]
    if empty is not None:
        raw.rows[empty - 2][2] = " "
    raw.write(header=["image", "reading", "who"])


def test_the_split_by_subject_reports_its_distance_from_the_balanced_rule(
    raw: RawFolder, capfd: pytest.CaptureFixture[str]
) -> None:
    subjects(raw)
    setting(split="subject", subject_column="who")(raw)
    assert main(INGEST) == 0
    who = {split: set(read_table(OUT, split, ["subject"])["subject"].to_pylist()) for split in SPLITS}
    assert sum(map(len, who.values())) == len(set().union(*who.values())) == 23
    assert pq.read_schema(OUT / "val-00000.parquet").equals(schema(subjects=True), check_metadata=True)
    metrics = json.loads((OUT / "metrics.json").read_text())
    test = metrics["balance"]["test"]
    assert test["wanted"] == 11
    assert test["met"] + test["over"] == metrics["rows"]["test"]
    stderr = capfd.readouterr().err
    assert f"by subject, test has {test['met']} of the 11 rows that the balanced rule asks for" in stderr


def test_an_empty_subject_is_null_unless_the_split_needs_it(raw: RawFolder) -> None:
    subjects(raw, empty=9)
    setting(subject_column="who")(raw)
    assert main(INGEST) == 0
    rows = [row for split in SPLITS for row in read_table(OUT, split, ["id", "subject"]).to_pylist()]
    assert [row["id"] for row in rows if row["subject"] is None] == ["images/007.png"]


NAMES = ["with space.png", 'a "quoted" one.png', "two\nlines.png", "größe-年.png", "comma, semicolon;.png", "'; --.png"]


def test_file_names_with_special_characters_are_read(raw: RawFolder) -> None:
    for k, name in enumerate(NAMES):
        (raw.folder / f"images/{k:03d}.png").rename(raw.folder / "images" / name)
        raw.rows[k][0] = f"images/{name}"
    raw.write()
    assert main(INGEST) == 0
    ids = {id for split in SPLITS for id in read_table(OUT, split)["id"].to_pylist()}
    assert ids == {image for image, _ in raw.rows}


def test_the_error_for_a_table_with_a_million_columns_fits_on_a_screen(
    raw: RawFolder, capfd: pytest.CaptureFixture[str]
) -> None:
    extra = ",".join(f"c{k}" for k in range(1_000_000))
    table = raw.folder / "labels.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([f"{lines[0]}s,{extra}", *lines[1:]]) + "\n")
    start = time.process_time()
    assert main(INGEST) == 1
    assert time.process_time() - start < 20
    stderr = capfd.readouterr().err
    assert "no column 'reading' (ingest.target_column); did you mean 'readings'?" in stderr
    assert max(map(len, stderr.splitlines())) < 400


# Line -> change that makes its row bad, and the reason in quarantine.csv.
BAD_ROWS: dict[int, tuple[Change, str]] = {
    3: (bytes_of("images/001.png", None), "missing file"),
    4: (bytes_of("images/002.png", b""), "empty file"),
    5: (bytes_of("images/003.png", encoded(3, size=64)[:-300]), "image does not decode"),
    6: (bytes_of("images/004.png", b"<html>404</html>"), "image does not decode"),
    7: (row(7, 1, "12,5"), "decimal comma"),
    8: (row(8, 1, "nan"), "target not finite"),
    9: (row(9, 1, ""), "empty target"),
    10: (row(10, 1, "100.5"), "target out of range"),
    11: (row(11, 0, "images/000.png"), "image listed twice"),
    12: (row(12, 0, "../params.yaml"), "image outside the folder"),
}


def add_bad_rows(raw: RawFolder, limit: float) -> None:
    for change, _ in BAD_ROWS.values():
        change(raw)
    setting(max_quarantined=limit)(raw)


def test_bad_rows_are_quarantined_with_line_and_reason(raw: RawFolder, capfd: pytest.CaptureFixture[str]) -> None:
    add_bad_rows(raw, 0.2)
    assert main(INGEST) == 0
    with open(OUT / "quarantine.csv", encoding="utf-8", newline="") as file:
        quarantined = list(csv.DictReader(file))
    reasons = {line: reason for line, (_, reason) in BAD_ROWS.items()}
    assert {int(item["line"]): item["reason"] for item in quarantined} == reasons
    assert len(quarantined) == len(BAD_ROWS)
    assert quarantined[4] == {
        "source": "labels.csv", "line": "7", "column": "reading", "value": "12,5", "reason": "decimal comma",
        "remedy": "write 12.5, with a point",
    }  # fmt: skip
    metrics = json.loads((OUT / "metrics.json").read_text())
    assert (metrics["read"], metrics["kept"], metrics["quarantined"]) == (69, 59, 10)
    assert sum(metrics["rows"].values()) == 59
    kept = {line for split in SPLITS for line in read_table(OUT, split)["origin"].to_pylist()}
    assert {int(origin.split()[0].split(":")[1]) for origin in kept} == set(range(2, 71)) - BAD_ROWS.keys()
    stderr = capfd.readouterr().err
    assert "10 of 69 rows quarantined (decimal comma: 1, " in stderr
    assert "image does not decode: 2" in stderr
    before = content(OUT)
    assert main(INGEST) == 0
    assert content(OUT) == before


def test_what_is_no_file_is_quarantined_and_blocks_nothing(raw: RawFolder) -> None:
    """The step hashes the whole folder too: a link to nothing gave a traceback there, and a pipe blocked it."""
    for k in (1, 2, 3):
        (raw.folder / raw.rows[k][0]).unlink()
    (raw.folder / raw.rows[1][0]).symlink_to("nowhere.png")
    os.mkfifo(raw.folder / raw.rows[2][0])
    (raw.folder / raw.rows[3][0]).mkdir()
    os.mkfifo(raw.folder / "not-in-the-table.png")
    setting(max_quarantined=0.1)(raw)
    assert main(INGEST) == 0
    with open(OUT / "quarantine.csv", encoding="utf-8", newline="") as file:
        assert {int(row["line"]): row["reason"] for row in csv.DictReader(file)} == {
            3: "link to nothing",
            4: "not a file",
            5: "not a file",
        }


def test_the_balanced_rule_counts_only_kept_rows(raw: RawFolder) -> None:
    """Three of the nine rows of the rarest label are bad; the other six are in all splits."""
    for k in (60, 63, 66):
        bytes_of(f"images/{k:03d}.png", b"x")(raw)
    setting(max_quarantined=0.1)(raw)
    assert main(INGEST) == 0
    label, *counts, shot = (OUT / "histogram.csv").read_text().splitlines()[-1].split(",")
    assert (label, sum(map(int, counts)), shot) == ("90", 6, "few")
    assert min(map(int, counts)) >= 1


def test_more_bad_rows_than_the_limit_are_an_error(raw: RawFolder, capfd: pytest.CaptureFixture[str]) -> None:
    add_bad_rows(raw, 0.14)
    assert main(INGEST) == 1
    stderr = capfd.readouterr().err
    assert "10 errors (10 of 69 rows, 14.49%; ingest.max_quarantined allows 14.00%)" in stderr
    assert "labels.csv:5: image: image does not decode 'images/003.png'; does not decode: " in stderr
    assert not OUT.exists()


def test_without_bad_rows_the_quarantine_is_empty_and_the_shards_are_unchanged(raw: RawFolder) -> None:
    assert main(INGEST) == 0
    before = content(OUT)
    setting(max_quarantined=0.5)(raw)
    assert main(INGEST) == 0
    after = content(OUT)
    assert after.pop("quarantine.csv") == b"source,line,column,value,reason,remedy\r\n"
    assert {name for name in after if after[name] != before[name]} == {"metrics.json"}


def test_many_errors_of_several_kinds_are_reported_together(raw: RawFolder, capfd: pytest.CaptureFixture[str]) -> None:
    for k in range(0, 40, 2):
        (raw.folder / f"images/{k:03d}.png").unlink()
    raw.rows[50][1] = "n/a"
    raw.write()
    assert main(INGEST) == 1
    stderr = capfd.readouterr().err
    assert "data/labels.csv: 21 errors" in stderr
    assert "and 11 more (missing file: 10, target is not a number: 1)" in stderr
    assert not OUT.exists()


def test_the_command_in_a_process_exits_with_1_and_without_a_traceback(raw: RawFolder) -> None:
    row(4, 1, "12,5")(raw)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80"}
    run = subprocess.run(
        [sys.executable, "-m", "components", *INGEST], capture_output=True, text=True, env=environment, check=False
    )
    assert run.returncode == 1
    assert "labels.csv:4: reading: decimal comma '12,5'; write 12.5, with a point" in run.stderr
    assert "Traceback" not in run.stderr + run.stdout
