"""sft and grpo on two nodes: the step's pod makes a TrainJob, follows it and publishes; nodes and heads are lost.

Real processes: the head with the pod's command line, nodes as torchrun starts them from the TrainJob, a real MLflow
server. Kubernetes' API is a server of the tests (tests/support/trainer_peer.py).
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

from components.settings import load_settings
from components.shared.kubeflow.names import TRAIN_JOB
from components.shared.kubeflow.tries import Tries
from components.shared.training.checkpoints import SEAL
from pipelines.cluster_settings import Cluster
from pipelines.train_jobs import train_job
from tests.support.gauge_world import ingested, write_params
from tests.support.kubernetes_peer import kubeconfig
from tests.support.repository import ROOT
from tests.support.services import mlflow_alone
from tests.support.settings_files import RAW_CLUSTER
from tests.support.trainer_peer import Trainer, as_processes, serving

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

SFT = {"max_steps": 24, "eval_every": 4, "patience": 99, "lr": 0.004}


@dataclass
class Head:
    """The step's pod.

    Attributes:
        folder: of its outputs and its log; two heads of one run share it.
        process: the container's first process.
        trainer: the API server and the nodes.
    """

    folder: Path
    process: "subprocess.Popen[bytes]"
    trainer: Trainer

    def until(self, condition: Callable[[], Any]) -> None:
        """Waits while the pod runs."""
        deadline = time.monotonic() + 300
        while not condition():
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.02)

    def finish(self, code: int = 0) -> None:
        assert self.process.wait(timeout=400) == code, self.log()

    def log(self) -> str:
        own = (self.folder / "log.txt").read_text(encoding="utf-8", errors="replace")
        return f"{own}\n{self.trainer.log()}"

    def kill(self) -> None:
        """Ends the pod at once, its children first."""
        for one in [*psutil.Process(self.process.pid).children(recursive=True), self.process]:
            one.kill()
        self.process.wait()


@dataclass
class World:
    """What heads share: the API, the volume, MLflow, the DVC remote."""

    folder: Path
    ingest: Path
    uri: str
    trainer: Trainer

    @property
    def state(self) -> Path:
        return self.folder / "checkpoints"

    def checkpoints(self) -> list[int]:
        seals = self.state.glob(f"sft/*/checkpoint-*/{SEAL}")
        return sorted(int(seal.parent.name.rpartition("-")[2]) for seal in seals)

    def head(self, run: str = "run", retries: int = 0, timeout: float = 60) -> Head:
        """Starts the pod of sft."""
        folder, params = self.folder / run, self.folder / "params.yaml"
        folder.mkdir(exist_ok=True)
        write_params(params, sft=SFT)
        artifacts = {name: {"artifacts": [{"name": name, "uri": f"s3://b/{name}"}]} for name in ("out", "metrics")}
        executor_input = {"outputs": {"artifacts": artifacts, "outputFile": str(folder / "executor.json")}}
        words = ["sft", "--params", params, "--ingest", self.ingest, "--validate", self.ingest, "--out", folder / "out"]
        words += ["--state", self.state, "--pipeline-run", run, "--executor-input", json.dumps(executor_input)]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
        environment |= {
            "PYTHONPATH": str(ROOT),
            "HF_HUB_OFFLINE": "1",
            "MLFLOW_TRACKING_URI": self.uri,
            "CONCORD_DVC_REMOTE": str(self.folder / "remote"),
            "CONCORD_TRIES": Tries(retries, 0.1, 1, timeout).to_json(),
            "KFP_RUN_ID": run,
            "KUBECONFIG": str(kubeconfig(self.folder, self.trainer.host)),
            TRAIN_JOB: json.dumps(train_job("sft", load_settings(params).launcher, cluster(), "concord:test")),
        }
        with open(folder / "log.txt", "ab") as log:
            command = [sys.executable, "-m", "components", *map(str, words)]
            process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        return Head(folder, process, self.trainer)


def cluster() -> Cluster:
    raw = json.loads(json.dumps(RAW_CLUSTER))
    raw["steps"]["sft"] |= {"nodes": 2, "cpu": 1}
    return Cluster.model_validate(raw)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mlflow_alone(tmp_path_factory.mktemp("mlflow")) as uri:
        yield uri


@pytest.fixture(scope="module")
def ingest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ingested(tmp_path_factory.mktemp("world"))


@pytest.fixture
def world(server: str, ingest: Path, tmp_path: Path) -> Iterator[World]:
    outside = {"MLFLOW_TRACKING_URI": server, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    (tmp_path / "logs").mkdir()
    with ExitStack() as stack:
        trainer = stack.enter_context(serving(Trainer(tmp_path / "logs", as_processes(outside))))
        yield World(tmp_path, ingest, server, trainer)


def runs(world: World) -> list[str]:
    client = MlflowClient(world.uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = client.search_runs(experiments, "tags.`concord.step` = 'sft'", order_by=["attributes.start_time ASC"])
    mine = [run for run in found if run.data.tags["concord.pipeline_run"].startswith(world.folder.name)]
    return [run.info.status for run in mine]


def test_two_nodes_train_and_survive_the_loss_of_a_node_and_of_the_head(world: World) -> None:
    first = world.head("run")
    first.until(world.checkpoints)
    first.kill()
    (pods,) = world.trainer.pods.values()
    reached = world.checkpoints()[-1]
    for child in psutil.Process(pods[1].process.pid).children(recursive=True):
        child.kill()
    second = world.head("run")
    second.finish()
    log = second.log()
    assert len(world.trainer.made) == 1, "the second head made a TrainJob of its own"
    assert "following TrainJob concord-sft-" in log
    assert world.trainer.replaced >= 1
    assert reached < SFT["max_steps"]
    assert (second.folder / "executor.json").exists()
    assert (second.folder / "out" / "metrics.json").exists()
    metadata = json.loads((second.folder / "executor.json").read_text())["artifacts"]["out"]["artifacts"][0]["metadata"]
    run = MlflowClient(world.uri).get_run(metadata["mlflow_run_id"])
    assert run.data.tags["concord.ranks"] == "2"
    assert run.data.tags["concord.remote"] == str(world.folder / "remote")
    assert run.info.status == "FINISHED"
    assert "training: step" in (second.folder / "log.txt").read_text(), "rank 0's log is not in the head's"
    assert not list(world.state.glob("nodes/*")), "what was published stays on the volume"
    assert world.trainer.jobs == {}
