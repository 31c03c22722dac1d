"""The validate step, run from the command line: what passes, what stops the run, and how it is reported."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from components.__main__ import main
from components.shared.rows.rows import SCHEMA, read_table
from tests.support.raw_folder import ROOT, SHARED_DATA, RawFolder, content, encoded, write_params

INGEST = ["ingest", "--params", "params.yaml", "--data", "data", "--out", "artifacts/ingest"]
VALIDATE = ["validate", "--params", "params.yaml", "--ingest", "artifacts/ingest", "--out", "artifacts/validate"]
SHARDS, OUT, DOCS = Path("artifacts/ingest"), Path("artifacts/validate"), Path("reports/data_docs")
REPORT = Path("reports/validate")


@pytest.fixture
def raw(store: Path) -> RawFolder:
    """A raw input in the working directory, with its params.yaml."""
    write_params(store / "params.yaml")
    return RawFolder(store / "data")


@pytest.mark.usefixtures("raw")
def test_valid_splits_pass(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(INGEST) == main(VALIDATE) == 0
    result = json.loads((OUT / "result.json").read_text())
    assert all(item["success"] for item in result.values())
    assert {item["expectation"] for item in result.values()} == {
        "ExpectColumnPairValuesToBeEqual",
        "ExpectColumnValuesToNotBeNull",
        "ExpectColumnValuesToBeUnique",
        "ExpectColumnValuesToBeInSet",
        "ExpectColumnValuesToBeBetween",
        "ExpectColumnMaxToBeBetween",
    }
    assert result["target_in_range"]["observed"] == {"rows": 69, "unexpected": 0}
    assert result["target_in_range"]["arguments"] == {"column": "target", "min_value": 0.0, "max_value": 100.0}
    assert result["train_imbalance"]["observed"] == {"value": 32 / 3}
    metrics = json.loads((OUT / "metrics.json").read_text())
    assert metrics["rows"] == {"train": 47, "val": 11, "test": 11}
    assert metrics["expectations_met"] == len(result) == 22
    assert metrics["smallest_side"] == metrics["largest_side"] == 12
    assert (DOCS / "index.html").is_file()
    assert f"Data Docs: {DOCS}/index.html" in capfd.readouterr().err


@pytest.mark.usefixtures("raw")
def test_same_splits_give_the_same_bytes_and_new_data_docs() -> None:
    assert main(INGEST) == main(VALIDATE) == 0
    first, report, pages = content(OUT), content(REPORT), content(DOCS)
    assert set(report) == {"result.json", "drift.json", "profile.json", "tail.json", "tail.png"}
    tail = json.loads(report["tail.json"])
    assert (tail["imbalance"], tail["rows"]) == (32 / 3, {"train": 47, "val": 11, "test": 11})
    assert main(VALIDATE) == 0
    assert content(OUT) == first
    assert content(REPORT) == report
    assert len(content(DOCS)) == len(pages)
    assert content(DOCS).keys() != pages.keys()  # their names contain the time of the run


Change = Callable[[RawFolder], object]


def image(line: int, data: bytes) -> Change:
    return lambda raw: (raw.folder / raw.rows[line - 2][0]).write_bytes(data)


def target(line: int, value: str) -> Change:
    def change(raw: RawFolder) -> None:
        raw.rows[line - 2][1] = value
        raw.write()

    return change


def params(**sections: dict) -> Change:
    return lambda raw: write_params(Path("params.yaml"), **sections)


def splits(test: dict[int, int]) -> Change:
    """Sets the splits in the table: this many test rows of each label, and one row of each label for val."""

    def change(raw: RawFolder) -> None:
        seen: dict[str, int] = {}
        for row in raw.rows:
            k = seen[row[1]] = seen.get(row[1], 0) + 1
            row.append("test" if k <= test[int(row[1])] else "val" if k == test[int(row[1])] + 1 else "train")
        raw.write(header=["image", "reading", "part"])
        # Few-shot: the label with 9 rows, minus those for val and test. Medium-shot: the label with 20, likewise.
        params(task={"few": 9, "many": 15}, ingest={"split": "given", "split_column": "part"})(raw)

    return change


def leaked(raw: RawFolder) -> None:
    """Makes all pictures of the last label identical, in files of different bytes, which may get different splits."""
    picture = Image.open(io.BytesIO(encoded(1)))
    for k, (path, _) in enumerate(raw.rows[60:]):
        picture.save(raw.folder / path, "PNG", dpi=(72 + k, 72))


def divided_persons(raw: RawFolder) -> None:
    """Assigns three images each to a person, and splits them without regard to it."""
    raw.rows = [[*row, f"person {k // 3}"] for k, row in enumerate(raw.rows)]
    raw.write(header=["image", "reading", "who"])
    params(ingest={"subject_column": "who"})(raw)


def float_image() -> bytes:
    """An image of floating-point values, whose range is unknown."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8), 0.3, np.float32)).save(buffer, "TIFF")
    return buffer.getvalue()


# Errors in the raw input that ingest accepts with these settings.
INPUT_ERRORS: dict[str, tuple[Change, list[str]]] = {
    "truncated image": (
        image(9, encoded(9, size=64)[:-300]),
        [
            "every image decodes completely",
            "1 of 69",
            "labels.csv:9 images/007.png",
            "truncated",
            "Replace these files",
        ],
    ),
    "text as image": (
        image(9, b"<html>404</html>"),
        ["labels.csv:9 images/007.png", "not an image in a known format", "or remove their rows"],
    ),
    "float image": (
        image(9, float_image()),
        ["decodes completely", "labels.csv:9 images/007.png", "mode F have no known range"],
    ),
    "tiny image": (image(9, encoded(9, size=7)), ["at least 8 pixels", "labels.csv:9 images/007.png", "side 7"]),
    "one picture with two targets": (
        lambda raw: image(3, (raw.folder / "images/040.png").read_bytes())(raw),
        ["no image, by its pixels, has two targets", "(target 10)", " = labels.csv:", "(target 50)"],
    ),
    "target above the range": (
        target(9, "101"),
        ["in the task's range, 0 to 100 %", "labels.csv:9 images/007.png", "target 101.0", "task.low and task.high"],
    ),
    "target far off": (target(9, "1e300"), ["labels.csv:9 images/007.png", "target 1e+300"]),
    "target below the range": (target(9, "-1"), ["labels.csv:9 images/007.png", "target -1.0"]),
    "labels finer than the resolution": (
        target(9, "10.5"),
        ["whole number of steps of 1 %", "labels.csv:9 images/007.png", "target 10.5", "task.resolution"],
    ),
    "one picture in two splits": (
        leaked,
        ["in two splits", "Found: 1", "labels.csv:6", "(train) = labels.csv:6", "(test)"],
    ),
    "one person in two splits": (
        divided_persons,
        ["no subject (person, device) is in two splits", "'person ", "ingest.split: subject"],
    ),
    "test without few-shot rows": (
        splits({10: 5, 50: 5, 90: 0}),
        ["at least 3 few-shot rows", "Found: 0", "train has 8 few-shot rows", "ingest.split: balanced", "task.few"],
    ),
    "test without many-shot rows": (splits({10: 0, 50: 5, 90: 5}), ["at least 3 many-shot rows", "task.many"]),
    "test as long-tailed as train": (
        splits({10: 25, 50: 3, 90: 3}),
        ["test is balanced", "Found: 2.42", "25 rows with label 10, 3 with", "ingest.split: balanced"],
    ),
    "train not long-tailed": (
        params(validate={"min_imbalance": 11}),
        ["train is long-tailed", "Found: 10.7", "32 rows with label 10, 3 with 90", "validate.min_imbalance"],
    ),
}


def stored(array: np.ndarray, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format, **options)
    return buffer.getvalue()


def near_duplicates(raw: RawFolder) -> None:
    """Makes all pictures of the last label one photograph, saved in different qualities."""
    shades = np.cumsum(np.random.default_rng(5).normal(0, 9, (96, 96, 3)), axis=0).clip(-120, 120) + 128
    for k, (path, _) in enumerate(raw.rows[60:]):
        (raw.folder / path).write_bytes(stored(shades.astype(np.uint8), "JPEG", quality=95 - k))
    splits({10: 4, 50: 4, 90: 3})(raw)


# Reported without stopping the run, by the severities of params.yaml.
WARNINGS: dict[str, tuple[Change, list[str]]] = {
    "test labels that train does not have": (
        lambda raw: (target(65, "91")(raw), target(66, "92")(raw), splits({10: 5, 50: 5, 90: 3, 91: 1, 92: 1})(raw)),
        ["train has the labels of test", "Found: 0.133", "1 rows with label 91", "validate.max_unseen"],
    ),
    "val as long-tailed as train": (
        params(validate={"max_val_imbalance": 1}),
        ["val is balanced", "Found: 1.09", "val: 4 rows with label ", "3 with 90", "when the warm start ends"],
    ),
    "near duplicates": (near_duplicates, ["looks like one of an earlier split", "(test) ~ labels.csv:6", "bits apart"]),
    "16 bits": (
        image(9, stored(np.random.default_rng(1).integers(0, 2**16, (9, 9), np.uint16))),
        ["stored as 8-bit", "labels.csv:9 images/007.png", "mode I;16", "16 bits to 8"],
    ),
    "transparency": (
        image(9, stored(np.random.default_rng(1).integers(0, 256, (9, 9, 4), np.uint8))), ["mode RGBA", "to white"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WARNINGS)
def test_warning_is_reported_and_does_not_stop_the_run(
    raw: RawFolder, case: str, capfd: pytest.CaptureFixture[str]
) -> None:
    change, expected = WARNINGS[case]
    change(raw)
    assert main(INGEST) == main(VALIDATE) == 0
    stderr = capfd.readouterr().err
    assert not [part for part in [*expected, "warning ", "21 expectations met"] if part not in stderr], stderr
    assert json.loads((OUT / "metrics.json").read_text())["warnings"] == 1
    result = json.loads((OUT / "result.json").read_text())
    unmet = [item for item in result.values() if not item["success"]]
    assert [item["severity"] for item in unmet] == ["warning"]


def grey_16_bit(seed: int, bits: int) -> bytes:
    values = np.random.default_rng(seed).integers(0, 1 << bits, (12, 12), np.uint16)
    return stored(values)


@pytest.mark.parametrize(("bits", "warned"), [(16, False), (14, True), (12, True)])
def test_images_of_12_bits_in_16_are_reported(
    bits: int, warned: bool, raw: RawFolder, capfd: pytest.CaptureFixture[str]
) -> None:
    """A single dark image is no reason for a warning; the largest value of all images is."""
    for k, (name, _) in enumerate(raw.rows):
        (raw.folder / name).write_bytes(grey_16_bit(k, bits))
    (raw.folder / raw.rows[0][0]).write_bytes(grey_16_bit(0, 4))
    splits({10: 4, 50: 4, 90: 3})(raw)
    assert main(INGEST) == main(VALIDATE) == 0
    stderr = capfd.readouterr().err
    assert ("69 images have 16 bits; the largest value is" in stderr) == warned, stderr
    assert ("Set task.grey_bits to the number of bits" in stderr) == warned


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_frames_that_are_not_used_are_counted(format: str, raw: RawFolder, capfd: pytest.CaptureFixture[str]) -> None:
    frames = [Image.open(io.BytesIO(encoded(900 + k))) for k in range(3)]
    buffer = io.BytesIO()
    frames[0].save(buffer, format, save_all=True, append_images=frames[1:])
    (raw.folder / raw.rows[5][0]).write_bytes(buffer.getvalue())
    assert main(INGEST) == main(VALIDATE) == 0
    assert f"labels.csv:7 {raw.rows[5][0]}: 3 frames" in capfd.readouterr().err
    assert json.loads((OUT / "metrics.json").read_text())["image_frames"] == 1


@pytest.mark.usefixtures("raw")
def test_severity_comes_from_the_settings(capfd: pytest.CaptureFixture[str]) -> None:
    raw = yaml.safe_load(Path("params.yaml").read_text())
    raw["validate"]["min_imbalance"] = 11
    raw["validate"]["severity"]["train_imbalance"] = "warning"
    Path("params.yaml").write_text(yaml.safe_dump(raw))
    assert main(INGEST) == main(VALIDATE) == 0
    assert "Found: 10.7" in capfd.readouterr().err
    raw["validate"]["severity"]["train_imbalance"] = "error"
    Path("params.yaml").write_text(yaml.safe_dump(raw))
    assert main(VALIDATE) == 1


def check_report(expected: list[str], before: dict[str, bytes], stderr: str) -> None:
    assert not [part for part in expected if part not in stderr], stderr
    assert "Traceback" not in stderr
    assert len(stderr.splitlines()) < 24, stderr
    assert content(OUT) == before
    assert not list(Path("artifacts").glob(".*.partial"))


@pytest.fixture
def earlier(raw: RawFolder) -> dict[str, bytes]:
    """An earlier output, which a failed run must leave unchanged."""
    OUT.mkdir(parents=True)
    (OUT / "result.json").write_text("earlier")
    return content(OUT)


@pytest.mark.parametrize("case", INPUT_ERRORS)
def test_error_in_the_raw_input_is_reported_with_its_row(
    raw: RawFolder, earlier: dict[str, bytes], case: str, capfd: pytest.CaptureFixture[str]
) -> None:
    change, expected = INPUT_ERRORS[case]
    change(raw)
    assert main(INGEST) == 0
    capfd.readouterr()
    assert main(VALIDATE) == 1
    check_report([*expected, f"Data Docs: {DOCS}/index.html"], earlier, capfd.readouterr().err)
    page = (DOCS / "index.html").read_text(encoding="utf-8")
    assert "Failed" in page or "failed" in page


def overwrite(split: str, column: str, values: list[object]) -> Callable[[], None]:
    """Overwrites the first values of a column in a split's shard, with values that ingest would not write."""

    def change() -> None:
        path = SHARDS / f"{split}-00000.parquet"
        whole = pq.read_table(path)
        index = whole.schema.get_field_index(column)
        changed = values + whole.column(column).to_pylist()[len(values) :]
        pq.write_table(
            whole.set_column(index, SCHEMA.field(column), pa.array(changed, SCHEMA.field(column).type)), path
        )

    return change


def drop_column(column: str) -> None:
    path = SHARDS / "val-00000.parquet"
    pq.write_table(pq.read_table(path).drop_columns([column]), path)


def truncate() -> None:
    path = SHARDS / "test-00000.parquet"
    path.write_bytes(path.read_bytes()[:2000])


# Errors in the shards themselves.
SHARD_ERRORS: dict[str, tuple[Callable[[], object], list[str]]] = {
    "null target": (overwrite("val", "target", [None]), ["every row has a target", "1 of 69", "(val)", "labels.csv:"]),
    "NaN target": (overwrite("val", "target", [float("nan")]), ["every row has a target", "1 of 69"]),
    "infinite target": (overwrite("val", "target", [float("inf")]), ["every target is finite", "target inf", "(val)"]),
    "null id": (overwrite("test", "id", [None]), ["every row has an id", "(test)"]),
    "ids repeated over splits": (
        lambda: overwrite("val", "id", read_table(SHARDS, "train")["id"].to_pylist()[:1])(),
        ["ids are unique over all splits", "2 of 69", "(train)", "(val)"],
    ),
    "empty image": (
        overwrite("val", "image", [{"bytes": b"", "path": None}, {"bytes": None, "path": "x"}]),
        ["2 of 69", "empty (0 bytes)"],
    ),
    "missing field": (
        lambda: drop_column("target"),
        ["row schema", "val-00000.parquet: field target", "found no", "ingest"],
    ),
    "truncated shard": (
        truncate,
        ["artifacts/ingest/test-00000.parquet: not a complete Parquet file", "Run the ingest step again"],
    ),
    "no shard": (lambda: (SHARDS / "test-00000.parquet").unlink(), ["no test shards", "Run the ingest step"]),
}


@pytest.mark.parametrize("case", SHARD_ERRORS)
def test_error_in_the_shards_is_reported(
    earlier: dict[str, bytes], case: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(INGEST) == 0
    change, expected = SHARD_ERRORS[case]
    change()
    capfd.readouterr()
    assert main(VALIDATE) == 1
    check_report(expected, earlier, capfd.readouterr().err)


def test_many_failures_fit_one_screen(
    raw: RawFolder, earlier: dict[str, bytes], capfd: pytest.CaptureFixture[str]
) -> None:
    for k in range(30):
        image(k + 2, b"x")(raw)
        target(k + 2, "150.5")(raw)
    params(validate={"min_imbalance": 50, "min_rows_per_shot": 40})(raw)
    assert main(INGEST) == 0
    capfd.readouterr()
    assert main(VALIDATE) == 1
    stderr = capfd.readouterr().err
    check_report(["30 of 69", "and 27 more", "- and ", "; the Data Docs show them"], earlier, stderr)


def test_command_exits_1_without_a_traceback(raw: RawFolder) -> None:
    target(9, "101")(raw)
    assert main(INGEST) == 0
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        [sys.executable, "-m", "components", *VALIDATE], capture_output=True, text=True, env=environment, check=False
    )
    assert process.returncode == 1
    assert "labels.csv:9 images/007.png" in process.stderr
    assert "Traceback" not in process.stderr + process.stdout
    assert not OUT.exists()


@pytest.mark.parametrize(
    ("name", "task", "ingest"),
    [
        ("meter-digits", {"high": 10, "resolution": 0.1, "bin_width": 0.1}, {"target_column": "reading"}),
        ("han-strokes", {"low": 1}, {"image_column": "path", "target_column": "strokes"}),
    ],
)
def test_real_data_sets_pass(store: Path, name: str, task: dict, ingest: dict) -> None:
    folder = SHARED_DATA / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing")
    limits = {"min_imbalance": 5, "max_test_imbalance": 4, "min_rows_per_shot": 10}
    write_params(
        store / "params.yaml",
        task={**task, "many": 100, "few": 20},
        ingest={**ingest, "max_per_label": 30},
        validate=limits,
    )
    assert main([*INGEST[:3], "--data", str(folder), *INGEST[5:]]) == 0
    assert main(VALIDATE) == 0
    metrics = json.loads((OUT / "metrics.json").read_text())
    assert metrics["images_in_two_splits"] == 0
    assert min(metrics[f"test_rows_{shot}"] for shot in ("many", "medium", "few")) >= 10
