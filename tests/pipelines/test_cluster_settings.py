"""The files of pipelines/clusters load, and invalid values are reported."""

import copy
from pathlib import Path
from typing import Any

import pytest

from components.errors import ConcordError
from pipelines.cluster_settings import DEFAULT_FILE, load_cluster
from tests.support.settings_files import CLUSTER, RAW_CLUSTER, TAINT, full_cluster, section

SECRET = {"name": "concord-hub", "optional": True, "env": {"HF_TOKEN": "token"}}


@pytest.mark.parametrize("path", sorted(DEFAULT_FILE.parent.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_cluster_file_loads(path: Path) -> None:
    assert load_cluster(path).steps.sft.cpu >= 1


def test_path_wins_over_variable_and_variable_over_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONCORD_CLUSTER", raising=False)
    assert load_cluster().tree() == RAW_CLUSTER
    for name in ("path", "variable"):
        text = DEFAULT_FILE.read_text(encoding="utf-8").replace("image: concord:cpu", f"image: concord:{name}")
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    monkeypatch.setenv("CONCORD_CLUSTER", str(tmp_path / "variable.yaml"))
    assert load_cluster().image == "concord:variable"
    assert load_cluster(tmp_path / "path.yaml").image == "concord:path"
    with pytest.raises(ConcordError, match=r"nowhere\.yaml: no such file. Give the cluster's file with --cluster FILE"):
        load_cluster(tmp_path / "nowhere.yaml")


def test_optional_sections_load(tmp_path: Path) -> None:
    with pytest.raises(pytest.fail.Exception):  # CLUSTER.message fails, because there is no error
        CLUSTER.message(full_cluster(), tmp_path)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("steps.sft.memory", "8 GB", "steps.sft.memory: string should match pattern"),
        ("steps.validate.cpu", 0, "steps.validate.cpu: input should be greater than 0, found 0"),
        ("steps.sft.tolerations", [TAINT | {"operator": "Equal"}], "operator: Equal and a value go together"),
        ("steps.sft.tolerations", [TAINT | {"value": "yes"}], "operator: Equal and a value go together"),
        (
            "steps.sft.tolerations",
            [TAINT | {"key": None, "operator": "Equal", "value": "yes"}],
            "steps.sft.tolerations.0: key: null needs operator: Exists",
        ),
        (
            "steps.register.tolerations",
            [TAINT, {"keys": "x", "operator": "Exists", "value": None, "effect": None}],
            "steps.register.tolerations.1.keys: unknown key, did you mean key?",
        ),
        ("secrets", [SECRET | {"env": {"HF-TOKEN": "token"}}], "secrets.0.env.HF-TOKEN"),
        ("secrets", [SECRET | {"env": {}}], "secrets.0.env: "),
        ("secrets", [SECRET, SECRET], "cluster.yaml: HF_TOKEN is set twice, by secrets or environment"),
        ("environment", {"HF_TOKEN": "hf_1"}, "environment: HF_TOKEN looks like a secret"),
        ("environment", {"WANDB_API_KEY": "abc"}, "environment: WANDB_API_KEY looks like a secret"),
        ("environment", {"HTTP_PROXY": "http://user:pw@proxy"}, "environment: HTTP_PROXY looks like a secret"),
        ("image", "user:pw@registry:5000/x", "image: this address holds a password"),
        ("pipeline_root", "s3://key:pw@bucket/x", "pipeline_root: this address holds a password"),
        ("environment", {"MLFLOW_TRACKING_URI": "http://m"}, "cluster.yaml: MLFLOW_TRACKING_URI is set twice"),
        ("checkpoints", "Big Disk", "checkpoints: string should match pattern"),
        ("user", 0, "user: 0 is root, and no pod runs as root; name another uid, or null for the image's"),
    ],
)
def test_invalid_value_is_reported(path: str, value: Any, message: str, tmp_path: Path) -> None:
    raw = copy.deepcopy(RAW_CLUSTER)
    parts = tuple(path.split("."))
    section(raw, parts)[parts[-1]] = value
    assert message in CLUSTER.message(raw, tmp_path)
