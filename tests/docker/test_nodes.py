"""grpo on two nodes as on a cluster: head, nodes and MLflow are containers of the image on one network.

The nodes start with the TrainJob that the compiled pipeline has, and the PET_* variables that Kubeflow Trainer sets.
"""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from components.settings import load_settings
from components.sft.step import run as sft_run
from components.shared.kubeflow.names import STATE, TRAIN_JOB
from pipelines.cluster_settings import Cluster
from pipelines.compile import compile_pipeline
from tests.support.containers import run
from tests.support.gauge_world import Curves, ingested, write_params
from tests.support.kubernetes_peer import kubeconfig
from tests.support.settings_files import RAW_CLUSTER
from tests.support.trainer_peer import Trainer, as_containers, serving

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]

MLFLOW = ["mlflow", "server", "--host", "0.0.0.0", "--port", "5000", "--allowed-hosts", "mlflow:5000", "--workers", "1"]
STORES = ["--backend-store-uri", "sqlite:////tmp/mlflow.db", "--artifacts-destination", "/tmp/artifacts"]
HARDENED = ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]


@pytest.fixture
def network(image: str, tmp_path: Path) -> Iterator[str]:
    """A network with an MLflow server."""
    name = f"concord-nodes-{tmp_path.name[-20:].replace('_', '-')}"
    run("docker", "network", "create", name)
    try:
        run("docker", "run", "-d", "--rm", "--name", f"{name}-mlflow", "--network", name, "--network-alias", "mlflow",
            *HARDENED, image, *MLFLOW, *STORES)  # fmt: skip
        yield name
    finally:
        subprocess.run(["docker", "rm", "-f", f"{name}-mlflow"], capture_output=True, check=False)
        run("docker", "network", "rm", name)


def test_grpo_on_two_nodes_is_published_by_its_head(image: str, network: str, tmp_path: Path) -> None:
    ingest = ingested(tmp_path / "world")
    settings = write_params(tmp_path / "params.yaml", sft={"max_steps": 80, "eval_every": 80, "lr": 0.004})
    sft_run(settings, Curves(), ingest=ingest, validate=ingest, out=tmp_path / "sft", state=tmp_path / "local")  # type: ignore[arg-type]
    run("chmod", "-R", "a+rX", str(tmp_path / "sft"), str(ingest))  # for the image's user
    volume, pod = tmp_path / "volume", tmp_path / "pod"
    for folder in (volume, pod):
        folder.mkdir()
        folder.chmod(0o777)
    (tmp_path / "logs").mkdir()
    here = ["-e", "MLFLOW_TRACKING_URI=http://mlflow:5000", "--network", network, "-v", f"{volume}:{STATE}", *HARDENED]
    with serving(Trainer(tmp_path / "logs", as_containers(*here)), "0.0.0.0") as trainer:
        port = trainer.host.rpartition(":")[2]
        config = kubeconfig(tmp_path, f"http://host.docker.internal:{port}")
        config.chmod(0o644)
        artifacts = {name: {"artifacts": [{"name": name, "uri": f"s3://b/{name}"}]} for name in ("out", "metrics")}
        executor_input = {"outputs": {"artifacts": artifacts, "outputFile": "/pod/executor.json"}}
        words = ["grpo", "--params", "/run/params.yaml", "--ingest", "/run/ingest", "--sft", "/run/sft"]
        words += ["--out", "/pod/out", "--state", STATE, "--pipeline-run", "run-1"]
        words += ["--executor-input", json.dumps(executor_input)]
        mounts = {tmp_path / "params.yaml": "params.yaml", ingest: "ingest", tmp_path / "sft": "sft", config: "kube"}
        options = [word for path, name in mounts.items() for word in ("-v", f"{path}:/run/{name}:ro")]
        options += ["--add-host", "host.docker.internal:host-gateway", "-e", "KUBECONFIG=/run/kube"]
        options += ["-v", f"{pod}:/pod"]
        options += ["-e", f"{TRAIN_JOB}={train_job(tmp_path, image)}", "-e", "KFP_RUN_ID=run-1"]
        command = ["docker", "run", "--rm", *here, *options, image, "python", "-m", "components", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
        log = f"{done.stdout}\n{done.stderr}\n{trainer.log()}"
        assert done.returncode == 0, log
        assert len(trainer.made) == 1
        assert trainer.jobs == {}
    assert "grpo done" in done.stderr, "rank 0's log is not in the head's"
    metrics = json.loads((pod / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["steps"] == 4, metrics
    metadata = json.loads((pod / "executor.json").read_text(encoding="utf-8"))
    assert metadata["artifacts"]["out"]["artifacts"][0]["metadata"]["mlflow_run_id"]


def train_job(folder: Path, image: str) -> str:
    """The TrainJob of grpo in the compiled pipeline."""
    raw = json.loads(json.dumps(RAW_CLUSTER))
    raw["secrets"] = []
    raw["steps"]["grpo"] |= {"nodes": 2, "cpu": 1}
    cluster, package = Cluster.model_validate(raw), folder / "pipeline.yaml"
    compile_pipeline(load_settings(folder / "params.yaml"), cluster, image, "", package)
    spec = next(yaml.safe_load_all(package.read_text(encoding="utf-8")))
    variables = spec["deploymentSpec"]["executors"]["exec-grpo"]["container"]["env"]
    (value,) = [variable["value"] for variable in variables if variable["name"] == TRAIN_JOB]
    return str(value)
