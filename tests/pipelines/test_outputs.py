"""Outputs of a real step: complete, and damaged in every way that a lost exit code could hide."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from components.__main__ import main
from components.shared.tracking.hashes import dvc_hash
from components.steps import STEPS
from pipelines.outputs import output_errors, reported_hashes
from tests.support.gauge_world import write_data, write_params

INGEST = STEPS["ingest"]


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs the command of ingest's container; returns the task's folder."""
    folder = tmp_path_factory.mktemp("ingested")
    write_data(folder / "data")
    write_params(folder / "params.yaml")
    task = folder / "ingest"
    artifacts = {name: {"artifacts": [{"name": name, "uri": str(task / name)}]} for name in ("out", "metrics")}
    executor_input = {"outputs": {"artifacts": artifacts, "outputFile": str(task / "executor_output.json")}}
    argv = ["ingest", "--params", str(folder / "params.yaml"), "--data", str(folder / "data")]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        patch.delenv("MLFLOW_RUN_ID", raising=False)
        assert main([*argv, "--out", str(task / "out"), "--executor-input", json.dumps(executor_input)]) == 0
    return task


@pytest.fixture
def task(ingested: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(ingested, tmp_path / "ingest"))


def test_complete_outputs_have_no_errors(task: Path) -> None:
    assert output_errors(INGEST, task) == []
    assert reported_hashes(INGEST, task) == {"out": dvc_hash(task / "out")}


def remove_everything(task: Path) -> None:
    shutil.rmtree(task)


def remove_output(task: Path) -> None:
    shutil.rmtree(task / "out")


def empty_output(task: Path) -> None:
    for file in (task / "out").iterdir():
        file.unlink()


def remove_shard(task: Path) -> None:
    next((task / "out").glob("train-*.parquet")).unlink()


def truncate_shard(task: Path) -> None:
    file = next((task / "out").glob("train-*.parquet"))
    file.write_bytes(file.read_bytes()[:-1])


def remove_metrics(task: Path) -> None:
    (task / "out" / "metrics.json").unlink()


def truncate_metrics(task: Path) -> None:
    (task / "out" / "metrics.json").write_text('{"rows": ')


def empty_metrics(task: Path) -> None:
    (task / "out" / "metrics.json").write_text("{}")


def remove_executor_output(task: Path) -> None:
    (task / "executor_output.json").unlink()


def truncate_executor_output(task: Path) -> None:
    file = task / "executor_output.json"
    file.write_text(file.read_text()[:-20])


def executor_output_without_metadata(task: Path) -> None:
    (task / "executor_output.json").write_text('{"artifacts": {"out": {}}}')


def executor_output_without_metrics(task: Path) -> None:
    file = task / "executor_output.json"
    content = json.loads(file.read_text())
    content["artifacts"]["metrics"]["artifacts"][0]["metadata"] = {}
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "messages"),
    [
        (remove_everything, ["out is missing", "metrics.json is missing", "executor_output.json is missing"]),
        (remove_output, ["out is missing", "metrics.json is missing"]),
        (empty_output, ["out is empty", "metrics.json is missing", "says that out has the hash"]),
        (remove_shard, ["says that out has the hash"]),
        (truncate_shard, ["says that out has the hash"]),
        (remove_metrics, ["metrics.json is missing", "says that out has the hash"]),
        (truncate_metrics, ["metrics.json is not JSON", "says that out has the hash"]),
        (empty_metrics, ["metrics.json has no metrics", "says that out has the hash"]),
        (remove_executor_output, ["executor_output.json is missing"]),
        (truncate_executor_output, ["executor_output.json is not an executor output"]),
        (executor_output_without_metadata, ["executor_output.json is not an executor output"]),
        (executor_output_without_metrics, ["executor_output.json has no metrics"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_damage_is_reported_with_its_path(damage: Callable[[Path], None], messages: list[str], task: Path) -> None:
    damage(task)
    errors = output_errors(INGEST, task)
    assert len(errors) == len(messages), errors
    for error, message in zip(errors, messages, strict=True):
        assert message in error
        assert str(task) in error


def test_report_is_required_as_folder_and_as_page(task: Path) -> None:
    """evaluate has two outputs, and writes the report also as one file for Kubeflow's UI."""
    shutil.copytree(task / "out", task / "report")
    file = task / "executor_output.json"
    content = json.loads(file.read_text())
    content["artifacts"]["report"] = content["artifacts"]["out"]
    file.write_text(json.dumps(content))
    evaluate = STEPS["evaluate"]
    assert output_errors(evaluate, task) == [f"{task}/page is missing"]
    (task / "page").touch()
    assert output_errors(evaluate, task) == [f"{task}/page is empty"]
    (task / "page").write_text("<html>")
    assert output_errors(evaluate, task) == []
