"""Ancestry of a version: steps of its own pipeline run are preferred to other runs with the same outputs."""

import dataclasses
from pathlib import Path

import pytest

from components.register.ancestry import trace_ancestry
from components.settings import Settings
from components.shared.tracking.hashes import Content
from components.shared.tracking.lineage import Lineage
from components.shared.tracking.step_run import StepRun, step_run
from components.steps import STEPS

ROWS, MODEL = Content("a" * 32 + ".dir", 10, 2), Content("b" * 32 + ".dir", 20, 3)
LINEAGE = Lineage("grpo", {"ingest": ROWS, "sft": MODEL}, {"components/grpo": ROWS}, {"grpo": {"steps": 7}})


@pytest.fixture
def out(store: Path) -> Path:
    """The output of every run in these tests."""
    (store / "out").mkdir()
    (store / "out" / "model").write_text("weights")
    return store / "out"


def trained(settings: Settings, out: Path, pipeline_run: str | None, steps: int, reused: str = "") -> StepRun:
    """Returns a finished grpo run with its own settings."""
    lineage = dataclasses.replace(LINEAGE, params={"grpo": {"steps": steps}})
    inputs = dict.fromkeys(STEPS["grpo"].inputs, out)
    with step_run(STEPS["grpo"], settings, inputs, lineage, pipeline_run) as run:
        run.finish({}, {"out": out})
        if reused:
            run.tag("concord.reused", reused)
    return run


def traced(settings: Settings, out: Path, model: Content, pipeline_run: str | None) -> tuple[str, str, object]:
    """Returns run id, `reused` and params of grpo in a version's ancestry."""
    inputs = {"ingest": ROWS, "grpo": model, "evaluate": MODEL}
    lineage = Lineage("register", inputs, {"components/register": ROWS}, {"register": {"model": "m"}})
    with step_run(STEPS["register"], settings, dict.fromkeys(inputs, out), lineage, pipeline_run) as run:
        ancestry = trace_ancestry(run)
    assert list(ancestry) == ["grpo", "register"]
    return ancestry["grpo"].run_id, ancestry["grpo"].reused, ancestry["grpo"].lineage.params["grpo"]


def test_step_of_the_own_pipeline_run_is_preferred_to_a_newer_one(settings: Settings, out: Path) -> None:
    first = trained(settings, out, "one", steps=7)
    fetched = trained(settings, out, "two", steps=7, reused=f"run {first.run_id}")
    other = trained(settings, out, "three", steps=8)
    model = first.outputs["out"]
    assert traced(settings, out, model, "one") == (first.run_id, "", {"steps": 7})
    assert traced(settings, out, model, "two") == (fetched.run_id, f"run {first.run_id}", {"steps": 7})
    # Kubeflow served the step from its own cache: the newest run that computed the output counts.
    assert traced(settings, out, model, "four") == (other.run_id, "", {"steps": 8})


def test_nested_run_of_a_platform_belongs_to_its_parent_s_pipeline_run(
    settings: Settings, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = trained(settings, out, "one", steps=7)
    trained(settings, out, "two", steps=8)
    nested = first.client.create_run(first.experiment_id, tags={"mlflow.parentRunId": str(first.parent_id)})
    monkeypatch.setenv("MLFLOW_RUN_ID", nested.info.run_id)
    assert traced(settings, out, first.outputs["out"], None)[0] == first.run_id
