"""The TrainJob of a step on several nodes, as the pipeline hands it to the step's pod (Kubeflow Trainer 2.3)."""

import json
from typing import Any

from components.errors import ConcordError
from components.launcher import SECTION, STOP_SECONDS
from components.settings import Launcher
from components.shared.kubeflow.names import STATE
from components.shared.kubeflow.train_job import NODE
from pipelines.cluster_settings import Cluster, TrainingPod
from pipelines.pod_spec import environment, placement, resources, security_context

MANAGER = "concord.example.com/training"  # whose patches these are; any domain and name


def train_job(step: str, launcher: Launcher, cluster: Cluster, image: str) -> dict[str, Any]:
    """Returns the object without its metadata, the container's arguments and the variables that only a run knows.

    Args:
        step: its name in the step table.
        launcher: `num_processes` ranks run on each node.
        cluster: nodes, resources, placement, secrets, the volume for training state.
        image: of the nodes.

    Raises:
        ConcordError: there is no volume that the nodes could share, or accelerate's launcher is asked for.
    """
    pod = cluster.training_pod(step)
    if cluster.checkpoints is None:
        raise ConcordError(
            f"steps.{step}.nodes in the cluster file is {pod.nodes}, and checkpoints is null: nodes exchange inputs, "
            "training state and outputs on that volume. Name a claim that is ReadWriteMany, or set nodes: 1."
        )
    if launcher.config is not None:
        raise ConcordError(
            f"steps.{step}.nodes in the cluster file is {pod.nodes}, and launcher.config is set: torchrun starts the "
            "ranks on several nodes, not accelerate. Set launcher.config: null, or nodes: 1."
        )
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "spec": {
            "runtimeRef": {"name": cluster.training_runtime},
            "activeDeadlineSeconds": pod.timeout_minutes * 60,
            "trainer": {
                "image": image,
                "numNodes": pod.nodes,
                "numProcPerNode": launcher.num_processes,
                "command": ["torchrun", "-m", "components"],
                "resourcesPerNode": resources(pod),
                "env": _environment(launcher, cluster, pod),
            },
            "runtimePatches": [{"manager": MANAGER, "trainingRuntimeSpec": _patch(cluster, pod)}],
        },
    }


def _environment(launcher: Launcher, cluster: Cluster, pod: TrainingPod) -> list[dict[str, Any]]:
    variables = {
        SECTION: json.dumps(launcher.model_dump(mode="json")),
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(STOP_SECONDS),  # in which ranks write a checkpoint
    }
    cores = int(pod.cpu / launcher.num_processes)
    return [*environment(cluster, cores), *({"name": name, "value": value} for name, value in variables.items())]


def _patch(cluster: Cluster, pod: TrainingPod) -> dict[str, Any]:
    """Returns what the runtime does not know of the nodes' pods. Trainer refuses variables and pull policies here."""
    mounts = {"state": STATE, "scratch": "/tmp"}
    volumes: list[dict[str, Any]] = [
        {"name": "state", "persistentVolumeClaim": {"claimName": cluster.checkpoints}},
        {"name": "scratch", "emptyDir": {"sizeLimit": cluster.scratch}},
    ]
    if pod.shared_memory is not None:
        mounts["shared-memory"] = "/dev/shm"
        volumes.append({"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": pod.shared_memory}})
    container = {
        "name": NODE,
        "securityContext": security_context(cluster),
        "volumeMounts": [{"name": name, "mountPath": path} for name, path in mounts.items()],
    }
    spec = {"volumes": volumes, "containers": [container], **placement(cluster, pod)}
    job = {"name": NODE, "template": {"spec": {"template": {"spec": spec}}}}
    return {"template": {"spec": {"replicatedJobs": [job]}}}
