"""sft and grpo on two nodes: the step's pod makes a TrainJob, follows it and publishes; nodes and heads are lost.

Real processes: the head with the pod's command line, nodes as torchrun starts them from the TrainJob, a real MLflow
server. Kubernetes' API is a server of the tests (tests/support/trainer_peer.py).
"""

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

from components.shared.kubeflow.names import TRAIN_JOB
from components.shared.training.checkpoints import SEAL
from pipelines.cluster_settings import Cluster
from pipelines.train_jobs import train_job
from tests.support.gauge_world import write_params
from tests.support.kubernetes_peer import kubeconfig
from tests.support.repository import ROOT
from tests.support.settings_files import RAW_CLUSTER
from tests.support.step_pod import StepPod, start_pod
from tests.support.trainer_peer import NO_PATH, Trainer, as_processes, serving

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

# Between the first checkpoint and the end lie seconds, in which pods are lost.
SFT = {"max_steps": 240, "eval_every": 20, "patience": 99, "lr": 0.004}


@dataclass
class World:
    """What heads share: the API, the volume, MLflow, the DVC remote."""

    folder: Path
    ingest: Path
    uri: str
    trainer: Trainer
    started: list[StepPod] = field(default_factory=list)

    @property
    def state(self) -> Path:
        return self.folder / "checkpoints"

    def checkpoints(self) -> list[int]:
        seals = self.state.glob(f"sft/*/checkpoint-*/{SEAL}")
        return sorted(int(seal.parent.name.rpartition("-")[2]) for seal in seals)

    def head(self, run: str = "run", retries: int = 0, **sft: Any) -> StepPod:
        """Starts the pod of sft, with these changes of its settings."""
        params, run = self.folder / "params.yaml", f"{run}-{self.folder.name}"
        launcher = write_params(params, sft={**SFT, **sft}).launcher
        more = {
            "KUBECONFIG": str(kubeconfig(self.folder, self.trainer.host)),
            TRAIN_JOB: json.dumps(train_job("sft", launcher, cluster(), "concord:test")),
        }
        self.started.append(start_pod(self.folder, run, params, self.ingest, self.state, self.uri, retries, **more))
        return self.started[-1]

    def finish(self, head: StepPod, code: int = 0) -> None:
        """Waits for the end of the pod."""
        assert head.process.wait(timeout=400) == code, f"{head.log()}\n{self.trainer.log()}"


def cluster() -> Cluster:
    raw = json.loads(json.dumps(RAW_CLUSTER))
    raw["steps"]["sft"] |= {"nodes": 2, "cpu": 1}
    return Cluster.model_validate(raw)


@pytest.fixture
def world(server: str, ingest: Path, tmp_path: Path) -> Iterator[World]:
    outside = {"MLFLOW_TRACKING_URI": server, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    (tmp_path / "logs").mkdir()
    with ExitStack() as stack:
        trainer = stack.enter_context(serving(Trainer(tmp_path / "logs", as_processes(outside))))
        made = World(tmp_path, ingest, server, trainer)
        yield made
        for head in made.started:
            head.kill()


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
    world.finish(second)
    log = second.log()
    assert len(world.trainer.made) == 1, "the second head made a TrainJob of its own"
    assert "following TrainJob concord-sft-" in log
    assert world.trainer.replaced >= 1
    assert reached < SFT["max_steps"]
    assert (second.folder / "out" / "metrics.json").exists()
    run = MlflowClient(world.uri).get_run(second.metadata()["mlflow_run_id"])
    assert run.data.tags["concord.ranks"] == "2"
    assert run.data.tags["concord.remote"] == str(world.folder / "remote")
    assert run.info.status == "FINISHED"
    assert "training: step" in second.log(), "rank 0's log is not in the head's"
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
        assert time.monotonic() < deadline, world.trainer.log()
        time.sleep(0.1)
        (job,) = world.trainer.jobs.values()
    assert job["status"]["conditions"][0]["type"] == "Complete"
    assert "the step's pod does not come back" in world.trainer.log()
    reached = world.checkpoints()[-1]
    assert 0 < reached < 2000
    world.trainer.launch = as_processes(environment)
    second = world.head("second", max_steps=2000, eval_every=100)
    second.until(lambda: len(world.trainer.made) == 2 and losses(world, second.run))
    assert min(losses(world, second.run)) > reached, "it began anew"


def test_an_error_that_a_node_reports_is_the_step_s_and_is_not_tried_again(world: World) -> None:
    head = world.head(retries=3, max_steps=1, no_skill="error", eval_every=1)
    world.finish(head, 1)
    assert "sft learned nothing that validation shows" in head.log()
    assert "retry" not in head.log()
    assert len(world.trainer.made) == 1
    assert world.trainer.jobs == {}, "its pods would be replaced six times"


def test_a_lost_train_job_is_a_failed_try(world: World) -> None:
    head = world.head(retries=2)
    head.until(world.checkpoints)
    (name,) = world.trainer.jobs
    world.trainer.end(name)
    head.until(lambda: len(world.trainer.made) == 2 and losses(world, head.run))
    reached = world.checkpoints()[-1]
    world.trainer.condition(name, "Failed", "jobset failed due to one or more job failures")
    for pod in world.trainer.pods[name]:
        pod.kill()
    world.finish(head)
    for number, reason in enumerate(("was deleted", "failed: jobset failed due to one or more job failures"), 1):
        assert f"TrainJob {name} {reason}" in head.log()
        assert f"sft: ended with exit code 75; retry {number} of 2 in 0.1 s" in head.log()
    assert len(world.trainer.made) == 3
    history = MlflowClient(world.uri).get_metric_history(head.metadata()["mlflow_run_id"], "loss")
    assert min(metric.step for metric in history if metric.step) > reached, "it began anew"


def test_what_the_cluster_refuses_is_reported_and_not_tried_again(world: World) -> None:
    """Other refusals: tests/components/shared/kubeflow/test_train_job.py."""
    world.trainer.refuse = {"POST trainjobs": (404, NO_PATH)}
    head = world.head(retries=3)
    world.finish(head, 1)
    assert "has no TrainJobs, and nodes in the cluster file needs them. Install Kubeflow Trainer" in head.log()
    assert "Traceback" not in head.log()
    assert "retry" not in head.log()
    assert world.trainer.made == []
