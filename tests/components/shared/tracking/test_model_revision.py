"""model.revision of a local folder is the hash of its content: other weights under the same name are another model."""

import os
from pathlib import Path

import pytest

from components.__main__ import main
from components.settings import Model, Settings
from components.shared.tracking.hashes import dvc_hash
from components.shared.tracking.model_revision import check_revision, content_revision, revision_error
from components.steps import STEPS
from tests.support.gauge_world import write_params


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model" / "chat_templates").mkdir(parents=True)
    for name in ("config.json", "model-00001-of-00002.safetensors", "chat_templates/a.jinja"):
        (tmp_path / "model" / name).write_bytes(name.encode())
    return tmp_path / "model"


def named(settings: Settings, folder: Path, revision: str | None) -> Model:
    return settings.model.model_copy(update={"name": str(folder), "revision": revision})


def test_each_file_of_the_model_counts_and_what_a_download_leaves_does_not(folder: Path) -> None:
    first = content_revision(folder)
    assert first == dvc_hash(folder), "as `dvc add` shows it"
    (folder / ".cache" / "huggingface").mkdir(parents=True)
    (folder / ".cache" / "huggingface" / "config.json.metadata").write_text("1764200000.5", encoding="utf-8")
    (folder / ".gitattributes").touch()
    os.utime(folder / "config.json")
    assert content_revision(folder) == first
    (folder / "chat_templates" / "a.jinja").write_bytes(b"other")
    assert content_revision(folder) != first


def test_a_wrong_or_missing_revision_is_an_error_with_the_right_one(folder: Path, settings: Settings) -> None:
    right = content_revision(folder)
    check_revision(named(settings, folder, right))
    check_revision(settings.model)
    for wrong in (None, "0" * 32 + ".dir"):
        error = revision_error(named(settings, folder, wrong))
        assert error is not None
        assert f"Set model.revision to {right}" in error
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"other weights of the same name")
    assert content_revision(folder) in (revision_error(named(settings, folder, right)) or "")


@pytest.mark.parametrize("step", [name for name, step in STEPS.items() if step.loads_base])
def test_a_step_that_loads_the_model_fails_before_it_does_anything(
    step: str, folder: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_params(store / "params.yaml", model={"name": "model", "revision": "0" * 32 + ".dir"})
    for path in STEPS[step].inputs.values():
        (store / path).mkdir(parents=True)
    assert main([step]) == 1
    assert f"Set model.revision to {content_revision(folder)}" in " ".join(capsys.readouterr().err.split())
    assert not (store / ".checkpoints").exists()
    for path in STEPS[step].outputs.values():
        assert not (store / path).exists()


def test_the_steps_that_load_the_model_are_those_that_call_base_model() -> None:
    root = Path(__file__).parents[4] / "components"
    calls = {
        name for name in STEPS if any("base_model(" in file.read_text("utf-8") for file in (root / name).glob("*.py"))
    }
    assert calls == {name for name, step in STEPS.items() if step.loads_base}
