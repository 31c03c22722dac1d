"""What the section `model` asks for is what is trained: precision, adapters, a frozen tower, attention, compilation."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from components.grpo.step import run
from components.grpo.trainer import BatchRewardTrainer, training_arguments
from components.settings import Lora, Settings
from components.sft.step import run as sft_run
from components.sft.trainer import training_arguments as sft_arguments
from components.shared.model.loading import base_model, load, save
from components.shared.model.lora import lora_config, vision_tower
from components.shared.model.tiny import build_model, build_processor
from tests.components.grpo.test_trainer import QUESTIONS, loss_and_gradients, make_trainer, small_settings, step_batch
from tests.support.gauge_world import LORA, Curves, ingested, write_params

ADAPTED: dict[str, Any] = {"lora": Lora.model_validate(LORA), "freeze_vision": True}


def chosen(**model: Any) -> Settings:
    settings = small_settings(prompts=2)
    return settings.model_copy(update={"model": settings.model.model_copy(update=model)})


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(small_settings(), tmp_path_factory.mktemp("warm"))


def written(settings: Settings, folder: Path) -> Path:
    """A model with random weights."""
    processor = build_processor(settings.model.tiny, QUESTIONS)  # type: ignore[arg-type]
    save(build_model(settings.model.tiny, processor, seed=3), processor, folder)  # type: ignore[arg-type]
    return folder


def adapted_trainer(warm: Path, settings: Settings, folder: Path) -> BatchRewardTrainer:
    """As the step makes it."""
    rows = make_trainer(warm, small_settings(prompts=2), folder / "rows").train_dataset
    model, processor = load(warm, settings.model)
    vision_tower(model).requires_grad_(False)
    return BatchRewardTrainer(
        model=model,
        args=training_arguments(settings.grpo, settings, folder, 1),
        train_dataset=rows,
        processing_class=processor,
        peft_config=lora_config(settings.model),
        settings=settings,
    )


def test_adapters_in_float32_on_weights_in_bf16_and_no_gradient_in_the_tower(warm: Path, tmp_path: Path) -> None:
    settings = chosen(dtype="bfloat16", **ADAPTED)
    trainer = adapted_trainer(warm, settings, tmp_path)
    kinds = {("lora_" in name, weight.dtype) for name, weight in trainer.model.named_parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    assert trainer.accelerator.mixed_precision == "bf16"
    batch = step_batch(trainer)
    batch["advantages"] = torch.linspace(-1, 1, len(batch["advantages"]))
    seen: list[torch.dtype] = []
    layer = next(part for name, part in trainer.model.named_modules() if name.endswith("text_model.layers.1"))
    hook = layer.register_forward_hook(
        lambda _, __, out: seen.append((out[0] if isinstance(out, tuple) else out).dtype)
    )
    _, gradients = loss_and_gradients(trainer, batch)
    hook.remove()
    assert set(seen) == {torch.bfloat16}
    assert gradients
    assert all("lora_" in name and "vision" not in name for name in gradients)
    assert sum(float(gradient.abs().sum()) for gradient in gradients.values()) > 0


def test_bf16_steps_with_adapters_leave_plain_bf16_models(tmp_path: Path) -> None:
    """Warm start and GRPO: adapters merged into the decoder, the tower as it was."""
    ingest = ingested(tmp_path / "world")
    model = {"dtype": "bfloat16", "lora": LORA, "freeze_vision": True}
    sft, grpo = {"max_steps": 2, "eval_every": 2, "lr": 0.02, "warmup_steps": 0}, {"steps": 1}
    settings = write_params(tmp_path / "p.yaml", model=model, sft=sft, grpo=grpo)
    start = base_model(settings, ingest)[0].state_dict()
    where: dict[str, Any] = {"ingest": ingest, "state": tmp_path / "state"}
    track: Any = Curves()
    sft_run(settings, track, validate=ingest, out=tmp_path / "sft", **where)
    run(settings, track, sft=tmp_path / "sft", out=tmp_path / "grpo", **where)
    for name in ("sft", "grpo"):
        weights = load_file(tmp_path / name / "model.safetensors")
        assert weights.keys() == start.keys()
        assert {value.dtype for value in weights.values()} == {torch.bfloat16}
        changed = {key for key, value in weights.items() if not torch.equal(value, start[key])}
        assert any("text_model" in key for key in changed)
        assert not any("vision" in key for key in changed)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_is_that_of_both_halves(attention: str, warm: Path, tmp_path: Path) -> None:
    settings = chosen(attention=attention)
    config = make_trainer(warm, settings, tmp_path).model.config
    assert config.get_text_config()._attn_implementation == config.vision_config._attn_implementation == attention


@pytest.mark.parametrize("checkpointing", [False, True])
def test_checkpointing_computes_a_layer_again(checkpointing: bool, warm: Path, tmp_path: Path) -> None:
    """With it, a decoder layer runs once more on the way back."""
    settings = small_settings(prompts=2, gradient_checkpointing=checkpointing, beta=0.0, accumulation=2)
    trainer = make_trainer(warm, settings, tmp_path)
    batch = step_batch(trainer)
    batch["advantages"] = torch.linspace(-1, 1, len(batch["advantages"]))
    if checkpointing:
        trainer.model.gradient_checkpointing_enable()  # `train` does it
    calls: list[int] = []
    layer: nn.Module = trainer.model.model.text_model.layers[0].input_layernorm
    hook = layer.register_forward_hook(lambda *_: calls.append(1))
    loss_and_gradients(trainer, batch)
    hook.remove()
    assert len(calls) == 1 + checkpointing


def test_compilation_is_asked_for_by_the_setting() -> None:
    for compiled in (False, True):
        settings = chosen(compile=compiled)
        assert training_arguments(settings.grpo, settings, Path("out"), 1).torch_compile is compiled
        assert sft_arguments(settings.sft, settings.model, Path("out")).torch_compile is compiled


def test_a_compiled_model_has_the_same_loss_and_gradients(tmp_path: Path) -> None:
    """Traced, and run without making machine code of it, which takes minutes."""
    tiny = chosen().model.tiny
    assert tiny is not None
    settings = chosen(tiny=tiny.model_copy(update={"vision_layers": 1, "text_layers": 1}))
    trainer = make_trainer(written(settings, tmp_path / "warm"), settings, tmp_path)
    batch = step_batch(trainer)
    batch["advantages"] = torch.linspace(-1, 1, len(batch["advantages"]))
    trainer._kept = None
    loss, gradients = loss_and_gradients(trainer, batch)
    plain = trainer.model
    trainer.model = torch.compile(plain, backend="eager")
    try:
        compiled_loss, compiled_gradients = loss_and_gradients(trainer, batch)
    finally:
        trainer.model = plain
        torch.compiler.reset()
    assert compiled_loss == pytest.approx(loss, abs=1e-6)
    assert {f"_orig_mod.{name}" for name in gradients} == compiled_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(compiled_gradients[f"_orig_mod.{name}"], gradient, atol=1e-6, rtol=1e-4)
