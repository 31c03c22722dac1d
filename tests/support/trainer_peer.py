"""Kubeflow Trainer and the part of Kubernetes' API around it, for heads: it runs a TrainJob's nodes for real.

Each node is a process of this machine, or a container, with the command, arguments and variables of the TrainJob and
the PET_* variables that Trainer sets. A node that exits with an error is replaced, as a Job does it.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob

from tests.support.http_peer import Request, listening
from tests.support.repository import ROOT
from tests.support.served import free_port

JOBS = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/kubeflow/trainjobs"
PODS = "/api/v1/namespaces/kubeflow/pods"
REPLACEMENTS = 6  # of a Job's pods, by default
BACKOFF_SECONDS = 5.0  # before a pod is replaced; a Job waits 10. A new node must not meet the lost training's store
NO_PATH = "404 page not found\n"  # Kubernetes' answer where it does not know the kind


@dataclass
class NodePod:
    """One pod of a node."""

    name: str
    index: int
    process: "subprocess.Popen[bytes]"
    log: Path

    def phase(self) -> str:
        code = self.process.poll()
        return "Running" if code is None else "Failed" if code else "Succeeded"

    def kill(self) -> None:
        """Ends it at once, as the loss of its machine does."""
        with suppress(psutil.NoSuchProcess):
            for one in [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]:
                one.kill()
        self.process.kill()

    def lines(self) -> Iterator[bytes]:
        """Its log, until it has ended."""
        with open(self.log, "rb") as file:
            while True:
                ended = self.process.poll() is not None
                if data := file.read():
                    yield data
                if ended:
                    return
                time.sleep(0.1)

    def to_json(self, job: str) -> Any:
        phase, code = self.phase(), self.process.poll()
        state = {"running": {}} if code is None else {"terminated": {"exitCode": code, "reason": "Error"}}
        labels = {
            "jobset.sigs.k8s.io/jobset-name": job,
            "jobset.sigs.k8s.io/replicatedjob-name": "node",
            "batch.kubernetes.io/job-completion-index": str(self.index),
        }
        return {
            "metadata": {"name": self.name, "labels": labels, "creationTimestamp": self.name[-5:]},
            "spec": {"containers": [{"name": "node", "resources": {}}]},
            "status": {"phase": phase, "containerStatuses": [{"name": "node", "state": state}]},
        }


Launch = Callable[[Any, dict[str, str], Path], "subprocess.Popen[bytes]"]


@dataclass
class Trainer:
    """The API server and the controller.

    Attributes:
        folder: of the nodes' logs.
        launch: starts a node of the TrainJob with these PET_* variables and this log.
        host: the server's address.
        jobs: the TrainJobs, by name.
        pods: by TrainJob.
        made: the TrainJobs that were created, in order.
        refuse: method and kind (`POST trainjobs`) -> status and message.
        replaced: the number of pods that were replaced.
    """

    folder: Path
    launch: Launch
    host: str = ""
    jobs: dict[str, Any] = field(default_factory=dict)
    pods: dict[str, list[NodePod]] = field(default_factory=dict)
    made: list[Any] = field(default_factory=list)
    refuse: dict[str, tuple[int, str]] = field(default_factory=dict)
    replaced: int = 0
    port: int = 0

    def answer(self, request: Request) -> tuple[int, Any]:
        """Returns the status and the content of the answer."""
        method, path = request.method, request.path
        kind = "pods/log" if path.endswith("/log") else "pods" if path.startswith(PODS) else "trainjobs"
        if f"{method} {kind}" in self.refuse:
            status, message = self.refuse[f"{method} {kind}"]
            return status, message if status == 404 else _status(status, message)
        if (method, path) == ("POST", JOBS):
            return self.create(request.body)
        if path.startswith(f"{JOBS}/"):
            name = path.removeprefix(f"{JOBS}/")
            if name not in self.jobs:
                return 404, _status(404, f'trainjobs.trainer.kubeflow.org "{name}" not found')
            if method == "DELETE":
                self.end(name)
                return 200, _status(200, "")
            return 200, self.jobs[name]
        if path == PODS:
            (selector,) = request.query["labelSelector"]
            name = selector.partition("=")[2]
            return 200, {"kind": "PodList", "items": [pod.to_json(name) for pod in self.pods.get(name, [])]}
        if kind == "pods/log":
            (pod,) = [each for pods in self.pods.values() for each in pods if each.name == path.split("/")[-2]]
            return 200, pod.lines()
        return 404, NO_PATH

    def create(self, job: Any) -> tuple[int, Any]:
        name = job["metadata"]["name"]
        known = json.loads(json.dumps(TrainerV1alpha1TrainJob.from_dict(job).to_dict()))
        if known != job:  # as Kubernetes with strict validation; it drops unknown fields otherwise
            return 422, _status(422, f"unknown fields: {job} is read as {known}")
        if name in self.jobs:
            return 409, _status(409, f'trainjobs.trainer.kubeflow.org "{name}" already exists')
        self.jobs[name] = {**job, "metadata": {**job["metadata"], "creationTimestamp": "2026-01-01T00:00:00Z"}}
        self.made.append(job)
        self.port = free_port()
        self.pods[name] = [self.start(name, index) for index in range(job["spec"]["trainer"]["numNodes"])]
        threading.Thread(target=self.control, args=(name,), daemon=True).start()
        return 201, self.jobs[name]

    def start(self, name: str, index: int) -> NodePod:
        """Starts a pod of a node."""
        trainer = self.jobs[name]["spec"]["trainer"]
        variables = {
            "PET_NNODES": str(trainer["numNodes"]),
            "PET_NPROC_PER_NODE": str(trainer["numProcPerNode"]),
            "PET_NODE_RANK": str(index),
            "PET_MASTER_ADDR": f"{name}-node-0-0.{name}",
            "PET_MASTER_PORT": str(self.port),
        }
        pod = f"{name}-node-0-{index}-{sum(map(len, self.pods.values())):05d}"
        log = self.folder / f"{pod}.txt"
        return NodePod(pod, index, self.launch(trainer, variables, log), log)

    def control(self, name: str) -> None:
        """Replaces pods that fail, and sets the TrainJob's condition when it has ended."""
        failures = 0
        while "status" not in self.jobs.get(name, {"status": "deleted"}):
            newest = {pod.index: pod for pod in self.pods[name]}
            if all(pod.phase() == "Succeeded" for pod in newest.values()):
                self.condition(name, "Complete", "jobset completed successfully")
                return
            for index, pod in newest.items():
                if pod.phase() == "Failed":
                    failures += 1
                    if failures > REPLACEMENTS:
                        self.condition(name, "Failed", "jobset failed due to one or more job failures")
                        return
                    time.sleep(BACKOFF_SECONDS)
                    if name not in self.jobs:
                        return
                    self.replaced += 1
                    self.pods[name].append(self.start(name, index))
            time.sleep(0.1)

    def condition(self, name: str, kind: str, message: str) -> None:
        self.jobs[name]["status"] = {"conditions": [{"type": kind, "status": "True", "message": message}]}

    def end(self, name: str) -> None:
        """Deletes a TrainJob, and its pods."""
        del self.jobs[name]
        for pod in self.pods[name]:
            pod.process.terminate()

    def log(self) -> str:
        return "\n".join(
            f"--- {pod.name}\n{pod.log.read_text(encoding='utf-8', errors='replace')[-3000:]}"
            for pods in self.pods.values()
            for pod in pods
        )


def as_processes(environment: dict[str, str], program: Sequence[str] = ("-m", "components")) -> Launch:
    """Starts nodes as processes of this machine.

    Args:
        environment: variables in place of the secrets that a TrainJob names.
        program: what a TrainJob's `-m components` is.
    """

    def launch(trainer: Any, variables: dict[str, str], log: Path) -> "subprocess.Popen[bytes]":
        given = {each["name"]: each["value"] for each in trainer["env"] if "value" in each}
        outside = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "CONCORD_"))}
        env = {**outside, **given, **variables, "PET_MASTER_ADDR": "127.0.0.1", **environment}
        assert trainer["command"] == ["torchrun", "-m", "components"]
        command = [sys.executable, "-m", "torch.distributed.run", *program, *trainer["args"]]
        with open(log, "wb") as file:
            return subprocess.Popen(command, cwd=ROOT, env=env, stdout=file, stderr=subprocess.STDOUT)

    return launch


def as_containers(*options: str) -> Launch:
    """Starts nodes as containers with the image, command and arguments of the TrainJob, and these options of Docker.

    Each has the name that Kubernetes' DNS gives it. Its process is Docker's client.
    """

    def launch(trainer: Any, variables: dict[str, str], log: Path) -> "subprocess.Popen[bytes]":
        name = variables["PET_MASTER_ADDR"].replace("-node-0-0.", f"-node-0-{variables['PET_NODE_RANK']}.")
        given = {each["name"]: each["value"] for each in trainer["env"] if "value" in each}
        env = [word for item in {**given, **variables}.items() for word in ("-e", "=".join(item))]
        command = ["docker", "run", "--rm", "--name", log.stem, "--network-alias", name, *options, *env]
        entry, *words = map(str, [*trainer["command"], *trainer["args"]])
        with open(log, "wb") as file:
            return subprocess.Popen(
                [*command, "--entrypoint", entry, trainer["image"], *words], stdout=file, stderr=subprocess.STDOUT
            )

    return launch


@contextmanager
def serving(trainer: Trainer, address: str = "127.0.0.1") -> Iterator[Trainer]:
    """Serves on a free port of this machine's address; ends all nodes at the end."""
    with listening(trainer.answer, address) as port:
        trainer.host = f"http://127.0.0.1:{port}"
        try:
            yield trainer
        finally:
            for name in list(trainer.jobs):
                trainer.end(name)
            for pod in [pod for pods in trainer.pods.values() for pod in pods]:
                pod.kill()
                pod.process.wait()


def _status(code: int, message: str) -> Any:
    state = "Success" if code == 200 else "Failure"
    return {"kind": "Status", "apiVersion": "v1", "status": state, "message": message, "code": code}
