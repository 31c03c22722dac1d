"""The dry run: what it reckons is what is measured, and it leaves no trace."""

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from components.__main__ import main
from components.commands.dry_run.batch import Batch, batch_of
from components.commands.dry_run.build import build, processor_of
from components.commands.dry_run.command import dry_run
from components.commands.dry_run.memory import grpo_loss, measured, reckoned, sft_loss
from components.errors import ConcordError
from components.settings import Lora, Settings, load_settings
from components.shared.rows.rows import Row, ShardWriter
from tests.components.grpo.test_sharing import llava
from tests.components.grpo.test_trainer import small_settings
from tests.support.gauge_world import LORA, write_params
from tests.support.qwen_folder import BILLIONS, write_qwen

ROOT = Path(__file__).parents[4]
PUBLISHED = [f"{name}-{size}" for name in ("agedb", "imdb-wiki", "imdb-movie", "bone-age") for size in ("3b", "7b")]
NOWHERE = Path("nowhere")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return write_params(tmp_path_factory.mktemp("params") / "params.yaml")


def changed(settings: Settings, **sections: dict[str, Any]) -> Settings:
    parts = {name: getattr(settings, name).model_copy(update=values) for name, values in sections.items()}
    return settings.model_copy(update=parts)


def recipe(name: str, folder: Path) -> Settings:
    settings = load_settings(ROOT / "pipelines" / "recipes" / f"{name}.yaml")
    return changed(settings, model={"name": str(folder)})


def shown(capsys: pytest.CaptureFixture[str]) -> str:
    return re.sub(r"\s+", " ", capsys.readouterr().out)


ADAPTED = {"lora": Lora.model_validate(LORA), "freeze_vision": True}
FRUGAL = {"gradient_checkpointing": True}
CASES: dict[str, tuple[str, bool, dict[str, Any]]] = {
    "sft": ("sft", True, {}),
    "grpo": ("grpo", True, {}),
    "one by one": ("grpo", False, {}),
    "eager": ("grpo", True, {"model": {"attention": "eager"}}),
    "checkpointing": ("grpo", True, {"grpo": FRUGAL}),
    "adapters": ("grpo", True, {"model": ADAPTED}),
    "as published": (
        "grpo",
        True,
        {"model": ADAPTED | {"dtype": "bfloat16"}, "grpo": FRUGAL},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_reckoned_is_what_is_measured(name: str, settings: Settings) -> None:
    """Activations within 8 %; all else to the byte."""
    step, shared, sections = CASES[name]
    case = changed(settings, **sections)
    processor = processor_of(case)
    batch = batch_of(case, processor, NOWHERE, 4, 1 if step == "sft" else 8, 6)
    loss = sft_loss if step == "sft" else grpo_loss(shared, 1.0)
    without, real = (
        reckoned(case, step, processor, batch, loss),
        measured(case, step, processor, batch, loss, CPU),
    )
    assert without.activations == pytest.approx(real.activations, rel=0.08)
    assert without.activations > 2**19
    assert not without.adapters or without.adapters == 4 * without.trainable, "adapters are kept in float32"
    assert {**vars(without), "activations": 0} == {**vars(real), "activations": 0}
    assert without.total == sum(list(vars(without).values())[2:])


def test_sharing_the_prefix_and_checkpointing_both_save(settings: Settings) -> None:
    processor = processor_of(settings)
    batch = batch_of(settings, processor, NOWHERE, 2, 8, 6)
    frugal = changed(settings, grpo=FRUGAL)
    shared, unshared = (reckoned(settings, "grpo", processor, batch, grpo_loss(how, 1.0)) for how in (True, False))
    checkpointed = reckoned(frugal, "grpo", processor, batch, grpo_loss(True, 1.0))
    assert 3 * shared.activations < unshared.activations
    assert 1.3 * checkpointed.activations < shared.activations


@pytest.mark.parametrize(("beta", "lora", "second"), [(0.04, False, True), (0.0, False, False), (0.04, True, False)])
def test_a_reference_model_is_reckoned_where_there_is_one(
    beta: float, lora: bool, second: bool, settings: Settings
) -> None:
    case = changed(settings, grpo={"beta": beta}, model=ADAPTED if lora else {})
    processor = processor_of(case)
    memory = reckoned(case, "grpo", processor, batch_of(case, processor, NOWHERE, 2, 2, 3), grpo_loss(True, 1.0))
    assert memory.reference == (memory.weights if second else 0)
    assert (memory.adapters > 0) is lora
    assert memory.optimizer == 2 * memory.gradients
    assert memory.trainable < memory.parameters if lora else memory.trainable == memory.parameters


@pytest.mark.parametrize("step", ["sft", "grpo"])
def test_the_command_writes_nothing(
    step: str, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_params(tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    assert main([step, "--dry-run"]) == 0
    out = shown(capsys)
    assert f"gauges, {step}: one batch on one device" in out
    assert "tokens of an input image 16, prompt" in out
    assert ("shared prefix yes: " in out) is (step == "grpo")
    assert "noise, 32 x 32 pixels, made here" in out
    for part in ("weights", "adapters", "gradients", "optimizer's state", "reference model", "memory, reckoned"):
        assert re.search(rf"{part} [\d.,]+ [MG]iB", out), part
    assert os.listdir(tmp_path) == ["params.yaml"]


def idefics3(folder: Path, settings: Settings) -> None:
    from components.shared.model.loading import save
    from components.shared.model.tiny import build_model

    assert settings.model.tiny is not None
    processor = processor_of(settings)
    save(build_model(settings.model.tiny, processor, seed=0), processor, folder)


@pytest.mark.parametrize("make", [idefics3, llava], ids=lambda make: make.__name__)
def test_a_folder_without_weights_will_do(make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = small_settings()
    make(tmp_path / "model", settings)
    (tmp_path / "model" / "model.safetensors").unlink()
    case = changed(settings, model={"name": str(tmp_path / "model"), "tiny": None}, grpo={"accumulation": 2})
    dry_run("grpo", case, NOWHERE)
    out = shown(capsys)
    assert "inputs 3 of 6 (2 accumulation x 1 ranks), 4 answers each" in out
    assert "shared prefix yes: " in out


def test_pictures_and_questions_are_those_of_the_shards(settings: Settings, tmp_path: Path) -> None:
    folder = write_qwen(tmp_path / "qwen", "3b")
    (tmp_path / "ingest").mkdir()
    with ShardWriter(tmp_path / "ingest", "train", 1) as shard:
        for k, (width, height) in enumerate([(56, 84), (112, 112)]):
            picture = tmp_path / "picture.png"
            Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(picture)
            shard.add(Row(str(k), picture.read_bytes(), 3.0, "How old?" + " Really?" * k, "made"))
    case = changed(settings, model={"name": str(folder)})
    batch = batch_of(case, processor_of(case), tmp_path / "ingest", 3, 2, 4)
    assert batch.image_tokens.tolist() == [2 * 3, 4 * 4, 2 * 3], (
        "a token for 28 x 28 pixels, and the rows from the start"
    )
    assert batch.prompt_tokens[0] == batch.prompt_tokens[2] < batch.prompt_tokens[1]
    assert batch.fields["image_grid_thw"].tolist() == [[1, 6, 4], [1, 8, 8], [1, 6, 4]]
    assert batch.completions.shape == (6, 4)
    assert batch.owners.tolist() == [0, 0, 1, 1, 2, 2]
    assert str(tmp_path / "ingest") in batch.pictures


@pytest.mark.parametrize("size", ["3b", "7b"])
def test_published_model_has_the_published_size(size: str, tmp_path: Path) -> None:
    settings = recipe(f"agedb-{size}", write_qwen(tmp_path, size))
    model = build(settings, processor_of(settings), torch.device("meta"), 1.0, checkpointing=True)
    adapters = sum(weight.numel() for key, weight in model.named_parameters() if "lora_" in key)
    trained = [key for key, weight in model.named_parameters() if weight.requires_grad]
    plain = sum(weight.numel() for weight in model.parameters()) - adapters
    assert plain == pytest.approx(BILLIONS[size] * 1e9, rel=2e-3)
    assert all("lora_" in key and "visual" not in key for key in trained)
    assert {weight.dtype for key, weight in model.named_parameters() if "lora_" not in key} == {torch.bfloat16}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_recipe(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A batch of it goes through two layers of the published widths."""
    short = recipe(name, write_qwen(tmp_path, name.rpartition("-")[2], layers=2))
    dry_run("grpo", changed(short, model={"max_pixels": 112 * 112}), NOWHERE)
    out = shown(capsys)
    inputs = short.grpo.prompts // 4
    assert f"inputs {inputs} of {short.grpo.prompts} (2 accumulation x 2 ranks), 4 answers each" in out
    assert "tokens of an input image 16, prompt" in out
    assert "each answer at most 32" in out
    assert "shared prefix yes: " in out


def test_a_model_of_3_billion_needs_no_memory_of_its_own(tmp_path: Path) -> None:
    """Nor many seconds: the whole published model, small pictures."""
    import resource

    case = recipe("agedb-3b", write_qwen(tmp_path / "qwen", "3b"))
    case = changed(case, model={"max_pixels": 56 * 56, "lora": None}, grpo={"gradient_checkpointing": False})
    processor = processor_of(case)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    batch = batch_of(case, processor, NOWHERE, 2, 2, 4)
    memory = reckoned(case, "grpo", processor, batch, grpo_loss(True, 1.0))
    assert memory.weights == pytest.approx(2 * BILLIONS["3b"] * 1e9, rel=2e-3)
    assert memory.gradients == 2 * memory.trainable > 2**32
    assert memory.activations > 2**26
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 2**30


def test_what_is_not_there_is_named(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    case = changed(settings, model={"name": str(tmp_path / "empty"), "tiny": None})
    with pytest.raises(ConcordError, match=r"empty: no \w+ could be loaded: [\s\S]*A dry run needs config\.json"):
        dry_run("grpo", case, NOWHERE)
    with pytest.raises(ConcordError, match="goes by no number of pixels"):
        dry_run("sft", changed(settings, model={"max_pixels": 4096}), NOWHERE)
    with pytest.raises(ConcordError, match=r"4 prompts cannot be shared out evenly over 3 accumulation x 1 ranks"):
        dry_run("grpo", changed(settings, grpo={"accumulation": 3}), NOWHERE)


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        ({"model": {"attention": "flash_attention_2"}}, "only eager and sdpa take the block mask"),
        ({"launcher": {"config": "fsdp.yaml"}}, "launcher.config may ask for FSDP or DeepSpeed"),
    ],
)
def test_it_says_why_a_prefix_is_not_shared(
    sections: dict[str, Any], reason: str, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    dry_run("grpo", changed(settings, **sections), NOWHERE)
    assert f"shared prefix no: {'of model.attention, ' if 'model' in sections else ''}{reason}" in shown(capsys)


def test_batches_are_as_long_as_the_settings_let_answers_be(settings: Settings) -> None:
    processor = processor_of(settings)
    batch: Batch = batch_of(settings, processor, NOWHERE, 2, 3, 9)
    assert batch.completions.shape == (6, 9)
    assert processor.tokenizer.decode(batch_of(settings, processor, NOWHERE, 1, 1, None).completions[0]).startswith(
        "<answer> 100 </answer>"
    )
