"""A step as a task of Kubeflow, where nobody has named a remote; the rest is in tests/e2e/test_lineage.py."""

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
from components.shared.tracking.lineage import code_identity, code_mark
from components.shared.tracking.remote import remote_of_environment
from components.shared.tracking.step_run import step_run
from components.steps import STEPS


@pytest.fixture
def place(store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An input, an output, and no remote."""
    monkeypatch.delenv("CONCORD_DVC_REMOTE", raising=False)
    monkeypatch.setattr(task, "remote_of_environment", lambda: remote_of_environment(store))
    for name in ("ingest", "out"):
        (store / name).mkdir()
        (store / name / "metrics.json").write_text('{"rows": 3}')
    return store


def executor_input(place: Path, *further: str) -> str:
    artifacts = {
        name: {"artifacts": [{"name": name, "uri": f"s3://b/{name}"}]} for name in ("out", "metrics", *further)
    }
    return json.dumps({"outputs": {"artifacts": artifacts, "outputFile": str(place / "told.json")}})


def test_without_a_remote_nothing_is_pushed_and_one_line_says_so(
    place: Path, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    step, inputs, outputs = STEPS["validate"], {"ingest": place / "ingest"}, {"out": place / "out"}
    ours = KubeflowTask.of(step, settings, inputs, KubeflowArguments(executor_input(place), "run-1"))
    assert ours.restore(outputs) is None
    with step_run(step, settings, inputs, ours.lineage, ours.pipeline_run) as run:
        run.finish({"rows": 3}, outputs)
        ours.publish(run, outputs, None)
    said = capsys.readouterr().err
    assert said.count("no DVC remote: CONCORD_DVC_REMOTE is not set") == 1
    assert said.count("\n") == 1
    told = json.loads((place / "told.json").read_text())["artifacts"]["out"]["artifacts"][0]["metadata"]
    content = dvc_content(place / "out")
    assert (told["dvc_hash"], told["dvc_size"], told["dvc_nfiles"]) == (content.md5, content.size, content.nfiles)
    assert told["dvc_hash.in.ingest"] == dvc_content(place / "ingest").md5
    assert (told["dvc_remote"], told["mlflow_run_id"], told["dvc_key"]) == ("", run.run_id, ours.lineage.key)
    assert "concord.remote" not in run.client.get_run(run.run_id).data.tags


def test_the_page_of_the_report_has_its_own_hash(place: Path, settings: Settings) -> None:
    step, outputs = STEPS["evaluate"], {"out": place / "out", "report": place / "report"}
    (place / "report").mkdir()
    (place / "report" / "report.html").write_text("<p>")
    inputs = dict.fromkeys(step.inputs, place / "ingest")
    arguments = KubeflowArguments(executor_input(place, "page", "report"), page=place / "shown" / "page.html")
    ours = KubeflowTask.of(step, settings, inputs, arguments)
    with step_run(step, settings, inputs, ours.lineage) as run:
        run.finish({}, outputs)
        ours.publish(run, outputs, None)
    assert (place / "shown" / "page.html").read_text() == "<p>"
    told = json.loads((place / "told.json").read_text())["artifacts"]
    page = told["page"]["artifacts"][0]["metadata"]
    assert (page["dvc_hash"], page["dvc_size"]) == (dvc_content(place / "report" / "report.html").md5, 3)
    assert page["mlflow_run_id"] == run.run_id
    assert told["report"]["artifacts"][0]["metadata"]["dvc_hash"] == dvc_content(place / "report").md5


@pytest.mark.parametrize(("name", "again"), [("sft", False), ("validate", True)])
def test_what_looks_at_today_s_champion_is_done_again_and_the_rest_is_fetched(
    name: str, again: bool, place: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A drift that came with a new champion would else go unseen: the result that is fetched does not tell of it."""
    monkeypatch.setattr(task, "remote_of_environment", remote_of_environment)
    monkeypatch.setenv("CONCORD_DVC_REMOTE", str(place / "remote"))
    step, outputs = STEPS[name], {"out": place / "out"}
    inputs = dict.fromkeys(step.inputs, place / "ingest")
    first = KubeflowTask.of(step, settings, inputs, KubeflowArguments(executor_input(place), "run-1"))
    with step_run(step, settings, inputs, first.lineage, first.pipeline_run) as run:
        run.finish({}, outputs)
        first.publish(run, outputs, None)
    second = KubeflowTask.of(step, settings, inputs, KubeflowArguments(executor_input(place), "run-2"))
    assert (second.restore({"out": place / "fetched"}) is None) == again
    assert (place / "fetched").exists() != again


def test_what_is_no_id_of_a_run_is_refused(place: Path, settings: Settings) -> None:
    with pytest.raises(ConcordError, match=r"--pipeline-run: \"x' or 1\" is not the id"):
        KubeflowTask.of(
            STEPS["validate"],
            settings,
            {"ingest": place / "ingest"},
            KubeflowArguments(executor_input(place), "x' or 1"),
        )


def test_an_image_of_other_code_than_the_pipeline_s_is_refused(place: Path, settings: Settings) -> None:
    """A node may hold an older image of the same name, and Kubeflow's cache knows an image by its name alone."""
    step, inputs, told = STEPS["validate"], {"ingest": place / "ingest"}, executor_input(place)
    mark = code_mark(code_identity(step))
    for code in (None, "none", mark):
        ours = KubeflowTask.of(step, settings, inputs, KubeflowArguments(told, "run-1", code))
        assert ours.lineage.code_mark == mark
    with pytest.raises(ConcordError, match=f"validate: the code of this image is {mark}, and .* compiled with 0123"):
        KubeflowTask.of(step, settings, inputs, KubeflowArguments(told, "run-1", "0123456789abcdef"))


def test_the_run_is_known_by_a_variable_of_the_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KFP_RUN_ID", raising=False)
    assert parser().parse_args(["sft"]).pipeline_run is None
    monkeypatch.setenv("KFP_RUN_ID", "run-1")
    assert parser().parse_args(["sft"]).pipeline_run == "run-1"
