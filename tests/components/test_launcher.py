"""When a step starts ranks, and when it does not. tests/e2e/test_ranks.py tests the ranks themselves."""

import re
from pathlib import Path

import pytest

from components.__main__ import main
from components.errors import ConcordError
from components.launcher import SECTION, launch, to_launch
from components.settings import Launcher
from components.steps import STEPS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"num_processes": 1, "config": None, "loader_workers": 0}, False),
        ({"num_processes": 2, "config": None, "loader_workers": 0}, True),
        ({"num_processes": 1, "config": "zero3.yaml", "loader_workers": 0}, True),  # offloading, on one GPU
    ],
)
def test_ranks_are_started_unless_a_launcher_has(
    settings: dict[str, object], wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert to_launch(Launcher.model_validate(settings)) == wanted
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not to_launch(Launcher.model_validate(settings))


def test_only_sft_and_grpo_run_on_ranks() -> None:
    assert [step.name for step in STEPS.values() if step.parallel] == ["sft", "grpo"]


def test_a_missing_accelerate_config_is_reported() -> None:
    with pytest.raises(ConcordError, match=r"launcher.config: fsdp.yaml: no such file. `accelerate config` writes one"):
        launch(Launcher(num_processes=2, config="fsdp.yaml", loader_workers=0), ["sft"])


def test_other_steps_refuse_to_run_on_ranks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four processes would write the same output."""
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert main(["ingest", "--params", str(ROOT / "params.yaml")]) == 1
    assert "ingest: runs as one process, and 4 were started" in re.sub(r"\s+", " ", capsys.readouterr().err)


def test_kubeflow_passes_the_section_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A flag would be an input of the step, and another number of ranks would run it again."""
    monkeypatch.setenv(SECTION, '{"num_processes": 3, "loader_workers": 0, "config": "not-there.yaml"}')
    (tmp_path / "in").mkdir()
    words = ["--params", str(ROOT / "params.yaml"), "--ingest", str(tmp_path / "in"), "--sft", str(tmp_path / "in")]
    assert main(["grpo", *words, "--out", str(tmp_path / "out")]) == 1
    assert "launcher.config: not-there.yaml: no such file" in re.sub(r"\s+", " ", capsys.readouterr().err)
    monkeypatch.setenv(SECTION, '{"num_processes": 0, "loader_workers": 0, "config": null}')
    assert main(["grpo", *words, "--out", str(tmp_path / "out")]) == 1
    assert "launcher.num_processes: input should be greater than 0, found 0" in capsys.readouterr().err
