"""A signal during training: a checkpoint at the end of that step, and the same bytes as without the signal."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from components.grpo.step import run as grpo_run
from components.settings import Settings
from components.sft.step import run as sft_run
from components.shared.io import stop
from components.shared.training.checkpoints import SEAL, SealedCheckpoints, seal
from tests.support.gauge_world import LORA, Curves, ingested, write_params
from tests.support.raw_folder import content

SFT = {"max_steps": 16, "eval_every": 8, "patience": 99, "accumulation": 2, "lr": 0.004}
GRPO = {"steps": 6, "checkpoint_every": 3, "accumulation": 2, "recent": {"inputs": 6, "steps": 4}}


@pytest.fixture
def signals() -> Iterator[None]:
    """Installs the handlers for one test."""
    before = {number: signal.getsignal(number) for number in stop.SIGNALS}
    stop.handle_stop_signals()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    stop._request = stop._Request()


@pytest.fixture(scope="module")
def ingest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ingested(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def warm(ingest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("warm")
    settings = write_params(folder / "params.yaml")
    sft_run(settings, Curves(), ingest=ingest, validate=ingest, out=folder / "sft", state=folder / "state")  # type: ignore[arg-type]
    return folder / "sft"


def steps_of(state: Path) -> list[int]:
    return sorted(int(seal.parent.name.rpartition("-")[2]) for seal in state.glob(f"*/checkpoint-*/{SEAL}"))


def stopped_at(step: int, number: int, monkeypatch: pytest.MonkeyPatch, training: Callable[[], None]) -> None:
    """Trains, and sends the signal to this process while the gradient of that step is there but not yet applied."""
    norm = SealedCheckpoints._get_grad_norm

    def signalled(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == step - 1:
            os.kill(os.getpid(), number)
        return norm(self, *args, **kwargs)

    monkeypatch.setattr(SealedCheckpoints, "_get_grad_norm", signalled)
    with pytest.raises(stop.Stopped) as stopped:
        training()
    assert stop.exit_code(stopped.value) == 128 + number
    monkeypatch.setattr(SealedCheckpoints, "_get_grad_norm", norm)
    stop._request = stop._Request()


def same_bytes_after_stops(
    at: list[int],
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    name: str,
    train: Callable[[Path], None],
) -> None:
    """Compares an undisturbed training with one that is stopped at these steps."""
    train(folder / "undisturbed")
    for step, number in zip(at, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP), strict=False):
        stopped_at(step, number, monkeypatch, lambda: train(folder / "stopped"))
        assert steps_of(folder / "stopped" / "state")[-1] == step
        assert not (folder / "stopped" / name).exists()
    train(folder / "stopped")
    expected, found = content(folder / "undisturbed" / name), content(folder / "stopped" / name)
    assert found.keys() == expected.keys()
    for file, data in expected.items():
        assert found[file] == data, file


def launcher(folder: Path) -> dict[str, float]:
    """Checkpoints at the end of every step of a training that is stopped, none by the clock in the undisturbed one."""
    return {"checkpoint_minutes": 1e-9 if folder.name == "stopped" else 1e9}


def test_sft_stopped_between_its_checkpoints_ends_in_the_same_bytes(
    signals: None, ingest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its figures are averaged over the steps since the last log entry, also over those before the stop."""

    def train(folder: Path) -> None:
        settings = write_params(folder / "params.yaml", sft=SFT, model={"lora": LORA}, launcher=launcher(folder))
        sft_run(settings, Curves(), ingest=ingest, validate=ingest, out=folder / "sft", state=folder / "state")  # type: ignore[arg-type]

    same_bytes_after_stops([3, 5, 13], monkeypatch, tmp_path, "sft", train)


@pytest.mark.parametrize("estimator", ["sampled", "means"])
def test_grpo_stopped_between_its_checkpoints_ends_in_the_same_bytes(
    estimator: str, signals: None, ingest: Path, warm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(folder: Path) -> None:
        sections: dict[str, Any] = {"grpo": GRPO | {"estimator": estimator}, "launcher": launcher(folder)}
        settings: Settings = write_params(folder / "params.yaml", **sections)
        grpo_run(settings, Curves(), ingest=ingest, sft=warm, out=folder / "grpo", state=folder / "state")  # type: ignore[arg-type]

    same_bytes_after_stops([1, 4], monkeypatch, tmp_path, "grpo", train)


def test_a_signal_at_the_last_step_leaves_nothing_to_train(
    signals: None, ingest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(folder: Path) -> None:
        settings = write_params(folder / "params.yaml")
        sft_run(settings, Curves(), ingest=ingest, validate=ingest, out=folder / "sft", state=folder / "state")  # type: ignore[arg-type]

    same_bytes_after_stops([6], monkeypatch, tmp_path, "sft", train)


@pytest.mark.parametrize(("minutes", "steps"), [(1e-9, {1, 2, 3, 4, 5, 6}), (1e9, {3, 6})])
def test_checkpoints_are_also_written_by_the_clock(
    minutes: float, steps: set[int], ingest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = set()

    def noted(folder: Path, step: int) -> None:
        seal(folder, step)
        written.add(step)

    monkeypatch.setattr("components.shared.training.checkpoints.seal", noted)
    settings = write_params(tmp_path / "params.yaml", launcher={"checkpoint_minutes": minutes})
    sft_run(settings, Curves(), ingest=ingest, validate=ingest, out=tmp_path / "sft", state=tmp_path / "state")  # type: ignore[arg-type]
    assert written == steps
