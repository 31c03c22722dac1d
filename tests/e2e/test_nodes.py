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
from tests.support.trainer_peer import NO_PATH, Trainer, as_processes, serving

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

    def head(self, run: str = "run", retries: int = 0, **sft: Any) -> Head:
        """Starts the pod of sft, with these changes of its settings."""
        folder, params = self.folder / run, self.folder / "params.yaml"
        folder.mkdir(exist_ok=True)
        write_params(params, sft={**SFT, **sft})
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
            "CONCORD_TRIES": Tries(retries, 0.1, 1, 60).to_json(),
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


def published(head: Head) -> dict[str, Any]:
    """Metadata of the output, as Kubeflow gets it."""
    executor = json.loads((head.folder / "executor.json").read_text(encoding="utf-8"))
    metadata: dict[str, Any] = executor["artifacts"]["out"]["artifacts"][0]["metadata"]
    return metadata


def losses(world: World, run: str) -> list[int]:
    """The steps whose loss is in MLflow, of one pipeline run."""
    client = MlflowClient(world.uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    query = f"tags.`concord.pipeline_run` = '{run}' and tags.`concord.step` = 'sft'"
    runs = client.search_runs(experiments, query)
    return [m.step for run in runs for m in client.get_metric_history(run.info.run_id, "loss") if m.step]


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
    assert (second.folder / "out" / "metrics.json").exists()
    run = MlflowClient(world.uri).get_run(published(second)["mlflow_run_id"])
    assert run.data.tags["concord.ranks"] == "2"
    assert run.data.tags["concord.remote"] == str(world.folder / "remote")
    assert run.info.status == "FINISHED"
    assert "training: step" in (second.folder / "log.txt").read_text(), "rank 0's log is not in the head's"
    assert not list(world.state.glob("nodes/*")), "what was published stays on the volume"
    assert world.trainer.jobs == {}


def test_a_training_that_no_head_waits_for_ends_and_is_resumed_by_the_next_run(world: World) -> None:
    script = world.folder / "node.py"
    script.write_text(
        "import runpy, components.shared.kubeflow.node_folder as shared\n"
        "shared.LEASE_SECONDS = 15.0\n"
        "runpy.run_module('components', run_name='__main__', alter_sys=True)\n"
    )
    environment = {"MLFLOW_TRACKING_URI": world.uri, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    world.trainer.launch = as_processes(environment, [str(script)])
    first = world.head("first", max_steps=2000, eval_every=100)
    first.until(world.checkpoints)
    first.kill()
    (job,) = world.trainer.jobs.values()
    deadline = time.monotonic() + 200
    while "status" not in job:
        assert time.monotonic() < deadline, first.log()
        time.sleep(0.1)
        (job,) = world.trainer.jobs.values()
    assert job["status"]["conditions"][0]["type"] == "Complete"
    assert "the step's pod does not come back" in first.log()
    reached = world.checkpoints()[-1]
    assert 0 < reached < 2000
    world.trainer.launch = as_processes(environment)
    second = world.head("second", max_steps=2000, eval_every=100)
    second.until(lambda: len(world.trainer.made) == 2 and losses(world, "second"))
    assert min(losses(world, "second")) > reached, "it began anew"


def test_an_error_that_a_node_reports_is_the_step_s_and_is_not_tried_again(world: World) -> None:
    head = world.head(retries=3, max_steps=1, no_skill="error", eval_every=1)
    head.finish(1)
    assert "sft learned nothing that validation shows" in (head.folder / "log.txt").read_text()
    assert "retry" not in (head.folder / "log.txt").read_text()
    assert len(world.trainer.made) == 1
    assert world.trainer.jobs == {}, "its pods would be replaced six times"


@pytest.mark.parametrize("loss", ["deleted", "failed"])
def test_a_lost_train_job_is_a_failed_try(world: World, loss: str) -> None:
    head = world.head(retries=1)
    head.until(world.checkpoints)
    reached = world.checkpoints()[-1]
    (name,) = world.trainer.jobs
    if loss == "deleted":
        world.trainer.end(name)
    else:
        world.trainer.condition(name, "Failed", "jobset failed due to one or more job failures")
        for pod in world.trainer.pods[name]:
            pod.kill()
    head.finish()
    assert "sft: ended with exit code 75; retry 1 of 1 in 0.1 s" in head.log()
    assert f"was {loss}" in head.log() or f"{loss}: jobset failed due to" in head.log()
    assert len(world.trainer.made) == 2
    history = MlflowClient(world.uri).get_metric_history(published(head)["mlflow_run_id"], "loss")
    assert min(metric.step for metric in history if metric.step) > reached, "it began anew"


@pytest.mark.parametrize(
    ("refuse", "expected"),
    [
        (
            {"POST trainjobs": (404, NO_PATH)},
            "has no TrainJobs, and nodes in the cluster file needs them. Install Kube",
        ),
        (
            {"POST trainjobs": (403, 'trainjobs.trainer.kubeflow.org is forbidden: User "me" cannot create resource')},
            "may not create below /apis/trainer.kubeflow.org/v1alpha1/namespaces/kubeflow/trainjobs: trainjobs.trainer."
            'kubeflow.org is forbidden: User "me" cannot create resource. The service account of the step\'s pod needs '
            "the rights in pipelines/train-jobs.yaml",
        ),
        ({"GET pods": (403, "pods is forbidden")}, "pods is forbidden. The service account of the step's pod needs"),
        (
            {"POST trainjobs": (403, 'admission webhook "validator.trainjob" denied the request: no such runtime')},
            'admission webhook "validator.trainjob" denied the request: no such runtime',
        ),
        ({"POST trainjobs": (422, "spec.trainer.numNodes: Invalid value")}, "spec.trainer.numNodes: Invalid value"),
    ],
)
def test_what_the_cluster_refuses_is_reported_and_not_tried_again(
    world: World, refuse: dict[str, tuple[int, str]], expected: str
) -> None:
    world.trainer.refuse = refuse
    head = world.head(retries=3)
    head.finish(1)
    log = (head.folder / "log.txt").read_text()
    assert expected in " ".join(log.split())
    assert "Traceback" not in log
    assert "retry" not in log
    assert world.trainer.made == []
