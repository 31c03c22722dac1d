"""When a step starts ranks, and when it does not. tests/e2e/test_ranks.py tests the ranks themselves."""

import json
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from components.__main__ import main
from components.errors import ConcordError
from components.launcher import SECTION, launch, to_launch
from components.settings import Launcher
from components.steps import STEPS

ROOT = Path(__file__).parents[2]


LAUNCHER = {"num_processes": 1, "sharding": "none", "config": None, "loader_workers": 0, "checkpoint_minutes": 10}


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [({}, False), ({"num_processes": 2}, True), ({"config": "zero3.yaml"}, True)],  # offloading, on one GPU
)
def test_ranks_are_started_unless_a_launcher_has(
    changes: dict[str, object], wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert to_launch(Launcher.model_validate(LAUNCHER | changes)) == wanted
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not to_launch(Launcher.model_validate(LAUNCHER | changes))


def test_only_sft_and_grpo_run_on_ranks() -> None:
    assert [step.name for step in STEPS.values() if step.parallel] == ["sft", "grpo"]


def test_a_missing_accelerate_config_is_reported() -> None:
    with pytest.raises(ConcordError, match=r"launcher.config: fsdp.yaml: no such file. `accelerate config` writes one"):
        launch(Launcher.model_validate(LAUNCHER | {"num_processes": 2, "config": "fsdp.yaml"}), ["sft"])


def test_two_ways_to_divide_the_weights_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"sharding: full and config: zero3.yaml both divide the weights"):
        Launcher.model_validate(LAUNCHER | {"sharding": "full", "config": "zero3.yaml"})


def test_other_steps_refuse_to_run_on_ranks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four processes would write the same output."""
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert main(["ingest", "--params", str(ROOT / "params.yaml")]) == 1
    assert "ingest: runs as one process, and 4 were started" in re.sub(r"\s+", " ", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "3"}, "RANK=3 is set, and WORLD_SIZE is not"),
        ({"RANK": "0"}, "RANK=0 is set, and WORLD_SIZE is not"),
        ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK=one: not a whole number"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK=-1: not a whole number"),
        ({"RANK": "", "WORLD_SIZE": "2"}, "RANK=: not a whole number"),
        ({"RANK": "0", "WORLD_SIZE": "two"}, "WORLD_SIZE=two: not a whole number"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 is not below WORLD_SIZE=2"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "RANK=0 is not below WORLD_SIZE=0"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 is set, and RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT is not"),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}, "MASTER_ADDR, MASTER_PORT is not"),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "x"}, "LOCAL_RANK=x: not a whole number"),
    ],
)
def test_incomplete_variables_of_a_launcher_are_reported(
    variables: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without WORLD_SIZE, rank 3 would train in silence, write nothing and exit with 0."""
    monkeypatch.setattr("components.__main__.ECHO_SECONDS", 0.0)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(["sft", "--params", str(ROOT / "params.yaml")]) == 1
    error = re.sub(r"\s+", " ", capsys.readouterr().err)
    assert message in error
    assert "torchrun or `accelerate launch`" in error
    assert "unset RANK WORLD_SIZE" in error


def test_kubeflow_passes_the_section_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A flag would be an input of the step, and another number of ranks would run it again."""
    monkeypatch.setenv(SECTION, json.dumps(LAUNCHER | {"num_processes": 3, "config": "not-there.yaml"}))
    (tmp_path / "in").mkdir()
    words = ["--params", str(ROOT / "params.yaml"), "--ingest", str(tmp_path / "in"), "--sft", str(tmp_path / "in")]
    assert main(["grpo", *words, "--out", str(tmp_path / "out")]) == 1
    assert "launcher.config: not-there.yaml: no such file" in re.sub(r"\s+", " ", capsys.readouterr().err)
    monkeypatch.setenv(SECTION, json.dumps(LAUNCHER | {"num_processes": 0}))
    assert main(["grpo", *words, "--out", str(tmp_path / "out")]) == 1
    assert "launcher.num_processes: input should be greater than 0, found 0" in capsys.readouterr().err
