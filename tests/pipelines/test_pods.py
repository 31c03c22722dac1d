"""Every setting of a cluster file is in the compiled pipeline, read from its specs as a server reads them."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format
from kfp.kubernetes import kubernetes_executor_config_pb2 as pb

from components.errors import ConcordError
from components.settings import Settings
from components.steps import STEPS
from pipelines.cluster_settings import Cluster
from pipelines.compile import compile_pipeline
from tests.support.settings_files import RAW, RAW_CLUSTER

ROOT = Path(__file__).parents[2]
EACH = pytest.mark.parametrize("step", STEPS)
TAINTS = [
    {"key": "nvidia.com/gpu", "operator": "Exists", "value": None, "effect": "NoSchedule"},
    {"key": "team", "operator": "Equal", "value": "vision", "effect": None},
]
CLUSTER: dict[str, Any] = {
    "image": "registry.example/concord:9",
    "pull_policy": "Always",
    "pull_secrets": ["registry"],
    "user": 10001,
    "group": 0,
    "scratch": "20Gi",
    "checkpoints": "big-disk",
    "secrets": [
        {"name": "bucket", "optional": False, "env": {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret"}},
        {"name": "mlflow", "optional": True, "env": {"MLFLOW_TRACKING_URI": "uri", "MLFLOW_REGISTRY_URI": "uri"}},
    ],
    "environment": {"AWS_DEFAULT_REGION": "eu-central-1"},
    "backoff": {"seconds": 15, "factor": 3},
    "deadline_hours": 30,
    "ttl_hours": 2,
}


def compiled(folder: Path, change: Callable[[dict[str, Any]], None]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Compiles params.yaml and the default cluster file (key `cluster`) after a change.

    Returns:
        Pipeline spec and platform spec.
    """
    raw = copy.deepcopy(RAW | {"cluster": RAW_CLUSTER})
    change(raw)
    cluster = Cluster.model_validate(raw.pop("cluster"))
    settings = Settings.model_validate(raw)
    compile_pipeline(settings, cluster, cluster.image, "0" * 32, folder / "pipeline.yaml")
    pipeline, platform = yaml.safe_load_all((folder / "pipeline.yaml").read_text(encoding="utf-8"))
    return pipeline, platform["platforms"]["kubernetes"]


def fill(raw: dict[str, Any]) -> None:
    """Gives each step different values, so that mixed-up steps are noticed."""
    raw["cluster"] |= CLUSTER
    raw["launcher"]["num_processes"] = 2
    for number, (name, pod) in enumerate(raw["cluster"]["steps"].items(), 2):
        pod |= {
            "cpu": number + 0.5,
            "memory": f"{number}Gi",
            "accelerator": {"type": "nvidia.com/gpu", "count": number},
            "shared_memory": f"{number}00Mi",
            "node_selector": {"pool": name},
            "tolerations": TAINTS[: number % 3],
            "retries": number,
            "timeout_minutes": 10 * number,
        }


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    return compiled(tmp_path_factory.mktemp("full"), fill)


@pytest.fixture
def pod(specs: tuple[dict[str, Any], dict[str, Any]], step: str) -> pb.KubernetesExecutorConfig:
    return json_format.ParseDict(specs[1]["deploymentSpec"]["executors"][f"exec-{step}"], pb.KubernetesExecutorConfig())


@pytest.fixture
def container(specs: tuple[dict[str, Any], dict[str, Any]], step: str) -> dict[str, Any]:
    spec: dict[str, Any] = specs[0]["deploymentSpec"]["executors"][f"exec-{step}"]["container"]
    return spec


@pytest.fixture
def number(step: str) -> int:
    return list(STEPS).index(step) + 2


@EACH
def test_image_and_resources(container: dict[str, Any], number: int) -> None:
    assert container["image"] == "registry.example/concord:9"
    resources = container["resources"]
    assert (resources["resourceCpuRequest"], resources["resourceCpuLimit"]) == (f"{number}.5", f"{number}.5")
    assert (resources["resourceMemoryRequest"], resources["resourceMemoryLimit"]) == (f"{number}Gi", f"{number}Gi")
    accelerator = resources["accelerator"]
    assert (accelerator["resourceType"], accelerator["resourceCount"]) == ("nvidia.com/gpu", str(number))


@EACH
def test_pull_policy_and_secrets(pod: pb.KubernetesExecutorConfig) -> None:
    assert pod.image_pull_policy == "Always"
    assert [secret.secret_name for secret in pod.image_pull_secret] == ["registry"]


@EACH
def test_user_and_group(pod: pb.KubernetesExecutorConfig) -> None:
    assert (pod.security_context.run_as_user, pod.security_context.run_as_group) == (10001, 0)
    assert pod.security_context.HasField("run_as_group")
    assert pod.security_context.run_as_non_root


@EACH
def test_node_selector_and_tolerations(pod: pb.KubernetesExecutorConfig, step: str, number: int) -> None:
    assert dict(pod.node_selector.labels) == {"pool": step}
    tolerations = [(t.key, t.operator, t.value, t.effect) for t in pod.tolerations]
    assert tolerations == [tuple(taint[key] or "" for key in taint) for taint in TAINTS[: number % 3]]


@EACH
def test_volumes(pod: pb.KubernetesExecutorConfig, step: str, number: int) -> None:
    mounts = {mount.mount_path: (mount.medium, mount.size_limit) for mount in pod.empty_dir_mounts}
    assert mounts == {"/tmp": ("", "20Gi"), "/dev/shm": ("Memory", f"{number}00Mi")}
    claims = [
        (mount.mount_path, mount.pvc_name_parameter.runtime_value.constant.string_value) for mount in pod.pvc_mount
    ]
    assert claims == ([("/checkpoints", "big-disk")] if STEPS[step].resumes else [])


@EACH
def test_training_state_is_on_the_claim(pod: pb.KubernetesExecutorConfig, container: dict[str, Any], step: str) -> None:
    """A retry only finds the training state if --state is the volume's mount path."""
    args = container["args"]
    states = [args[index + 1] for index, arg in enumerate(args) if arg == "--state"]
    assert states == [mount.mount_path for mount in pod.pvc_mount]
    assert bool(states) == STEPS[step].resumes


@EACH
def test_secrets_are_referenced_by_name(pod: pb.KubernetesExecutorConfig) -> None:
    references = {
        (secret.secret_name, pair.env_var, pair.secret_key, secret.optional)
        for secret in pod.secret_as_env
        for pair in secret.key_to_env
    }
    assert references == {
        ("bucket", "AWS_ACCESS_KEY_ID", "id", False),
        ("bucket", "AWS_SECRET_ACCESS_KEY", "secret", False),
        ("mlflow", "MLFLOW_TRACKING_URI", "uri", True),
        ("mlflow", "MLFLOW_REGISTRY_URI", "uri", True),
    }


@EACH
def test_environment(pod: pb.KubernetesExecutorConfig, container: dict[str, Any], step: str, number: int) -> None:
    parallel = STEPS[step].parallel
    expected = {
        "AWS_DEFAULT_REGION": "eu-central-1",
        "OMP_NUM_THREADS": str(int((number + 0.5) / (2 if parallel else 1))),
        **({"CONCORD_CACHE_LIMIT": str(18 * 2**30)} if step == "ingest" else {}),  # nine tenths of `scratch`
    }
    variables = {variable["name"]: variable["value"] for variable in container["env"]}
    launcher = variables.pop("CONCORD_LAUNCHER_SETTINGS", None)
    tries = {"retries": number, "seconds": 15, "factor": 3, "minutes": 10 * number}
    assert json.loads(variables.pop("CONCORD_TRIES")) == tries
    assert variables == expected
    assert (launcher is not None) == parallel
    assert launcher is None or json.loads(launcher) == {
        "num_processes": 2,
        "config": None,
        "loader_workers": 0,
        "checkpoint_minutes": 10,
        "sharding": "none",
    }
    assert [(field.name, field.field_path) for field in pod.field_path_as_env] == [
        ("KFP_RUN_ID", "metadata.labels['pipeline/runid']")
    ]


@EACH
def test_retries_and_timeout(
    specs: tuple[dict[str, Any], dict[str, Any]], pod: pb.KubernetesExecutorConfig, step: str, number: int
) -> None:
    assert specs[0]["root"]["dag"]["tasks"][step]["retryPolicy"] == {
        "maxRetryCount": number,
        "backoffDuration": "15s",
        "backoffFactor": 3.0,
        # The sum of all attempts' timeouts and all waits, so that the last attempt can also use its full timeout.
        "backoffMaxDuration": f"{600 * number * (number + 1) + 15 * (3**number - 1) // 2}s",
    }
    assert pod.active_deadline_seconds == 600 * number


def test_limits_of_the_run(specs: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """All three times to live: Kubeflow's defaults set those of success and failure, which win over the first."""
    names = ("resourceTtlOnCompletion", "resourceTtlOnSuccess", "resourceTtlOnFailure")
    assert specs[1]["pipelineConfig"] == {"activeDeadlineSeconds": 30 * 3600, **dict.fromkeys(names, 2 * 3600)}


def test_optional_settings_can_be_left_out(tmp_path: Path) -> None:
    def remove_optional(raw: dict[str, Any]) -> None:
        raw["cluster"] |= {"checkpoints": None, "secrets": [], "environment": {}, "ttl_hours": None}
        raw["cluster"]["deadline_hours"] = None
        for pod in raw["cluster"]["steps"].values():
            pod |= {"shared_memory": None}

    pipeline, platform = compiled(tmp_path, remove_optional)
    assert "pipelineConfig" not in platform
    for name, step in STEPS.items():
        assert "accelerator" not in pipeline["deploymentSpec"]["executors"][f"exec-{name}"]["container"]["resources"]
        pod = platform["deploymentSpec"]["executors"][f"exec-{name}"]
        assert set(pod) == {
            "activeDeadlineSeconds", "emptyDirMounts", "fieldPathAsEnv", "imagePullPolicy", "securityContext"
        }  # fmt: skip
        assert pod["securityContext"] == {"runAsNonRoot": True}  # the image's user and group
        # Without a claim, training state still needs a writable folder.
        paths = [mount["mountPath"] for mount in pod["emptyDirMounts"]]
        assert paths == ["/tmp", *(["/checkpoints"] if step.resumes else [])]


def test_cluster_settings_are_no_inputs_of_a_step(tmp_path: Path, specs: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """Kubeflow's cache key has image, command line and inputs: they must not differ between clusters.

    Newer servers include the environment, which has the number of cores and ranks. After such a miss the step runs, and
    fetches its cached outputs from the DVC remote.
    """

    def same_image(raw: dict[str, Any]) -> None:
        raw["cluster"]["image"] = CLUSTER["image"]

    plain, full = compiled(tmp_path, same_image)[0], specs[0]
    assert plain["root"]["inputDefinitions"] == full["root"]["inputDefinitions"]
    assert plain["components"] == full["components"]
    for name in STEPS:
        containers = [spec["deploymentSpec"]["executors"][f"exec-{name}"]["container"] for spec in (plain, full)]
        assert containers[0]["resources"] != containers[1]["resources"]
        for key in ("image", "command", "args"):
            assert containers[0][key] == containers[1][key]


def nodes_of_grpo(raw: dict[str, Any]) -> None:
    fill(raw)
    raw["cluster"]["steps"]["grpo"]["nodes"] = 3


def test_a_step_on_several_nodes_asks_for_little_and_brings_the_train_job(tmp_path: Path) -> None:
    pipeline, platform = compiled(tmp_path, nodes_of_grpo)
    container = pipeline["deploymentSpec"]["executors"]["exec-grpo"]["container"]
    asked = {"resourceCpuRequest": "1", "resourceCpuLimit": "1"}
    asked |= {"resourceMemoryRequest": "2Gi", "resourceMemoryLimit": "2Gi"}
    assert {name: container["resources"].get(name) for name in (*asked, "accelerator")} == {
        **asked,
        "accelerator": None,
    }
    pod = platform["deploymentSpec"]["executors"]["exec-grpo"]
    assert {"nodeSelector", "tolerations"}.isdisjoint(pod)
    assert pod["pvcMount"][0]["mountPath"] == "/checkpoints"
    variables = {variable["name"]: variable["value"] for variable in container["env"]}
    assert "CONCORD_TRAIN_JOB" not in {
        variable["name"] for variable in pipeline["deploymentSpec"]["executors"]["exec-sft"]["container"]["env"]
    }
    job = json.loads(variables["CONCORD_TRAIN_JOB"])
    assert (job["apiVersion"], job["kind"]) == ("trainer.kubeflow.org/v1alpha1", "TrainJob")
    spec = job["spec"]
    assert spec["runtimeRef"] == {"name": "torch-distributed"}
    assert spec["activeDeadlineSeconds"] == 3000
    trainer = spec["trainer"]
    assert (trainer["image"], trainer["numNodes"], trainer["numProcPerNode"]) == ("registry.example/concord:9", 3, 2)
    assert trainer["command"] == ["torchrun", "-m", "components"]
    resources = {"cpu": "5.5", "memory": "5Gi", "nvidia.com/gpu": "5"}
    assert trainer["resourcesPerNode"] == {"requests": resources, "limits": resources}
    env = {each["name"]: each.get("value") or each["valueFrom"]["secretKeyRef"] for each in trainer["env"]}
    assert env["AWS_SECRET_ACCESS_KEY"] == {"name": "bucket", "key": "secret"}
    assert env["MLFLOW_TRACKING_URI"] == {"name": "mlflow", "key": "uri", "optional": True}
    assert env["AWS_DEFAULT_REGION"] == "eu-central-1"
    assert env["OMP_NUM_THREADS"] == "2"
    (patch,) = spec["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    assert node["name"] == "node"
    pod = node["template"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"pool": "grpo"}
    given = [{key: value for key, value in taint.items() if value} for taint in TAINTS[:2]]
    assert pod["tolerations"] == given
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    assert {volume["name"]: volume for volume in pod["volumes"]} == {
        "state": {"name": "state", "persistentVolumeClaim": {"claimName": "big-disk"}},
        "scratch": {"name": "scratch", "emptyDir": {"sizeLimit": "20Gi"}},
        "shared-memory": {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": "500Mi"}},
    }
    (container,) = pod["containers"]
    assert set(container) == {"name", "securityContext", "volumeMounts"}, "Trainer refuses variables here"
    assert container["name"] == "node"
    assert container["securityContext"]["runAsNonRoot"]
    assert container["securityContext"]["runAsUser"] == 10001
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts == {"state": "/checkpoints", "scratch": "/tmp", "shared-memory": "/dev/shm"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"checkpoints": None}, "steps.grpo.nodes in the cluster file is 3, and checkpoints is null"),
        ({}, "steps.grpo.nodes in the cluster file is 3, and launcher.config is set"),
    ],
)
def test_nodes_need_a_shared_volume_and_torchrun(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    def several(raw: dict[str, Any]) -> None:
        nodes_of_grpo(raw)
        raw["cluster"] |= change
        if not change:
            raw["launcher"]["config"] = "accelerate.yaml"

    with pytest.raises(ConcordError, match=expected):
        compiled(tmp_path, several)


def test_more_ranks_than_accelerators_are_refused(tmp_path: Path) -> None:
    def change(raw: dict[str, Any]) -> None:
        raw["launcher"]["num_processes"] = 4
        raw["cluster"]["steps"]["grpo"]["accelerator"] = {"type": "nvidia.com/gpu", "count": 2}

    with pytest.raises(
        ConcordError,
        match=r"steps.grpo.accelerator.count in the cluster file is 2, and launcher.num_proc\w+ starts 4",
    ):
        compiled(tmp_path, change)
