"""Step runs, on a real store: nesting, what is written, what a failure and a kill leave behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.errors import ConcordError
from components.settings import Settings
from components.shared.tracking import step_run as runs
from components.shared.tracking.connection import connect
from components.shared.tracking.hashes import dvc_content, dvc_hash
from components.shared.tracking.step_run import StepRun, flat, record_of, run_that_made, run_that_read, step_run
from components.steps import STEPS

ROOT = Path(__file__).parents[4]


@pytest.fixture
def data(store: Path) -> Path:
    (store / "data").mkdir()
    (store / "data" / "a.csv").write_text("x\n1\n")
    return store / "data"


def test_flat_names_every_leaf() -> None:
    assert flat({"a": {"b": [1, {"c": None}]}, "d": (2,)}) == {"a.b.0": 1, "a.b.1.c": None, "d.0": 2}


def test_a_step_leaves_settings_curves_metrics_commit_and_hashes(data: Path, settings: Settings) -> None:
    out = data.parent / "out"
    out.mkdir()
    (out / "model").write_text("weights")
    with step_run(STEPS["sft"], settings, {"ingest": data}) as run:
        for step in range(2500):
            run.log({"loss": 1 / (step + 1), "reward/ccc": 0.5}, step)
        run.finish({"val": {"mae": 3.5, "ci": [3.0, 4.0], "empty": None}}, {"out": out})
    client = connect()
    kept = client.get_run(run.run_id)
    assert kept.info.status == "FINISHED"
    assert kept.data.metrics | {"loss": 0.0} == {
        "loss": 0.0, "reward/ccc": 0.5, "val.mae": 3.5, "val.ci.0": 3.0, "val.ci.1": 4.0,
    }  # fmt: skip
    curve = client.get_metric_history(run.run_id, "loss")
    assert [(m.step, m.value) for m in curve] == [(step, 1 / (step + 1)) for step in range(2500)]
    assert kept.data.params["sft.lr"] == json.dumps(settings.sft.lr)
    assert kept.data.params["task.question"] == settings.task.question
    assert kept.data.params["model.lora"] == "null"
    assert not any(name.startswith(("grpo.", "register.")) for name in kept.data.params)
    assert kept.data.tags["concord.in.ingest"] == dvc_hash(data)
    assert kept.data.tags["concord.out.out"] == dvc_hash(out)
    assert "mlflow.source.git.commit" in kept.data.tags
    (dataset,) = kept.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("ingest", dvc_hash(data))
    assert run_that_made(client, run.experiment_id, dvc_hash(out)) == run.run_id
    assert run_that_made(client, run.experiment_id, "0" * 32 + ".dir") is None


def test_steps_with_the_same_settings_share_a_parent_and_others_do_not(data: Path, settings: Settings) -> None:
    other = settings.model_copy(update={"grpo": settings.grpo.model_copy(update={"steps": 7})})
    parents = []
    for step, chosen in (("ingest", settings), ("validate", settings), ("ingest", other)):
        with step_run(STEPS[step], chosen, {"data": data}) as run:
            pass
        parents.append(run.parent_id)
    assert parents[0] == parents[1] != parents[2]
    client = connect()
    parent = client.get_run(parents[0])
    assert parent.info.status == "FINISHED"
    assert parent.data.params["grpo.steps"] == str(settings.grpo.steps)
    nested = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parents[0]}'")
    assert sorted(run.info.run_name for run in nested) == ["ingest", "validate"]
    assert client.get_experiment(parent.info.experiment_id).name == settings.experiment


def test_a_failing_step_is_marked_and_its_error_goes_on(data: Path, settings: Settings) -> None:
    def step() -> None:
        nonlocal run
        with step_run(STEPS["ingest"], settings, {"data": data}) as run:
            run.log({"seen": 1.0}, 1)
            raise ValueError("bad row at http://me:hunter2@host")

    run: StepRun | None = None
    with pytest.raises(ValueError, match="bad row"):
        step()
    assert run
    client = connect()
    kept = client.get_run(run.run_id)
    assert kept.info.status == "FAILED"
    assert kept.data.tags["concord.error"] == "ValueError: bad row at http://me:***@host"
    assert kept.data.metrics["seen"] == 1.0
    assert client.get_run(run.parent_id).info.status == "FAILED"


def test_a_metric_that_is_no_number_is_refused(data: Path, settings: Settings) -> None:
    with pytest.raises(TypeError, match=r"a\.b"), step_run(STEPS["ingest"], settings, {"data": data}) as run:
        run.finish({"a": {"b": "three"}}, {})


KILLED = """
import sys, time
from pathlib import Path
from components.settings import load_settings
from components.shared.tracking.step_run import step_run
from components.steps import STEPS
with step_run(STEPS["sft"], load_settings(Path(sys.argv[1])), {}) as run:
    print(run.run_id, flush=True)
    time.sleep(60)
"""


def test_a_killed_step_is_found_by_the_next_and_the_default_store_is_in_the_working_directory(
    data: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    command = [sys.executable, "-c", KILLED, str(ROOT / "params.yaml")]
    process = subprocess.Popen(
        command, cwd=data.parent, env=environment | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout
    assert process.stderr
    killed = process.stdout.readline().strip()
    process.send_signal(signal.SIGKILL)
    assert process.stderr.read() == "", "MLflow talks"
    process.wait()
    client = connect()  # MLFLOW_TRACKING_URI of the test: the database that the process used by default
    assert client.get_run(killed).info.status == "RUNNING"
    with step_run(STEPS["validate"], settings, {}) as other:
        assert client.get_run(killed).info.status == "RUNNING", "another step's run is not ours to judge"
    with step_run(STEPS["sft"], settings, {}) as run:
        assert client.get_run(killed).info.status == "KILLED"
        assert client.get_run(run.run_id).info.status == "RUNNING"
    assert run.parent_id == other.parent_id == client.get_run(killed).data.tags["mlflow.parentRunId"]


def test_more_ranks_are_no_other_experiment(data: Path, settings: Settings) -> None:
    """The same parent, which does not hold their number."""
    moved = settings.model_copy(update={"launcher": settings.launcher.model_copy(update={"num_processes": 8})})
    parents = []
    for each in (settings, moved):
        with step_run(STEPS["ingest"], each, {"data": data}) as run:
            parents.append(run.parent_id)
    assert parents[0] == parents[1]
    params = connect().get_run(parents[0]).data.params
    assert not any(name.startswith("launcher.") for name in params)


def test_the_steps_of_a_pipeline_run_share_a_parent_whatever_settings_they_see(data: Path, settings: Settings) -> None:
    other = settings.model_copy(update={"grpo": settings.grpo.model_copy(update={"steps": 7})})
    with step_run(STEPS["ingest"], settings, {"data": data}, pipeline_run="pipeline-1") as first:
        pass
    with step_run(STEPS["validate"], other, {"ingest": data}, pipeline_run="pipeline-1") as second:
        pass
    with step_run(STEPS["ingest"], settings, {"data": data}, pipeline_run="pipeline-2") as third:
        pass
    assert first.parent_id == second.parent_id != third.parent_id
    client = connect()
    parent = client.get_run(str(first.parent_id))
    assert parent.data.tags["concord.pipeline_run"] == "pipeline-1"
    assert {name.partition(".")[0] for name in parent.data.params} == {"task", "ingest", "validate"}
    assert client.get_run(second.run_id).data.tags["concord.pipeline_run"] == "pipeline-1"


def test_a_given_run_is_found_by_the_pipeline_s_id(
    data: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = connect()
    top = client.create_run("0")
    nested = client.create_run("0", tags={"mlflow.parentRunId": top.info.run_id})
    for given in (top, nested):
        monkeypatch.setenv("MLFLOW_RUN_ID", given.info.run_id)
        with step_run(STEPS["ingest"], settings, {"data": data}, pipeline_run=f"of-{given.info.run_id}"):
            pass
        assert client.get_run(top.info.run_id).data.tags["concord.pipeline_run"] == f"of-{given.info.run_id}"


def test_a_run_leaves_a_record_of_what_it_is_made_from(
    data: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONCORD_COMMIT", "c0ffee")  # the working directory is no repository
    with step_run(STEPS["ingest"], settings, {"data": data}) as run:
        assert record_of(connect(), connect().get_run(run.run_id)).outputs == {}, "it is there from the start"
        run.finish({}, {"out": data})
    client = connect()
    kept = client.get_run(run.run_id)
    record = record_of(client, kept)
    assert record.lineage == run.lineage
    assert record.lineage.inputs == {"data": dvc_content(data)}
    assert record.outputs == {"out": dvc_content(data)}
    assert (record.commit, record.dirty, record.reused) == ("c0ffee", False, "")
    assert kept.data.tags["concord.key"] == record.lineage.key
    with pytest.raises(ConcordError, match=r"could not read lineage\.json"):
        record_of(client, client.create_run("0"))
    for damaged in (b'{"step": "ing', b"[]", b"\xff\xfe", b'{"outputs": []}'):
        (data.parent / "lineage.json").write_bytes(damaged)
        client.log_artifact(run.run_id, str(data.parent / "lineage.json"))
        with pytest.raises(ConcordError, match=rf"run {run.run_id}: its artifact lineage\.json is not what a step"):
            record_of(client, kept)


def test_an_output_leads_to_the_run_that_computed_it_and_not_to_one_that_fetched_it(
    data: Path, settings: Settings
) -> None:
    ids = []
    for reused in (False, True):
        with step_run(STEPS["ingest"], settings, {"data": data}) as run:
            run.finish({}, {"out": data})
            if reused:
                run.tag("concord.reused", f"run {ids[0]}")
        ids.append(run.run_id)
    assert run_that_made(run.client, run.experiment_id, dvc_hash(data)) == ids[0]
    assert run_that_read(run.client, "ingest", "data", dvc_hash(data)) == ids[0], "the other has looked at nothing"
    run.client.delete_run(ids[0])
    assert run_that_read(run.client, "ingest", "data", dvc_hash(data)) == ids[1]


def test_a_given_run_is_the_parent_and_keeps_its_status(
    data: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = connect()
    given = client.create_run("0")
    monkeypatch.setenv("MLFLOW_RUN_ID", given.info.run_id)
    with step_run(STEPS["ingest"], settings, {"data": data}) as run:
        pass
    assert run.parent_id == given.info.run_id
    assert run.experiment_id == "0"
    assert client.get_run(given.info.run_id).info.status == "RUNNING"
    assert client.get_run(run.run_id).data.tags["mlflow.parentRunId"] == given.info.run_id


def test_a_given_nested_run_is_written_into(data: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    client = connect()
    parent = client.create_run("0")
    given = client.create_run("0", tags={"mlflow.parentRunId": parent.info.run_id, "mlflow.runName": "task-1"})
    monkeypatch.setenv("MLFLOW_RUN_ID", given.info.run_id)
    for _ in range(2):  # a platform tries a failed task again, in the same run
        with step_run(STEPS["ingest"], settings, {"data": data}) as run:
            run.finish({"rows": 3}, {"out": data})
    kept = client.get_run(given.info.run_id)
    assert run.run_id == given.info.run_id
    assert run.parent_id is None
    assert (kept.info.status, kept.data.metrics["rows"]) == ("FINISHED", 3.0)
    assert kept.data.tags["mlflow.runName"] == "task-1"
    assert kept.data.tags["concord.in.data"] == dvc_hash(data)
    changed = settings.model_copy(update={"task": settings.task.model_copy(update={"question": "What?"})})
    with pytest.raises(ConcordError, match=r"already has task\.question="), step_run(STEPS["ingest"], changed, {}):
        pass


def test_a_given_run_that_does_not_exist_is_told(
    store: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    with pytest.raises(ConcordError, match=r"MLFLOW_RUN_ID=0+: no such run"), step_run(STEPS["sft"], settings, {}):
        pass


def test_a_deleted_experiment_is_told_with_the_way_back(data: Path, settings: Settings) -> None:
    client = connect()
    client.delete_experiment(client.create_experiment(settings.experiment))
    with pytest.raises(ConcordError, match=r"deleted in MLflow.*restore"), step_run(STEPS["sft"], settings, {}):
        pass


def test_logging_does_not_reach_the_store_at_every_step(
    data: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("components.shared.tracking.step_run.FLUSH_SECONDS", 3600.0)
    with step_run(STEPS["grpo"], settings, {}) as run:
        for step in range(200):
            run.log({"kl": 0.5}, step)
        assert run.client.get_metric_history(run.run_id, "kl") == []
        run._flush()
        assert [point.step for point in run.client.get_metric_history(run.run_id, "kl")] == list(range(200))


@pytest.fixture
def server(store: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["subprocess.Popen[bytes]"]:
    """A real tracking server on the loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    uri = f"sqlite:///{store}/mlflow.db"
    with open(store / "server.log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *words, "--backend-store-uri", uri, "--artifacts-destination",
             str(store / "served")],
            cwd=store, stdout=log, stderr=log, start_new_session=True,
            env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        )  # fmt: skip
    try:
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, (store / "server.log").read_text()
            time.sleep(0.2)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_server_takes_the_same_and_an_outage_does_not_stop_a_training(
    server: subprocess.Popen[bytes],
    data: Path,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(runs, "FLUSH_SECONDS", 0.0)
    curve = data.parent / "report"
    curve.mkdir()
    (curve / "report.html").write_text("<p>")

    def step() -> None:
        with step_run(STEPS["sft"], settings, {"ingest": data}) as run:
            run._next_flush = 0.0
            run.log({"loss": 1.0}, 1)
            run.attach(curve, "report")
            kept = connect().get_run(run.run_id)
            assert kept.data.metrics == {"loss": 1.0}
            assert kept.data.tags["mlflow.parentRunId"] == run.parent_id
            assert kept.inputs.dataset_inputs[0].dataset.digest == dvc_hash(data)
            assert [file.path for file in connect().list_artifacts(run.run_id, "report")] == ["report/report.html"]
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
            run.log({"loss": 0.5}, 2)
            assert "The step goes on" in " ".join(capsys.readouterr().err.split())
            run.log({"loss": 0.25}, 3)
            run.finish({}, {})

    with pytest.raises(ConcordError, match="could not write the metrics"):
        step()


def test_an_image_says_what_it_was_built_from(data: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    for built, commit, dirty in (("0123abc", "0123abc", "false"), ("0123abc-dirty", "0123abc", "true")):
        monkeypatch.setenv("CONCORD_COMMIT", built)
        with step_run(STEPS["ingest"], settings, {"data": data}) as run:
            pass
        tags = connect().get_run(run.run_id).data.tags
        assert (run.commit, tags["mlflow.source.git.commit"], tags["concord.git.dirty"]) == (commit, commit, dirty)
