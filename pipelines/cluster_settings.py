"""pipelines/clusters/*.yaml as strict types: what a step gets on Kubernetes. No result depends on any of it.

Names are those of Kubernetes. Their form is checked here; whether the cluster has such an object is not.
"""

import os
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from components.strict import Positive, Strict, read_yaml, validated

DEFAULT = Path(__file__).parent / "clusters" / "default.yaml"
VARIABLE = "CONCORD_CLUSTER"

Quantity = Annotated[str, Field(pattern=r"^[1-9][0-9]*(Ki|Mi|Gi|Ti|K|M|G|T)$", description="bytes: 512Mi, 64Gi")]
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$", description="of a Kubernetes object")]
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]

SECRET = re.compile(r"PASSWORD|PASSWD|SECRET|TOKEN|ACCESS_KEY|CREDENTIAL", re.IGNORECASE)


_UNITS = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def quantity_bytes(quantity: str) -> int:
    """Bytes of a Kubernetes quantity: 512Mi, 64Gi."""
    digits = quantity.rstrip("KMGTi")
    return int(digits) * _UNITS[quantity[len(digits) :]]


class Accelerator(Strict):
    """What a step takes beside CPU and memory."""

    type: str = Field(min_length=1, description="the resource's name: nvidia.com/gpu")
    count: Positive


class Toleration(Strict):
    """A taint of a node that the step's pod puts up with."""

    key: str | None = Field(description="null: every taint; operator must be Exists")
    operator: Literal["Exists", "Equal"]
    value: str | None = Field(description="operator: Equal alone")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(description="null: every effect")

    @model_validator(mode="after")
    def _whole(self) -> "Toleration":
        if (self.operator == "Equal") != (self.value is not None):
            raise ValueError("operator: Equal and a value go together")
        if self.key is None and self.operator != "Exists":
            raise ValueError("key: null needs operator: Exists")
        return self


class Pod(Strict):
    """Where one step runs and with what."""

    cpu: float = Field(gt=0, description="cores: requested, and the limit")
    memory: Quantity = Field(description="requested, and the limit; what lies in /dev/shm counts")
    accelerator: Accelerator | None
    shared_memory: Quantity | None = Field(description="size of /dev/shm; null: the container runtime's 64 MiB")
    node_selector: dict[str, str] = Field(description="labels that the node must have")
    tolerations: list[Toleration]
    retries: int = Field(ge=0, description="how often a step that failed is started again; training goes on")
    timeout_minutes: Positive = Field(description="of one try")


class Pods(Strict):
    """A pod for each step."""

    ingest: Pod
    validation: Pod = Field(alias="validate")  # pydantic has a method of that name
    sft: Pod
    grpo: Pod
    evaluate: Pod
    registry: Pod = Field(alias="register")  # so has ABCMeta


class Backoff(Strict):
    """The wait before a step is started again: seconds, then factor times as long each time."""

    seconds: Positive
    factor: Positive = Field(description="a whole number: Argo, which starts the step again, takes no other")

    def total(self, retries: int) -> int:
        """Seconds that so many waits take together."""
        return sum(self.seconds * self.factor**number for number in range(retries))


class Secret(Strict):
    """A Kubernetes secret whose values become environment variables. Values are in the cluster alone."""

    name: Name
    env: dict[Variable, str] = Field(min_length=1, description="environment variable -> key in the secret")
    optional: bool = Field(description="true: a pod starts without it")


class Cluster(Strict):
    """How the pipeline runs on Kubeflow, not what comes out."""

    image: str = Field(min_length=1, description="of every step")
    pull_policy: Literal["Always", "IfNotPresent", "Never"]
    pull_secrets: list[Name] = Field(description="for a private registry")
    user: Annotated[int, Field(ge=0)] | None = Field(description="uid of the containers; null: the image's")
    group: Annotated[int, Field(ge=0)] | None = Field(description="gid; null: the image's")
    service_account: Name | None = Field(description="of the pods; null: Kubeflow's")
    pipeline_root: str | None = Field(description="where artifacts are kept, s3://...; null: as Kubeflow is set up")
    scratch: Quantity = Field(description="size of /tmp")
    checkpoints: Name | None = Field(description="PersistentVolumeClaim for training state; null: none outlives a try")
    secrets: list[Secret]
    environment: dict[Variable, str] = Field(description="what is no secret; it is readable in the pipeline")
    backoff: Backoff
    deadline_hours: Positive | None = Field(description="of the whole run; null: none")
    ttl_hours: Positive | None = Field(description="how long a finished run's pods are kept; null: for good")
    steps: Pods

    @field_validator("environment")
    @classmethod
    def _no_secret(cls, environment: dict[str, str]) -> dict[str, str]:
        for name in environment:
            if SECRET.search(name):
                raise ValueError(f"{name} looks like a secret; put it into a Kubernetes secret and name it in secrets")
        return environment

    @model_validator(mode="after")
    def _each_variable_once(self) -> "Cluster":
        seen: set[str] = set(self.environment)
        for secret in self.secrets:
            if twice := seen & secret.env.keys():
                raise ValueError(f"{min(twice)} is set twice, by secrets or environment")
            seen |= secret.env.keys()
        return self

    def pod(self, step: str) -> Pod:
        """The pod of a step by its name in the step table."""
        pod: Pod = getattr(self.steps, {"validate": "validation", "register": "registry"}.get(step, step))
        return pod

    def window(self, step: str) -> int:
        """Seconds from a step's first start within which it may be started again: every try may take its whole time.

        Kubeflow starts no step again after it, however many retries are left, and ends a retry that outlasts it.
        """
        pod = self.pod(step)
        return (1 + pod.retries) * pod.timeout_minutes * 60 + self.backoff.total(pod.retries)

    def variables(self) -> list[str]:
        """Names of the environment variables that steps are given."""
        return sorted(set(self.environment).union(*(secret.env for secret in self.secrets)))


def load_cluster(given: Path | None = None) -> Cluster:
    """Reads and checks a cluster file.

    Args:
        given: the file; None for the one that CONCORD_CLUSTER names, else the default.

    Raises:
        ConcordError: the file is missing, is not YAML, or has a wrong key or value.
    """
    path = given or Path(os.environ.get(VARIABLE) or DEFAULT)
    remedy = f"Give the cluster's file with --cluster FILE or {VARIABLE}."
    return validated(Cluster, read_yaml(path, remedy, "settings of a cluster (image, secrets, steps, ...)"), path)
