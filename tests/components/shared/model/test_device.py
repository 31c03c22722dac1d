"""The device is an accelerator that the machine has, not merely one that torch was built for."""

import ast
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from components.commands.ablation.stopwatch import training_clock
from components.commands.bench.timed_steps import synchronize
from components.commands.dry_run.command import dry_run
from components.evaluate.step import run as evaluate
from components.grpo.trainer import training_arguments as grpo_arguments
from components.register.served_model import ImageRegressor
from components.settings import Settings
from components.sft.trainer import training_arguments as sft_arguments
from components.shared.model.device import device, on_accelerator
from components.shared.training.ranks import ranks
from tests.support.gauge_world import ingested, write_params
from tests.support.gray_world import GrayWorld

ROOT = Path(__file__).parents[4]
CPU = torch.device("cpu")


@pytest.fixture
def cuda_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """Imitates torch's CUDA build on a machine without a GPU, where moving anything to CUDA fails."""

    def current_accelerator(check_available: bool = False) -> torch.device | None:
        return None if check_available else torch.device("cuda")

    monkeypatch.setattr(torch.accelerator, "current_accelerator", current_accelerator)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)


def test_only_the_device_module_asks_torch_for_an_accelerator() -> None:
    """All code that chooses a device calls `device`, so that the tests below cover all of it."""
    users = []
    for path in (*(ROOT / "components").rglob("*.py"), *(ROOT / "pipelines").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            by_name = isinstance(node, ast.Attribute) and node.attr in ("current_accelerator", "is_available", "cuda")
            by_text = isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("cuda")
            if by_name or by_text:
                users.append(str(path.relative_to(ROOT)))
    assert users == ["components/shared/model/device.py"]


@pytest.mark.usefixtures("cuda_build")
def test_device_is_the_cpu_without_an_accelerator() -> None:
    assert device() == CPU
    assert not on_accelerator()
    assert ranks().device == CPU


def test_device_is_the_accelerator_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda"))
    assert device() == torch.device("cuda")
    assert on_accelerator()


@pytest.mark.usefixtures("cuda_build")
def test_evaluate_and_the_registered_model_run_on_the_cpu(gray: GrayWorld, tmp_path: Path) -> None:
    track = SimpleNamespace(attach=lambda *_: None)
    inputs = {"ingest": gray.ingest, "sft": gray.sft, "grpo": gray.grpo}
    evaluate(gray.settings, track, **inputs, out=tmp_path / "out", report=tmp_path / "report")  # type: ignore[arg-type]
    assert (tmp_path / "out" / "predictions-grpo.parquet").exists()
    served = ImageRegressor()
    config = gray.settings.reader(0.0).tree()
    served.load_context(SimpleNamespace(model_config=config, artifacts={"model": str(gray.grpo)}))
    assert served.reader.model.device == CPU


@pytest.mark.usefixtures("cuda_build")
@pytest.mark.parametrize("step", ["sft", "grpo"])
def test_dry_run_measures_nothing_on_the_cpu(step: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dry_run(step, write_params(tmp_path / "params.yaml"), ingested(tmp_path / "rows"))
    output = capsys.readouterr().out
    assert "parameters" in output
    assert "measured on" not in output


@pytest.mark.usefixtures("cuda_build")
@pytest.mark.parametrize(
    "arguments",
    [
        lambda settings, folder: sft_arguments(settings.sft, settings.model, folder),
        lambda settings, folder: grpo_arguments(settings.grpo, settings, folder, 1),
    ],
    ids=["sft", "grpo"],
)
def test_training_arguments_select_the_cpu(
    arguments: Callable[[Settings, Path], object], settings: Settings, tmp_path: Path
) -> None:
    assert arguments(settings, tmp_path).device == CPU  # type: ignore[attr-defined]


@pytest.mark.usefixtures("cuda_build")
def test_commands_measure_processor_time_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.process_time", lambda: 7.0)
    assert training_clock() == 7.0
    synchronize()  # no accelerator to wait for
