"""A step as a Kubeflow task, mostly without a DVC remote; tests/e2e/test_lineage.py covers the rest."""

import json
from pathlib import Path

import pytest

from components.__main__ import parser
from components.errors import ConcordError
from components.settings import Settings
from components.shared.kubeflow import task
from components.shared.kubeflow.arguments import KubeflowArguments
from components.shared.kubeflow.task import KubeflowTask
from components.shared.tracking.hashes import dvc_content
from components.shared.tracking.lineage import code_fingerprint, code_identity
from components.shared.tracking.remote import configured_remote
from components.shared.tracking.step_run import step_run
from components.steps import STEPS


@pytest.fixture
def workspace(store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an input and an output, and no remote."""
    monkeypatch.delenv("CONCORD_DVC_REMOTE", raising=False)
    monkeypatch.setattr(task, "configured_remote", lambda: configured_remote(store))
    for name in ("ingest", "out"):
        (store / name).mkdir()
        (store / name / "metrics.json").write_text('{"rows": 3}')
    return store


def executor_input(workspace: Path, *further: str) -> str:
    artifacts = {
        name: {"artifacts": [{"name": name, "uri": f"s3://b/{name}"}]} for name in ("out", "metrics", *further)
    }
    return json.dumps({"outputs": {"artifacts": artifacts, "outputFile": str(workspace / "executor.json")}})


def test_without_a_remote_nothing_is_pushed_and_one_line_reports_it(
    workspace: Path, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    step, inputs, outputs = STEPS["validate"], {"ingest": workspace / "ingest"}, {"out": workspace / "out"}
    kubeflow_task = KubeflowTask.of(step, settings, inputs, KubeflowArguments(executor_input(workspace), "run-1"))
    assert kubeflow_task.restore(outputs) is None
    with step_run(step, settings, inputs, kubeflow_task.lineage, kubeflow_task.pipeline_run) as run:
        run.finish({"rows": 3}, outputs)
        kubeflow_task.publish(run, outputs, None)
    stderr = capsys.readouterr().err
    assert stderr.count("no DVC remote: CONCORD_DVC_REMOTE is not set") == 1
    assert stderr.count("\n") == 1
    metadata = json.loads((workspace / "executor.json").read_text())["artifacts"]["out"]["artifacts"][0]["metadata"]
    content = dvc_content(workspace / "out")
    assert (metadata["dvc_hash"], metadata["dvc_size"], metadata["dvc_nfiles"]) == (
        content.md5,
        content.size,
        content.nfiles,
    )
    assert metadata["dvc_hash.in.ingest"] == dvc_content(workspace / "ingest").md5
    assert (metadata["dvc_remote"], metadata["mlflow_run_id"], metadata["dvc_key"]) == (
        "",
        run.run_id,
        kubeflow_task.lineage.key,
    )
    assert "concord.remote" not in run.client.get_run(run.run_id).data.tags


def test_report_page_has_its_own_hash(workspace: Path, settings: Settings) -> None:
    step, outputs = STEPS["evaluate"], {"out": workspace / "out", "report": workspace / "report"}
    (workspace / "report").mkdir()
    (workspace / "report" / "report.html").write_text("<p>")
    inputs = dict.fromkeys(step.inputs, workspace / "ingest")
    arguments = KubeflowArguments(executor_input(workspace, "page", "report"), page=workspace / "shown" / "page.html")
    kubeflow_task = KubeflowTask.of(step, settings, inputs, arguments)
    with step_run(step, settings, inputs, kubeflow_task.lineage) as run:
        run.finish({}, outputs)
        kubeflow_task.publish(run, outputs, None)
    assert (workspace / "shown" / "page.html").read_text() == "<p>"
    artifacts = json.loads((workspace / "executor.json").read_text())["artifacts"]
    page = artifacts["page"]["artifacts"][0]["metadata"]
    assert (page["dvc_hash"], page["dvc_size"]) == (dvc_content(workspace / "report" / "report.html").md5, 3)
    assert page["mlflow_run_id"] == run.run_id
    assert artifacts["report"]["artifacts"][0]["metadata"]["dvc_hash"] == dvc_content(workspace / "report").md5


@pytest.mark.parametrize(("name", "again"), [("sft", False), ("validate", True)])
def test_only_steps_that_do_not_read_the_registry_are_fetched_from_the_cache(
    name: str, again: bool, workspace: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cached result of validate would hide drift from the data of a new champion."""
    monkeypatch.setattr(task, "configured_remote", configured_remote)
    monkeypatch.setenv("CONCORD_DVC_REMOTE", str(workspace / "remote"))
    step, outputs = STEPS[name], {"out": workspace / "out"}
    inputs = dict.fromkeys(step.inputs, workspace / "ingest")
    first = KubeflowTask.of(step, settings, inputs, KubeflowArguments(executor_input(workspace), "run-1"))
    with step_run(step, settings, inputs, first.lineage, first.pipeline_run) as run:
        run.finish({}, outputs)
        first.publish(run, outputs, None)
    second = KubeflowTask.of(step, settings, inputs, KubeflowArguments(executor_input(workspace), "run-2"))
    assert (second.restore({"out": workspace / "fetched"}) is None) == again
    assert (workspace / "fetched").exists() != again


def test_invalid_run_id_is_refused(workspace: Path, settings: Settings) -> None:
    with pytest.raises(ConcordError, match=r"--pipeline-run: \"x' or 1\" is not a run id"):
        KubeflowTask.of(
            STEPS["validate"],
            settings,
            {"ingest": workspace / "ingest"},
            KubeflowArguments(executor_input(workspace), "x' or 1"),
        )


def test_image_with_other_code_than_the_pipeline_is_refused(workspace: Path, settings: Settings) -> None:
    """A node may hold an older image of the same name, and Kubeflow's cache identifies an image only by its name."""
    step, inputs, executor = STEPS["validate"], {"ingest": workspace / "ingest"}, executor_input(workspace)
    fingerprint = code_fingerprint(code_identity(step))
    for code in (None, "none", fingerprint):
        kubeflow_task = KubeflowTask.of(step, settings, inputs, KubeflowArguments(executor, "run-1", code))
        assert kubeflow_task.lineage.code_fingerprint == fingerprint
    with pytest.raises(
        ConcordError, match=f"validate: the code of this image is {fingerprint}, and .* compiled with 0123"
    ):
        KubeflowTask.of(step, settings, inputs, KubeflowArguments(executor, "run-1", "0123456789abcdef"))


def test_run_id_comes_from_the_pod_s_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KFP_RUN_ID", raising=False)
    assert parser().parse_args(["sft"]).pipeline_run is None
    monkeypatch.setenv("KFP_RUN_ID", "run-1")
    assert parser().parse_args(["sft"]).pipeline_run == "run-1"
