"""The executor output of a finished step, read with Kubeflow's own code."""

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
    return {"inputs": {}, "outputs": {"artifacts": artifacts, "outputFile": str(tmp_path / "executor" / "output.json")}}


def test_artifacts_have_hash_and_metrics(out: Path, tmp_path: Path) -> None:
    expected = ExpectedOutputs.from_json(json.dumps(executor_input(tmp_path)))
    write_executor_output(expected, {"out": out}, {"out": {"dvc_hash": dvc_hash(out), "dvc_nfiles": 1}})
    output = executor_output_utils.load_executor_output(str(tmp_path / "executor" / "output.json"))
    assert set(output.artifacts) == {"out", "metrics"}
    model, metrics = output.artifacts["out"].artifacts[0], output.artifacts["metrics"].artifacts[0]
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
def test_invalid_executor_input_is_refused(text: str) -> None:
    with pytest.raises(ConcordError, match="--executor-input"):
        ExpectedOutputs.from_json(text)
