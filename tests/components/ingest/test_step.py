"""Ingest, through the command line: shards, their bytes, and every fault of the raw input."""

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

WORDS = ["ingest", "--params", "params.yaml", "--data", "data", "--out", "artifacts/ingest"]
OUT = Path("artifacts/ingest")  # in the working directory of the test


@pytest.fixture
def raw(store: Path) -> RawFolder:
    """In the working directory, with params.yaml for it."""
    write_params(store / "params.yaml")
    return RawFolder(store / "data")


def test_it_writes_shards_metrics_and_a_histogram(raw: RawFolder) -> None:
    assert main(WORDS) == 0
    names = {f"{split}-00000.parquet" for split in SPLITS} | {"metrics.json", "histogram.csv"}
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
    assert main(WORDS) == 0
    first = content(OUT)
    assert main(WORDS) == 0
    assert content(OUT) == first


def test_datasets_reads_the_images(raw: RawFolder) -> None:
    from datasets import Dataset

    assert main(WORDS) == 0
    rows = Dataset.from_parquet("artifacts/ingest/test-00000.parquet", cache_dir="cache")
    assert rows[0]["image"].size == (12, 12)


def test_large_input_goes_to_several_shards_under_the_limit(raw: RawFolder) -> None:
    write_params(Path("params.yaml"), ingest={"shard_mb": 1})
    for k in range(len(raw.rows)):
        (raw.folder / f"images/{k:03d}.png").write_bytes(random.Random(k).randbytes(100_000))
    assert main(WORDS) == 0
    shards = sorted(OUT.glob("train-*.parquet"))
    assert len(shards) >= 5
    assert max(path.stat().st_size for path in shards) <= 2**20
    assert read_table(OUT, "train").num_rows == 47


BY_SCENE = {"source": "gauges", "split": "given", "split_column": "split"}


def test_gauges_are_the_other_source(store: Path) -> None:
    write_params(store / "params.yaml", ingest={**BY_SCENE, "csv": "scenes.csv", "image_size": 16})
    (store / "data").mkdir()
    scenes = draw_scenes(0, label_counts(head=3, operating_point=50, decay=9.0, floor=1), val=1, test=1)
    (store / "data" / "scenes.csv").write_text(write_scenes(scenes))
    assert main(WORDS) == 0
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


FAULTS: dict[str, tuple[Change, list[str]]] = {
    "missing column": (
        header("image", "readings"),
        ["data/labels.csv:1", "no column 'reading' (ingest.target_column)", "did you mean 'readings'?", "'image'"],
    ),
    "missing split column": (
        setting(split="given", split_column="part"),
        ["no column 'part' (ingest.split_column)", "'image', 'reading'"],
    ),
    "no subject": (
        lambda raw: (subjects(raw, empty=9), setting(split="subject", subject_column="who")(raw)),
        ["labels.csv:9: who: empty subject ' '", "whom or what the image shows"],
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
    "text target": (row(4, 1, "[bold]low"), ["labels.csv:4: reading: target is no number '[bold]low'"]),
    "decimal comma": (row(4, 1, "12,5"), ["labels.csv:4: reading: decimal comma '12,5'", "write 12.5"]),
    "unquoted decimal comma": (
        text(b"image,reading\nimages/000.png,12,5\n"),
        ["labels.csv:2: 3 values where the header has 2 columns", "decimals take a point"],
    ),
    "duplicate": (
        row(9, 0, "images/001.png"),
        ["labels.csv:9: image: image listed twice 'images/001.png'", "line 3 has it too"],
    ),
    "duplicate id": (
        lambda raw: (
            setting(id_column="name")(raw),
            setattr(raw, "rows", [[*row, f"n{k % 60}"] for k, row in enumerate(raw.rows)]),
            raw.write(header=["image", "reading", "name"]),
        ),
        ["labels.csv:62: name: duplicate id 'n0'; line 2 has it too", "9 faults"],
    ),
    "unknown split": (split_column(5, "tset"), ["labels.csv:5: part: unknown split 'tset'", "train, val or test"]),
    "not UTF-8": (text("image,reading\nß,1\n".encode("latin-1")), ["labels.csv:2: not UTF-8", "iconv"]),
    "no CSV": (setting(csv="other.csv"), ["data/other.csv: no such file", "CSV files there: labels.csv"]),
    "binary": (lambda raw: (raw.folder / "labels.csv").write_bytes(os.urandom(5000)), ["labels.csv:", "UTF-8"]),
    "control characters": (row(4, 1, "\x1b[2J\x07"), ["labels.csv:4: reading: target is no number '\\x1b[2J\\x07'"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_told_on_one_screen_and_earlier_output_stays(
    raw: RawFolder, fault: str, capfd: pytest.CaptureFixture[str]
) -> None:
    OUT.mkdir(parents=True)
    (OUT / "train-00000.parquet").write_bytes(b"earlier")
    before = content(OUT)
    change, expected = FAULTS[fault]
    change(raw)
    assert main(WORDS) == 1
    told = capfd.readouterr().err
    assert not [part for part in expected if part not in told], told
    assert "Traceback" not in told
    assert len(told.splitlines()) < 24
    assert content(OUT) == before
    assert not list(Path("artifacts").glob(".*.partial"))


def subjects(raw: RawFolder, empty: int | None = None) -> None:
    """Twenty-three persons with three pictures each, of one label or two."""
    raw.rows = [[*row, f"person {k // 3}"] for k, row in enumerate(raw.rows)]
    if empty is not None:
        raw.rows[empty - 2][2] = " "
    raw.write(header=["image", "reading", "who"])


def test_the_split_by_subject_says_how_balanced_it_is(raw: RawFolder, capfd: pytest.CaptureFixture[str]) -> None:
    subjects(raw)
    setting(split="subject", subject_column="who")(raw)
    assert main(WORDS) == 0
    who = {split: set(read_table(OUT, split, ["subject"])["subject"].to_pylist()) for split in SPLITS}
    assert sum(map(len, who.values())) == len(set().union(*who.values())) == 23
    assert pq.read_schema(OUT / "val-00000.parquet").equals(schema(subjects=True), check_metadata=True)
    metrics = json.loads((OUT / "metrics.json").read_text())
    test = metrics["balance"]["test"]
    assert test["wanted"] == 11
    assert test["met"] + test["over"] == metrics["rows"]["test"]
    told = capfd.readouterr().err
    assert f"by subject, test has {test['met']} of the 11 rows that the balanced rule asks for" in told


def test_a_row_without_a_subject_has_null_where_the_split_needs_none(raw: RawFolder) -> None:
    subjects(raw, empty=9)
    setting(subject_column="who")(raw)
    assert main(WORDS) == 0
    found = [row for split in SPLITS for row in read_table(OUT, split, ["id", "subject"]).to_pylist()]
    assert [row["id"] for row in found if row["subject"] is None] == ["images/007.png"]


NAMES = ["with space.png", 'a "quoted" one.png', "two\nlines.png", "größe-年.png", "comma, semicolon;.png", "'; --.png"]


def test_odd_file_names_are_names(raw: RawFolder) -> None:
    for k, name in enumerate(NAMES):
        (raw.folder / f"images/{k:03d}.png").rename(raw.folder / "images" / name)
        raw.rows[k][0] = f"images/{name}"
    raw.write()
    assert main(WORDS) == 0
    ids = {id for split in SPLITS for id in read_table(OUT, split)["id"].to_pylist()}
    assert ids == {image for image, _ in raw.rows}


def test_a_million_columns_are_read_or_told_of_on_one_screen(raw: RawFolder, capfd: pytest.CaptureFixture[str]) -> None:
    extra = ",".join(f"c{k}" for k in range(1_000_000))
    table = raw.folder / "labels.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([f"{lines[0]}s,{extra}", *lines[1:]]) + "\n")
    start = time.process_time()
    assert main(WORDS) == 1
    assert time.process_time() - start < 20
    told = capfd.readouterr().err
    assert "no column 'reading' (ingest.target_column); did you mean 'readings'?" in told
    assert max(map(len, told.splitlines())) < 400


# Line -> what is wrong with it, and why it is set aside.
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


def spoil(raw: RawFolder, limit: float) -> None:
    for change, _ in BAD_ROWS.values():
        change(raw)
    setting(max_quarantined=limit)(raw)


def test_bad_rows_are_set_aside_with_line_and_reason(raw: RawFolder, capfd: pytest.CaptureFixture[str]) -> None:
    spoil(raw, 0.2)
    assert main(WORDS) == 0
    with open(OUT / "quarantine.csv", encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    assert {int(item["line"]): item["reason"] for item in found} == {n: why for n, (_, why) in BAD_ROWS.items()}
    assert len(found) == len(BAD_ROWS)
    assert found[4] == {
        "source": "labels.csv", "line": "7", "column": "reading", "value": "12,5", "reason": "decimal comma",
        "remedy": "write 12.5, with a point",
    }  # fmt: skip
    metrics = json.loads((OUT / "metrics.json").read_text())
    assert (metrics["read"], metrics["kept"], metrics["quarantined"]) == (69, 59, 10)
    assert sum(metrics["rows"].values()) == 59
    kept = {line for split in SPLITS for line in read_table(OUT, split)["origin"].to_pylist()}
    assert {int(origin.split()[0].split(":")[1]) for origin in kept} == set(range(2, 71)) - BAD_ROWS.keys()
    told = capfd.readouterr().err
    assert "10 of 69 rows quarantined (decimal comma: 1, " in told
    assert "image does not decode: 2" in told
    before = content(OUT)
    assert main(WORDS) == 0
    assert content(OUT) == before


def test_the_split_is_that_of_the_rows_that_are_kept(raw: RawFolder) -> None:
    """Three of the nine rows of the rarest label are broken: a third of the six others goes to test."""
    for k in (60, 63, 66):
        bytes_of(f"images/{k:03d}.png", b"x")(raw)
    setting(max_quarantined=0.1)(raw)
    assert main(WORDS) == 0
    assert (OUT / "histogram.csv").read_text().splitlines()[-1] == "90,2,2,2,few"


def test_too_many_bad_rows_end_the_step(raw: RawFolder, capfd: pytest.CaptureFixture[str]) -> None:
    spoil(raw, 0.14)
    assert main(WORDS) == 1
    told = capfd.readouterr().err
    assert "10 faults (10 of 69 rows, 14.49%; ingest.max_quarantined allows 14.00%)" in told
    assert "labels.csv:5: image: image does not decode 'images/003.png'; does not decode: " in told
    assert not OUT.exists()


def test_without_a_bad_row_the_quarantine_is_empty_and_the_shards_are_the_same(raw: RawFolder) -> None:
    assert main(WORDS) == 0
    before = content(OUT)
    setting(max_quarantined=0.5)(raw)
    assert main(WORDS) == 0
    after = content(OUT)
    assert after.pop("quarantine.csv") == b"source,line,column,value,reason,remedy\n"
    assert {name for name in after if after[name] != before[name]} == {"metrics.json"}


def test_many_faults_of_several_kinds_are_told_together(raw: RawFolder, capfd: pytest.CaptureFixture[str]) -> None:
    for k in range(0, 40, 2):
        (raw.folder / f"images/{k:03d}.png").unlink()
    raw.rows[50][1] = "n/a"
    raw.write()
    assert main(WORDS) == 1
    told = capfd.readouterr().err
    assert "data/labels.csv: 21 faults" in told
    assert "and 11 more (missing file: 10, target is no number: 1)" in told
    assert not OUT.exists()


def test_the_real_command_exits_1_without_a_traceback(raw: RawFolder) -> None:
    row(4, 1, "12,5")(raw)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80"}
    done = subprocess.run(
        [sys.executable, "-m", "components", *WORDS], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 1
    assert "labels.csv:4: reading: decimal comma '12,5'; write 12.5, with a point" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
