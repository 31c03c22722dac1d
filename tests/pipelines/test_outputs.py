"""Outputs of a real step, whole and then broken in every way that a lost exit code could hide."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from components.__main__ import main
from components.shared.tracking.hashes import dvc_hash
from components.steps import STEPS
from pipelines.outputs import output_faults, stamped_hashes
from tests.support.gauge_world import write_data, write_params

INGEST = STEPS["ingest"]


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command leaves that a container runs."""
    folder = tmp_path_factory.mktemp("ingested")
    write_data(folder / "data")
    write_params(folder / "params.yaml")
    place = folder / "ingest"
    artifacts = {name: {"artifacts": [{"name": name, "uri": str(place / name)}]} for name in ("out", "metrics")}
    told = {"outputs": {"artifacts": artifacts, "outputFile": str(place / "executor_output.json")}}
    words = ["ingest", "--params", str(folder / "params.yaml"), "--data", str(folder / "data")]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        patch.delenv("MLFLOW_RUN_ID", raising=False)
        assert main([*words, "--out", str(place / "out"), "--executor-input", json.dumps(told)]) == 0
    return place


@pytest.fixture
def place(ingested: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(ingested, tmp_path / "ingest"))


def test_whole_outputs_have_no_fault(place: Path) -> None:
    assert output_faults(INGEST, place) == []
    assert stamped_hashes(INGEST, place) == {"out": dvc_hash(place / "out")}


def nothing(place: Path) -> None:
    shutil.rmtree(place)


def no_output(place: Path) -> None:
    shutil.rmtree(place / "out")


def empty_output(place: Path) -> None:
    for file in (place / "out").iterdir():
        file.unlink()


def no_shard(place: Path) -> None:
    next((place / "out").glob("train-*.parquet")).unlink()


def cut_shard(place: Path) -> None:
    file = next((place / "out").glob("train-*.parquet"))
    file.write_bytes(file.read_bytes()[:-1])


def no_metrics(place: Path) -> None:
    (place / "out" / "metrics.json").unlink()


def cut_metrics(place: Path) -> None:
    (place / "out" / "metrics.json").write_text('{"rows": ')


def bare_metrics(place: Path) -> None:
    (place / "out" / "metrics.json").write_text("{}")


def no_stamp(place: Path) -> None:
    (place / "executor_output.json").unlink()


def cut_stamp(place: Path) -> None:
    file = place / "executor_output.json"
    file.write_text(file.read_text()[:-20])


def another_stamp(place: Path) -> None:
    (place / "executor_output.json").write_text('{"artifacts": {"out": {}}}')


def silent_stamp(place: Path) -> None:
    file = place / "executor_output.json"
    told = json.loads(file.read_text())
    told["artifacts"]["metrics"]["artifacts"][0]["metadata"] = {}
    file.write_text(json.dumps(told))


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (nothing, ["out is missing", "metrics.json is missing", "executor_output.json is missing"]),
        (no_output, ["out is missing", "metrics.json is missing"]),
        (empty_output, ["out is empty", "metrics.json is missing", "says that out has the hash"]),
        (no_shard, ["says that out has the hash"]),
        (cut_shard, ["says that out has the hash"]),
        (no_metrics, ["metrics.json is missing", "says that out has the hash"]),
        (cut_metrics, ["metrics.json is no JSON", "says that out has the hash"]),
        (bare_metrics, ["metrics.json holds no metrics", "says that out has the hash"]),
        (no_stamp, ["executor_output.json is missing"]),
        (cut_stamp, ["executor_output.json is no executor output"]),
        (another_stamp, ["executor_output.json is no executor output"]),
        (silent_stamp, ["executor_output.json has no metrics"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_each_harm_is_told_with_its_place(harm: Callable[[Path], None], told: list[str], place: Path) -> None:
    harm(place)
    faults = output_faults(INGEST, place)
    assert len(faults) == len(told), faults
    for fault, wanted in zip(faults, told, strict=True):
        assert wanted in fault
        assert str(place) in fault


def test_the_report_is_asked_for_as_folder_and_as_page(place: Path) -> None:
    """evaluate has two outputs, and the report once more as one file for Kubeflow's UI."""
    shutil.copytree(place / "out", place / "report")
    file = place / "executor_output.json"
    told = json.loads(file.read_text())
    told["artifacts"]["report"] = told["artifacts"]["out"]
    file.write_text(json.dumps(told))
    evaluate = STEPS["evaluate"]
    assert output_faults(evaluate, place) == [f"{place}/page is missing"]
    (place / "page").touch()
    assert output_faults(evaluate, place) == [f"{place}/page is empty"]
    (place / "page").write_text("<html>")
    assert output_faults(evaluate, place) == []
