"""The evaluate step on real, tiny models."""

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

from components.evaluate.results import titles
from components.evaluate.step import run
from components.settings import Settings
from components.shared.reporting.predictions import SCHEMA
from components.shared.rows.rows import read_table
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


def test_every_model_answers_every_test_image(evaluated: tuple[Path, str], gray: GrayWorld) -> None:
    test = read_table(gray.ingest, "test", ["id", "target"])
    for name in ("base", "sft", "grpo"):
        table = pq.read_table(evaluated[0] / "out" / f"predictions-{name}.parquet")
        assert table.schema.equals(SCHEMA)
        assert table["id"].to_pylist() == test["id"].to_pylist()
        assert table["target"].to_pylist() == test["target"].to_pylist()
        for text, value in zip(table["text"].to_pylist(), table["value"].to_pylist(), strict=True):
            match = re.fullmatch(r"<answer> (\d+) </answer>", text)
            assert value == (float(match[1]) if match else None)
    assert table["value"].to_pylist() == test["target"].to_pylist(), "the trained model has learned the task"
    expected = [shot for shot in ("many", "many", "medium", "few") for _ in range(TEST_IMAGES_PER_LABEL)]
    assert table["shot"].to_pylist() == expected
    base = pq.read_table(evaluated[0] / "out" / "predictions-base.parquet")
    assert base["value"].null_count == base.num_rows, "random weights do not write answers"


def test_metrics_match_the_predictions(evaluated: tuple[Path, str], gray: GrayWorld) -> None:
    folder, run_id = evaluated
    metrics = json.loads((folder / "out" / "metrics.json").read_text())
    assert list(metrics) == ["base", "grpo", "sft"]
    assert metrics["grpo"]["groups"]["all"] == {
        "n": 24, "mae": 0.0, "mae_ci": [0.0, 0.0], "gm": 0.5, "gm_ci": [0.5, 0.5],
    }  # fmt: skip
    assert metrics["base"]["unparseable"] == 1.0
    # Unparseable answers of the untrained model count as the farther end of 0 to 100.
    assert metrics["base"]["groups"]["few"]["mae"] == 80.0
    assert metrics["base"]["groups"]["medium"]["mae"] == 60.0
    differences = json.loads((folder / "out" / "differences.json").read_text())
    sft = metrics["sft"]["groups"]["few"]["mae"]
    assert differences["few"]["difference"] == pytest.approx(0.0 - sft)
    assert sft >= 10, "the warm start has never seen the rarest label"
    shots = json.loads((folder / "out" / "shots.json").read_text())
    assert shots == {
        "counts": {"20": 14, "40": 12, "60": 7, "80": 3}, "width": 1.0, "resolution": 1.0, "many": 10, "few": 5,
    }  # fmt: skip
    logged = connect_to(folder).get_run(run_id)
    assert logged.data.metrics["grpo.groups.few.mae"] == 0.0
    assert logged.data.tags["concord.out.report"].endswith(".dir")


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
    assert len(sources) >= 4 + 3 * 6
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"https?://|@import|<script|<link", html)
    assert "CCC-GRPO is better than SFT on" in html
    assert html.count('class="card"') == 18  # six of each shot group
    assert "The most frequent label of train has 4.667 times as many images as the rarest." in html
    assert "50.0 % are many-shot, 25.0 % are medium-shot, 25.0 % are few-shot." in " ".join(html.split())
    run = connect_to(evaluated[0])
    logged = {file.path for file in run.list_artifacts(evaluated[1], "report")}
    assert {"report/report.html", "report/tail.png"} <= logged


def test_metrics_agree_with_an_independent_computation(evaluated: tuple[Path, str], gray: GrayWorld) -> None:
    table = pq.read_table(evaluated[0] / "out" / "predictions-sft.parquet").to_pylist()
    errors = [abs(row["value"] - row["target"]) for row in table if row["shot"] == "many"]
    metrics = json.loads((evaluated[0] / "out" / "metrics.json").read_text())["sft"]
    assert metrics["groups"]["many"]["mae"] == pytest.approx(sum(errors) / len(errors))
    assert metrics["gm_floor"] == gray.settings.task.resolution / 2


@pytest.mark.parametrize(
    ("metrics", "title"),
    [('{"reward/ccc": 1, "reward/format": 0.5}', "CCC-GRPO"), ('{"reward/mae": 1}', "GRPO (MAE)"), ("{}", "GRPO")],
)
def test_title_names_the_reward_from_the_metrics_file(
    settings: Settings, tmp_path: Path, metrics: str, title: str
) -> None:
    (tmp_path / "metrics.json").write_text(metrics)
    assert titles(settings.model, tmp_path) == {"base": "untrained", "sft": "SFT", "grpo": title}
