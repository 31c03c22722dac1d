"""Training state: a folder for exactly these settings, inputs and code, and only whole checkpoints in it."""

import os
from pathlib import Path

import pytest

from components.settings import Settings
from components.shared.training.checkpoints import KEPT, drop_old, last_whole, seal, state_folder
from tests.support.gauge_world import write_params

SECTIONS = ("task", "model", "grpo")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return write_params(tmp_path_factory.mktemp("params") / "params.yaml")


def checkpoint(folder: Path, step: int, sealed: bool = True) -> Path:
    place = folder / f"checkpoint-{step}"
    (place / "deep").mkdir(parents=True)
    (place / "model.safetensors").write_bytes(bytes(10))
    (place / "deep" / "state.json").write_text("{}", encoding="utf-8")
    if sealed:
        seal(folder, step)
    return place


def steps(folder: Path) -> list[int]:
    return sorted(int(place.name.rpartition("-")[2]) for place in folder.glob("checkpoint-*"))


def test_the_newest_whole_checkpoint_counts(tmp_path: Path) -> None:
    assert last_whole(tmp_path) is None
    for step in (90, 100, 1000):  # by number, not by name
        checkpoint(tmp_path, step)
    assert last_whole(tmp_path) == str(tmp_path / "checkpoint-1000")


def test_half_a_checkpoint_is_removed(tmp_path: Path) -> None:
    checkpoint(tmp_path, 10)
    checkpoint(tmp_path, 20, sealed=False)
    (tmp_path / "checkpoint-30").mkdir()
    assert last_whole(tmp_path) == str(tmp_path / "checkpoint-10")
    assert steps(tmp_path) == [10]


@pytest.mark.parametrize("file", ["model.safetensors", "deep/state.json", "whole"])
def test_a_checkpoint_that_was_cut_short_after_its_seal_does_not_count(file: str, tmp_path: Path) -> None:
    """A crash of the machine may lose the end of a file that was written before it, whatever its name says."""
    checkpoint(tmp_path, 10)
    cut = checkpoint(tmp_path, 20) / file
    os.truncate(cut, cut.stat().st_size // 2)
    assert last_whole(tmp_path) == str(tmp_path / "checkpoint-10")
    assert steps(tmp_path) == [10]


def test_a_checkpoint_that_lost_a_file_does_not_count(tmp_path: Path) -> None:
    (checkpoint(tmp_path, 10) / "deep" / "state.json").unlink()
    assert last_whole(tmp_path) is None


def test_half_a_first_checkpoint_is_no_start(tmp_path: Path) -> None:
    checkpoint(tmp_path, 10, sealed=False)
    assert last_whole(tmp_path) is None
    assert steps(tmp_path) == []


@pytest.mark.parametrize(
    ("there", "best", "left"),
    [
        ([10], None, [10]),
        ([10, 20], None, [10, 20]),
        ([10, 20, 30], None, [20, 30]),
        ([10, 20, 30], 10, [10, 30]),
        ([10, 20, 30], 30, [20, 30]),
        ([10, 20, 30], 20, [20, 30]),
        ([90, 100, 110, 120], 90, [90, 120]),
        ([10, 20, 30], 5, [20, 30]),  # the best one was lost
    ],
)
def test_the_newest_and_the_best_stay(there: list[int], best: int | None, left: list[int], tmp_path: Path) -> None:
    for step in there:
        checkpoint(tmp_path, step)
    drop_old(tmp_path, None if best is None else f"elsewhere/checkpoint-{best}")
    assert steps(tmp_path) == left
    assert len(left) <= KEPT


def test_what_is_being_dropped_is_unsealed_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill while its files go must not leave something that looks whole."""
    for step in (10, 20, 30):
        checkpoint(tmp_path, step)

    def killed(place: Path) -> None:
        (place / "model.safetensors").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr("components.shared.training.checkpoints.shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        drop_old(tmp_path, best=str(tmp_path / "checkpoint-30"))
    monkeypatch.undo()
    assert last_whole(tmp_path) == str(tmp_path / "checkpoint-30")
    assert steps(tmp_path) == [20, 30]


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "ingest").mkdir()
    (tmp_path / "ingest" / "train-00000.parquet").write_bytes(b"rows")
    return {"ingest": tmp_path / "ingest"}


def test_other_settings_inputs_or_code_start_anew(settings: Settings, inputs: dict[str, Path], tmp_path: Path) -> None:
    def place(settings: Settings = settings, code: str = "0123456789abcdef") -> Path:
        return state_folder(tmp_path / "state", settings, SECTIONS, inputs, code)

    first = place()
    assert first.is_dir()
    assert place() == first
    other = settings.model_copy(update={"grpo": settings.grpo.model_copy(update={"lr": 0.5})})
    elsewhere = settings.model_copy(update={"sft": settings.sft.model_copy(update={"lr": 0.5})})
    assert place(elsewhere) == first, "sections that decide nothing do not count"
    places = {first, place(other)}
    places.add(place(code="fedcba9876543210"))
    (inputs["ingest"] / "train-00000.parquet").write_bytes(b"other rows")
    places.add(place())
    assert len(places) == 4


def test_ranks_of_another_number_begin_anew_and_say_so(
    settings: Settings, inputs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def place(world_size: int) -> Path:
        return state_folder(tmp_path / "state", settings, SECTIONS, inputs, world_size=world_size)

    alone = place(1)
    checkpoint(alone, 10)
    assert place(1) == alone
    assert capsys.readouterr().err == ""
    pair = place(2)
    assert pair != alone
    assert last_whole(pair) is None
    told = "".join(capsys.readouterr().err.split())
    assert f"{alone}holdstrainingstateofanothernumberofranks;with2thisrunbeginsanew" in told


def test_without_code_only_settings_and_inputs_count(settings: Settings, inputs: dict[str, Path]) -> None:
    state = inputs["ingest"].parent / "state"
    assert state_folder(state, settings, SECTIONS, inputs) == state_folder(state, settings, SECTIONS, inputs)
    assert state_folder(state, settings, SECTIONS, inputs) != state_folder(state, settings, ("task",), inputs)
