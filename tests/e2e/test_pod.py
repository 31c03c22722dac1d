"""A step in its pod: its parent retries a killed child, and closes its MLflow runs when the pod is ended.

Real processes, the pod's command line, a real MLflow server.
"""

import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from components.shared.training.checkpoints import SEAL
from tests.support.gauge_world import write_params
from tests.support.raw_folder import content
from tests.support.step_pod import StepPod, start_pod

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


@dataclass
class Pod:
    """A pod, and the MLflow server that it uses."""

    pod: StepPod
    uri: str

    def step(self) -> psutil.Process:
        """The step's process, once it has a whole checkpoint."""
        state = self.pod.folder.parent / "state"
        self.pod.until(lambda: list(state.glob(f"sft/*/checkpoint-*/{SEAL}")))
        (child,) = psutil.Process(self.pod.process.pid).children()
        return child

    def runs(self) -> list[Run]:
        """The MLflow runs of this pipeline run, oldest first: the run's own, then one for each try."""
        client = MlflowClient(self.uri)
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        query = f"tags.`concord.pipeline_run` = '{self.pod.run}'"
        return list(client.search_runs(experiments, query, order_by=["attributes.start_time ASC"]))


Start = Callable[[str], Pod]


@pytest.fixture
def start(server: str, ingest: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts pods that share a volume for training state and a DVC remote."""
    params, started = tmp_path / "params.yaml", []

    def begin(run: str) -> Pod:
        write_params(params, sft={"max_steps": 24, "eval_every": 4, "patience": 99, "lr": 0.004})
        started.append(start_pod(tmp_path, run, params, ingest, tmp_path / "state", server, retries=1))
        return Pod(started[-1], server)

    yield begin
    for pod in started:
        pod.kill()


def test_a_killed_step_is_retried_in_its_pod_and_resumes(start: Start) -> None:
    pod = start("killed")
    pod.step().kill()
    assert pod.pod.process.wait(timeout=300) == 0, pod.pod.log()
    assert "sft: ended by SIGKILL; retry 1 of 1 in 0.1 s" in pod.pod.log()
    assert (pod.pod.folder / "out" / "metrics.json").exists()
    assert (pod.pod.folder / "executor.json").exists()
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
    pod.pod.process.send_signal(signal.SIGTERM)
    time.sleep(max(0.6, 20 * request))  # 0.6, but on a machine so busy that a request takes longer than 30 ms
    pod.pod.process.kill()
    step.kill()
    assert pod.pod.process.wait() == -signal.SIGKILL
    assert [run.info.status for run in pod.runs()] == ["KILLED", "KILLED"]


def test_a_second_run_of_a_training_waits_for_the_first_and_fetches_its_outputs(start: Start, tmp_path: Path) -> None:
    first = start("first")
    step = first.step()
    step.suspend()  # until the second one has come to the lock
    second = start("second")
    second.pod.until(lambda: "another run is executing the same sft" in second.pod.log())
    assert len(second.runs()) == 0, "it opened a run before its turn"
    step.resume()
    assert first.pod.process.wait(timeout=300) == 0, first.pod.log()
    assert second.pod.process.wait(timeout=300) == 0, second.pod.log()
    assert "sft: fetched cached outputs of the same data, code and settings (run " in second.pod.log()
    assert content(second.pod.folder / "out") == content(first.pod.folder / "out")
    assert list((tmp_path / "state" / "sft").iterdir()) == [], "the state is in the way of nobody, and stays for ever"
