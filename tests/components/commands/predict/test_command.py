"""The command on a small trained model: its results equal those of the reader that evaluate and the registry use."""

import csv
import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from components.__main__ import main
from components.commands.predict.flags import Flags
from components.commands.predict.images import Image
from components.commands.predict.reading import Rank, read_images
from components.commands.predict.results import Result
from components.commands.predict.sources import folder_source
from components.shared.model.number_reader import NumberReader
from components.shared.scoring.answer_rule import AnswerRule, Readings
from tests.support.gray_world import QUESTION, TRAIN, GrayWorld, gray

Predict = Callable[..., int]
NUMBERS = ("value", "low", "high", "mass")


@pytest.fixture(scope="module")
def reader(gray: GrayWorld) -> NumberReader:
    return NumberReader.load(gray.grpo, gray.settings.reader(), gray.settings.registry.tolerance_many)


def rule_of(reader: NumberReader) -> AnswerRule:
    assert reader.rule is not None
    return reader.rule


def log_p_of(reader: NumberReader, names: list[str]) -> np.ndarray:
    """Log-probabilities of all numbers `(U, N)`, in one batch."""
    rows = pa.record_batch(
        {
            "id": names,
            "image": pa.array([{"bytes": Path(name).read_bytes()} for name in names]),
            "question": [QUESTION] * len(names),
        }
    )
    ((ids, log_p),) = reader.log_probabilities([rows], len(names))
    assert ids == names
    return log_p


def written(path: str) -> list[dict[str, Any]]:
    """The rows of an output."""
    if path.endswith(".parquet"):
        return list(pq.read_table(path).to_pylist())
    if path.endswith(".jsonl"):
        return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    with open(path, encoding="utf-8", newline="") as file:
        return [
            {name: (float(text) if name in NUMBERS else text) if text else None for name, text in row.items()}
            for row in csv.DictReader(file)
        ]


def assert_read(rows: list[dict[str, Any]], expected: Readings) -> None:
    for name in NUMBERS:
        assert [row[name] for row in rows] == pytest.approx(getattr(expected, name), rel=1e-5), name


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_an_output_has_the_readings_in_the_order_of_the_input(
    predict: Predict, reader: NumberReader, photos: list[str], ending: str
) -> None:
    order = photos[::-1] + photos[:1]
    assert predict(*order, "--out", f"new/out.{ending}") == 0
    rows = written(f"new/out.{ending}")
    assert list(rows[0]) == ["image", *NUMBERS, "error", "flag"]
    assert [row["image"] for row in rows] == order
    assert_read(rows, rule_of(reader).read(log_p_of(reader, order)))
    assert {row["image"]: row["value"] for row in rows}["photos/03.png"] == 80
    assert {row["error"] for row in rows} == {None}
    assert os.listdir("new") == [f"out.{ending}"]


def test_balance_and_coverage_replace_those_of_the_settings(
    predict: Predict, reader: NumberReader, photos: list[str]
) -> None:
    assert predict("photos", "--out", "out.jsonl", "--balance", "1.0", "--coverage", "0.5") == 0
    rule = replace(rule_of(reader).with_balance(1.0), coverage=0.5)
    assert_read(written("out.jsonl"), rule.read(log_p_of(reader, photos)))


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_an_image_that_cannot_be_read_is_a_row_with_its_reason(
    predict: Predict, reader: NumberReader, photos: list[str], ending: str
) -> None:
    Path("text.png").write_text("text")
    Path("empty.png").touch()
    Path("cut.png").write_bytes(Path(photos[0]).read_bytes()[:300])
    bad = ["gone.png", "text.png", "cut.png", "empty.png"]
    order = [*bad, *photos[:3], *bad, *bad, photos[3], "gone.png"]  # whole batches of five without a readable image
    assert predict(*order, "--out", f"out.{ending}") == 3
    rows = written(f"out.{ending}")
    assert [row["image"] for row in rows] == order
    reasons = {row["image"]: row["error"] for row in rows}
    assert reasons["gone.png"] == "no such file"
    assert reasons["text.png"].startswith("not an image in a known format")
    assert reasons["cut.png"].startswith("does not decode")
    assert reasons["empty.png"] == "empty (0 bytes)"
    assert [row["image"] for row in rows if row["error"] is None] == photos[:4]
    assert_read([row for row in rows if row["error"] is None], rule_of(reader).read(log_p_of(reader, photos[:4])))
    assert {row[name] for row in rows if row["error"] for name in (*NUMBERS, "flag")} == {None}


def test_a_spreadsheet_runs_no_name_in_the_csv(predict: Predict) -> None:
    name = '=HYPERLINK("http:evil.example")'
    assert predict(name, "--out", "out.csv") == 3
    assert predict(name, "--out", "out.jsonl") == 3
    assert [row["image"] for row in (*written("out.csv"), *written("out.jsonl"))] == [f"'{name}", name]


def test_when_no_image_can_be_read_the_output_has_the_reasons(predict: Predict, photos: list[str]) -> None:
    assert predict("gone.png", "lost.jpg", "--out", "out.parquet", "--rank", "unsure") == 3
    assert [(row["rank"], row["image"], row["error"]) for row in written("out.parquet")] == [
        (None, "gone.png", "no such file"), (None, "lost.jpg", "no such file")
    ]  # fmt: skip


def test_images_inside_a_table_are_read(predict: Predict, reader: NumberReader, photos: list[str]) -> None:
    cells = [{"bytes": Path(name).read_bytes(), "path": None} for name in photos]
    pq.write_table(pa.table({"image": pa.array(cells), "age": range(len(cells))}), "t.parquet", row_group_size=5)
    assert predict("t.parquet", "--out", "out.csv") == 0
    assert [row["image"] for row in written("out.csv")] == [f"t.parquet#{k}" for k in range(len(photos))]
    assert_read(written("out.csv"), rule_of(reader).read(log_p_of(reader, photos)))


def test_rank_rare_orders_by_the_probability_of_a_few_shot_number(
    predict: Predict, reader: NumberReader, photos: list[str]
) -> None:
    assert predict("photos", "gone.png", "--out", "out.jsonl", "--rank", "rare", "--balance", "0.5") == 3
    task, known = reader.task, rule_of(reader).validation
    numbers = np.arange(task.low, task.high + 1)
    few = np.array([TRAIN.get(int(number), 0) < task.few for number in numbers])
    p = np.exp(log_p_of(reader, photos)) * np.exp(known.log_prior) ** -(0.5 - known.trained)
    rare = p[:, few].sum(axis=1) / p.sum(axis=1)
    assert 0 < rare.min() < rare.max()
    rows = written("out.jsonl")
    assert list(rows[0])[:2] == ["rank", "image"]
    assert [row["rank"] for row in rows] == [*range(1, len(photos) + 1), None]
    assert [row["image"] for row in rows] == [photos[k] for k in np.argsort(-rare, kind="stable")] + ["gone.png"]


def test_rank_unsure_orders_by_the_width_of_the_interval(
    predict: Predict, reader: NumberReader, photos: list[str]
) -> None:
    assert predict("photos", "--out", "out.csv", "--rank", "unsure") == 0
    read = rule_of(reader).read(log_p_of(reader, photos))
    order = np.argsort(read.low - read.high, kind="stable")
    assert [row["image"] for row in written("out.csv")] == [photos[k] for k in order]
    assert [row["rank"] for row in written("out.csv")] == [str(k + 1) for k in range(len(photos))]


def test_flags_mark_little_mass_and_wide_intervals(reader: NumberReader) -> None:
    """Of twenty validation images the widest is wider than 95 % of them."""
    rule = rule_of(reader)
    known = rule.validation
    flags = Flags.of(rule)
    read = rule.read(known.log_p)
    widths = read.high - read.low
    for width in np.unique(widths):
        probe = Readings(np.array([0.0]), np.array([0.0]), np.array([width]), np.array([1.0]))
        is_wide = (widths < width).mean() >= 0.95
        assert flags.flag(probe, 0) == ("interval" if is_wide else None)
    low, high = np.zeros(4), np.array([0.0, 0.0, flags.width + 1, flags.width + 1])
    probes = Readings(low, low, high, np.array([0.9, 0.899, 0.95, 0.1]))
    assert [flags.flag(probes, k) for k in range(4)] == [None, "mass", "interval", "mass, interval"]
    assert Flags.of(None).flag(Readings(low, low * np.nan, low * np.nan, low * np.nan), 0) is None


def test_an_unusual_image_is_flagged(predict: Predict, photos: list[str]) -> None:
    """Of all brightnesses that training lacks, some have wide intervals or little mass."""
    names = []
    for label in range(0, 101, 5):
        Path(f"{label}.png").write_bytes(gray(label, label))
        names.append(f"{label}.png")
    assert predict(*names, "--coverage", "0.8", "--out", "out.csv") == 0
    rows = written("out.csv")
    assert {row["flag"] for row in rows} <= {None, "mass", "interval", "mass, interval"}
    assert all(("mass" in (row["flag"] or "")) == (row["mass"] < 0.9) for row in rows)
    assert any(row["flag"] for row in rows)


def test_the_terminal_shows_the_results_and_a_summary(
    predict: Predict, model: Path, photos: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(*photos, "gone.png") == 3
    out = capsys.readouterr().out
    assert re.search(r"image +value +low +high +mass +flag +error", out)
    assert re.search(r"photos/00\.png +\d+ +\d+ +\d+ +[01]\.\d{3}", out)
    assert re.search(r"gone\.png +no such file", out)
    assert re.search(
        rf"{re.escape(model.as_posix())}: 12 read, \d+ flagged, 1 unreadable; [\d.]+ s, [\d.,]+ images/s", out
    )
    assert predict(*photos * 4, "--rank", "unsure") == 0
    out = capsys.readouterr().out
    assert len(re.findall(r"photos/\d\d\.png", out)) == 40
    assert re.search(r"rank +image", out)
    assert "and 8 more; --out FILE writes all rows to a file" in out
    assert predict(*photos, "--out", "out.csv") == 0
    out = capsys.readouterr().out
    assert "and 2 more; all rows are in out.csv" in out
    assert out.rstrip().endswith("written: out.csv")


def test_an_exported_folder_needs_no_params(
    gray: GrayWorld, model: Path, photos: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", photos[3], "--model", str(model), "--out", "out.jsonl"]
    assert main(words) == 1
    assert "params.yaml: no such file" in capsys.readouterr().err
    stored = model / "reader.json"
    stored.write_text(json.dumps(gray.settings.reader(0.0).tree()))
    try:
        assert main(words) == 0
        reader = NumberReader.load(gray.grpo, gray.settings.reader(0.0))
        assert_read(written("out.jsonl"), rule_of(reader).read(log_p_of(reader, photos[3:4])))
        stored.write_text("{")
        assert main(words) == 1
        assert "reader.json: cannot be read" in capsys.readouterr().err
    finally:
        stored.unlink()


def test_a_model_that_answers_with_its_text_gives_values_only(
    gray: GrayWorld, model: Path, photos: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    content = gray.settings.reader().tree()
    content["answer"]["from"] = "text"
    content["task"]["high"] = 50.0
    stored = model / "reader.json"
    stored.write_text(json.dumps(content))
    words = ["predict", *photos[:4], "--model", str(model), "--out", "out.jsonl"]
    try:
        assert main(words) == 3
        assert [(row["value"], row["low"], row["mass"], row["flag"], row["error"]) for row in written("out.jsonl")] == [
            (20, None, None, None, None),
            (40, None, None, None, None),
            (None, None, None, None, "the model's text has no number from 0 to 50"),
            (None, None, None, None, "the model's text has no number from 0 to 50"),
        ]
        assert main([*words, "--rank", "rare"]) == 1
        assert "--rank: this model answers with its text (answer.from)" in capsys.readouterr().err
    finally:
        stored.unlink()


def test_settings_of_another_task_are_an_error(
    gray: GrayWorld, model: Path, photos: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    text = gray.params.read_text()
    assert text.count("  high: 100\n") == 1
    Path("params.yaml").write_text(text.replace("  high: 100\n", "  high: 120\n"))
    assert main(["predict", photos[0], "--model", str(model)]) == 1
    message = re.sub(r"\s+", " ", capsys.readouterr().err)
    assert "params.yaml: its task is not that of the model" in message
    assert "which reads 101 numbers from 0 to 100. Give the model's settings with --params FILE." in message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: IMAGES"),
        (["photos", "--out", "out.xlsx"], "out.xlsx: the file must end in .csv, .jsonl, .parquet"),
        (["photos", "--out", "out"], "out: the file must end in .csv, .jsonl, .parquet"),
        (["labels.csv", "--out", "./labels.csv"], "labels.csv is one of the inputs; give another file"),
        (["photos", "--rank", "best"], "invalid choice: 'best'"),
        (["photos", "--balance", "much"], "invalid float value: 'much'"),
        (["photos", "--adapt"], "unrecognized arguments: --adapt"),
    ],
)
def test_a_usage_error_exits_with_2(
    photos: list[str], words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("labels.csv").write_text("path\nphotos/00.png\n")
    with pytest.raises(SystemExit) as stop:
        main(["predict", *words])
    assert stop.value.code == 2
    assert message in re.sub(r"\s+", " ", capsys.readouterr().err)
    assert Path("labels.csv").read_text() == "path\nphotos/00.png\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["photos", "--balance", "1.3"], "balance: 1.3 is not within 0 and 1.2."),
        (["photos", "--coverage", "nan"], "coverage: nan is not within 0.5 and 0.999."),
        (["photos", "--out", "folder.csv"], "folder.csv: is a folder."),
        (["photos", "--out", "photos/00.png/out.csv"], "photos/00.png/out.csv: cannot be written (File exists)."),
        (["*.gif"], "*.gif: nothing matches this pattern."),
        (["empty.csv"], "empty.csv: no image; the table has no rows."),
    ],
)
def test_an_error_exits_with_1_and_leaves_no_output(
    predict: Predict, photos: list[str], words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("folder.csv").mkdir()
    Path("empty.csv").write_text("path\n")
    before = sorted(Path().rglob("*"))
    assert predict(*words, *(() if "--out" in words else ("--out", "out.csv"))) == 1
    assert message in re.sub(r"\s+", " ", capsys.readouterr().err)
    assert sorted(Path().rglob("*")) == before


def test_memory_does_not_grow_with_the_number_of_images(
    reader: NumberReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2,000 images of 500 KB, which are 1 GB together."""
    (tmp_path / "many").mkdir()
    first = tmp_path / "many" / "0000.png"
    first.write_bytes(gray(40, 1) + bytes(500_000))
    for k in range(1, 2000):
        os.link(first, tmp_path / "many" / f"{k:04d}.png")
    process, results = psutil.Process(), list[Result]()
    source = folder_source(tmp_path / "many", "many")
    sizes = []
    for result in read_images(reader, source.images(), 8, source.count(), "rare"):
        results.append(result)
        sizes.append(process.memory_info().rss)
    assert [result.image for result in results] == [f"many/{k:04d}.png" for k in range(2000)]
    assert {result.value for result in results} == {results[0].value}
    assert max(sizes) - sizes[50] < 150e6


class WithLimit:
    """A processor that refuses long images by the rule of Qwen2.5-VL's, which needs torchvision."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)

    def __call__(self, images: list[list[PIL.Image.Image]], **words: Any) -> Any:
        for (image,) in images:
            smart_resize(image.height, image.width)
        return self._processor(images=images, **words)


@pytest.mark.parametrize("rank", [None, "rare"])
def test_an_image_that_the_processor_refuses_costs_the_others_nothing(
    reader: NumberReader, photos: list[str], rank: Rank | None
) -> None:
    PIL.Image.new("RGB", (1000, 2)).save("long.png")
    names = [*photos[:2], "long.png", *photos[2:5], "long.png"]
    picky = replace(reader, processor=WithLimit(reader.processor))
    results = list(read_images(picky, [Image(name, Path(name)) for name in names], 4, len(names), rank))
    expected = dict(zip(photos, rule_of(reader).read(log_p_of(reader, photos)).value, strict=True))
    assert [(result.image, result.value) for result in results] == [(name, expected.get(name)) for name in names]
    reasons = {result.error for result in results if result.image == "long.png"}
    assert reasons == {
        "refused by the model's processor (absolute aspect ratio must be smaller than 200, got 500.0)"
    }  # fmt: skip
