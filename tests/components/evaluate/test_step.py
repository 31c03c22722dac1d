"""The evaluate step on real, tiny models."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

from components.errors import ConcordError
from components.evaluate import judging
from components.evaluate.judging import check_unreadable
from components.evaluate.plots import FIGURES
from components.evaluate.results import MODELS, model_titles
from components.evaluate.step import run
from components.settings import Settings
from components.shared.model.number_reader import NumberReader, collect_log_probabilities
from components.shared.reporting.predictions import READ, SCHEMA, WAYS
from components.shared.rows.rows import read_rows, read_table
from components.shared.scoring.distribution import smoothed_prior
from components.shared.tracking.connection import connect
from components.shared.tracking.step_run import step_run
from components.steps import STEPS
from tests.support.gray_world import TEST_IMAGES_PER_LABEL, GrayWorld
from tests.support.raw_folder import content


def evaluate(world: GrayWorld, folder: Path) -> str:
    """Runs the step and returns the id of its MLflow run."""
    inputs = {"ingest": world.ingest, "sft": world.sft, "grpo": world.grpo}
    outputs = {"out": folder / "out", "report": folder / "report"}
    with step_run(STEPS["evaluate"], world.settings, inputs) as track:
        run(world.settings, track, **inputs, **outputs)
        track.finish(json.loads((outputs["out"] / "metrics.json").read_text()), outputs)
    return track.run_id


@pytest.fixture(scope="module")
def evaluated(gray: GrayWorld, tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("evaluated")
    (folder / "mlflow.db").write_bytes(empty_database.read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        patch.delenv("MLFLOW_RUN_ID", raising=False)
        return folder, evaluate(gray, folder)


def tables(folder: Path) -> dict[str, Any]:
    return {name: pq.read_table(folder / "out" / f"predictions-{name}.parquet") for name in MODELS}


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / "out" / name).read_text())


def test_every_model_answers_every_test_image(evaluated: tuple[Path, str], gray: GrayWorld) -> None:
    test = read_table(gray.ingest, "test", ["id", "target"])
    found = tables(evaluated[0])
    for table in found.values():
        assert table.schema.equals(SCHEMA)
        assert table["id"].to_pylist() == test["id"].to_pylist()
        assert table["target"].to_pylist() == test["target"].to_pylist()
        for text, value in zip(table["text"].to_pylist(), table["value"].to_pylist(), strict=True):
            match = re.fullmatch(r"<answer> (\d+) </answer>", text)
            assert value == (float(match[1]) if match else None)
    table = found["grpo"]
    assert table["value"].to_pylist() == test["target"].to_pylist(), "the trained model has learned the task"
    expected = [shot for shot in ("many", "many", "medium", "few") for _ in range(TEST_IMAGES_PER_LABEL)]
    assert table["shot"].to_pylist() == expected
    base = found["base"]
    assert base["value"].null_count == base.num_rows, "random weights do not write answers"


def test_only_trained_models_are_judged_by_their_distribution(evaluated: tuple[Path, str]) -> None:
    found = tables(evaluated[0])
    for name in ("sft", "grpo"):
        assert {column: found[name][column].null_count for column in READ} == dict.fromkeys(READ, 0)
    nulls = {column: found["base"][column].null_count for column in READ}
    assert nulls == {column: 0 if column in ("median", "mean") else 24 for column in READ}
    metrics = read(evaluated[0], "metrics.json")
    assert sorted(metrics["base"]) == ["mean", "median", "text"]
    assert sorted(metrics["sft"]) == sorted([*WAYS, "distribution", "balance", "stretch"])


def test_metrics_match_the_predictions(evaluated: tuple[Path, str], gray: GrayWorld) -> None:
    folder, run_id = evaluated
    metrics = read(folder, "metrics.json")
    assert list(metrics) == ["base", "constant", "grpo", "sft", "unreadable"]
    assert metrics["unreadable"] == {"images": 0, "share": 0.0}
    assert metrics["grpo"]["text"]["groups"]["all"] == {
        "n": 24, "mae": 0.0, "mae_ci": [0.0, 0.0], "gm": 0.5, "gm_ci": [0.5, 0.5],
    }  # fmt: skip
    assert metrics["base"]["text"]["unparseable"] == 1.0
    # Unparseable answers of the untrained model count as the farther end of 0 to 100.
    assert metrics["base"]["text"]["groups"]["few"]["mae"] == 80.0
    assert metrics["base"]["text"]["groups"]["medium"]["mae"] == 60.0
    constant = metrics["constant"]["validation"]
    assert constant["skill"] <= metrics["grpo"]["text"]["skill"] == 1.0
    differences = read(folder, "differences.json")
    sft = metrics["sft"]["text"]["groups"]["few"]["mae"]
    assert differences["grpo.text - sft.text"]["few"]["difference"] == pytest.approx(0.0 - sft)
    assert sft >= 10, "the warm start has never seen the rarest label"
    shots = read(folder, "shots.json")
    assert shots == {
        "counts": {"20": 14, "40": 12, "60": 7, "80": 3}, "width": 1.0, "resolution": 1.0, "many": 10, "few": 5,
    }  # fmt: skip
    logged = connect_to(folder).get_run(run_id)
    assert logged.data.metrics["grpo.text.groups.few.mae"] == 0.0
    assert logged.data.metrics["sft.balance.value"] == metrics["sft"]["balance"]["value"]
    assert logged.data.tags["concord.out.report"].endswith(".dir")


def test_what_is_served_is_recorded_with_its_reason(evaluated: tuple[Path, str]) -> None:
    served, metrics, titles = (read(evaluated[0], f"{name}.json") for name in ("served", "metrics", "titles"))
    assert (served["model"], served["way"]) == ("grpo", "balanced")
    assert served["reason"].startswith("lower MAE on tune, every label weighing the same: SFT ")
    for name in ("sft", "grpo"):
        balance = metrics[name]["balance"]
        assert len(balance["curve"]) == 25
        assert balance["reason"].startswith(f"{balance['value']:g}: lowest MAE")
        best = min(balance["curve"], key=lambda point: point["mae"])
        assert balance["value"] == best["value"], "the tolerance of 100 excludes nothing"
    models = {f"{m}.{way}" for m in MODELS for way in WAYS if m != "base" or way in WAYS[:3]}
    assert set(titles) == models | {"constant.validation", "constant.training"}
    assert titles["grpo.balanced"] == f"CCC-GRPO, median, balance {metrics['grpo']['balance']['value']:g}"


@pytest.mark.parametrize("name", ["sft", "grpo"])
def test_distributions_agree_with_an_independent_computation(
    evaluated: tuple[Path, str], gray: GrayWorld, name: str
) -> None:
    settings, folder = gray.settings, gray.sft if name == "sft" else gray.grpo
    reader = NumberReader.load(folder, settings.reader(), 100)
    rows = read_rows(gray.ingest, "test", 7)
    _, log_p = collect_log_probabilities(reader.model, reader.processor, rows, reader.tree, 7)
    table, metrics = tables(evaluated[0])[name], read(evaluated[0], "metrics.json")[name]["distribution"]
    balance = read(evaluated[0], "metrics.json")[name]["balance"]["value"]
    values = np.arange(101.0)
    q = np.exp(
        log_p
        - balance * np.log(smoothed_prior(np.bincount([20] * 14 + [40] * 12 + [60] * 7 + [80] * 3, minlength=101), 1))
    )
    q /= q.sum(axis=1, keepdims=True)
    target, few = table["target"].to_numpy(), np.array(table["shot"]) == "few"
    assert table["mass"].to_numpy() == pytest.approx(np.exp(log_p).sum(axis=1), abs=1e-4)
    assert table["mean"].to_numpy() == pytest.approx(np.exp(log_p) @ values / np.exp(log_p).sum(axis=1), abs=1e-2)
    halves = [(q[k, : int(m) + 1].sum(), q[k, int(m) :].sum()) for k, m in enumerate(table["balanced"].to_numpy())]
    assert np.min(halves) >= 0.5 - 1e-4, "at least half of the probability on either side of a median"
    crps = np.abs(values - target[:, None])[None] * q  # E|X - y| - E|X - X'| / 2 (Gneiting and Raftery 2007, eq. 21)
    spread = np.einsum("un,um,nm->u", q, q, np.abs(values[:, None] - values)) / 2
    assert metrics["groups"]["few"]["crps"] == pytest.approx((crps[0].sum(axis=1) - spread)[few].mean(), abs=1e-3)
    low, high = table["low"].to_numpy(), table["high"].to_numpy()
    missed = np.maximum(low - target, 0) + np.maximum(target - high, 0)
    conformal = metrics["groups"]["few"]["conformal"]
    assert conformal["coverage"] == pytest.approx((missed == 0)[few].mean())
    assert conformal["width"] in (high - low)[few]
    assert conformal["score"] == pytest.approx((high - low + 20 * missed)[few].mean())
    assert conformal["guaranteed"] is False, "two calibration rows, and nine are needed"
    assert metrics["mass"]["least"] == table["mass"].to_numpy().min()


def connect_to(folder: Path) -> MlflowClient:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        return connect()


def test_same_inputs_give_the_same_bytes(evaluated: tuple[Path, str], gray: GrayWorld, store: Path) -> None:
    evaluate(gray, store)
    for folder in ("out", "report"):
        again, first = content(store / folder), content(evaluated[0] / folder)
        assert sorted(again) == sorted(first)
        assert [name for name in first if again[name] != first[name]] == []


def test_report_is_self_contained_and_shows_the_worst_images(evaluated: tuple[Path, str]) -> None:
    html = (evaluated[0] / "report" / "report.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]{0,40})', html)
    assert sources.count("../data_docs/index.html") == 1  # the only link, to validate's output
    sources.remove("../data_docs/index.html")
    assert len(sources) == len(FIGURES) + 1 + 3 * 6
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"https?://|@import|<script|<link", html)
    assert re.search(r"CCC-GRPO, median, balance [\d.]+ is better than SFT, text on", html)
    assert html.count('class="card"') == 18  # six of each shot group
    assert "The most frequent label of train has 4.667 times as many images as the rarest." in html
    assert "50.0 % are many-shot, 25.0 % are medium-shot, 25.0 % are few-shot." in " ".join(html.split())
    run = connect_to(evaluated[0])
    logged = {file.path for file in run.list_artifacts(evaluated[1], "report")}
    assert {"report/report.html", "report/tail.png", *(f"report/{name}.png" for name in FIGURES)} <= logged


def test_metrics_agree_with_an_independent_computation(evaluated: tuple[Path, str], gray: GrayWorld) -> None:
    table = tables(evaluated[0])["sft"].to_pylist()
    metrics = read(evaluated[0], "metrics.json")["sft"]
    for way, column in (("text", "value"), ("mean", "mean"), ("balanced", "balanced")):
        errors = [abs(row[column] - row["target"]) for row in table if row["shot"] == "many"]
        assert metrics[way]["groups"]["many"]["mae"] == pytest.approx(sum(errors) / len(errors))
    assert metrics["text"]["gm_floor"] == gray.settings.task.resolution / 2


def test_a_broken_image_costs_the_others_nothing(evaluated: tuple[Path, str], gray: GrayWorld, store: Path) -> None:
    shutil.copytree(gray.ingest, store / "ingest")
    (shard,) = (store / "ingest").glob("test-*.parquet")
    table = pq.read_table(shard)
    rows = table.to_pylist()
    rows[7]["image"]["bytes"] = b"no image"
    pq.write_table(pa.Table.from_pylist(rows, table.schema), shard)
    limits = gray.settings.evaluate.model_copy(update={"max_unreadable": 0.05})
    settings = gray.settings.model_copy(update={"evaluate": limits})
    evaluate(replace(gray, settings=settings, ingest=store / "ingest"), store)
    reason = "not an image in a known format (BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP)"
    assert read(store, "unreadable.json") == {"test-007": reason}
    figures = read(store, "metrics.json")
    assert figures["unreadable"] == {"images": 1, "share": pytest.approx(1 / 24)}
    assert [figures[name]["text"]["n"] for name in MODELS] == [23] * 3
    for name, whole in tables(evaluated[0]).items():
        kept = [row for row in whole.to_pylist() if row["id"] != "test-007"]
        found = tables(store)[name].to_pylist()
        assert [row["id"] for row in found] == [row["id"] for row in kept]
        if name == "grpo":
            assert [row["value"] for row in found] == [row["value"] for row in kept]
    html = (store / "report" / "report.html").read_text()
    assert (
        f"1 test images cannot be read</b> and are left out of all figures, for every model:\ntest-007 ({reason})."
        in html
    )


def test_more_broken_images_than_allowed_are_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    ids = [str(k) for k in range(20)]
    test = judging.TestSet(Path("rows"), ids, np.zeros(20), np.array(["few"] * 20), [None] * 20, 0.0)
    check_unreadable({}, test, 0.0)
    check_unreadable({"3": "empty"}, test, 0.05)
    assert "1 of 20 test images cannot be read (3: empty)" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(ConcordError, match=r"rows: 2 of 20 .*3: empty; 4: torn.*evaluate\.max_unreadable"):
        check_unreadable({"3": "empty", "4": "torn"}, test, 0.05)
    with pytest.raises(ConcordError, match="20 of 20"):
        check_unreadable(dict.fromkeys(ids, "empty"), test, 1.0)


def test_a_model_folder_without_validation_distributions_is_reported(gray: GrayWorld, store: Path) -> None:
    shutil.copytree(gray.sft, store / "sft")
    (store / "sft" / "validation.parquet").unlink()
    with pytest.raises(ConcordError, match=r"validation\.parquet: missing, so the answers cannot be read"):
        evaluate(replace(gray, sft=store / "sft"), store)
    assert not (store / "out").exists()


@pytest.mark.parametrize(("metrics", "title"), [('{"method": "expected CCC"}', "expected CCC"), ("{}", "GRPO")])
def test_title_is_the_method_in_the_metrics_file(settings: Settings, tmp_path: Path, metrics: str, title: str) -> None:
    (tmp_path / "metrics.json").write_text(metrics)
    assert model_titles(settings.model, tmp_path) == {"base": "untrained", "sft": "SFT", "grpo": title}
