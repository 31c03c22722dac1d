"""Registered versions as the command's model, on a real registry."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from components.__main__ import main
from components.evaluate.step import run as evaluate_run
from components.register import step as register
from components.register.registry import Registry
from components.shared.rows.rows import read_rows
from components.shared.tracking.connection import connect
from components.shared.tracking.step_run import step_run
from components.steps import STEPS
from tests.support.gray_world import GrayWorld


@pytest.fixture(scope="module")
def registered(gray: GrayWorld, tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Path]:
    """The working directory: a registry whose version 1 is champion, params.yaml, and the test images as files."""
    root = tmp_path_factory.mktemp("registered")
    shutil.copy(empty_database, root / "mlflow.db")
    shutil.copy(gray.params, root / "params.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/mlflow.db")
        patch.delenv("MLFLOW_RUN_ID", raising=False)
        inputs = {"ingest": gray.ingest, "sft": gray.sft, "grpo": gray.grpo}
        outputs = {"out": root / "evaluate", "report": root / "report"}
        with step_run(STEPS["evaluate"], gray.settings, inputs) as track:
            evaluate_run(gray.settings, track, **inputs, **outputs)
            track.finish({}, outputs)
        inputs["evaluate"] = outputs["out"]
        with step_run(STEPS["register"], gray.settings, inputs) as track:
            register.run(gray.settings, track, **inputs, out=root / "register")
        (root / "photos").mkdir()
        for batch in read_rows(gray.ingest, "test"):
            for row in batch.to_pylist():
                (root / "photos" / f"{row['id']}.png").write_bytes(row["image"]["bytes"])
        yield root


def predicted(*words: str) -> list[dict[str, Any]]:
    assert main(["predict", "photos", "--out", "out.jsonl", *words]) == 0
    return [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]


def name() -> str:
    return str(json.loads(Path("register/registration.json").read_text())["name"])


def test_the_default_is_the_champion_and_reads_what_evaluate_read(
    registered: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from components.shared.reporting.predictions import predictions_file, read_predictions

    rows = predicted()
    assert f"{name()} version 1: 24 read" in capsys.readouterr().out
    served = json.loads(Path("evaluate/served.json").read_text())
    table = read_predictions(predictions_file(Path("evaluate"), served["model"]))
    assert [row["image"] for row in rows] == [f"photos/{id}.png" for id in table["id"].to_pylist()]
    for column, expected in (("value", served["way"]), ("low", "low"), ("high", "high"), ("mass", "mass")):
        assert [row[column] for row in rows] == pytest.approx(table[expected].to_pylist(), rel=1e-5), column


def test_a_version_is_named_by_number_or_alias(registered: Path) -> None:
    rows = predicted()
    Registry(connect(), name()).challenge("1")
    for model in (name(), f"{name()}/1", f"{name()}@champion", f"{name()}@challenger"):
        Path("params.yaml").rename("away.yaml")  # a version needs no settings
        try:
            assert predicted("--model", model) == rows
        finally:
            Path("away.yaml").rename("params.yaml")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("plant/7", "plant: no version in the registry at sqlite:///"),
        ("plant", "plant: no version in the registry at sqlite:///"),
        ("{name}/7", "{name}: no version 7 in the registry"),
        ("{name}@best", "{name}: no version has the alias best"),
        ("artifacts/gone", "--model artifacts/gone: no such folder, and not a registered model, which is NAME,"),
        ("a/b/1", "--model a/b/1: no such folder, and not a registered model"),
        ("plant@", "--model plant@: no such folder, and not a registered model"),
    ],
)
def test_a_model_that_does_not_exist_is_an_error(
    registered: Path, model: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", "photos", "--model", model.format(name=name())]) == 1
    assert message.format(name=name()) in re.sub(r"\s+", " ", capsys.readouterr().err)
