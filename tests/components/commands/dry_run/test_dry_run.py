"""The dry run: its memory estimate agrees with measurements, and it writes no files."""

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from components.__main__ import main
from components.commands.dry_run.batch import Batch, build_batch
from components.commands.dry_run.build import build_training_model, load_processor
from components.commands.dry_run.command import dry_run
from components.commands.dry_run.memory import estimate_memory, exact_loss, grpo_loss, measure_memory, sft_loss
from components.errors import ConcordError
from components.settings import Lora, Settings, load_settings
from components.shared.model.answer_tree import answer_tree
from components.shared.model.prompts import max_answer_tokens
from components.shared.rows.rows import Row, ShardWriter
from components.shared.tracking.model_revision import content_revision
from tests.support.gauge_world import LORA, write_params
from tests.support.grpo_training import save_llava, small_settings
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
    "unshared": ("grpo", False, {}),
    "exact": ("grpo", True, {"grpo": {"estimator": "means"}}),
    "exact, one by one": ("grpo", False, {"grpo": {"estimator": "policy"}}),
    "exact, checkpointing": ("grpo", True, {"grpo": FRUGAL | {"estimator": "means"}}),
    "eager": ("grpo", True, {"model": {"attention": "eager"}}),
    "checkpointing": ("grpo", True, {"grpo": FRUGAL}),
    "adapters": ("grpo", True, {"model": ADAPTED}),
    "bfloat16": ("grpo", True, {"model": {"dtype": "bfloat16"}}),
    "as published": (
        "grpo",
        True,
        {"model": ADAPTED | {"dtype": "bfloat16"}, "grpo": FRUGAL},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_estimate_agrees_with_the_measurement(name: str, settings: Settings) -> None:
    """Activations within 8 %, everything else to the byte."""
    step, shared, sections = CASES[name]
    case = changed(settings, **sections)
    processor = load_processor(case)
    exact = case.grpo.estimator != "sampled"
    batch = build_batch(case, processor, NOWHERE, 4, 1 if exact or step == "sft" else 8, 6)
    trained = exact_loss(answer_tree(processor, case.task), shared) if exact else grpo_loss(shared, 1.0)
    loss = sft_loss if step == "sft" else trained
    estimated = estimate_memory(case, step, processor, batch, loss)
    measured = measure_memory(case, step, processor, batch, loss, CPU)
    assert estimated.activations == pytest.approx(measured.activations, rel=0.08)
    assert estimated.activations > 2**19
    assert not estimated.adapters or estimated.adapters == 4 * estimated.trainable, "adapters are stored in float32"
    assert {**vars(estimated), "activations": 0} == {**vars(measured), "activations": 0}
    assert estimated.total == sum(list(vars(estimated).values())[2:])


def test_shared_prefix_and_gradient_checkpointing_save_memory(settings: Settings) -> None:
    processor = load_processor(settings)
    batch = build_batch(settings, processor, NOWHERE, 2, 8, 6)
    frugal = changed(settings, grpo=FRUGAL)
    shared, unshared = (
        estimate_memory(settings, "grpo", processor, batch, grpo_loss(how, 1.0)) for how in (True, False)
    )
    checkpointed = estimate_memory(frugal, "grpo", processor, batch, grpo_loss(True, 1.0))
    assert 3 * shared.activations < unshared.activations
    assert 1.3 * checkpointed.activations < shared.activations


@pytest.mark.parametrize(
    ("beta", "lora", "of"), [(0.04, False, "weights"), (0.0, False, ""), (0.04, True, "adapters"), (0.0, True, "")]
)
def test_the_reference_is_a_copy_of_what_is_trained(beta: float, lora: bool, of: str, settings: Settings) -> None:
    case = changed(settings, grpo={"beta": beta}, model=ADAPTED if lora else {})
    processor = load_processor(case)
    memory = estimate_memory(
        case, "grpo", processor, build_batch(case, processor, NOWHERE, 2, 2, 3), grpo_loss(True, 1.0)
    )
    assert memory.reference == (getattr(memory, of) if of else 0)
    assert (memory.adapters > 0) is lora
    assert memory.optimizer == 2 * memory.gradients
    assert memory.trainable < memory.parameters if lora else memory.trainable == memory.parameters


@pytest.mark.parametrize("step", ["sft", "grpo"])
def test_command_writes_no_files(
    step: str, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_params(tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    assert main([step, "--dry-run"]) == 0
    out = shown(capsys)
    assert f"gauges, {step}: one batch on one device" in out
    assert "tokens per input image 16, prompt" in out
    assert ("shared prefix yes: " in out) is (step == "grpo")
    assert "generated noise, 32 x 32 pixels" in out
    for part in ("weights", "adapters", "gradients", "optimizer state", "reference model", "memory, estimated"):
        assert re.search(rf"{part} [\d.,]+ [MG]iB", out), part
    assert os.listdir(tmp_path) == ["params.yaml"]


def idefics3(folder: Path, settings: Settings) -> None:
    from components.shared.model.loading import save
    from components.shared.model.tiny import build_model

    assert settings.model.tiny is not None
    processor = load_processor(settings)
    save(build_model(settings.model.tiny, processor, seed=0), processor, folder)


@pytest.mark.parametrize("make", [idefics3, save_llava], ids=lambda make: make.__name__)
def test_model_folder_needs_no_weights(make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = small_settings()
    make(tmp_path / "model", settings)
    (tmp_path / "model" / "model.safetensors").unlink()
    case = changed(settings, model={"name": str(tmp_path / "model"), "tiny": None}, grpo={"accumulation": 2})
    dry_run("grpo", case, NOWHERE)
    out = shown(capsys)
    assert "inputs 3 of 6 (2 accumulation x 1 ranks), 4 answers each" in out
    assert "shared prefix yes: " in out
    assert f"Set model.revision to {content_revision(tmp_path / 'model')}" in out, "training would refuse it"


def test_images_and_questions_come_from_the_shards(settings: Settings, tmp_path: Path) -> None:
    folder = write_qwen(tmp_path / "qwen", "3b")
    (tmp_path / "ingest").mkdir()
    with ShardWriter(tmp_path / "ingest", "train", 1) as shard:
        for k, (width, height) in enumerate([(56, 84), (112, 112)]):
            image_file = tmp_path / "image.png"
            Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(image_file)
            shard.add(Row(str(k), image_file.read_bytes(), 3.0, "How old?" + " Really?" * k, "made"))
    case = changed(settings, model={"name": str(folder)})
    batch = build_batch(case, load_processor(case), tmp_path / "ingest", 3, 2, 4)
    assert batch.image_tokens.tolist() == [2 * 3, 4 * 4, 2 * 3], (
        "one token per 28 x 28 pixels; the third row is the first one again"
    )
    assert batch.prompt_tokens[0] == batch.prompt_tokens[2] < batch.prompt_tokens[1]
    assert batch.fields["image_grid_thw"].tolist() == [[1, 6, 4], [1, 8, 8], [1, 6, 4]]
    assert batch.completions.shape == (6, 4)
    assert batch.owners.tolist() == [0, 0, 1, 1, 2, 2]
    assert str(tmp_path / "ingest") in batch.image_source


@pytest.mark.parametrize("size", ["3b", "7b"])
def test_published_model_has_the_published_size(size: str, tmp_path: Path) -> None:
    settings = recipe(f"agedb-{size}", write_qwen(tmp_path, size))
    model = build_training_model(settings, load_processor(settings), torch.device("meta"), 1.0, checkpointing=True)
    adapters = sum(weight.numel() for key, weight in model.named_parameters() if "lora_" in key)
    trained = [key for key, weight in model.named_parameters() if weight.requires_grad]
    plain = sum(weight.numel() for weight in model.parameters()) - adapters
    assert plain == pytest.approx(BILLIONS[size] * 1e9, rel=2e-3)
    assert all("lora_" in key and "visual" not in key for key in trained)
    assert {weight.dtype for key, weight in model.named_parameters() if "lora_" not in key} == {torch.bfloat16}
    # Two bytes for each frozen weight; of an adapter 4 stored, 12 more in training, and 4 more for the reference.
    gigabytes = " | ".join(f"{(2 * plain + each * adapters) / 1e9:.1f}" for each in (0, 4, 16, 20))
    row = f"| Qwen2.5-VL-{size.upper()} | {adapters / 1e6:.0f} million | {gigabytes} |"
    assert row in (ROOT / "components" / "README.md").read_text(encoding="utf-8"), row


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_recipe(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Runs a batch through two layers of the published widths."""
    short = recipe(name, write_qwen(tmp_path, name.rpartition("-")[2], layers=2))
    dry_run("grpo", changed(short, model={"max_pixels": 112 * 112}), NOWHERE)
    out = shown(capsys)
    inputs = short.grpo.prompts // 4
    assert f"inputs {inputs} of {short.grpo.prompts} (2 accumulation x 2 ranks), 4 answers each" in out
    assert "tokens per input image 16, prompt" in out
    assert f"each answer up to {max_answer_tokens(load_processor(short), short.task)}" in out
    assert "shared prefix yes: " in out


def test_estimate_for_3_billion_parameters_needs_less_than_a_gibibyte(tmp_path: Path) -> None:
    """The whole published model with small images; it also takes only seconds."""
    import resource

    case = recipe("agedb-3b", write_qwen(tmp_path / "qwen", "3b"))
    case = changed(case, model={"max_pixels": 56 * 56, "lora": None}, grpo={"gradient_checkpointing": False})
    processor = load_processor(case)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    batch = build_batch(case, processor, NOWHERE, 2, 2, 4)
    memory = estimate_memory(case, "grpo", processor, batch, grpo_loss(True, 1.0))
    assert memory.weights == pytest.approx(4 * BILLIONS["3b"] * 1e9, rel=2e-3), "trained weights are float32"
    assert memory.gradients == 4 * memory.trainable > 2**33
    assert memory.activations > 2**26
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 2**30


def test_invalid_models_and_batches_are_reported(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    case = changed(settings, model={"name": str(tmp_path / "empty"), "tiny": None})
    with pytest.raises(ConcordError, match=r"empty: the \w+ could not be loaded: [\s\S]*A dry run needs config\.json"):
        dry_run("grpo", case, NOWHERE)
    with pytest.raises(ConcordError, match="has no limit in pixels"):
        dry_run("sft", changed(settings, model={"max_pixels": 4096}), NOWHERE)
    with pytest.raises(ConcordError, match=r"grpo\.prompts: 4 cannot be divided evenly over 3 accumulation x 1 ranks"):
        dry_run("grpo", changed(settings, grpo={"accumulation": 3}), NOWHERE)


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        ({"model": {"attention": "flash_attention_2"}}, "only eager and sdpa take the block mask"),
        ({"launcher": {"config": "fsdp.yaml"}}, "launcher.config may select FSDP 1 or DeepSpeed"),
    ],
)
def test_reason_for_an_unshared_prefix_is_shown(
    sections: dict[str, Any], reason: str, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    dry_run("grpo", changed(settings, **sections), NOWHERE)
    assert f"shared prefix no: {'model.attention: ' if 'model' in sections else ''}{reason}" in shown(capsys)


def test_sharding_divides_all_but_the_activations(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    parts = "weights|gradients|optimizer state|reference model|activations, at most"
    found = {}
    for sharding in ("none", "full"):
        dry_run("grpo", changed(settings, launcher={"num_processes": 2, "sharding": sharding}), NOWHERE)
        found[sharding] = dict(re.findall(rf"({parts}) ([\d.]+ \w+)", shown(capsys)))
    assert len(found["full"]) == 5
    assert [name for name, size in found["full"].items() if size == found["none"][name]] == ["activations, at most"]


def test_completions_have_the_maximum_length(settings: Settings) -> None:
    processor = load_processor(settings)
    batch: Batch = build_batch(settings, processor, NOWHERE, 2, 3, 9)
    assert batch.completions.shape == (6, 9)
    assert processor.tokenizer.decode(build_batch(settings, processor, NOWHERE, 1, 1, None).completions[0]).startswith(
        "<answer> 100 </answer>"
    )
