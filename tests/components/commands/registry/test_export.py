"""Exporting a registered version, and its card, on a real store with tiny models."""

import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from PIL import Image

from components.commands.registry import command
from components.commands.registry.export import remove_remote_code
from components.errors import ConcordError
from components.evaluate.step import run as evaluate_run
from components.register import step as register
from components.register.registry import MAX_DESCRIPTION, Registry
from components.settings import Lora, Reader
from components.shared.model.adapter import ADAPTER, CONFIG, WEIGHTS
from components.shared.model.loading import load, save
from components.shared.model.lora import trainable
from components.shared.model.validation_pass import save_validation, warm_start_answers
from components.shared.reporting.predictions import predictions_file, read_predictions
from components.shared.rows.rows import read_rows
from components.shared.scoring.shots import GROUPS
from components.shared.tracking.connection import connect
from components.shared.tracking.hashes import dvc_hash
from components.shared.tracking.step_run import step_run
from components.steps import STEPS
from tests.support.gray_world import QUESTION, ROOT, TRAIN, GrayWorld, train

MODEL = "gauge-reader"
SECRET = "hf_planted_secret"


@dataclass(frozen=True)
class Exported:
    """A registered version and its exported folder."""

    world: GrayWorld
    evaluate: Path
    folder: Path

    @property
    def card(self) -> str:
        return (self.folder / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def exported(gray: GrayWorld, tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Exported]:
    with export_of(gray, tmp_path_factory.mktemp("export"), empty_database) as found:
        yield found


@contextmanager
def export_of(gray: GrayWorld, root: Path, empty_database: Path, alias: str = "champion") -> Iterator[Exported]:
    """Evaluates, registers and exports grpo's model, in a store of its own."""
    shutil.copy(empty_database, root / "mlflow.db")
    models = {"ingest": gray.ingest, "sft": gray.sft, "grpo": gray.grpo}
    outputs = {"out": root / "evaluate", "report": root / "report"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/mlflow.db")
        patch.setenv("HF_TOKEN", SECRET)
        patch.delenv("MLFLOW_RUN_ID", raising=False)
        with step_run(STEPS["evaluate"], gray.settings, models) as track:
            evaluate_run(gray.settings, track, **models, **outputs)
            track.finish({}, outputs)
        inputs = {**models, "evaluate": outputs["out"]}
        with step_run(STEPS["register"], gray.settings, inputs) as track:
            register.run(gray.settings, track, **inputs, out=root / "register")
            track.finish({}, {"out": root / "register"})
        command.main(["export", "--model", MODEL, "--version", alias, "--out", "exported"])
        yield Exported(gray, outputs["out"], root / "exported")


def test_the_folder_has_weights_processor_reader_and_card_and_no_code(exported: Exported) -> None:
    names = {path.name for path in exported.folder.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "validation.parquet", "README.md"} <= names
    assert not [name for name in names if name.endswith((".py", ".pkl", ".bin", ".pt")) or name.startswith(".")]
    assert "metrics.json" not in names, "a by-product of training"
    weights = (exported.world.grpo / "model.safetensors").read_bytes()
    assert (exported.folder / "model.safetensors").read_bytes() == weights
    reader = Reader.model_validate_json((exported.folder / "reader.json").read_text())
    assert (reader.task, reader.batch_size) == (exported.world.settings.task, 5)
    assert isinstance(reader.answer.balance, float), "the balance that `auto` came to"
    assert not list(exported.folder.parent.glob(".exported*")), "no temporary folder is left"


def test_the_registry_keeps_its_files(exported: Exported) -> None:
    command.main(["export", "--model", MODEL, "--version", "1", "--out", "again"])
    names = {path.name: path.read_bytes() for path in Path("again").iterdir()}
    assert names == {path.name: path.read_bytes() for path in exported.folder.iterdir()}


def run_lines(exported: Exported, block: int, image: Path, without: str | None = None) -> str:
    """Output of a code block of the card, run beside an image in a copy of the folder, without any other setting.

    Args:
        without: a word whose line is left out.
    """
    lines = re.findall(r"```python\n(.*?)```", exported.card, re.DOTALL)[block]
    lines = "\n".join(line for line in lines.splitlines() if without is None or without not in line)
    assert len([line for line in lines.splitlines() if line]) <= 10
    process = subprocess.run(
        [sys.executable, "-c", lines],
        cwd=image.parent,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


@pytest.fixture
def photograph(exported: Exported, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """image.png in a copy of the exported folder, and evaluate's row for it."""
    return in_a_copy(exported, tmp_path / "model")


def in_a_copy(exported: Exported, folder: Path) -> tuple[Path, dict[str, Any]]:
    """Copies the exported folder and puts a test image into it; returns its file, and evaluate's row for it."""
    shutil.copytree(exported.folder, folder)
    row = next(read_rows(exported.world.ingest, "test")).to_pylist()[-1]
    Image.open(io.BytesIO(row["image"]["bytes"])).save(folder / "image.png")
    table = read_predictions(predictions_file(exported.evaluate, "grpo")).to_pylist()
    return folder / "image.png", next(each for each in table if each["id"] == row["id"])


def test_the_lines_of_the_card_give_the_number_of_evaluate(
    exported: Exported, photograph: tuple[Path, dict[str, Any]]
) -> None:
    image, expected = photograph
    found = [float(word) for word in run_lines(exported, 0, image).split()]
    assert found[:3] == [expected["balanced"], expected["low"], expected["high"]]
    assert found[3] == pytest.approx(expected["mass"], abs=1e-5)


def test_the_lines_for_transformers_alone_give_the_text_of_evaluate(
    exported: Exported, photograph: tuple[Path, dict[str, Any]]
) -> None:
    image, expected = photograph
    assert "components" not in re.findall(r"```python\n(.*?)```", exported.card, re.DOTALL)[1]
    assert run_lines(exported, 1, image) == expected["text"]


def test_an_adapter_is_exported_beside_its_base_and_the_card_loads_it(
    exported: Exported, gray: GrayWorld, tmp_path: Path, empty_database: Path
) -> None:
    """The base was never trained on the label of the test image; the adapter was."""
    adapted = with_adapter_for_all_labels(gray, tmp_path)
    with export_of(adapted, tmp_path, empty_database, "challenger") as made:
        names = {str(path.relative_to(made.folder)) for path in made.folder.rglob("*") if path.is_file()}
        assert {f"{ADAPTER}/{CONFIG}", f"{ADAPTER}/{WEIGHTS}"} < names
        for name in ("model.safetensors", f"{ADAPTER}/{WEIGHTS}"):
            assert (made.folder / name).read_bytes() == (made.world.grpo / name).read_bytes()
        image, expected = in_a_copy(made, tmp_path / "model")
        assert (expected["text"], expected["target"]) == ("<answer> 80 </answer>", 80)
        found = [float(word) for word in run_lines(made, 0, image).split()]
        assert found[:3] == [expected["balanced"], expected["low"], expected["high"]]
        assert run_lines(made, 1, image) == expected["text"]
        assert run_lines(made, 1, image, without="load_adapter") != expected["text"]
    mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])  # the store of the other tests again


def with_adapter_for_all_labels(gray: GrayWorld, folder: Path) -> GrayWorld:
    """The world with an adapter on the warm start in place of grpo's model."""
    lora = Lora(r=8, alpha=32, dropout=0.0, targets="all-linear")
    settings = gray.settings.model_copy(update={"model": gray.settings.model.model_copy(update={"lora": lora})})
    model, processor = load(gray.sft, settings.model)
    torch.manual_seed(0)
    adapted: Any = trainable(model, settings.model)
    train(adapted, processor, settings, 60, [*TRAIN])
    save(adapted, processor, folder / "adapted")
    answers = warm_start_answers(gray.sft, gray.ingest)
    save_validation(folder / "adapted", adapted, processor, settings.task, gray.ingest, 8, answers)
    shutil.copy(gray.grpo / "metrics.json", folder / "adapted")
    return replace(gray, settings=settings, grpo=folder / "adapted")


def test_the_figures_of_the_card_are_those_of_evaluate(exported: Exported) -> None:
    judged = json.loads((exported.evaluate / "metrics.json").read_text())["grpo"]
    rows = {
        cells[0]: cells[1:]
        for line in exported.card.splitlines()
        if line.startswith("| ") and (cells := [cell.strip() for cell in line.strip("|").split("|")])
    }
    assert rows["images"] == [
        "n",
        "MAE",
        "MAE of its text",
        "MAE of the warm start's text",
        "CRPS",
        "coverage",
        "median width",
    ]
    for group in GROUPS:
        figures, found = judged["balanced"]["groups"][group], judged["distribution"]["groups"][group]
        expected = [
            figures["n"],
            figures["mae"],
            judged["text"]["groups"][group]["mae"],
            json.loads((exported.evaluate / "metrics.json").read_text())["sft"]["text"]["groups"][group]["mae"],
            found["crps"],
            100 * found["conformal"]["coverage"],
            found["conformal"]["width"],
        ]
        shown = [float(re.split(r" [\[%]", cell)[0].replace(",", "")) for cell in rows[group]]
        assert all(math.isclose(a, b, rel_tol=5.1e-3, abs_tol=1e-9) for a, b in zip(shown, expected, strict=True)), (
            group
        )
        low, high = figures["mae_ci"]
        bounds = re.search(r"\[(.*)–(.*)\]", rows[group][1])
        assert bounds
        assert [float(bounds[1]), float(bounds[2])] == pytest.approx([low, high], rel=5.1e-3)
    assert rows["training images"] == ["36 (many 26, medium 7, few 3)"]
    assert rows["test images"] == ["24"]
    assert rows["rows, DVC hash"] == [f"`{dvc_hash(exported.world.ingest)}`"]
    assert rows["weights, DVC hash"] == [f"`{dvc_hash(exported.world.grpo)}`"]
    assert "16 steps" in rows["SFT"][0]
    assert QUESTION in exported.card


def test_the_front_matter_is_valid_for_the_hub(exported: Exported) -> None:
    from huggingface_hub import ModelCard

    data: Any = ModelCard(exported.card).data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "image-text-to-text")
    assert data.base_model is None, "the tiny model is on no hub"
    assert data.license is None
    judged = json.loads((exported.evaluate / "metrics.json").read_text())["grpo"]["balanced"]["groups"]
    assert data.eval_results is not None
    assert {each.metric_name: each.metric_value for each in data.eval_results} == {
        f"MAE {group}": judged[group]["mae"] for group in GROUPS
    }


def test_the_card_is_an_artifact_and_the_description_of_the_version(exported: Exported) -> None:
    version = Registry(connect(), MODEL).version("1")
    stored = Path(mlflow.artifacts.download_artifacts(f"models:/{MODEL}/1/README.md")).read_text(encoding="utf-8")
    assert stored == exported.card
    reason = json.loads(version.tags["concord.decision"])["reason"]
    assert version.description.startswith(f"{reason}\n\nAnswers")
    assert "## Results" in version.description
    assert len(version.description) <= MAX_DESCRIPTION


def test_the_card_has_no_secret_and_no_path(exported: Exported) -> None:
    assert SECRET not in exported.card
    assert str(exported.folder.parent) not in exported.card
    assert str(exported.world.ingest.parent) not in exported.card


def test_a_folder_with_content_is_refused_and_kept(exported: Exported) -> None:
    taken = Path("taken")
    taken.mkdir()
    (taken / "notes.txt").write_text("mine")
    with pytest.raises(ConcordError, match=r"taken: exists already\. Choose another folder with --out"):
        command.main(["export", "--model", MODEL, "--version", "1", "--out", "taken"])
    assert [path.name for path in taken.iterdir()] == ["notes.txt"]


def test_an_empty_folder_is_filled(exported: Exported) -> None:
    Path("empty").mkdir()
    command.main(["export", "--model", MODEL, "--version", "1", "--out", "empty"])
    assert Path("empty", "README.md").exists()


def test_the_exported_folder_is_pushed(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setattr(command, "push", lambda folder, name: f"https://hub/{name} with {len(list(folder.iterdir()))}")
    export = ["export", "--model", MODEL, "--version", "challenger", "--out", "pushed", "--push", "plant/reader"]
    command.main(export)
    expected = f"pushed: uploaded as https://hub/plant/reader with {len(list(exported.folder.iterdir()))}"
    assert capsys.readouterr().out.splitlines() == [f"{MODEL}: version 1 is in pushed", expected]


def test_configs_name_no_code(tmp_path: Path) -> None:
    named = {"auto_map": {"AutoModel": "owner/base--modeling.Model"}, "model_type": "idefics3"}
    (tmp_path / "config.json").write_text(json.dumps(named))
    (tmp_path / "processor_config.json").write_text("{}")
    remove_remote_code(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == {"model_type": "idefics3"}
    assert (tmp_path / "processor_config.json").read_text() == "{}"


def test_an_unknown_version_is_refused(exported: Exported) -> None:
    with pytest.raises(ConcordError, match="no version 9 in the registry"):
        command.main(["export", "--model", MODEL, "--version", "9", "--out", "nine"])
    assert not Path("nine").exists()


def test_a_promotion_by_hand_renews_the_card(exported: Exported) -> None:
    registry = Registry(connect(), MODEL)
    command.main(["promote", "--model", MODEL, "--version", "1", "--reason", "field trial"])
    description = registry.version("1").description
    assert description.startswith("promoted by hand: field trial\n\nAnswers")
