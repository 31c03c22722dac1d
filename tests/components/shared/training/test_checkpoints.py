"""Training state: one folder per settings, inputs and code, in which only complete checkpoints count."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from components.settings import Settings
from components.shared.tracking.libraries import installed
from components.shared.tracking.lineage import compute_lineage
from components.shared.training.checkpoints import KEPT, drop_old, last_complete, seal, state_folder
from components.steps import STEPS
from tests.support.gauge_world import write_params


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return write_params(tmp_path_factory.mktemp("params") / "params.yaml")


def checkpoint(folder: Path, step: int, sealed: bool = True) -> Path:
    path = folder / f"checkpoint-{step}"
    (path / "deep").mkdir(parents=True)
    (path / "model.safetensors").write_bytes(bytes(10))
    (path / "deep" / "state.json").write_text("{}", encoding="utf-8")
    if sealed:
        seal(folder, step)
    return path


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name.rpartition("-")[2]) for path in folder.glob("checkpoint-*"))


def test_the_newest_complete_checkpoint_counts(tmp_path: Path) -> None:
    assert last_complete(tmp_path) is None
    for step in (90, 100, 1000):  # by number, not by name
        checkpoint(tmp_path, step)
    assert last_complete(tmp_path) == str(tmp_path / "checkpoint-1000")


def test_an_unsealed_checkpoint_is_removed(tmp_path: Path) -> None:
    checkpoint(tmp_path, 10)
    checkpoint(tmp_path, 20, sealed=False)
    (tmp_path / "checkpoint-30").mkdir()
    assert last_complete(tmp_path) == str(tmp_path / "checkpoint-10")
    assert steps(tmp_path) == [10]


@pytest.mark.parametrize("file", ["model.safetensors", "deep/state.json", "whole"])
def test_a_sealed_checkpoint_with_a_truncated_file_does_not_count(file: str, tmp_path: Path) -> None:
    """A machine crash can lose the end of a file that was written before."""
    checkpoint(tmp_path, 10)
    truncated = checkpoint(tmp_path, 20) / file
    os.truncate(truncated, truncated.stat().st_size // 2)
    assert last_complete(tmp_path) == str(tmp_path / "checkpoint-10")
    assert steps(tmp_path) == [10]


def test_a_checkpoint_with_a_missing_file_does_not_count(tmp_path: Path) -> None:
    (checkpoint(tmp_path, 10) / "deep" / "state.json").unlink()
    assert last_complete(tmp_path) is None


def test_an_unsealed_first_checkpoint_is_removed(tmp_path: Path) -> None:
    checkpoint(tmp_path, 10, sealed=False)
    assert last_complete(tmp_path) is None
    assert steps(tmp_path) == []


@pytest.mark.parametrize(
    ("existing", "best", "kept"),
    [
        ([10], None, [10]),
        ([10, 20], None, [10, 20]),
        ([10, 20, 30], None, [20, 30]),
        ([10, 20, 30], 10, [10, 30]),
        ([10, 20, 30], 30, [20, 30]),
        ([10, 20, 30], 20, [20, 30]),
        ([90, 100, 110, 120], 90, [90, 120]),
        ([10, 20, 30], 5, [20, 30]),  # the best one is missing
    ],
)
def test_the_newest_and_the_best_checkpoint_are_kept(
    existing: list[int], best: int | None, kept: list[int], tmp_path: Path
) -> None:
    for step in existing:
        checkpoint(tmp_path, step)
    drop_old(tmp_path, None if best is None else f"elsewhere/checkpoint-{best}")
    assert steps(tmp_path) == kept
    assert len(kept) <= KEPT


def test_a_checkpoint_is_unsealed_before_it_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill during the removal must not leave a checkpoint that looks complete."""
    for step in (10, 20, 30):
        checkpoint(tmp_path, step)

    def killed(path: Path) -> None:
        (path / "model.safetensors").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr("components.shared.training.checkpoints.shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        drop_old(tmp_path, best=str(tmp_path / "checkpoint-30"))
    monkeypatch.undo()
    assert last_complete(tmp_path) == str(tmp_path / "checkpoint-30")
    assert steps(tmp_path) == [20, 30]


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "ingest").mkdir()
    (tmp_path / "ingest" / "train-00000.parquet").write_bytes(b"rows")
    return {"ingest": tmp_path / "ingest"}


def test_other_settings_inputs_code_or_libraries_have_another_folder(
    settings: Settings, inputs: dict[str, Path], tmp_path: Path
) -> None:
    def folder(settings: Settings = settings, **changes: Any) -> Path:
        return state_folder(tmp_path / "state", replace(compute_lineage(STEPS["sft"], settings, inputs), **changes))

    first = folder()
    assert first.is_dir()
    assert folder() == first
    other_grpo = settings.model_copy(update={"grpo": settings.grpo.model_copy(update={"lr": 0.5})})
    other = settings.model_copy(update={"sft": settings.sft.model_copy(update={"lr": 0.5})})
    assert folder(other_grpo) == first, "sections that do not decide the result do not count"
    folders = {first, folder(other), folder(code={}), folder(libraries={**installed(), "trl": "0.0.1"})}
    (inputs["ingest"] / "train-00000.parquet").write_bytes(b"other rows")
    folders.add(folder())
    assert len(folders) == 5


def test_trainings_that_differ_in_an_unread_input_share_folder_and_lock(
    settings: Settings, inputs: dict[str, Path], tmp_path: Path
) -> None:
    """The lock has the folder's name, and so keeps either out while the other writes there."""
    names = set()
    for warnings in ("none", "one"):
        (inputs["ingest"].parent / "validate").mkdir(exist_ok=True)
        (inputs["ingest"].parent / "validate" / "result.json").write_text(warnings, encoding="utf-8")
        every = {**inputs, "validate": inputs["ingest"].parent / "validate"}
        whole = compute_lineage(STEPS["sft"], settings, every)
        names |= {whole.state_name, compute_lineage(STEPS["sft"], settings, inputs).state_name}
        names.add(state_folder(tmp_path / "state", whole).name)
    assert len(names) == 1
