"""Drift from the champion's data: the index by hand, and the step with a real registry."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from mlflow import MlflowClient
from PIL import Image

from components.__main__ import main
from components.settings import Settings
from components.shared.rows.histogram import label_histogram
from components.shared.tracking.connection import connect
from components.shared.tracking.hashes import dvc_hash
from components.shared.tracking.step_run import step_run
from components.steps import STEPS
from components.validate.drift import compare_profiles, measure_drift, stability_index
from components.validate.profile import profile, size_classes
from components.validate.tables import valid_targets
from tests.support.raw_folder import RawFolder, content, write_params

INGEST = ["ingest", "--params", "params.yaml", "--data", "data", "--out", "artifacts/ingest"]
VALIDATE = ["validate", "--params", "params.yaml", "--ingest", "artifacts/ingest", "--out", "artifacts/validate"]
SHARDS, OUT, REPORT = Path("artifacts/ingest"), Path("artifacts/validate"), Path("reports/validate")
MODEL = "gauge-reader"


def test_index_equals_the_formula() -> None:
    p, q = np.array([10.5, 30.5]) / 41, np.array([20.5, 20.5]) / 41
    assert stability_index([10, 30], [20, 20]) == pytest.approx(((q - p) * np.log(q / p)).sum())
    assert stability_index([5, 0, 5], [5, 0, 5]) == 0
    assert stability_index([10, 0], [9, 1]) < stability_index([1000, 0], [900, 100]) < np.inf


def test_sizes_are_rounded_to_half_octaves() -> None:
    sizes = size_classes(np.array([64.0, 60, 100, 1920, 1]), np.array([64.0, 70, 64, 1080, 1]))
    assert sizes == ["64x64", "64x64", "91x64", "2048x1024", "1x1"]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return write_params(tmp_path / "params.yaml")


def profile_of(settings: Settings, seed: int, rows: int, centre: float, side: int = 64, mode: str = "RGB") -> Any:
    """Profile of rows with normally distributed labels."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(
        {
            "split": rng.choice(["train", "val", "test"], rows, p=[0.8, 0.1, 0.1]),
            "target": rng.normal(centre, 15, rows).round().clip(0, 100),
            "width": side,
            "height": side,
            "mode": mode,
        }
    )
    histogram = label_histogram(valid_targets(table, settings.task), settings.task)
    return json.loads(json.dumps(profile(table, histogram, settings.task)))  # as it is stored


def test_chance_does_not_count_as_drift(settings: Settings) -> None:
    for seed in range(5):
        found = compare_profiles(
            profile_of(settings, seed, 300, 40), profile_of(settings, seed + 50, 300, 40), settings.task, ""
        )
        assert found.figures == {"label_drift": 0, "image_size_drift": 0, "image_mode_drift": 0}
        assert max(found.metrics.values()) > 0.1  # above the limit, but with 30 rows in a split it is chance
    found = compare_profiles(profile_of(settings, 1, 3000, 40), profile_of(settings, 2, 3000, 55), settings.task, "")
    assert found.figures["label_drift"] > 0.5
    assert set(found.labels) == {"train", "val", "test"}
    assert found.labels["train"].summary == (
        "mean 55.59, was 39.74; labels that were few-shot before: 9.3 % of the rows, 1.7 % before"
    )
    assert found.figures["image_size_drift"] == 0


def test_new_tail_is_detected(settings: Settings) -> None:
    before, now = profile_of(settings, 1, 3000, 40), profile_of(settings, 2, 3000, 40)
    labels = dict(now["splits"]["train"]["labels"])
    now["splits"]["train"]["labels"] = sorted({**labels, **dict.fromkeys(range(90, 100), 12)}.items())
    found = compare_profiles(before, now, settings.task, "")
    assert found.figures["label_drift"] == found.labels["train"].psi > 0.1
    assert found.examples["label_drift"] == [
        f"train: index {found.labels['train'].psi:.3g} (by chance up to {found.labels['train'].chance:.2g}); "
        f"{found.labels['train'].summary}"
    ]


def test_size_and_mode_drift_are_over_all_splits(settings: Settings) -> None:
    before = profile_of(settings, 1, 300, 40)
    found = compare_profiles(before, profile_of(settings, 1, 300, 40, side=32, mode="L"), settings.task, "")
    assert found.figures["label_drift"] == 0
    assert min(found.figures["image_size_drift"], found.figures["image_mode_drift"]) > 5
    assert found.images["mode"].rows == (300, 300)
    assert found.examples["image_mode_drift"][0].endswith("L: 100.0 % of the rows, 0.0 % before")


def test_empty_split_and_labels_outside_the_range_are_handled(settings: Settings) -> None:
    before, now = profile_of(settings, 1, 300, 40), profile_of(settings, 2, 300, 40)
    now["splits"]["val"] = {"rows": 0, "labels": [], "sizes": {}, "modes": {}}
    before["splits"]["train"]["labels"].append([1e6, 5])
    found = compare_profiles(before, now, settings.task, "")
    assert set(found.labels) == {"train", "test"}


def champion(client: MlflowClient, tags: dict[str, str] | None = None) -> str:
    """Creates a version with the alias champion that was trained on the current shards."""
    if tags is None:
        tags = {"concord.in.ingest": dvc_hash(SHARDS)}
    if not client.search_registered_models(f"name = '{MODEL}'"):
        client.create_registered_model(MODEL)
    number = str(client.create_model_version(MODEL, source=str(Path("model").absolute()), tags=tags).version)
    client.set_registered_model_alias(MODEL, "champion", number)
    return number


@pytest.fixture
def raw(store: Path) -> RawFolder:
    """A raw input in the working directory, with its params.yaml."""
    write_params(store / "params.yaml")
    return RawFolder(store / "data")


def grow(raw: RawFolder) -> None:
    """A new data version: more rows with high labels, from another camera."""
    picture = io.BytesIO()
    for k in range(60):
        picture = io.BytesIO()
        noise = np.random.default_rng(900 + k).integers(0, 255, (40, 40), np.uint8)
        Image.fromarray(noise).save(picture, "PNG")
        (raw.folder / f"images/new-{k}.png").write_bytes(picture.getvalue())
        raw.rows.append([f"images/new-{k}.png", "70"])
    raw.write()


def last_run(step: str) -> Any:
    client = connect()
    runs = client.search_runs(
        [e.experiment_id for e in client.search_experiments()], f"tags.`concord.step` = '{step}'", max_results=1
    )
    return runs[0]


def artifacts(run_id: str, folder: str) -> set[str]:
    return {file.path for file in connect().list_artifacts(run_id, folder)}


def test_new_data_version_is_compared_with_the_champion_s(raw: RawFolder, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(INGEST) == main(VALIDATE) == 0
    assert f"not compared with a champion's data: {MODEL} has no champion" in capfd.readouterr().err
    stored = artifacts(last_run("validate").info.run_id, "validate")
    assert {f"validate/{name}" for name in ("result.json", "tail.png", "tail.json", "profile.json")} <= stored
    assert "data_docs/index.html" in artifacts(last_run("validate").info.run_id, "data_docs")
    champion(connect())
    assert main(VALIDATE) == 0
    assert f"the same as the data of the champion (version 1 of {MODEL})" in capfd.readouterr().err
    unchanged = content(OUT)

    grow(raw)
    assert main(INGEST) == main(VALIDATE) == 0
    stderr = capfd.readouterr().err
    assert f"compared with the data of the champion (version 1 of {MODEL})" in stderr
    for part in (
        "Expected: labels are distributed as in the data of the champion of gauge-reader (stability index at most 0.1",
        "; mean 48.79, was 25.32; labels that were few-shot before: 55.6 % of the rows, 6.4 % before",
        "image sizes are distributed",
        "; 45x45: 46.5 % of the rows, 0.0 % before",
        "image modes are distributed",
        "; L: 46.5 % of the rows, 0.0 % before",
    ):
        assert part in stderr, stderr
    result = json.loads((REPORT / "result.json").read_text())
    assert {name: result[name]["success"] for name in ("label_drift", "image_size_drift", "image_mode_drift")} == {
        "label_drift": False, "image_size_drift": False, "image_mode_drift": False,
    }  # fmt: skip
    found = json.loads((REPORT / "drift.json").read_text())
    run = last_run("validate")
    assert run.info.status == "FINISHED"
    assert run.data.metrics["drift.labels.train"] == found["labels"]["train"]["psi"] > 0.1
    assert run.data.metrics["drift.image_mode"] == found["images"]["mode"]["psi"] > 0.1

    # The output of the step does not depend on the champion: it is the same without one.
    compared = content(OUT)
    assert "drift" not in (OUT / "result.json").read_text() + (OUT / "metrics.json").read_text()
    connect().delete_registered_model_alias(MODEL, "champion")
    assert main(VALIDATE) == 0
    assert content(OUT) == compared != unchanged


def test_drift_with_severity_error_stops_the_run(raw: RawFolder, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(INGEST) == main(VALIDATE) == 0
    champion(connect())
    sections = yaml.safe_load(Path("params.yaml").read_text())
    sections["validate"]["severity"]["label_drift"] = "error"
    Path("params.yaml").write_text(yaml.safe_dump(sections))
    before = content(OUT)
    grow(raw)
    assert main(INGEST) == 0
    assert main(VALIDATE) == 1
    assert "raise validate.drift.max_labels" in capfd.readouterr().err
    assert content(OUT) == before
    run = last_run("validate")
    assert run.info.status == "FAILED"
    assert {"validate/tail.png", "validate/drift.json"} <= artifacts(run.info.run_id, "validate")


def reason_not_compared(settings: Settings) -> str:
    """The one-line reason why nothing was compared."""
    with step_run(STEPS["validate"], settings, {"ingest": SHARDS}) as track:
        report = measure_drift(settings, track, profile_of(settings, 1, 300, 40))
    assert not report.compared
    assert "\n" not in report.summary
    return report.summary


def test_reason_for_no_comparison_is_one_line_and_not_an_error(
    store: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    SHARDS.mkdir(parents=True)
    (SHARDS / "train-00000.parquet").write_text("rows")
    client = connect()
    off = settings.model_copy(update={"validation": settings.validation.model_copy(update={"drift": None})})
    assert reason_not_compared(off).endswith("validate.drift is null")
    champion(client, {})
    assert "version 1 of gauge-reader): its tags do not name them" in reason_not_compared(settings)
    champion(client, {"concord.in.ingest": "0123456789.dir"})
    assert "no finished validate run has read them (ingest 01234567)" in reason_not_compared(settings)
    other = settings.task.tree() | {"unit": "years"}
    champion(client, {"concord.in.ingest": "0123456789.dir", "concord.settings": json.dumps({"task": other})})
    assert "which reads something else: task.unit was 'years', is '%'" in reason_not_compared(settings)
    with step_run(STEPS["validate"], settings, {"ingest": SHARDS}) as track:
        earlier = track.run_id  # like an earlier version of the step, it stores no profile
    champion(client)
    (SHARDS / "train-00000.parquet").write_text("other rows")
    assert "not compared with the data of the champion of gauge-reader: MLflow at sqlite" in reason_not_compared(
        settings
    )
    for profile_json, part in (
        ({"version": 99}, "has format version 99, not 1"),
        ({"version": 1, "unit": "mm"}, "are in 'mm', the current"),
    ):
        Path("profile.json").write_text(json.dumps(profile_json))
        client.log_artifact(earlier, "profile.json", "validate")
        assert part in reason_not_compared(settings)
    shutil.rmtree("mlruns", ignore_errors=True)
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "http://user:geheim@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    reason = reason_not_compared(settings)
    assert "could not read the champion of gauge-reader" in reason
    assert "geheim" not in reason
