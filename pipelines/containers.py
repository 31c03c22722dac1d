"""Runs one step's container on this machine: starts it, copies its log, checks exit code and outputs, removes it.

It replaces kfp's own task handler. Those containers remove themselves, and if one is gone before kfp reads its exit
code, kfp reports success. The handler is private to kfp, so a test runs this replacement against the pinned version.
"""

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.console import console
from components.errors import ConcordError
from components.shared.kubeflow.tries import FINAL
from components.steps import STEPS
from pipelines.outputs import output_errors

if TYPE_CHECKING:
    from docker.models.containers import Container
    from kfp.local.status import Status

    from docker import DockerClient

LABEL = "concord.run"

# Folders of the operating system, which must keep their SELinux labels: the machine's own services depend on them.
# SYSTEM_TREES includes everything below each folder, SYSTEM_FOLDERS only the folder itself.
SYSTEM_TREES = ("/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/proc", "/run", "/sbin", "/sys", "/usr", "/var/lib")
SYSTEM_FOLDERS = ("/", "/home", "/media", "/mnt", "/opt", "/root", "/srv", "/tmp", "/var", "/var/log", "/var/tmp")


@dataclass
class ContainerRun:
    """One attempt of a step in a container.

    Attributes:
        step: the name of the step, or of another task of the pipeline.
        attempt: 1 for the first.
        folder: the task's folder, with its outputs.
        log: the file with the container's output.
        exit_code: None while it runs.
        errors: why the attempt failed; empty on success.
        seconds: how long it ran.
    """

    step: str
    attempt: int
    folder: Path
    log: Path
    exit_code: int | None = None
    errors: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass
class LocalRun:
    """One run of the pipeline on this machine: what its containers share, and every attempt so far.

    Attributes:
        run_id: value of the containers' label `concord.run`, by which `docker ps` finds them.
        volumes: path on this machine -> {"bind": path in the container, "mode": "ro" or "rw"}.
        shared_memory: step -> size of /dev/shm in bytes.
        attempts: every container so far, in order.
    """

    run_id: str
    volumes: dict[str, dict[str, str]]
    shared_memory: dict[str, int]
    attempts: list[ContainerRun] = field(default_factory=list)


@contextmanager
def step_containers(local_run: LocalRun) -> Iterator[None]:
    """Makes kfp's DockerRunner use `StepContainer` while the block runs."""
    from kfp.local import docker_task_handler

    original = docker_task_handler.DockerTaskHandler
    docker_task_handler.DockerTaskHandler = partial(StepContainer, local_run)
    try:
        yield
    finally:
        docker_task_handler.DockerTaskHandler = original


class StepContainer:
    """kfp's task handler for one attempt of a step."""

    def __init__(
        self,
        local_run: LocalRun,
        image: str,
        full_command: list[str],
        pipeline_root: str,
        runner: Any,
        env_vars: dict[str, str] | None = None,
    ) -> None:
        """Takes the arguments that kfp passes, with all placeholders filled in."""
        self.local_run, self.image, self.command = local_run, image, full_command
        self.root, self.environment = pipeline_root, env_vars or {}
        self.docker_options = dict(runner.container_run_args)
        self.name = full_command[3]

    def run(self) -> "Status":
        """Runs the container to its end. Success means exit code 0 and outputs without errors.

        As on a cluster, nothing is run after an attempt that another one would not change.
        """
        from kfp.local.status import Status

        import docker

        executor_input = json.loads(self.command[self.command.index("--executor-input") + 1])
        folder = Path(executor_input["outputs"]["outputFile"]).parent
        folder.mkdir(parents=True, exist_ok=True)
        earlier = [attempt for attempt in self.local_run.attempts if attempt.step == self.name]
        if earlier and earlier[-1].exit_code in FINAL:
            return Status.FAILURE
        number = 1 + len(earlier)
        attempt = ContainerRun(self.name, number, folder, folder / f"log-{number}.txt")
        self.local_run.attempts.append(attempt)
        if number > 1:
            console.print(f"{self.name}: attempt {number}, because {'; '.join(earlier[-1].errors)}", markup=False)
        start = time.monotonic()
        client = docker.from_env()
        try:
            attempt.exit_code, out_of_memory = self._run_container(client, attempt.log)
        finally:
            client.close()
        attempt.seconds = time.monotonic() - start
        if attempt.exit_code:
            cause = ", out of memory" if out_of_memory else ""
            attempt.errors.append(f"its container ended with exit code {attempt.exit_code}{cause}")
        elif self.name in STEPS:
            attempt.errors += output_errors(STEPS[self.name], folder)
        return Status.FAILURE if attempt.errors else Status.SUCCESS

    def _run_container(self, client: "DockerClient", log: Path) -> tuple[int, bool]:
        """Returns the exit code, and whether the kernel killed the container because it ran out of memory."""
        volumes = {self.root: {"bind": self.root, "mode": "rw"}, **self.local_run.volumes}
        if "name=selinux" in (client.info().get("SecurityOptions") or []):
            volumes = with_selinux_labels(volumes)
        container: Container = client.containers.create(
            self.image,
            self.command,
            environment=self.environment,
            labels={LABEL: self.local_run.run_id, "concord.step": self.name},
            volumes=volumes,
            shm_size=self.local_run.shared_memory.get(self.name),
            **self.docker_options,
        )
        try:
            container.start()
            with open(log, "wb") as file:
                for part in container.logs(stream=True, follow=True):
                    file.write(part)
                    file.flush()
                    sys.stderr.write(part.decode("utf-8", "replace"))
            code = int(container.wait()["StatusCode"])
            container.reload()
            return code, bool(container.attrs["State"].get("OOMKilled"))
        finally:
            container.remove(force=True)  # also when the user interrupts


def with_selinux_labels(volumes: Mapping[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """Adds Docker's option `z` to the volumes, which lets containers read them under SELinux.

    kfp's own handler does the same. Folders of the operating system keep their labels.
    """
    return {
        path: {**volume, "mode": f"{volume['mode']},z"} if may_relabel(Path(path)) else volume
        for path, volume in volumes.items()
    }


def may_relabel(path: Path) -> bool:
    """Whether this path may be relabelled for SELinux: it is not a folder of the operating system."""
    return str(path) not in SYSTEM_FOLDERS and not any(path.is_relative_to(tree) for tree in SYSTEM_TREES)


def docker_client() -> "DockerClient":
    """Returns a client of this machine's Docker engine.

    Raises:
        ConcordError: there is no engine, or it does not answer.
    """
    import docker

    try:
        client = docker.from_env()
        client.ping()
    except (docker.errors.DockerException, OSError) as error:
        raise ConcordError(
            f"no Docker engine answers ({str(error)[:200]}). Start it, give this user access to it, or set DOCKER_HOST."
        ) from None
    return client


def image_id(client: "DockerClient", image: str) -> str:
    """Returns the id of a local image; nothing is pulled.

    Raises:
        ConcordError: the engine has no such image.
    """
    import docker

    try:
        return str(client.images.get(image).id)
    except docker.errors.ImageNotFound:
        raise ConcordError(f"{image}: no such image here. Build it (make image) or docker pull it.") from None
    except docker.errors.APIError as error:
        raise ConcordError(f"{image}: {error.explanation or error}") from None
