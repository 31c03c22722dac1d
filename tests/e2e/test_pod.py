"""A step in its pod: its parent retries a killed child, and closes its MLflow runs when the pod is ended.

Real processes, the pod's command line, a real MLflow server.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from components.shared.kubeflow.tries import Tries
from components.shared.training.checkpoints import SEAL
from tests.support.gauge_world import ingested, write_params
from tests.support.raw_folder import content
from tests.support.services import mlflow_alone

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


@dataclass
class Pod:
    """One pod of sft.

    Attributes:
        folder: of its outputs, log and state.
        process: the container's first process, the step's parent.
        uri: of the MLflow server.
        run: Kubeflow's id of the run.
    """

    folder: Path
    process: "subprocess.Popen[bytes]"
    uri: str
    run: str

    def step(self) -> psutil.Process:
        """The step's process, once it has a whole checkpoint."""
        self.until(lambda: list(self.folder.parent.glob(f"state/sft/*/checkpoint-*/{SEAL}")))
        (child,) = psutil.Process(self.process.pid).children()
        return child

    def until(self, condition: Callable[[], Any]) -> None:
        """Waits while the pod runs."""
        deadline = time.monotonic() + 300
        while not condition():
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.01)

    def log(self) -> str:
        return (self.folder / "log.txt").read_text(encoding="utf-8", errors="replace")

    def runs(self) -> list[Run]:
        """The MLflow runs of this pipeline run, oldest first: the run's own, then one for each try."""
        client = MlflowClient(self.uri)
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        query = f"tags.`concord.pipeline_run` = '{self.run}'"
        return list(client.search_runs(experiments, query, order_by=["attributes.start_time ASC"]))


Start = Callable[[str], Pod]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mlflow_alone(tmp_path_factory.mktemp("mlflow")) as uri:
        yield uri


@pytest.fixture(scope="module")
def ingest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ingested(tmp_path_factory.mktemp("world"))


@pytest.fixture
def start(server: str, ingest: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts pods that share a volume for training state and a DVC remote."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(run: str) -> Pod:
        folder, params = tmp_path / run, tmp_path / "params.yaml"
        folder.mkdir()
        write_params(params, sft={"max_steps": 24, "eval_every": 4, "patience": 99, "lr": 0.004})
        artifacts = {name: {"artifacts": [{"name": name, "uri": f"s3://b/{name}"}]} for name in ("out", "metrics")}
        executor_input = {"outputs": {"artifacts": artifacts, "outputFile": str(folder / "executor.json")}}
        words = ["sft", "--params", params, "--ingest", ingest, "--validate", ingest, "--out", folder / "out"]
        words += ["--state", tmp_path / "state", "--pipeline-run", run, "--executor-input", json.dumps(executor_input)]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
        environment |= {
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "MLFLOW_TRACKING_URI": server,
            "CONCORD_DVC_REMOTE": str(tmp_path / "remote"),
            "CONCORD_TRIES": Tries(1, 0.1, 1, 60).to_json(),
            "CONCORD_REUSE": "on",
            "PYTHONUNBUFFERED": "1",
        }
        command = [sys.executable, "-m", "components", *map(str, words)]
        with open(folder / "log.txt", "wb") as log:
            started.append(subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log))
        return Pod(folder, started[-1], server, run)

    yield begin
    for process in started:
        for one in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []:
            one.kill()
        process.kill()
        process.wait()


def test_a_killed_step_is_retried_in_its_pod_and_resumes(start: Start) -> None:
    pod = start("killed")
    pod.step().kill()
    assert pod.process.wait(timeout=300) == 0, pod.log()
    assert "sft: ended by SIGKILL; retry 1 of 1 in 0.1 s" in pod.log()
    assert (pod.folder / "out" / "metrics.json").exists()
    assert (pod.folder / "executor.json").exists()
    parent, first, second = pod.runs()
    assert [run.info.status for run in (parent, first, second)] == ["FINISHED", "FAILED", "FINISHED"]
    history = MlflowClient(pod.uri).get_metric_history(second.info.run_id, "loss")
    assert min(metric.step for metric in history if metric.step) > 4, "it began anew"


def test_the_runs_of_an_ended_pod_are_closed_while_the_step_computes(start: Start, server: str) -> None:
    """The step is stopped, which is worse than computing in C: it answers no signal. The pod lasts 0.65 s longer."""
    pod = start("ended")
    step = pod.step()
    step.suspend()
    runs = pod.runs()
    assert [run.info.status for run in runs] == ["RUNNING", "RUNNING"]
    begin = time.monotonic()
    for run in runs:
        MlflowClient(server).set_tag(run.info.run_id, "asked", "")
    request = (time.monotonic() - begin) / len(runs)
    pod.process.send_signal(signal.SIGTERM)
    time.sleep(max(0.6, 20 * request))  # 0.6, but on a machine so busy that a request takes longer than 30 ms
    pod.process.kill()
    step.kill()
    assert pod.process.wait() == -signal.SIGKILL
    assert [run.info.status for run in pod.runs()] == ["KILLED", "KILLED"]


def test_a_second_run_of_a_training_waits_for_the_first_and_fetches_its_outputs(start: Start, tmp_path: Path) -> None:
    first = start("first")
    step = first.step()
    step.suspend()  # until the second one has come to the lock
    second = start("second")
    second.until(lambda: "another run is executing the same sft" in second.log())
    assert len(second.runs()) == 0, "it opened a run before its turn"
    step.resume()
    assert first.process.wait(timeout=300) == 0, first.log()
    assert second.process.wait(timeout=300) == 0, second.log()
    assert "sft: fetched cached outputs of the same data, code and settings (run " in second.log()
    assert content(second.folder / "out") == content(first.folder / "out")
    assert list((tmp_path / "state" / "sft").iterdir()) == [], "the state is in the way of nobody, and stays for ever"
