"""From a data set to a registered model: init, then every step with the settings that it wrote, and few steps."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.__main__ import main
from components.settings import load_settings
from components.steps import STEPS
from tests.support.data_sets import COUNTS, SHAPES
from tests.support.raw_folder import content

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

# What a test has time for; everything else is as init has written it.
SHORT: Mapping[str, Mapping[str, Any]] = {
    "sft": {
        "max_steps": 20,
        "warmup_steps": 2,
        "batch_size": 16,
        "eval_every": 20,
        "eval_rows": 20,
        "no_skill": "warning",
    },
    "grpo": {
        "steps": 3,
        "warmup_steps": 1,
        "prompts": 8,
        "checkpoint_every": 3,
        "eval_rows": 20,
        "no_signal": "warning",
    },
    "evaluate": {"bootstrap": 50},
    "register": {"bootstrap": 50, "max_unparseable": 1.0},
}
# Shape -> what the settings must say.
EXPECTED: Mapping[str, Mapping[str, Any]] = {
    "table": {
        "csv": "labels.csv", "image_column": "photo", "target_column": "age", "split": "given-test",
        "split_column": "part",
    },
    "subjects": {
        "csv": "readings.tsv", "image_column": "filename", "image_folder": "photos", "split": "subject",
        "subject_column": "patient_id",
    },
    "imagefolder": {
        "csv": "*/metadata.jsonl", "image_column": "file_name", "target_column": "value", "split": "given-test",
        "split_column": "split",
    },
    "parquet": {"csv": "data/*.parquet", "image_column": "image", "target_column": "label", "split": "given-test"},
    "names": {"csv": None, "image_column": "image", "target_column": "target", "split": "balanced"},
}  # fmt: skip
TARGET_FLAG = {"subjects": ["--target", "bone age"]}  # two columns have numbers


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of an MLflow store for all tests: making its tables takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def workplace(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    return tmp_path


@pytest.mark.parametrize("shape", SHAPES)
def test_a_data_set_becomes_a_registered_model(shape: str, workplace: Path) -> None:
    name = f"brightness-{shape}"
    folder = workplace / name
    folder.mkdir()
    data = SHAPES[shape](folder)
    before = content(folder)
    assert main(["init", str(data), *TARGET_FLAG.get(shape, [])]) == 0
    settings = load_settings(workplace / "params.yaml")
    assert settings.experiment == name
    assert {key: settings.ingest.tree()[key] for key in EXPECTED[shape]} == EXPECTED[shape]
    shorten(workplace / "params.yaml")
    for step in STEPS:
        assert main([step]) == 0, step
    rows = json.loads((workplace / "artifacts" / "ingest" / "metrics.json").read_text(encoding="utf-8"))["rows"]
    assert sum(rows.values()) == sum(COUNTS.values())
    registration = json.loads((workplace / "artifacts" / "register" / "registration.json").read_text(encoding="utf-8"))
    assert registration["name"] == name
    assert content(folder) == before


def shorten(params: Path) -> None:
    raw = yaml.safe_load(params.read_text(encoding="utf-8"))
    for section, values in SHORT.items():
        raw[section] |= values
    params.write_text(yaml.safe_dump(raw), encoding="utf-8")
