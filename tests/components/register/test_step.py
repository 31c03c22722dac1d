"""Registration on a real store, with real, tiny models that are loaded back from the registry."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pyarrow as pa
import pytest
import yaml

from components.commands.registry import command
from components.errors import ConcordError
from components.evaluate.step import run as evaluate_run
from components.register import step as register
from components.register.registry import Registry
from components.shared.rows.rows import read_rows
from components.shared.tracking.connection import connect
from components.shared.tracking.hashes import dvc_hash
from components.shared.tracking.step_run import step_run
from components.steps import STEPS
from tests.support.gray_world import QUESTION, GrayWorld

MODEL = "gauge-reader"


@dataclass(frozen=True)
class Place:
    """A working directory with an MLflow store, and what evaluate found about SFT and GRPO, and about SFT as GRPO."""

    world: GrayWorld
    root: Path
    good: Path
    poor: Path

    def register(self, grpo: Path, evaluate: Path) -> dict[str, Any]:
        """Runs the step; what it wrote."""
        chosen = self.world.settings
        inputs = {"ingest": self.world.ingest, "grpo": grpo, "evaluate": evaluate}
        out = self.root / "out"
        with step_run(STEPS["register"], chosen, inputs) as track:
            register.run(chosen, track, **inputs, out=out)
            track.finish(json.loads((out / "metrics.json").read_text()), {"out": out})
        found: dict[str, Any] = json.loads((out / "registration.json").read_text())
        return found


@pytest.fixture(scope="module")
def place(gray: GrayWorld, tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Place]:
    root = tmp_path_factory.mktemp("registry")
    shutil.copy(empty_database, root / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/mlflow.db")
        patch.delenv("MLFLOW_RUN_ID", raising=False)
        inputs = {"ingest": gray.ingest, "sft": gray.sft, "grpo": gray.grpo}
        outputs = {"out": root / "good", "report": root / "report"}
        with step_run(STEPS["evaluate"], gray.settings, inputs) as track:
            evaluate_run(gray.settings, track, **inputs, **outputs)
            track.finish({}, outputs)
        poor = root / "poor"
        shutil.copytree(root / "good", poor)
        shutil.copy(poor / "predictions-sft.parquet", poor / "predictions-grpo.parquet")
        figures = json.loads((poor / "metrics.json").read_text())
        (poor / "metrics.json").write_text(json.dumps(figures | {"grpo": figures["sft"]}))
        yield Place(gray, root, root / "good", poor)


@pytest.fixture(scope="module")
def broken_off(place: Place) -> None:
    """A registration that ended once its version was there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(register, "_verify", _break_off)
        with pytest.raises(KeyboardInterrupt):
            place.register(place.world.grpo, place.good)


def _break_off(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def refused(place: Place, broken_off: None) -> str:
    """What was said to the next one: meanwhile the code in the registry had been changed to answer 1 more."""
    (code,) = place.root.glob("mlruns/**/code/components/shared/scoring/answers.py")
    text = code.read_text()
    code.write_text(text.replace("return value if", "return value + 1 if"))
    with pytest.raises(ConcordError) as caught:
        place.register(place.world.grpo, place.good)
    code.write_text(text)
    assert Registry(connect(), MODEL).version("1").tags["concord.verified"] == "false"
    return str(caught.value)


@pytest.fixture(scope="module")
def first(place: Place, refused: str) -> dict[str, Any]:
    """The registration that went through."""
    assert Registry(connect(), MODEL).aliases() == {}
    return place.register(place.world.grpo, place.good)


def test_the_registry_s_own_code_answers_and_other_answers_than_evaluate_s_are_refused(refused: str) -> None:
    assert "version 1: loaded from the registry it answers 24 of 24 test images differently from" in refused
    assert "(first test-000: 21.0, was 20.0)" in refused


def test_the_first_version_is_champion_where_it_beats_the_warm_start(place: Place, first: dict[str, Any]) -> None:
    assert (first["version"], first["promoted"], first["champion_before"]) == ("1", True, None)
    assert "against the SFT warm start (there is no champion yet), few-shot MAE 0.00 against 20.00" in first["reason"]
    registry = Registry(connect(), MODEL)
    assert [version.version for version in registry.versions()] == [1], "three runs, one version"
    assert registry.aliases() == {"champion": "1", "challenger": "1"}
    version = registry.version("1")
    assert version.description == first["reason"]
    tags = version.tags
    assert tags["concord.in.grpo"] == dvc_hash(place.world.grpo)
    assert tags["concord.in.ingest"] == dvc_hash(place.world.ingest)
    assert tags["concord.verified"] == "true"
    assert tags["concord.mae.few"] == "0.0"
    assert json.loads(tags["concord.settings"])["task"]["question"] == QUESTION
    assert "concord.git.commit" in tags
    assert (tags["concord.promoted.by"], tags["concord.promoted.previous"]) != ("", None)
    evaluated = connect().get_run(first["runs"]["evaluate"])
    assert evaluated.data.tags["concord.step"] == "evaluate"
    assert evaluated.data.tags["mlflow.parentRunId"] == first["runs"]["experiment"]
    figures = json.loads((place.root / "out" / "metrics.json").read_text())
    assert figures["promoted"] == 1
    assert figures["few_difference"] == pytest.approx({"value": -20.0, "low": -20.0, "high": -20.0})


def test_what_is_registered_is_plain_and_pinned(place: Place, first: dict[str, Any]) -> None:
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{MODEL}/1"))
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    assert not [name for name in names if name.endswith((".pkl", ".pickle", ".bin", ".pt"))]
    assert [name for name in names if name.endswith(".safetensors")]
    code = {name for name in names if name.startswith("code/components/")}
    assert "code/components/shared/model/generation.py" in code
    assert not [name for name in code if "/grpo/" in name or "/ingest/" in name or "/tracking/" in name]
    pinned = (folder / "requirements.txt").read_text().split()
    assert all("==" in line and "+" not in line for line in pinned)
    assert {"torch", "transformers", "mlflow"} <= {line.partition("==")[0] for line in pinned}
    described = yaml.safe_load((folder / "MLmodel").read_text())
    assert json.loads(described["signature"]["inputs"]) == [
        {"type": "binary", "name": "image", "required": True},
        {"type": "string", "name": "question", "required": False},
    ]
    assert json.loads(described["signature"]["outputs"]) == [{"type": "double", "name": "value", "required": True}]


def test_the_registered_model_answers_with_and_without_a_question_in_batches(
    place: Place, first: dict[str, Any]
) -> None:
    model = mlflow.pyfunc.load_model(f"models:/{MODEL}/1")
    rows = pa.Table.from_batches(read_rows(place.world.ingest, "test")).to_pylist()
    images = pd.DataFrame({"image": [row["image"]["bytes"] for row in rows]})
    targets = [row["target"] for row in rows]
    assert model.predict(images)["value"].tolist() == targets
    assert model.predict(images.assign(question=[None, QUESTION] * (len(rows) // 2)))["value"].tolist() == targets
    assert model.predict(images.iloc[:1])["value"].tolist() == targets[:1]
    narrow = mlflow.pyfunc.load_model(f"models:/{MODEL}/1", model_config={"high": 50})
    answers = narrow.predict(images)["value"]
    assert answers.isna().tolist() == [target > 50 for target in targets]
    with pytest.raises(mlflow.exceptions.MlflowException, match="image"):
        model.predict(pd.DataFrame({"question": ["?"]}))


def test_what_was_decided_about_a_champion_stays_decided(first: dict[str, Any]) -> None:
    settled = register._settled(Registry(connect(), MODEL), "1")
    assert settled == {key: first[key] for key in ("promoted", "reason", "champion_before", "met", "few")}


def test_a_model_that_is_no_better_stays_challenger_and_is_judged_against_the_champion_of_today(
    place: Place, first: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    found = place.register(place.world.sft, place.poor)
    assert (found["version"], found["promoted"]) == ("2", False)
    assert found["champion_before"]["version"] == "1"
    assert found["champion_before"]["metrics"]["groups"]["all"]["mae"] == 0.0
    assert "against the champion (version 1), few-shot MAE 20.00 against 0.00" in found["reason"]
    assert "it is worse" in found["reason"]
    assert found["met"] == {"few": False, "all": False, "many": True, "unparseable": True}
    registry = Registry(connect(), MODEL)
    assert registry.aliases() == {"champion": "1", "challenger": "2"}
    assert registry.version("2").description == found["reason"]
    words = ["--model", MODEL]
    command.main(["promote", "--version", "2", "--reason", "field trial", *words])
    assert registry.aliases()["champion"] == "2"
    capsys.readouterr()
    command.main(["show", *words])
    shown = capsys.readouterr().out
    assert "promoted by hand: field trial" in shown
    assert dvc_hash(place.world.sft)[:8] in shown
    command.main(["rollback", *words])
    assert registry.aliases() == {"champion": "1", "challenger": "2"}
