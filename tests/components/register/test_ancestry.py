"""Where a version comes from: the steps of its own pipeline run, though others have made the very same."""

import dataclasses
from pathlib import Path

import pytest

from components.register.ancestry import trace
from components.settings import Settings
from components.shared.tracking.hashes import Content
from components.shared.tracking.lineage import Lineage
from components.shared.tracking.step_run import StepRun, step_run
from components.steps import STEPS

ROWS, MODEL = Content("a" * 32 + ".dir", 10, 2), Content("b" * 32 + ".dir", 20, 3)
LINEAGE = Lineage("grpo", {"ingest": ROWS, "sft": MODEL}, {"components/grpo": ROWS}, {"grpo": {"steps": 7}})


@pytest.fixture
def out(store: Path) -> Path:
    """What every run here makes."""
    (store / "out").mkdir()
    (store / "out" / "model").write_text("weights")
    return store / "out"


def trained(settings: Settings, out: Path, pipeline_run: str | None, steps: int, reused: str = "") -> StepRun:
    """A finished grpo run, with settings of its own."""
    lineage = dataclasses.replace(LINEAGE, params={"grpo": {"steps": steps}})
    inputs = dict.fromkeys(STEPS["grpo"].inputs, out)
    with step_run(STEPS["grpo"], settings, inputs, lineage, pipeline_run) as run:
        run.finish({}, {"out": out})
        if reused:
            run.tag("concord.reused", reused)
    return run


def traced(settings: Settings, out: Path, made: Content, pipeline_run: str | None) -> tuple[str, str, object]:
    """Run, `reused` and params that a version's ancestry names of grpo."""
    inputs = {"ingest": ROWS, "grpo": made, "evaluate": MODEL}
    lineage = Lineage("register", inputs, {"components/register": ROWS}, {"register": {"model": "m"}})
    with step_run(STEPS["register"], settings, dict.fromkeys(inputs, out), lineage, pipeline_run) as run:
        found = trace(run)
    assert list(found) == ["grpo", "register"]
    return found["grpo"].run_id, found["grpo"].reused, found["grpo"].lineage.params["grpo"]


def test_a_pipeline_run_s_own_step_comes_before_a_newer_one_with_the_same_output(settings: Settings, out: Path) -> None:
    first = trained(settings, out, "one", steps=7)
    fetched = trained(settings, out, "two", steps=7, reused=f"run {first.run_id}")
    other = trained(settings, out, "three", steps=8)
    made = first.outputs["out"]
    assert traced(settings, out, made, "one") == (first.run_id, "", {"steps": 7})
    assert traced(settings, out, made, "two") == (fetched.run_id, f"run {first.run_id}", {"steps": 7})
    # Kubeflow had it in its own cache: any run that computed it, the newest.
    assert traced(settings, out, made, "four") == (other.run_id, "", {"steps": 8})


def test_a_platform_s_nested_runs_are_one_pipeline_run_as_well(
    settings: Settings, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = trained(settings, out, "one", steps=7)
    trained(settings, out, "two", steps=8)
    nested = first.client.create_run(first.experiment_id, tags={"mlflow.parentRunId": str(first.parent_id)})
    monkeypatch.setenv("MLFLOW_RUN_ID", nested.info.run_id)
    assert traced(settings, out, first.outputs["out"], None)[0] == first.run_id
