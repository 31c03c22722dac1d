"""The register step on a real store, with tiny models that are loaded back from the registry."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from components.commands.registry import command
from components.errors import ConcordError
from components.evaluate.step import run as evaluate_run
from components.register import step as register
from components.register.against_champion import compare
from components.register.decisions import DECISIONS
from components.register.registry import Registry
from components.register.seen_images import SEEN, hashes_of, seen_by
from components.register.served import Served
from components.register.served_predictions import CannotPredictError, served_predictions
from components.shared.model.number_reader import NumberReader
from components.shared.rows.rows import read_rows, read_table
from components.shared.tracking.connection import connect
from components.shared.tracking.hashes import dvc_hash
from components.shared.tracking.step_run import step_run
from components.steps import STEPS
from tests.support.gray_world import QUESTION, GrayWorld

MODEL = "gauge-reader"


@dataclass(frozen=True)
class Workspace:
    """A working directory with an MLflow store and two outputs of evaluate.

    `good` is of the warm start and the trained model; in `poor`, the warm start stands for both.
    """

    world: GrayWorld
    root: Path
    good: Path
    poor: Path

    def register(self, grpo: Path, evaluate: Path) -> dict[str, Any]:
        """Runs the step and returns its registration.json."""
        settings = self.world.settings
        inputs = {"ingest": self.world.ingest, "sft": self.world.sft, "grpo": grpo, "evaluate": evaluate}
        out = self.root / "out"
        with step_run(STEPS["register"], settings, inputs) as track:
            register.run(settings, track, **inputs, out=out)
            track.finish(json.loads((out / "metrics.json").read_text()), {"out": out})
        registration: dict[str, Any] = json.loads((out / "registration.json").read_text())
        return registration


@pytest.fixture(scope="module")
def workspace(gray: GrayWorld, tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Workspace]:
    root = tmp_path_factory.mktemp("registry")
    shutil.copy(empty_database, root / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/mlflow.db")
        patch.delenv("MLFLOW_RUN_ID", raising=False)
        for name, grpo in (("good", gray.grpo), ("poor", gray.sft)):
            inputs = {"ingest": gray.ingest, "sft": gray.sft, "grpo": grpo}
            outputs = {"out": root / name, "report": root / f"report-{name}"}
            with step_run(STEPS["evaluate"], gray.settings, inputs) as track:
                evaluate_run(gray.settings, track, **inputs, **outputs)
                track.finish({}, outputs)
        yield Workspace(gray, root, root / "good", root / "poor")


@pytest.fixture(scope="module")
def interrupted(workspace: Workspace) -> None:
    """A registration that was killed after it created the version."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(register, "_verify", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            workspace.register(workspace.world.grpo, workspace.good)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def refused(workspace: Workspace, interrupted: None) -> str:
    """The error of the next registration, after the code in the registry was changed to predict 1 more."""
    (code,) = workspace.root.glob("mlruns/**/code/components/shared/scoring/answer_rule.py")
    text = code.read_text()
    code.write_text(text.replace("return Readings(value,", "return Readings(value + 1,"))
    assert code.read_text() != text
    with pytest.raises(ConcordError) as caught:
        workspace.register(workspace.world.grpo, workspace.good)
    code.write_text(text)
    assert Registry(connect(), MODEL).version("1").tags["concord.verified"] == "false"
    return str(caught.value)


@pytest.fixture(scope="module")
def first(workspace: Workspace, refused: str) -> dict[str, Any]:
    """The first registration that succeeds."""
    assert Registry(connect(), MODEL).aliases() == {}
    return workspace.register(workspace.world.grpo, workspace.good)


def test_predictions_come_from_the_stored_code_and_must_equal_those_of_evaluate(refused: str) -> None:
    assert "version 1: loaded from the registry, it predicts 24 of 24 test images differently from evaluate" in refused
    assert "(first test-000: value 21, was 20)" in refused


def test_first_version_becomes_champion_if_it_beats_the_warm_start(workspace: Workspace, first: dict[str, Any]) -> None:
    assert (first["version"], first["promoted"], first["champion_before"]) == ("1", True, None)
    assert (
        "against the greedy text of the SFT warm start (there is no champion yet), few-shot MAE 0.00 against 20.00"
        in first["reason"]
    )
    registry = Registry(connect(), MODEL)
    assert [version.version for version in registry.versions()] == [1], "three runs created one version"
    assert registry.aliases() == {"champion": "1", "challenger": "1"}
    version = registry.version("1")
    assert version.description.startswith(f"{first['reason']}\n\n")
    tags = version.tags
    assert (first["served"], tags["concord.served"]) == ("grpo.balanced", "grpo.balanced")
    assert tags["concord.in.grpo"] == dvc_hash(workspace.world.grpo)
    assert tags["concord.in.ingest"] == dvc_hash(workspace.world.ingest)
    assert tags["concord.verified"] == "true"
    assert tags["concord.mae.few"] == "0.0"
    assert json.loads(tags["concord.settings"])["task"]["question"] == QUESTION
    assert "concord.git.commit" in tags
    assert (tags["concord.promoted.by"], tags["concord.promoted.previous"]) != ("", None)
    evaluated = connect().get_run(first["runs"]["evaluate"])
    assert evaluated.data.tags["concord.step"] == "evaluate"
    assert evaluated.data.tags["mlflow.parentRunId"] == first["runs"]["experiment"]
    figures = json.loads((workspace.root / "out" / "metrics.json").read_text())
    assert figures["promoted"] == 1
    assert figures["few_difference"] == pytest.approx({"value": -20.0, "low": -20.0, "high": -20.0})


def test_registered_model_has_no_pickle_and_pinned_requirements(workspace: Workspace, first: dict[str, Any]) -> None:
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{MODEL}/1"))
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    assert not [name for name in names if name.endswith((".pkl", ".pickle", ".bin", ".pt"))]
    assert [name for name in names if name.endswith(".safetensors")]
    code = {name for name in names if name.startswith("code/components/")}
    assert "code/components/shared/model/generation.py" in code
    assert not [name for name in code if "/grpo/" in name or "/ingest/" in name or "/tracking/" in name]
    pinned = (folder / "requirements.txt").read_text().split()
    assert all("==" in line and "+" not in line for line in pinned)
    assert {"torch", "transformers", "peft", "mlflow"} <= {line.partition("==")[0] for line in pinned}
    metadata = yaml.safe_load((folder / "MLmodel").read_text())
    assert json.loads(metadata["signature"]["inputs"]) == [
        {"type": "binary", "name": "image", "required": True},
        {"type": "string", "name": "question", "required": False},
    ]
    assert json.loads(metadata["signature"]["outputs"]) == [
        *({"type": "double", "name": name, "required": True} for name in ("value", "low", "high", "mass")),
        {"type": "string", "name": "error", "required": False},
    ]
    parameters = {param["name"]: param["default"] for param in json.loads(metadata["signature"]["params"])}
    assert parameters == {
        "balance": metadata["flavors"]["python_function"]["config"]["answer"]["balance"],
        "coverage": 0.9,
    }


def test_registered_model_predicts_with_and_without_a_question(workspace: Workspace, first: dict[str, Any]) -> None:
    model = mlflow.pyfunc.load_model(f"models:/{MODEL}/1")
    rows = pa.Table.from_batches(read_rows(workspace.world.ingest, "test")).to_pylist()
    images = pd.DataFrame({"image": [row["image"]["bytes"] for row in rows]})
    targets = [row["target"] for row in rows]
    assert model.predict(images)["value"].tolist() == targets
    assert model.predict(images.assign(question=[None, QUESTION] * (len(rows) // 2)))["value"].tolist() == targets
    assert model.predict(images.iloc[:1])["value"].tolist() == targets[:1]
    answers = model.predict(images.sample(frac=1, random_state=0))
    assert answers["value"].sort_index().tolist() == targets, "an answer keeps the index of its image"
    assert ((answers["low"] <= answers["value"]) & (answers["value"] <= answers["high"])).all()
    assert answers["mass"].between(0.5, 1).all()
    assert model.predict(images.iloc[:0]).empty
    with pytest.raises(mlflow.exceptions.MlflowException, match="image"):
        model.predict(pd.DataFrame({"question": ["?"]}))
    with pytest.raises(mlflow.exceptions.MlflowException, match="question: <image> is a special token of the model"):
        model.predict(images.iloc[:2].assign(question=[None, "What is in <image>?"]))


def test_an_unreadable_image_costs_the_others_nothing(workspace: Workspace, first: dict[str, Any]) -> None:
    model = mlflow.pyfunc.load_model(f"models:/{MODEL}/1")
    rows = pa.Table.from_batches(read_rows(workspace.world.ingest, "test")).to_pylist()[:3]
    images = pd.DataFrame({"image": [row["image"]["bytes"] for row in rows]}, index=[7, 3, 5])
    alone = model.predict(images)
    assert alone["error"].isna().all()
    images.loc[9] = [b"no image"]
    answers = model.predict(images.loc[[9, 5, 3, 7]])
    assert answers.index.tolist() == [9, 5, 3, 7]
    pd.testing.assert_frame_equal(answers.drop(index=9), alone.loc[[5, 3, 7]], check_dtype=False, rtol=1e-4)
    assert answers.loc[9, ["value", "low", "high", "mass"]].isna().all()
    assert "not an image in a known format" in answers.loc[9, "error"]
    with pytest.raises(mlflow.exceptions.MlflowException, match="no image can be read; the first: not an image"):
        model.predict(images.loc[[9]])


def test_balance_and_coverage_are_parameters_of_a_request(workspace: Workspace, first: dict[str, Any]) -> None:
    model = mlflow.pyfunc.load_model(f"models:/{MODEL}/1")
    rows = pa.Table.from_batches(read_rows(workspace.world.ingest, "test")).to_pylist()
    images = pd.DataFrame({"image": [row["image"]["bytes"] for row in rows]})
    reader = NumberReader.load(workspace.world.grpo, workspace.world.settings.reader(1.0))
    assert reader.rule is not None
    ((_, log_p),) = reader.log_probabilities(read_rows(workspace.world.ingest, "test"), len(rows))
    expected = replace(reader.rule, coverage=0.5).read(log_p)
    answers = model.predict(images, params={"balance": 1.0, "coverage": 0.5})
    for name in ("value", "low", "high"):
        assert answers[name].tolist() == getattr(expected, name).tolist()
    with pytest.raises(mlflow.exceptions.MlflowException, match=r"coverage: 7 is not within 0\.5 and 0\.999"):
        model.predict(images, params={"coverage": 7.0})


def test_registered_model_can_answer_with_its_greedy_text(workspace: Workspace, first: dict[str, Any]) -> None:
    settings = workspace.world.settings
    by_text = {
        "answer": settings.answer.tree() | {"from": "text"},
        "task": settings.task.tree() | {"high": 50.0},
    }
    model = mlflow.pyfunc.load_model(f"models:/{MODEL}/1", model_config=by_text)
    rows = pa.Table.from_batches(read_rows(workspace.world.ingest, "test")).to_pylist()
    answers = model.predict(pd.DataFrame({"image": [row["image"]["bytes"] for row in rows]}))
    assert answers["value"].isna().tolist() == [row["target"] > 50 for row in rows]
    assert answers[["low", "high", "mass"]].isna().all(axis=None)


def test_decision_about_a_champion_is_kept(first: dict[str, Any]) -> None:
    decision = register._earlier_decision(Registry(connect(), MODEL), "1")
    assert decision == {key: first[key] for key in ("promoted", "reason", "champion_before", "met", "few")}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("question", "How old?"),
        ("unit", "years"),
        ("low", -1.0),
        ("high", 200.0),
        ("resolution", 0.5),
        ("grey_bits", 12),
    ],
)
def test_a_champion_of_another_task_is_not_compared(
    workspace: Workspace, first: dict[str, Any], key: str, value: Any
) -> None:
    settings = workspace.world.settings
    changed = settings.model_copy(update={"task": settings.task.model_copy(update={key: value})})
    nowhere = Path("nowhere")
    outcome = register._decide(Registry(connect(), MODEL), "1", "1", None, changed, nowhere, nowhere, "")  # type: ignore[arg-type]
    assert outcome["promoted"] is False
    assert f"reads something else (task.{key} was {getattr(settings.task, key)!r}, is {value!r})" in outcome["reason"]


def test_another_kind_of_machine_may_read_a_share_otherwise(
    workspace: Workspace, first: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    settings, world = workspace.world.settings, workspace.world
    served = Served.read(settings, workspace.good, {"sft": world.sft, "grpo": world.grpo})
    values = served.table["balanced"].to_pylist()
    column = served.table.column_names.index("balanced")
    table = served.table.set_column(column, "balanced", pa.array([values[0] + 1, *values[1:]]))
    rule = settings.registry.model_copy(update={"max_different": 0.05})
    registry = Registry(connect(), MODEL)
    register._verify(
        registry, "1", replace(served, table=table), settings.model_copy(update={"registry": rule}), world.ingest
    )
    tags = registry.version("1").tags
    assert (tags["concord.verified"], tags["concord.different"]) == ("true", "1")
    assert "predicts 1 of 24 test images differently from evaluate" in " ".join(capsys.readouterr().err.split())


def changed_rows(ingest: Path, folder: Path, id: str) -> Path:
    """A copy of the rows in which one test image is broken."""
    shutil.copytree(ingest, folder)
    (shard,) = folder.glob("test-*.parquet")
    table = pq.read_table(shard)
    rows = table.to_pylist()
    for row in rows:
        if row["id"] == id:
            row["image"]["bytes"] = b"no image"
    pq.write_table(pa.Table.from_pylist(rows, table.schema), shard)
    return folder


def test_what_the_champion_has_seen_or_cannot_read_is_left_out_for_both(
    workspace: Workspace, first: dict[str, Any], tmp_path: Path
) -> None:
    settings, world = workspace.world.settings, workspace.world
    served = Served.read(settings, workspace.poor, {"sft": world.sft, "grpo": world.sft})
    few = read_table(world.ingest, "test", ["image_sha256"])["image_sha256"][-1:]
    ingest = changed_rows(world.ingest, tmp_path / "ingest", "test-000")
    allowed = settings.evaluate.model_copy(update={"max_unreadable": 0.05})
    found = compare(MODEL, "1", served, settings.model_copy(update={"evaluate": allowed}), ingest, hashes_of(few))
    expected = served.predictions.targets[1:-1].tolist()
    assert found.baseline.targets.tolist() == found.challenger.targets.tolist() == expected
    assert found.mass is not None
    assert len(found.mass) == 22
    assert (found.baseline.errors == 0).all()
    assert found.notes[0] == (
        "Left out for both: 1 of 24 test images, which were in the champion's training or validation data."
    )
    assert (
        "1 test images that the champion cannot read (first test-000: not an image in a known format" in found.notes[1]
    )


def test_a_champion_that_has_seen_all_it_can_read_is_not_compared(
    workspace: Workspace, first: dict[str, Any], tmp_path: Path
) -> None:
    settings, world = workspace.world.settings, workspace.world
    served = Served.read(settings, workspace.poor, {"sft": world.sft, "grpo": world.sft})
    seen = read_table(world.ingest, "test", ["image_sha256"])["image_sha256"][1:]
    ingest = changed_rows(world.ingest, tmp_path / "ingest", "test-000")
    allowed = settings.evaluate.model_copy(update={"max_unreadable": 0.05})
    with pytest.raises(CannotPredictError, match=r"none of the 24 test images is left.* seen 23 .*cannot read 1"):
        compare(MODEL, "1", served, settings.model_copy(update={"evaluate": allowed}), ingest, hashes_of(seen))


def test_a_version_stores_what_it_has_seen(
    workspace: Workspace, first: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, ingest = Registry(connect(), MODEL), workspace.world.ingest
    expected = sorted(
        bytes.fromhex(digest)
        for split in ("train", "val")
        for digest in set(read_table(ingest, split, ["image_sha256"])["image_sha256"].to_pylist())
    )
    assert seen_by(registry, "1", Path("nowhere"), "").to_pylist() == expected  # type: ignore[union-attr]
    assert registry.version("1").tags[SEEN] == str(len(expected))
    registry.client.delete_model_version_tag(MODEL, "1", SEEN)
    try:  # as a version of an earlier release
        assert seen_by(registry, "1", ingest, dvc_hash(ingest)).to_pylist() == expected  # type: ignore[union-attr]
        assert seen_by(registry, "1", ingest, "other rows") is None
        monkeypatch.chdir(tmp_path)
        subprocess.run(["git", "init", "-q"], check=True)
        subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], check=True)
        shutil.copytree(ingest, "rows")
        subprocess.run([sys.executable, "-m", "dvc", "add", "-q", "rows"], check=True)
        assert seen_by(registry, "1", Path("nowhere"), "other rows").to_pylist() == expected  # type: ignore[union-attr]
    finally:
        registry.tag("1", {SEEN: str(len(expected))})


def test_a_champion_that_is_short_of_memory_is_asked_again(workspace: Workspace, first: dict[str, Any]) -> None:
    (code,) = workspace.root.glob("mlruns/**/code/components/shared/scoring/answer_rule.py")
    text, ids = code.read_text(), read_table(workspace.world.ingest, "test", ["id"])["id"].to_pylist()
    for fault, final in (("MemoryError('no memory left')", False), ("KeyError('other library')", True)):
        code.write_text(text.replace("return Readings(value,", f"raise {fault}\n        return Readings(value,"))
        with pytest.raises(ConcordError, match=r"no memory left|other library") as caught:
            served_predictions(MODEL, "1", workspace.world.ingest, 5, ids)
        assert isinstance(caught.value, CannotPredictError) is final
    code.write_text(text)


def test_a_champion_whose_server_is_away_is_asked_again(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ConcordError, match="Run register again when this has passed") as caught:
        served_predictions(MODEL, "1", workspace.world.ingest, 5, ["test-000"])
    assert not isinstance(caught.value, CannotPredictError)


def test_model_that_is_no_better_than_the_champion_stays_challenger(
    workspace: Workspace, first: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    registration = workspace.register(workspace.world.sft, workspace.poor)
    assert (registration["version"], registration["promoted"]) == ("2", False)
    assert registration["served"] == "sft.balanced", "training that is worth nothing leaves the warm start"
    assert registration["champion_before"]["version"] == "1"
    assert registration["champion_before"]["metrics"]["groups"]["all"]["mae"] == 0.0
    assert registration["champion_before"]["metrics"]["skill"] == 1
    assert "against the champion (version 1), few-shot MAE 20.00 against 0.00" in registration["reason"]
    assert "it is worse" in registration["reason"]
    assert registration["met"] == {"few": False, "all": False, "many": True, "unparseable": False}
    registry = Registry(connect(), MODEL)
    assert registry.aliases() == {"champion": "1", "challenger": "2"}
    assert [registry.version(number).tags[DECISIONS] for number in ("1", "2")] == ["1", "2"]
    assert registration["test_set_decisions"] == 2
    assert "By then, the test set has decided about 2 versions of this model" in registry.version("2").description
    assert registry.version("2").description.startswith(f"{registration['reason']}\n\n")
    model = ["--model", MODEL]
    command.main(["promote", "--version", "2", "--reason", "field trial", *model])
    assert registry.aliases()["champion"] == "2"
    capsys.readouterr()
    command.main(["show", *model])
    stdout = capsys.readouterr().out
    assert "promoted by hand: field trial" in stdout
    assert dvc_hash(workspace.world.sft)[:8] in stdout
    command.main(["rollback", *model])
    assert registry.aliases() == {"champion": "1", "challenger": "2"}
