"""Step runs on a real store: nesting, what they record, and their state after a failure or a kill."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from components.errors import ConcordError
from components.settings import Settings
from components.shared.tracking import metric_writer
from components.shared.tracking import step_run as step_run_module
from components.shared.tracking.connection import connect
from components.shared.tracking.hashes import dvc_hash
from components.shared.tracking.past_runs import find_producer
from components.shared.tracking.step_run import StepRun, step_run
from components.steps import STEPS

ROOT = Path(__file__).parents[4]


@pytest.fixture
def data(store: Path) -> Path:
    (store / "data").mkdir()
    (store / "data" / "a.csv").write_text("x\n1\n")
    return store / "data"


def test_params_and_lineage_have_no_secrets(data: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "abc-secret-def")
    tree = settings.tree()
    tree["task"]["question"] = 'Which number has https://me:a/b@c@host/x?sig=1f&v="2", abc-secret-def?'
    with step_run(STEPS["sft"], Settings.model_validate(tree), {"ingest": data}) as run:
        pass
    stored = connect().get_run(run.run_id)
    assert stored.data.params["task.question"] == 'Which number has https://me:***@host/x?sig=***&v="2", ***?'
    assert run.lineage.params["task"]["question"].startswith("Which number has https://me:***@host/x?sig=***&v=")


def test_step_records_settings_curves_metrics_commit_and_hashes(data: Path, settings: Settings) -> None:
    out = data.parent / "out"
    out.mkdir()
    (out / "model").write_text("weights")
    with step_run(STEPS["sft"], settings, {"ingest": data}) as run:
        for step in range(2500):
            run.log({"loss": 1 / (step + 1), "reward/ccc": 0.5}, step)
        points = [{"value": 0.0, "mae": 4.0}, {"value": 0.5, "mae": None}]
        figures = {"mae": 3.5, "ci": [3.0, 4.0], "empty": None, "reason": "the lowest", "curve": points}
        run.finish({"val": figures}, {"out": out})
    client = connect()
    stored = client.get_run(run.run_id)
    assert stored.info.status == "FINISHED"
    assert stored.data.metrics | {"loss": 0.0} == {
        "loss": 0.0, "reward/ccc": 0.5, "val.mae": 3.5, "val.ci.0": 3.0, "val.ci.1": 4.0,
        "val.curve.value": 0.5, "val.curve.mae": 4.0,
    }  # fmt: skip
    curve = client.get_metric_history(run.run_id, "loss")
    assert [(m.step, m.value) for m in curve] == [(step, 1 / (step + 1)) for step in range(2500)]
    points_logged = client.get_metric_history(run.run_id, "val.curve.value")
    assert [(m.step, m.value) for m in points_logged] == [(0, 0.0), (1, 0.5)]
    assert stored.data.tags["val.reason"] == "the lowest"
    assert stored.data.params["sft.lr"] == json.dumps(settings.sft.lr)
    assert stored.data.params["task.question"] == settings.task.question
    assert stored.data.params["model.lora"] == "null"
    assert not any(name.startswith(("grpo.", "register.")) for name in stored.data.params)
    assert stored.data.tags["concord.in.ingest"] == dvc_hash(data)
    assert stored.data.tags["concord.out.out"] == dvc_hash(out)
    assert "mlflow.source.git.commit" in stored.data.tags
    (dataset,) = stored.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("ingest", dvc_hash(data))
    assert find_producer(client, run.experiment_id, dvc_hash(out)) == run.run_id
    assert find_producer(client, run.experiment_id, "0" * 32 + ".dir") is None


def test_only_steps_with_the_same_settings_share_a_parent(data: Path, settings: Settings) -> None:
    other = settings.model_copy(update={"grpo": settings.grpo.model_copy(update={"steps": 7})})
    parents = []
    for step, step_settings in (("ingest", settings), ("validate", settings), ("ingest", other)):
        with step_run(STEPS[step], step_settings, {"data": data}) as run:
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


def test_failed_step_is_marked_and_its_error_is_raised(data: Path, settings: Settings) -> None:
    runs: list[StepRun] = []

    def step() -> None:
        with step_run(STEPS["ingest"], settings, {"data": data}) as run:
            runs.append(run)
            run.log({"seen": 1.0}, 1)
            raise ValueError("bad row at http://me:hunter2@host")

    with pytest.raises(ValueError, match="bad row"):
        step()
    (run,) = runs
    client = connect()
    stored = client.get_run(run.run_id)
    assert stored.info.status == "FAILED"
    assert stored.data.tags["concord.error"] == "ValueError: bad row at http://me:***@host"
    assert stored.data.metrics["seen"] == 1.0
    assert client.get_run(run.parent_id).info.status == "FAILED"


def test_metric_that_is_not_a_number_raises(data: Path, settings: Settings) -> None:
    with pytest.raises(TypeError, match=r"a\.b"), step_run(STEPS["ingest"], settings, {"data": data}) as run:
        run.finish({"a": {"b": object()}}, {})


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


def test_next_run_marks_a_killed_step_and_the_default_store_is_in_the_working_directory(
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
    assert process.stderr.read() == "", "MLflow prints nothing"
    process.wait()
    client = connect()  # MLFLOW_TRACKING_URI of the test: the database that the process used by default
    assert client.get_run(killed).info.status == "RUNNING"
    with step_run(STEPS["validate"], settings, {}) as other:
        assert client.get_run(killed).info.status == "RUNNING", "a run of another step is left alone"
    with step_run(STEPS["sft"], settings, {}) as run:
        assert client.get_run(killed).info.status == "KILLED"
        assert client.get_run(run.run_id).info.status == "RUNNING"
    assert run.parent_id == other.parent_id == client.get_run(killed).data.tags["mlflow.parentRunId"]


def test_number_of_ranks_does_not_change_the_parent(data: Path, settings: Settings) -> None:
    """The parent does not record the launcher's settings."""
    more_ranks = settings.model_copy(update={"launcher": settings.launcher.model_copy(update={"num_processes": 8})})
    parents = []
    for each in (settings, more_ranks):
        with step_run(STEPS["ingest"], each, {"data": data}) as run:
            parents.append(run.parent_id)
    assert parents[0] == parents[1]
    params = connect().get_run(parents[0]).data.params
    assert not any(name.startswith("launcher.") for name in params)


def test_steps_of_a_pipeline_run_share_a_parent_whatever_their_settings(data: Path, settings: Settings) -> None:
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
    assert {name.partition(".")[0] for name in parent.data.params} == {"task", "ingest", "validate", "register"}
    assert client.get_run(second.run_id).data.tags["concord.pipeline_run"] == "pipeline-1"


def test_run_from_the_environment_is_tagged_with_the_pipeline_run(
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


def test_run_from_the_environment_is_the_parent_and_keeps_its_status(
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


def test_nested_run_from_the_environment_is_written_to_directly(
    data: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = connect()
    parent = client.create_run("0")
    given = client.create_run("0", tags={"mlflow.parentRunId": parent.info.run_id, "mlflow.runName": "task-1"})
    monkeypatch.setenv("MLFLOW_RUN_ID", given.info.run_id)
    for _ in range(2):  # a platform retries a failed task in the same run
        with step_run(STEPS["ingest"], settings, {"data": data}) as run:
            run.finish({"rows": 3}, {"out": data})
    stored = client.get_run(given.info.run_id)
    assert run.run_id == given.info.run_id
    assert run.parent_id is None
    assert (stored.info.status, stored.data.metrics["rows"]) == ("FINISHED", 3.0)
    assert stored.data.tags["mlflow.runName"] == "task-1"
    assert stored.data.tags["concord.in.data"] == dvc_hash(data)
    changed = settings.model_copy(update={"task": settings.task.model_copy(update={"question": "What?"})})
    with pytest.raises(ConcordError, match=r"already has task\.question="), step_run(STEPS["ingest"], changed, {}):
        pass


def test_run_in_the_environment_that_does_not_exist_is_reported(
    store: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    with pytest.raises(ConcordError, match=r"MLFLOW_RUN_ID=0+: no such run"), step_run(STEPS["sft"], settings, {}):
        pass


def test_deleted_experiment_is_reported_with_the_way_to_restore_it(data: Path, settings: Settings) -> None:
    client = connect()
    client.delete_experiment(client.create_experiment(settings.experiment))
    with pytest.raises(ConcordError, match=r"deleted in MLflow.*restore"), step_run(STEPS["sft"], settings, {}):
        pass


def test_logged_metrics_are_buffered(data: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metric_writer, "FLUSH_SECONDS", 3600.0)
    with step_run(STEPS["grpo"], settings, {}) as run:
        for step in range(200):
            run.log({"kl": 0.5}, step)
        assert run.client.get_metric_history(run.run_id, "kl") == []
        run._writer.flush()
        assert [point.step for point in run.client.get_metric_history(run.run_id, "kl")] == list(range(200))


@pytest.fixture
def server(store: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["subprocess.Popen[bytes]"]:
    """A real tracking server on the loopback interface."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    uri = f"sqlite:///{store}/mlflow.db"
    with open(store / "server.log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *arguments, "--backend-store-uri", uri, "--artifacts-destination",
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


def test_server_stores_the_same_and_an_outage_does_not_stop_training(
    server: subprocess.Popen[bytes],
    data: Path,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(metric_writer, "FLUSH_SECONDS", 0.1)
    curve = data.parent / "report"
    curve.mkdir()
    (curve / "report.html").write_text("<p>")

    def step() -> None:
        with step_run(STEPS["sft"], settings, {"ingest": data}) as run:
            run.log({"loss": 1.0}, 1)
            run.attach(curve, "report")
            until(lambda: connect().get_run(run.run_id).data.metrics)
            stored = connect().get_run(run.run_id)
            assert stored.data.metrics == {"loss": 1.0}
            assert stored.data.tags["mlflow.parentRunId"] == run.parent_id
            assert stored.inputs.dataset_inputs[0].dataset.digest == dvc_hash(data)
            assert [file.path for file in connect().list_artifacts(run.run_id, "report")] == ["report/report.html"]
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
            run.log({"loss": 0.5}, 2)
            until(lambda: "The step continues" in " ".join(capsys.readouterr().err.split()))
            run.log({"loss": 0.25}, 3)
            run.finish({}, {})

    with pytest.raises(ConcordError, match="could not write the metrics"):
        step()


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def mute(server: subprocess.Popen[bytes]) -> Iterator[Callable[[bool], None]]:
    """A function that makes the tracking server silent (it accepts connections and never answers), or answer again."""

    def silent(yes: bool) -> None:
        os.killpg(server.pid, signal.SIGSTOP if yes else signal.SIGCONT)

    yield silent
    silent(False)


def test_a_silent_server_does_not_slow_training_and_gets_every_point_in_order_later(
    mute: Callable[[bool], None],
    data: Path,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(metric_writer, "FLUSH_SECONDS", 0.05)
    monkeypatch.setattr(metric_writer, "RETRY_SECONDS", 0.05)
    out = data.parent / "out"
    out.mkdir()
    with step_run(STEPS["sft"], settings, {"ingest": data}) as run:
        mute(True)
        start = time.monotonic()
        for step in range(300):
            run.log({"loss": float(step)}, step)
            time.sleep(0.01)
        assert time.monotonic() - start < 4.5, "a request that is waited for takes 2 s"
        mute(False)
        run.finish({}, {"out": out})
    history = run.client.get_metric_history(run.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(step, float(step)) for step in range(300)]


def test_a_step_that_fails_before_a_silent_server_ends_in_a_bounded_time(
    mute: Callable[[bool], None],
    data: Path,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(step_run_module, "CLOSE_SECONDS", 0.5)
    stopped_at = []

    def stopped() -> None:
        with step_run(STEPS["sft"], settings, {"ingest": data}):
            mute(True)
            stopped_at.append(time.monotonic())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert time.monotonic() - stopped_at[0] < 10
    assert "does not answer" in " ".join(capsys.readouterr().err.split())


def test_points_beyond_the_limit_are_dropped_oldest_first_and_counted(
    data: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(metric_writer, "FLUSH_SECONDS", 3600.0)
    monkeypatch.setattr(metric_writer, "MAX_POINTS", 50)
    with step_run(STEPS["sft"], settings, {"ingest": data}) as run:
        for step in range(80):
            run.log({"loss": float(step)}, step)
        run.finish({}, {})
    assert [point.step for point in run.client.get_metric_history(run.run_id, "loss")] == list(range(30, 80))
    assert "the oldest 30 points" in " ".join(capsys.readouterr().err.split())


def test_commit_of_an_image_comes_from_the_environment(
    data: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for built, commit, dirty in (("0123abc", "0123abc", "false"), ("0123abc-dirty", "0123abc", "true")):
        monkeypatch.setenv("CONCORD_COMMIT", built)
        with step_run(STEPS["ingest"], settings, {"data": data}) as run:
            pass
        tags = connect().get_run(run.run_id).data.tags
        assert (run.commit, tags["mlflow.source.git.commit"], tags["concord.git.dirty"]) == (commit, commit, dirty)


@pytest.mark.parametrize(
    ("file", "dirty"),
    [
        ("dvc.lock", "false"),  # DVC rewrites it after each stage
        ("notes.txt", "false"),
        ("README.md", "false"),
        ("components/sft/README.md", "false"),
        ("params.yaml", "true"),
        ("data.dvc", "true"),
        ("components/sft/step.py", "true"),
        ("components/sft/new.py", "true"),
        ("components/sft/__pycache__/step.pyc", "false"),
    ],
)
def test_a_run_is_marked_as_changed_only_by_files_that_can_change_a_result(
    file: str, dirty: str, data: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = data.parent / "repository"
    (repository / "components" / "sft" / "__pycache__").mkdir(parents=True)
    for name in (
        "dvc.lock",
        "params.yaml",
        "data.dvc",
        "README.md",
        "components/sft/step.py",
        "components/sft/README.md",
    ):
        (repository / name).write_text("first\n", encoding="utf-8")
    (repository / ".gitignore").write_text("__pycache__/\n", encoding="utf-8")
    monkeypatch.chdir(repository)
    for words in (("init", "-q"), ("add", "."), ("-c", "user.name=A", "-c", "user.email=a@b", "commit", "-qm", "A")):
        subprocess.run(["git", *words], check=True)
    (repository / file).write_text("second\n", encoding="utf-8")
    monkeypatch.delenv("CONCORD_COMMIT", raising=False)
    for folder in (repository, repository / "components"):
        monkeypatch.chdir(folder)
        with step_run(STEPS["ingest"], settings, {"data": data}) as run:
            pass
        assert connect().get_run(run.run_id).data.tags["concord.git.dirty"] == dirty
