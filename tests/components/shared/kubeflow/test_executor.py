"""What Kubeflow reads about a finished step, read back with Kubeflow's own code."""

import json
from pathlib import Path
from typing import Any

import pytest
from kfp.local import executor_output_utils

from components.errors import ConcordError
from components.shared.kubeflow.executor import ExpectedOutputs, write_executor_output
from components.shared.tracking.hashes import dvc_hash


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    figures = {"base": {"groups": {"few": {"mae": 8.5, "mae_ci": [8, 9.25], "n": 12}}, "pearson": None}, "steps": 40}
    (folder / "metrics.json").write_text(json.dumps(figures), encoding="utf-8")
    return folder


def executor_input(tmp_path: Path) -> dict[str, Any]:
    artifacts = {
        name: {
            "artifacts": [
                {"name": f"sft-{name}", "uri": f"s3://bucket/{name}", "type": {"schemaTitle": "system.Model"}}
            ]
        }
        for name in ("out", "metrics")
    }
    return {"inputs": {}, "outputs": {"artifacts": artifacts, "outputFile": str(tmp_path / "told" / "output.json")}}


def test_artifacts_carry_hash_and_metrics(out: Path, tmp_path: Path) -> None:
    told_where = ExpectedOutputs.of(json.dumps(executor_input(tmp_path)))
    write_executor_output(told_where, {"out": out}, {"out": {"dvc_hash": dvc_hash(out), "dvc_nfiles": 1}})
    told = executor_output_utils.load_executor_output(str(tmp_path / "told" / "output.json"))
    assert set(told.artifacts) == {"out", "metrics"}
    model, metrics = told.artifacts["out"].artifacts[0], told.artifacts["metrics"].artifacts[0]
    assert (model.name, model.uri) == ("sft-out", "s3://bucket/out")
    assert dict(model.metadata) == {"dvc_hash": dvc_hash(out), "dvc_nfiles": 1}
    assert dict(metrics.metadata) == {
        "base.groups.few.mae": 8.5,
        "base.groups.few.mae_ci.0": 8,
        "base.groups.few.mae_ci.1": 9.25,
        "base.groups.few.n": 12,
        "steps": 40,
    }


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"outputs": {}}', '{"outputs": {"outputFile": "x", "artifacts": {"out": {}}}}']
)
def test_what_is_not_kubeflow_s_is_refused(text: str) -> None:
    with pytest.raises(ConcordError, match="--executor-input"):
        ExpectedOutputs.of(text)
