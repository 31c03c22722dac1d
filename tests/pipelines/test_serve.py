"""The InferenceService has what a pod of KServe needs, and no secret's value."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from components.commands.serve.command import parser as server_parser
from pipelines.__main__ import main
from pipelines.cluster_settings import load_cluster
from tests.support.settings_files import RAW, RAW_CLUSTER, full_cluster

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CONCORD_IMAGE", "CONCORD_CLUSTER"):
        monkeypatch.delenv(name, raising=False)


def written(tmp_path: Path, *words: str, **cluster: Any) -> dict[str, Any]:
    """The service that the command writes for a cluster file with these changes."""
    params, file, out = tmp_path / "params.yaml", tmp_path / "cluster.yaml", tmp_path / "out" / "serve.yaml"
    params.write_text(
        yaml.safe_dump(RAW | {"experiment": "Gauges_of Plant 7", "register": RAW["register"] | {"model": None}})
    )
    file.write_text(yaml.safe_dump(RAW_CLUSTER | cluster))
    command = ["serve", "--version", "3", "--params", str(params), "--cluster", str(file), "--out", str(out), *words]
    assert main(command) == 0
    found: dict[str, Any] = yaml.safe_load(out.read_text())
    return found


def container(service: dict[str, Any]) -> dict[str, Any]:
    (found,) = service["spec"]["predictor"]["containers"]
    assert isinstance(found, dict)
    return found


def test_container_serves_the_version(tmp_path: Path) -> None:
    service = written(tmp_path)
    assert (service["apiVersion"], service["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    assert service["metadata"]["name"] == "gauges-of-plant-7"
    served = container(service)
    assert served["image"] == RAW_CLUSTER["image"]
    assert served["command"] == ["python", "-m", "components", "serve"]
    args = server_parser().parse_args(served["args"])
    assert (args.model, args.host, args.port) == ("Gauges_of Plant 7/3", "0.0.0.0", served["ports"][0]["containerPort"])
    assert served["readinessProbe"]["httpGet"] == {"path": "/ping", "port": args.port}
    assert served["readinessProbe"]["periodSeconds"] * served["readinessProbe"]["failureThreshold"] == 600


def test_container_is_hardened(tmp_path: Path) -> None:
    service = written(tmp_path)
    served = container(service)
    assert served["securityContext"] == {
        "runAsNonRoot": True, "readOnlyRootFilesystem": True, "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
    }  # fmt: skip
    assert served["volumeMounts"] == [{"name": "scratch", "mountPath": "/tmp"}]
    assert service["spec"]["predictor"]["volumes"] == [
        {"name": "scratch", "emptyDir": {"sizeLimit": RAW_CLUSTER["scratch"]}}
    ]
    assert service["spec"]["predictor"]["automountServiceAccountToken"] is False
    assert container(written(tmp_path, user=1000, group=0))["securityContext"].items() >= {
        "runAsUser": 1000, "runAsGroup": 0,
    }.items()  # fmt: skip


def test_variables_are_those_of_the_steps_and_secrets_are_references(tmp_path: Path) -> None:
    secrets = [
        {"name": "plain", "optional": False, "env": {"A": "key", "B": "key"}},
        {"name": "maybe", "optional": True, "env": {"C": "other"}},
    ]
    env = container(written(tmp_path, secrets=secrets, environment={"REGION": "here"}))["env"]
    assert len({variable["name"] for variable in env}) == len(env)
    assert {variable["name"]: variable.get("value") or variable["valueFrom"]["secretKeyRef"] for variable in env} == {
        "OMP_NUM_THREADS": "2", "REGION": "here", "A": {"name": "plain", "key": "key"},
        "B": {"name": "plain", "key": "key"}, "C": {"name": "maybe", "key": "other", "optional": True},
    }  # fmt: skip


def test_default_cluster_gives_the_address_of_mlflow(tmp_path: Path) -> None:
    names = {variable["name"] for variable in container(written(tmp_path))["env"]}
    assert "MLFLOW_TRACKING_URI" in names
    assert names >= load_cluster().environment.keys()


def test_resources_and_placement_are_those_of_register(tmp_path: Path) -> None:
    full = full_cluster()
    full |= {"pull_secrets": ["registry"], "service_account": "runner"}
    service = written(tmp_path, **full)
    predictor, pod = service["spec"]["predictor"], full["steps"]["register"]
    expected = {"cpu": str(pod["cpu"]), "memory": pod["memory"], "nvidia.com/gpu": "1"}
    assert container(service)["resources"] == {"requests": expected, "limits": expected}
    assert predictor["nodeSelector"] == pod["node_selector"]
    assert predictor["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert predictor["imagePullSecrets"] == [{"name": "registry"}]
    assert predictor["serviceAccountName"] == "runner"


def test_knative_accepts_a_service_of_the_default_cluster(tmp_path: Path) -> None:
    """By default, Knative forbids a security context of the pod, node selectors and tolerations."""
    predictor = written(tmp_path)["spec"]["predictor"]
    assert predictor.keys() == {
        "timeout", "automountServiceAccountToken", "containers", "volumes", "minReplicas", "maxReplicas",
    }  # fmt: skip


def test_scale_to_zero_is_a_setting(tmp_path: Path) -> None:
    assert written(tmp_path)["spec"]["predictor"].items() >= {"minReplicas": 1, "maxReplicas": 3}.items()
    predictor = written(tmp_path, "--min-replicas", "0", "--max-replicas", "1")["spec"]["predictor"]
    assert predictor.items() >= {"minReplicas": 0, "maxReplicas": 1}.items()


def test_flags_win_and_standard_output_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", "reader", "--name", "plant", "--image", "registry.example/concord:9"]
    assert main(["serve", "--version", "12", *words]) == 0
    service = yaml.safe_load(capsys.readouterr().out)
    assert service["metadata"] == {
        "name": "plant", "annotations": {"concord/model": "reader", "concord/version": "12"},
    }  # fmt: skip
    assert container(service)["image"] == "registry.example/concord:9"
    assert container(service)["args"][1] == "reader/12"


@pytest.mark.parametrize(
    "words",
    [
        ("--version", "0"),
        ("--version", "1", "--min-replicas", "-1"),
        ("--version", "1", "--min-replicas", "4"),
        ("--version", "1", "--min-replicas", "0", "--max-replicas", "0"),
        ("--version", "1", "--name", "7up"),
        ("--version", "1", "--name", "Plant"),
        ("--version", "1", "--name", "x" * 41),
    ],
)
def test_wrong_words_are_reported(capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    assert main(["serve", "--model", "reader", *words]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert "--" in output.err
