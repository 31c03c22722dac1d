"""Settings of a cluster (pipelines/clusters/*.yaml) as strict types: what each step gets on Kubernetes.

No result depends on these settings. Keys follow Kubernetes' own names. The format of each value is checked here, but
not whether the cluster has an object of that name.
"""

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from components.shared.io.secrets import holds_secret, is_secret
from components.strict import Positive, Strict, read_yaml, validated

DEFAULT_FILE = Path(__file__).parent / "clusters" / "default.yaml"
CLUSTER_VARIABLE = "CONCORD_CLUSTER"

Quantity = Annotated[str, Field(pattern=r"^[1-9][0-9]*(Ki|Mi|Gi|Ti|K|M|G|T)$", description="bytes: 512Mi, 64Gi")]
Name = Annotated[
    str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$", description="name of a Kubernetes object")
]
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]

_UNITS = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def quantity_bytes(quantity: str) -> int:
    """Converts a Kubernetes quantity (512Mi, 64Gi) to bytes."""
    digits = quantity.rstrip("KMGTi")
    return int(digits) * _UNITS[quantity[len(digits) :]]


class Accelerator(Strict):
    """The GPUs, or other devices, of a step."""

    type: str = Field(min_length=1, description="the resource's name: nvidia.com/gpu")
    count: Positive


class Toleration(Strict):
    """A node taint that the step's pod tolerates."""

    key: str | None = Field(description="null: every taint; operator must be Exists")
    operator: Literal["Exists", "Equal"]
    value: str | None = Field(description="only with operator: Equal")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(description="null: every effect")

    @model_validator(mode="after")
    def _consistent(self) -> "Toleration":
        if (self.operator == "Equal") != (self.value is not None):
            raise ValueError("operator: Equal and a value go together")
        if self.key is None and self.operator != "Exists":
            raise ValueError("key: null needs operator: Exists")
        return self


class Pod(Strict):
    """Resources, placement and limits of one step's pod."""

    cpu: float = Field(gt=0, description="cores: both request and limit")
    memory: Quantity = Field(description="both request and limit; /dev/shm counts towards it")
    accelerator: Accelerator | None
    shared_memory: Quantity | None = Field(description="size of /dev/shm; null: the container runtime's 64 MiB")
    node_selector: dict[str, str] = Field(description="labels that the node must have")
    tolerations: list[Toleration]
    retries: int = Field(
        ge=0, description="retries of the step in its pod where one may help, and of a lost pod; training resumes"
    )
    timeout_minutes: Positive = Field(description="of a pod: all tries of the step in it, and the waits between them")


class TrainingPod(Pod):
    """A step that can train on several nodes; each of them has these resources."""

    nodes: Positive = Field(description="above 1: the step's pod makes a TrainJob (Kubeflow Trainer) with so many pods")


class Pods(Strict):
    """The pod of each step."""

    ingest: Pod
    validation: Pod = Field(alias="validate")  # pydantic has a method called validate
    sft: TrainingPod
    grpo: TrainingPod
    evaluate: Pod
    registry: Pod = Field(alias="register")  # ABCMeta has a method called register


class Backoff(Strict):
    """The wait before a retry: `seconds` before the first, `factor` times longer before each further one."""

    seconds: Positive
    factor: Positive = Field(description="a whole number: Argo, which starts the retry, accepts nothing else")

    def total_seconds(self, retries: int) -> int:
        """Returns the sum of the waits before `retries` retries."""
        return sum(self.seconds * self.factor**number for number in range(retries))


class Secret(Strict):
    """A Kubernetes secret whose values become environment variables. Only the cluster knows the values."""

    name: Name
    env: dict[Variable, str] = Field(min_length=1, description="environment variable -> key in the secret")
    optional: bool = Field(description="true: a pod starts without it")


class Cluster(Strict):
    """How the pipeline runs on Kubeflow. It does not affect the results."""

    image: str = Field(min_length=1, description="container image of every step")
    pull_policy: Literal["Always", "IfNotPresent", "Never"]
    pull_secrets: list[Name] = Field(description="for a private registry")
    user: Annotated[int, Field(ge=0)] | None = Field(description="uid of the containers, not 0; null: the image's")
    group: Annotated[int, Field(ge=0)] | None = Field(description="gid of the containers; null: the image's")
    service_account: Name | None = Field(
        description="of the pods; null: Kubeflow's default, which may read every secret of the namespace"
    )
    pipeline_root: str | None = Field(description="where artifacts are stored, s3://...; null: Kubeflow's default")
    scratch: Quantity = Field(description="size of /tmp")
    checkpoints: Name | None = Field(description="PersistentVolumeClaim for training state; null: no state is kept")
    secrets: list[Secret]
    environment: dict[Variable, str] = Field(description="environment variables; readable in the pipeline's YAML")
    backoff: Backoff
    training_runtime: Name = Field(description="of Kubeflow Trainer, for steps with several nodes")
    deadline_hours: Positive | None = Field(description="for the whole run; null: none")
    ttl_hours: Positive | None = Field(
        description="how long the pods of a finished run are kept; null: the cluster's default"
    )
    steps: Pods

    @field_validator("user")
    @classmethod
    def _not_root(cls, user: int | None) -> int | None:
        if user == 0:
            raise ValueError("0 is root, and no pod runs as root; name another uid, or null for the image's")
        return user

    @field_validator("environment")
    @classmethod
    def _no_secret(cls, environment: dict[str, str]) -> dict[str, str]:
        for name, value in environment.items():
            if is_secret(name, value):
                raise ValueError(f"{name} looks like a secret; put it into a Kubernetes secret and name it in secrets")
        return environment

    @field_validator("image", "pipeline_root")
    @classmethod
    def _no_credentials(cls, address: str | None) -> str | None:
        if address and holds_secret(address):
            raise ValueError("this address holds a password or a token; use pull_secrets and secrets for logins")
        return address

    @model_validator(mode="after")
    def _each_variable_once(self) -> "Cluster":
        seen: set[str] = set(self.environment)
        for secret in self.secrets:
            if twice := seen & secret.env.keys():
                raise ValueError(f"{min(twice)} is set twice, by secrets or environment")
            seen |= secret.env.keys()
        return self

    def variables(self) -> set[str]:
        """Returns the names of the environment variables that secrets and environment set in every step."""
        return {*self.environment, *(name for secret in self.secrets for name in secret.env)}

    def pod(self, step: str) -> Pod:
        """Returns the pod settings of a step, by the step's name in the step table."""
        pod: Pod = getattr(self.steps, {"validate": "validation", "register": "registry"}.get(step, step))
        return pod

    def training_pod(self, step: str) -> TrainingPod:
        """Returns the pod settings of a step that trains."""
        pod = self.pod(step)
        assert isinstance(pod, TrainingPod)
        return pod

    def nodes(self, step: str) -> int:
        """Returns on how many nodes a step runs."""
        pod = self.pod(step)
        return pod.nodes if isinstance(pod, TrainingPod) else 1

    def retry_window(self, step: str) -> int:
        """Returns the seconds from a step's first start in which Kubeflow may retry it.

        The window is long enough for every attempt to use its full timeout. After the window Kubeflow starts no retry,
        however many are left, and stops one that is still running.
        """
        pod = self.pod(step)
        return (1 + pod.retries) * pod.timeout_minutes * 60 + self.backoff.total_seconds(pod.retries)


def load_cluster(path: Path | None = None) -> Cluster:
    """Reads and checks a cluster file.

    Args:
        path: the file; None for the one that CONCORD_CLUSTER names, or else the default.

    Raises:
        ConcordError: the file is missing, is not YAML, or has a wrong key or value.
    """
    path = path or Path(os.environ.get(CLUSTER_VARIABLE) or DEFAULT_FILE)
    remedy = f"Give the cluster's file with --cluster FILE or {CLUSTER_VARIABLE}."
    return validated(Cluster, read_yaml(path, remedy, "settings of a cluster (image, secrets, steps, ...)"), path)
