"""One step's container on this machine: started, listened to, judged by its exit code and by what it left, removed.

It takes the place of kfp's own task handler, whose containers remove themselves: where one is gone before it was asked
for its exit code, kfp calls that a success. The handler is private to kfp, so a test holds this against the pinned
version.
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
from components.steps import STEPS, Step
from pipelines.outputs import output_faults

if TYPE_CHECKING:
    from docker.models.containers import Container
    from kfp.local.status import Status

    from docker import DockerClient

LABEL = "concord.run"

# Folders of the system, with all below them or themselves alone. Under SELinux a container reads what is mounted if its
# label says so; by the label of these go the machine's own services.
SYSTEM_TREES = ("/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/proc", "/run", "/sbin", "/sys", "/usr", "/var/lib")
SYSTEM_FOLDERS = ("/", "/home", "/media", "/mnt", "/opt", "/root", "/srv", "/tmp", "/var", "/var/log", "/var/tmp")


@dataclass
class Try:
    """One container of a step.

    Attributes:
        step: its name.
        number: 1 for the first try.
        place: the task's folder, where its outputs are.
        log: what the container wrote.
        exit_code: None while it runs.
        faults: why it counts as failed; empty if it does not.
        seconds: how long it ran.
    """

    step: str
    number: int
    place: Path
    log: Path
    exit_code: int | None = None
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass
class Machine:
    """What containers share on this machine, beside what kfp says of each.

    Attributes:
        label: value of the containers' label `concord.run`, by which they are found from outside.
        volumes: path here -> {"bind": path there, "mode": "ro" or "rw"}.
        shared_memory: step -> size of /dev/shm in bytes.
        tries: every container so far, in order.
    """

    label: str
    volumes: dict[str, dict[str, str]]
    shared_memory: dict[str, int]
    tries: list[Try] = field(default_factory=list)


@contextmanager
def step_containers(machine: Machine) -> Iterator[None]:
    """Within, kfp's DockerRunner runs its tasks as this file does."""
    from kfp.local import docker_task_handler

    own = docker_task_handler.DockerTaskHandler
    docker_task_handler.DockerTaskHandler = partial(StepContainer, machine)
    try:
        yield
    finally:
        docker_task_handler.DockerTaskHandler = own


class StepContainer:
    """kfp's task handler for one try of a step."""

    def __init__(
        self,
        machine: Machine,
        image: str,
        full_command: list[str],
        pipeline_root: str,
        runner: Any,
        env_vars: dict[str, str] | None = None,
    ) -> None:
        """Takes kfp's words, with all placeholders filled in."""
        self.machine, self.image, self.words = machine, image, full_command
        self.root, self.arguments, self.environment = pipeline_root, dict(runner.container_run_args), env_vars or {}
        self.step: Step = STEPS[full_command[3]]

    def run(self) -> "Status":
        """Runs the container to its end. A success is an exit code of 0 and outputs without faults."""
        from kfp.local.status import Status

        import docker

        told = json.loads(self.words[self.words.index("--executor-input") + 1])
        place = Path(told["outputs"]["outputFile"]).parent
        place.mkdir(parents=True, exist_ok=True)
        before = [earlier for earlier in self.machine.tries if earlier.step == self.step.name]
        number = 1 + len(before)
        this = Try(self.step.name, number, place, place / f"log-{number}.txt")
        self.machine.tries.append(this)
        if number > 1:
            console.print(f"{self.step.name}: try {number}, since {'; '.join(before[-1].faults)}", markup=False)
        start = time.monotonic()
        client = docker.from_env()
        try:
            this.exit_code, out_of_memory = self._to_the_end(client, this.log)
        finally:
            client.close()
        this.seconds = time.monotonic() - start
        if this.exit_code:
            why = "for want of memory, " if out_of_memory else ""
            this.faults.append(f"its container ended {why}with exit code {this.exit_code}")
        else:
            this.faults += output_faults(self.step, place)
        return Status.FAILURE if this.faults else Status.SUCCESS

    def _to_the_end(self, client: "DockerClient", log: Path) -> tuple[int, bool]:
        """Exit code, and whether the kernel ended it for want of memory."""
        volumes = {self.root: {"bind": self.root, "mode": "rw"}, **self.machine.volumes}
        if "name=selinux" in (client.info().get("SecurityOptions") or []):
            volumes = labelled(volumes)
        container: Container = client.containers.create(
            self.image,
            self.words,
            environment=self.environment,
            labels={LABEL: self.machine.label, "concord.step": self.step.name},
            volumes=volumes,
            shm_size=self.machine.shared_memory.get(self.step.name),
            **self.arguments,
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
            container.remove(force=True)  # also where a person breaks off


def labelled(volumes: Mapping[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """The volumes, each marked for Docker to give it the SELinux label of what containers share (`z`), as kfp's own
    handler does; folders of the system keep theirs."""
    return {
        path: {**volume, "mode": f"{volume['mode']},z"} if may_be_labelled(Path(path)) else volume
        for path, volume in volumes.items()
    }


def may_be_labelled(path: Path) -> bool:
    """Whether this is nobody's but the person's."""
    return str(path) not in SYSTEM_FOLDERS and not any(path.is_relative_to(tree) for tree in SYSTEM_TREES)


def engine() -> "DockerClient":
    """A client of this machine's Docker engine.

    Raises:
        ConcordError: there is none, or it does not answer.
    """
    import docker

    try:
        client = docker.from_env()
        client.ping()
    except (docker.errors.DockerException, OSError) as error:
        raise ConcordError(
            f"no Docker engine answers ({str(error)[:200]}). Start it, let this user at it, or name it in DOCKER_HOST."
        ) from None
    return client


def image_id(client: "DockerClient", image: str) -> str:
    """The id of a local image; nothing is pulled.

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
